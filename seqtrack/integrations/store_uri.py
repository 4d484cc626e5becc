"""Which MLflow store it is, and where. Imports no MLflow, which takes seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from seqtrack.config import Config
from seqtrack.config.servers import STORE_VARIABLE, named_store
from seqtrack.failures import without_passwords
from seqtrack.locations import is_uri, lasting

SQLITE = "sqlite:///"
EVALUATION = "evaluation"
"""Folder of an evaluation's page among a run's artifacts."""


def tracking_uri(config: Config) -> str:
    """The store: MLFLOW_TRACKING_URI, else the setting, else a SQLite file beside the runs.

    Where the runs lie in an object store, which cannot hold a SQLite file, it is in this folder's `runs/`. Raises
    ConfigError for what cannot be a store.
    """
    folder = lasting("runs") if is_uri(config.RUN.STORAGE_PATH) else config.RUN.STORAGE_PATH
    return named_store(config) or sqlite_uri(Path(folder, "mlflow.db"))


def sqlite_uri(file: Path) -> str:
    """The store in a SQLite file. SQLAlchemy decodes `%20` in a URI, and takes `?` for the beginning of options."""
    return SQLITE + re.sub(r"%(?=[0-9a-fA-F]{2})|\?", lambda found: quote(found[0]), str(file))


def artifacts_beside(uri: str) -> str | None:
    """The place for the artifacts of the store in a SQLite file; None for a server, which knows its own place."""
    file = sqlite_file(uri)  # given as a URI, since MLflow would decode %20 in a path
    return None if file is None else (file.absolute().parent / "mlartifacts").as_uri()


def shown_store(config: Config) -> str:
    """The store as messages name it."""
    return f"MLflow at {without_passwords(tracking_uri(config))}"


def with_one_store(config: Config) -> Config:
    """The settings with one store for all parts of an experiment. By default each would have one beside its folder.

    What the environment names stays there: it holds for all parts anyway, and may have a password.
    """
    if os.environ.get(STORE_VARIABLE, "").strip():
        return config
    return config.with_settings({"MLFLOW.TRACKING_URI": tracking_uri(config)})


def sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for other stores."""
    if not uri.lower().startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    return Path(database) if database and not database.startswith("file:") else None
