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
from mlflow.entities import LifecycleStage, Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.file_utils import ExclusiveFileLock

from seqtrack.config import Config
from seqtrack.config.servers import DATABASES, named_experiment
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import read_text, replacing
from seqtrack.integrations.mirror_state import SECONDS_TO_OPEN
from seqtrack.integrations.parent_run import parents_of_parts, read_parent, write_parent
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
from seqtrack.runs.folder import RunFolder

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
    except StoreError:
        raise
    except Exception as error:
        reason = explain(error) if opened.done() else f"no answer within {patience:g} s"
        raise StoreError(f"{shown_store(config)} cannot be opened: {reason}") from error


def check_store(config: Config) -> None:
    """Raises StoreError if MLFLOW.REQUIRED is set and the store cannot be opened."""
    if config.MLFLOW.REQUIRED:
        open_store(config)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run of an id; None if the store has none, or it was deleted there."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            raise
        return None
    return None if run.info.lifecycle_stage == LifecycleStage.DELETED else run


def find_experiment(client: MlflowClient, config: Config) -> str:
    """Id of the experiment: MLFLOW_EXPERIMENT_ID, or by MLFLOW_EXPERIMENT_NAME or the setting, made if need be."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID", "").strip():
        return number
    _, name = named_experiment(config)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts_beside(tracking_uri(config)))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another process may have made it meanwhile
            if experiment is None:
                raise
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        number = experiment.experiment_id
        raise StoreError(
            f"{shown_store(config)}: the experiment {name} was deleted there; "
            f"`mlflow experiments restore --experiment-id {number}` brings it back, MLFLOW.EXPERIMENT names another"
        )
    return experiment.experiment_id


def open_parent_run(config: Config, kind: Literal["reproduce", "sweep"]) -> str | None:
    """The MLflow run that holds the parts of the experiment in the folder that RUN.NAME names.

    That of an earlier start, whose id is in the folder, or a new one. None, with a warning, where MLflow does not make
    one. Raises StoreError instead if MLFLOW.REQUIRED is set.
    """
    try:
        client, experiment = open_store(config)
        folder = RunFolder.of(config)
        tags = {"experiment_of_parts": str(config.RUN.NAME), "parts_of": kind, "folder": folder.location}
        known = read_parent(folder, kind)
        found = None if known is None else find_run(client, known)
        if found is None:
            # One that began before its folder had the id. It may be shared, with another folder or kind of experiment:
            # then it is the first's that goes on.
            earlier = [find_run(client, one) for one in parents_of_parts(folder, kind)]
            mine = [one for one in earlier if one is not None and tags.items() >= _claims(one).items()]
            found = mine[0] if len(mine) == 1 else None
        if found is None:
            found = client.create_run(experiment, run_name=config.RUN.NAME, tags=resolve_tags(tags))
        else:
            client.log_batch(found.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            client.update_run(found.info.run_id, status="RUNNING")
        if found.info.run_id != known:
            write_parent(folder, kind, found.info.run_id)
        return found.info.run_id
    except Exception as error:
        if config.MLFLOW.REQUIRED:
            raise StoreError(f"no MLflow run for {config.RUN.NAME} as a whole: {explain(error)}") from error
        logger.warning("no MLflow run for %s as a whole: %s", config.RUN.NAME, explain(error))
        return None


def _claims(run: Run) -> dict[str, str]:
    """What a parent run says of whose it is. Those of older versions say nothing."""
    return {key: value for key, value in run.data.tags.items() if key in ("parts_of", "folder")}


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

    A number that another one replaces at its step gets a later time: of these MLflow shows the latest. A metric is
    called BENCHMARK/PROTOCOL/measure. Raises what MLflow raises.
    """
    now = int(time.time() * 1000)
    found: dict[str, list[tuple[float, int]]] = {}
    for one in evaluations:
        for name, value in one.measures.items():
            found.setdefault(f"{one.series}/{name}", []).append((value, one.step))
    for name, points in found.items():
        there = sorted(client.get_metric_history(run_id, name), key=lambda one: one.timestamp)
        shown = {one.step: one.value for one in there}
        later = max(now, there[-1].timestamp + 1) if there else now
        new = [Metric(name, value, later, step) for value, step in points if shown.get(step) != value]
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
