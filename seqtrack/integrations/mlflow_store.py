"""The MLflow store: its client, its experiments, and the runs that hold other runs."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.file_utils import ExclusiveFileLock

from seqtrack.config import Config
from seqtrack.config.servers import DATABASES, named_experiment
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import read_text, replacing
from seqtrack.integrations.mirror_state import SECONDS_TO_OPEN
from seqtrack.integrations.store_uri import (
    EVALUATION,
    artifacts_beside,
    shown_store,
    sqlite_file,
    sqlite_uri,
    tracking_uri,
)
from seqtrack.locations import filesystem_at
from seqtrack.runs.evaluations import CheckpointScores

logger = logging.getLogger(__name__)

_CHATTY = (
    *("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor", "urllib3"),
    "mlflow.utils.databricks_utils",
)
"""What logs every table of a new store, every try again, or errors that reach us anyway, some with a traceback."""

SECONDS_FOR_TABLES = 120.0
"""A new file's tables are made in a second or two, on a busy machine in many."""


class StoreError(InputError):
    """The MLflow store cannot be opened. The message says which and why, in a line."""


def make_client(config: Config) -> MlflowClient:
    """A client of the store. Making one opens a database, and may raise anything."""
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(logging.CRITICAL)
    # MLflow's own patience with a server is minutes for each request; ours is a loop that can be ended.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    # The link that it prints at a run's end has the password that a server's URI may have.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    uri = tracking_uri(config)
    if uri.partition(":")[0].partition("+")[0].lower() in DATABASES:
        from mlflow.store.db import utils  # takes a second, and servers do not need it

        utils.MAX_RETRY_COUNT = 1  # else it tries for 100 s, without a word
    file = sqlite_file(uri)
    if file is None:
        return MlflowClient(uri)
    # MLflow makes a database's tables, and changes those of an older version, in many steps. Two processes at it at
    # once fail, both of them perhaps, and what they leave cannot be opened. So does a process that is killed amid it.
    file.parent.mkdir(parents=True, exist_ok=True)
    with ExclusiveFileLock(str(file.with_name(f".{file.name}.lock"))):
        if not file.exists():
            _make_database(file)
        return MlflowClient(uri)


def open_store(config: Config) -> tuple[MlflowClient, str]:
    """A client of the store and the id of the experiment, which is made if need be.

    Raises StoreError where that fails or takes longer than SECONDS_TO_OPEN, for a file SECONDS_FOR_TABLES.
    """
    opened: Future[tuple[MlflowClient, str]] = Future()

    def work() -> None:
        try:
            client = make_client(config)
            opened.set_result((client, find_experiment(client, config)))
        except Exception as error:
            opened.set_exception(error)

    threading.Thread(target=work, name="opens MLflow's store", daemon=True).start()
    patience = SECONDS_FOR_TABLES if tracking_uri(config).lower().startswith("sqlite") else SECONDS_TO_OPEN
    try:
        return opened.result(patience)
    except Exception as error:
        reason = explain(error) if opened.done() else f"no answer within {patience:g} s"
        raise StoreError(f"{shown_store(config)} cannot be opened: {reason}") from error


def check_store(config: Config) -> None:
    """Raises StoreError if MLFLOW.REQUIRED is set and the store cannot be opened."""
    if config.MLFLOW.REQUIRED:
        open_store(config)


def find_experiment(client: MlflowClient, config: Config) -> str:
    """Id of the experiment: MLFLOW_EXPERIMENT_ID, or by MLFLOW_EXPERIMENT_NAME or the setting, made if need be."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip():
        return number
    _, name = named_experiment(config)
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts_beside(tracking_uri(config)))
    except MlflowException:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id  # another process made it meanwhile


def open_parent_run(config: Config) -> str | None:
    """The MLflow run that holds the parts of the experiment RUN.NAME: of an earlier start of it, or a new one.

    None, with a warning, where MLflow does not make one. Raises StoreError instead if MLFLOW.REQUIRED is set.
    """
    try:
        client, experiment = open_store(config)
        mark = '"' if "'" in str(config.RUN.NAME) else "'"
        ours = f"tags.experiment_of_parts = {mark}{config.RUN.NAME}{mark}"
        found = client.search_runs([experiment], ours, max_results=1)
        if found:
            return found[0].info.run_id
        tags = resolve_tags({"experiment_of_parts": str(config.RUN.NAME)})
        return client.create_run(experiment, run_name=config.RUN.NAME, tags=tags).info.run_id
    except Exception as error:
        if config.MLFLOW.REQUIRED:
            raise StoreError(f"no MLflow run for {config.RUN.NAME} as a whole: {explain(error)}") from error
        logger.warning("no MLflow run for %s as a whole: %s", config.RUN.NAME, explain(error))
        return None


def close_parent_run(
    config: Config, run_id: str | None, folder: Path, metrics: dict[str, float], status: Literal["FINISHED", "FAILED"]
) -> None:
    """Puts a report's files into the run's artifacts, under `report`, and its numbers into the run's metrics.

    Warns where MLflow does not take them. Does nothing without a run.
    """
    if run_id is None:
        return
    now = int(time.time() * 1000)
    try:
        client = make_client(config)
        client.log_artifacts(run_id, str(folder), "report")
        client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
        client.set_terminated(run_id, status)
    except Exception as error:
        logger.warning("MLflow did not take the report; the same command tries again: %s", explain(error))


def send_evaluations(client: MlflowClient, run_id: str, evaluations: Sequence[CheckpointScores]) -> None:
    """Adds the numbers of checkpoints to their run, at their steps, those that it does not have yet.

    A metric is called BENCHMARK/PROTOCOL/measure. Raises what MLflow raises.
    """
    now = int(time.time() * 1000)
    found: dict[str, list[tuple[float, int]]] = {}
    for one in evaluations:
        for name, value in one.measures.items():
            found.setdefault(f"{one.series}/{name}", []).append((value, one.step))
    for name, points in found.items():
        known = {(one.value, one.step) for one in client.get_metric_history(run_id, name)}
        new = [Metric(name, value, now, step) for value, step in points if (value, step) not in known]
        if new:
            client.log_batch(run_id, metrics=new)


def log_evaluation(config: Config, run_id: str, evaluations: Sequence[CheckpointScores]) -> None:
    """Does what `send_evaluations` does, after a training. Warns where MLflow does not take them."""
    try:
        send_evaluations(make_client(config), run_id, evaluations)
    except Exception as error:
        logger.warning("MLflow did not take the evaluation; the same command tries again: %s", explain(error))


def log_page(config: Config, run_id: str, page: str) -> None:
    """Adds the page at a path or URI to a run's artifacts, as `evaluation/index.html`. Warns if that fails."""
    try:
        text = read_text(*filesystem_at(page)) or ""
        make_client(config).log_text(run_id, text, f"{EVALUATION}/index.html")
    except Exception as error:
        logger.warning("MLflow did not take the evaluation's page; the same command tries again: %s", explain(error))


def _make_database(file: Path) -> None:
    """Makes an empty SQLite store, which appears whole."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    # SQLite lets nobody but the owner write what it makes, so the file is there before it.
    with replacing(file) as made:
        SqlAlchemyStore(sqlite_uri(made), artifacts_beside(sqlite_uri(file))).engine.dispose()
