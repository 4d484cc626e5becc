"""The MLflow store: which one it is, its client, its experiments, and the runs that hold other runs."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from seqtrack.config import Config
from seqtrack.failures import explain
from seqtrack.locations import is_uri, lasting

logger = logging.getLogger(__name__)

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"


def tracking_uri(config: Config) -> str:
    """The store: MLFLOW_TRACKING_URI, else the setting, else a SQLite file beside the runs.

    Where the runs lie in an object store, which cannot hold a SQLite file, it is in this folder's `runs/`.
    """
    folder = lasting("runs") if is_uri(config.RUN.STORAGE_PATH) else config.RUN.STORAGE_PATH
    return os.environ.get(STORE_VARIABLE) or config.MLFLOW.TRACKING_URI or sqlite_uri(Path(folder, "mlflow.db"))


def sqlite_uri(file: Path) -> str:
    """The store in a SQLite file. SQLAlchemy decodes `%20` in a URI, and takes `?` for the beginning of options."""
    return SQLITE + re.sub(r"%(?=[0-9a-fA-F]{2})|\?", lambda found: quote(found[0]), str(file))


def artifacts_beside(uri: str) -> str | None:
    """The place for the artifacts of the store in a SQLite file; None for a server, which knows its own place."""
    if not uri.startswith(SQLITE):
        return None
    file = Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))
    return (file.absolute().parent / "mlartifacts").as_uri()  # as a path, MLflow would decode %20 in it


def make_client(config: Config) -> MlflowClient:
    for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.ERROR)  # every table of a new store, every try again
    # MLflow's own patience with a server is minutes for each request; ours is a loop that can be ended.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    # The link that it prints at a run's end has the password that a server's URI may have.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    return MlflowClient(tracking_uri(config))


def find_experiment(client: MlflowClient, config: Config) -> str:
    """Id of the experiment: MLFLOW_EXPERIMENT_ID, or by MLFLOW_EXPERIMENT_NAME or the setting, made if need be."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.MLFLOW.EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    return client.create_experiment(name, artifact_location=artifacts_beside(tracking_uri(config)))


def open_parent_run(config: Config) -> str | None:
    """The MLflow run that holds the parts of the experiment RUN.NAME: of an earlier start of it, or a new one.

    None, with a warning, where MLflow cannot be reached.
    """
    try:
        client = make_client(config)
        experiment = find_experiment(client, config)
        mark = '"' if "'" in str(config.RUN.NAME) else "'"
        ours = f"tags.experiment_of_parts = {mark}{config.RUN.NAME}{mark}"
        found = client.search_runs([experiment], ours, max_results=1)
        if found:
            return found[0].info.run_id
        tags = resolve_tags({"experiment_of_parts": str(config.RUN.NAME)})
        return client.create_run(experiment, run_name=config.RUN.NAME, tags=tags).info.run_id
    except MlflowException as error:
        logger.warning("no MLflow run for %s as a whole: %s", config.RUN.NAME, explain(error))
        return None


def close_parent_run(
    config: Config, run_id: str | None, folder: Path, metrics: dict[str, float], status: Literal["FINISHED", "FAILED"]
) -> None:
    """Puts a report's files into the run's artifacts, under `report`, and its numbers into the run's metrics.

    Warns where MLflow cannot be reached. Does nothing without a run.
    """
    if run_id is None:
        return
    now = int(time.time() * 1000)
    try:
        client = make_client(config)
        client.log_artifacts(run_id, str(folder), "report")
        client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
        client.set_terminated(run_id, status)
    except MlflowException as error:
        logger.warning("MLflow did not take the report; the same command tries again: %s", explain(error))


def without_credentials(uri: str) -> str:
    """The URI as it may be shown: without the user and password that it may hold."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri
