"""What MLflow and the Hub are called: mistakes in names and addresses, told before anything heavy starts.

The rules are those of the servers' own clients, whose import takes seconds. They are checked when a run is to start,
not when settings are read: an old run's settings can always be read.
"""

from __future__ import annotations

import os
import posixpath
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from seqtrack.config.config import Config, ConfigError
from seqtrack.errors import did_you_mean
from seqtrack.hub_files import repository_fault
from seqtrack.locations import shown, without_user

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"

DATABASES = ("postgresql", "mysql", "sqlite", "mssql")
_STORES = "http://HOST:PORT for a server, sqlite:////FOLDER/mlflow.db for a file, postgresql://HOST/NAME"
_LONGEST_EXPERIMENT, _LONGEST_KEY, _LONGEST_RUN_NAME = 500, 250, 250
"""MLflow's limits, in characters."""


def check_servers(config: Config) -> None:
    """Raises ConfigError for a name or an address that its server's client would refuse."""
    named_store(config)
    name, experiment = named_experiment(config)
    if not 0 < len(experiment) <= _LONGEST_EXPERIMENT:
        raise ConfigError(f"{name}: a name of 1 to {_LONGEST_EXPERIMENT} characters is needed, not {len(experiment)}")
    if len(config.MLFLOW.RUN_NAME or "") > _LONGEST_RUN_NAME:
        raise ConfigError(f"MLFLOW.RUN_NAME: longer than {_LONGEST_RUN_NAME} characters")
    for key in config.MLFLOW.TAGS:
        _check_tag(key)
    if config.HUB.REPO_ID is not None:
        check_repository("HUB.REPO_ID", config.HUB.REPO_ID)
    check_hub_variables()


def named_store(config: Config) -> str | None:
    """The MLflow store that the variable MLFLOW_TRACKING_URI names, or else the setting; None if neither does.

    White space around it, such as the line break that `$(cat FILE)` may leave, is no part of it. Raises ConfigError
    for what cannot be a store.
    """
    places = {STORE_VARIABLE: os.environ.get(STORE_VARIABLE), "MLFLOW.TRACKING_URI": config.MLFLOW.TRACKING_URI}
    for name, value in places.items():
        if uri := (value or "").strip():
            if fault := _store_fault(uri):
                raise ConfigError(f"{name} {shown(uri)!r}: {fault}")
            return uri
    return None


def named_experiment(config: Config) -> tuple[str, str]:
    """What names the MLflow experiment, the variable MLFLOW_EXPERIMENT_NAME or the setting, and the name."""
    from_environment = os.environ.get(EXPERIMENT_VARIABLE, "").strip()
    if from_environment:
        return EXPERIMENT_VARIABLE, from_environment
    return "MLFLOW.EXPERIMENT", config.MLFLOW.EXPERIMENT


def check_repository(setting: str, repo_id: str) -> None:
    """Raises ConfigError unless this can be a repository on the Hub, by the rule of `huggingface_hub`."""
    if fault := repository_fault(repo_id):
        raise ConfigError(f"{setting} {repo_id!r}: {fault}")


def check_hub_variables() -> None:
    """Raises ConfigError for variables with which the Hub's client cannot even be imported."""
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if not re.fullmatch(r"\s*\d*\s*", os.environ.get(name, "")):
            raise ConfigError(f"{name} {os.environ[name]!r}: a whole number of seconds is needed")
    if endpoint := os.environ.get("HF_ENDPOINT"):
        try:
            _ = urlsplit(f"//{without_user(endpoint.partition('://')[2])}").port
        except ValueError as error:
            raise ConfigError(f"HF_ENDPOINT {shown(endpoint)!r}: {error}") from error


def _check_tag(key: str) -> None:
    """MLflow's rule for keys; the whole setting is a parameter of the run, too, under its own key."""
    if key == "mlflow.runName":
        raise ConfigError(f"MLFLOW.TAGS: {key} is MLFLOW.RUN_NAME")
    normal = posixpath.normpath(key)
    if not re.fullmatch(r"[/\w.\- :]+", key) or normal != key or normal.startswith(("..", "/")) or normal == ".":
        raise ConfigError(
            f"MLFLOW.TAGS: {key!r} cannot be a tag's name: letters, digits, `_`, `-`, `.`, `:`, spaces, and `/` between"
        )
    if len(f"MLFLOW.TAGS.{key}") > _LONGEST_KEY:
        raise ConfigError(f"MLFLOW.TAGS: a tag's name of {len(key)} characters; MLflow takes {_LONGEST_KEY - 12}")


def _store_fault(uri: str) -> str | None:
    """What is wrong with the form of an MLflow store's URI, and what would be right; None if nothing is."""
    if not uri.isprintable():
        return "has a line break or another letter that cannot be shown"
    scheme = match[1].lower() if (match := re.match(r"([a-zA-Z][a-zA-Z0-9.+-]*):", uri)) else ""
    if re.match(r"(//)?[^/]*:\d+(/|$)", uri):
        return f"has no scheme; http://{without_user(uri)} would be right"
    kind, _, driver = scheme.partition("+")
    if kind in DATABASES and "+" not in driver:
        return _database_fault(uri, kind)
    if scheme in ("http", "https"):
        return _server_fault(uri)
    if scheme == "databricks" or uri == "databricks" or scheme in _plugins():
        return None
    if (scheme in ("", "file") and "://" not in uri.removeprefix("file://")) and uri not in ("uc", "databricks-uc"):
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1"):
            return None
        path = Path(re.sub(r"^file:(//(?=/))?", "", uri)).expanduser().absolute()
        file = path if path.suffix in (".db", ".sqlite", ".sqlite3") else path / "mlflow.db"
        return f"MLflow keeps runs in a database, not in a folder; sqlite:///{file} would be right, or {_STORES}"
    hint = did_you_mean(kind, ("http", "https", *DATABASES))
    return f"no kind of MLflow store{hint or f'; {_STORES}'}"


def _server_fault(uri: str) -> str | None:
    try:
        parts = urlsplit(f"{uri.partition(':')[0]}://{without_user(uri.partition('://')[2])}")
        _ = parts.port
    except ValueError as error:
        return f"{error}; {_STORES}"
    if not parts.hostname or " " in uri:
        return f"names no host; {_STORES}"
    if parts.query or parts.fragment:
        return f"the address of a page, not of the server; {parts.scheme}://{parts.netloc} may be right"
    return None


def _database_fault(uri: str, kind: str) -> str | None:
    if kind == "sqlite":
        named = re.fullmatch(r"[^:]+:///([^?]+).*", uri)
        if named is None:
            return "names no file; three slashes and its path are needed: sqlite:////FOLDER/mlflow.db"
        return "would be lost with the process; sqlite:////FOLDER/mlflow.db" if named[1] == ":memory:" else None
    if "://" not in uri:
        return f"names no host; {kind}://HOST/NAME would be right"
    try:
        _ = urlsplit(f"//{without_user(uri.partition('://')[2]).partition('/')[0]}").port
    except ValueError as error:
        return f"{error}; {kind}://HOST:PORT/NAME would be right"
    return None


def _plugins() -> set[str]:
    """The schemes of stores that other installed packages bring."""
    return {entry.name for entry in metadata.entry_points(group="mlflow.tracking_store")}
