"""Runs in MLflow: opened and closed by the job, filled by a callback with what the training reports."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from ray.train import Checkpoint, UserCallback

from seqtrack.config import Config
from seqtrack.locations import is_uri

logger = logging.getLogger(__name__)

PARAMS_PER_REQUEST = 100  # MLflow's own limits
METRICS_PER_REQUEST = 1000
PARAM_LENGTH = 6000
METRIC_NAMES = {
    "loss": "train/loss",
    "iou": "train/iou",
    "accuracy": "train/accuracy",
    "grad_norm": "train/grad_norm",
    "samples_per_second": "perf/samples_per_second",
    "data_wait_fraction": "perf/data_wait_fraction",
}


def tracking_uri(config: Config) -> str:
    """The store: MLFLOW_TRACKING_URI, else the setting, else a SQLite file beside the runs.

    Where the runs lie in an object store, which cannot hold a SQLite file, it is in this folder's `runs/`.
    """
    folder = str(Path("runs").absolute()) if is_uri(config.RUN.STORAGE_PATH) else config.RUN.STORAGE_PATH
    return os.environ.get("MLFLOW_TRACKING_URI") or config.MLFLOW.TRACKING_URI or f"sqlite:///{folder}/mlflow.db"


def open_run(config: Config, tags: dict[str, str]) -> str:
    """Creates the MLflow run with every setting as a parameter and returns its id. Raises MlflowException."""
    client, experiment_id = _open_store(config)
    run_id = client.create_run(experiment_id, run_name=config.RUN.NAME, tags=tags).info.run_id
    params = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in config.flat().items()]
    for first in range(0, len(params), PARAMS_PER_REQUEST):
        client.log_batch(run_id, params=params[first : first + PARAMS_PER_REQUEST])
    client.log_text(run_id, config.to_yaml(), "config.yaml")
    return run_id


def open_parent_run(config: Config) -> str:
    """The MLflow run that holds the parts of the experiment RUN.NAME: of an earlier start of it, or a new one."""
    client, experiment_id = _open_store(config)
    found = client.search_runs([experiment_id], f"tags.experiment_of_parts = '{config.RUN.NAME}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"experiment_of_parts": str(config.RUN.NAME)}
    return client.create_run(experiment_id, run_name=config.RUN.NAME, tags=tags).info.run_id


def log_report(config: Config, run_id: str, folder: Path, metrics: dict[str, float]) -> None:
    """Puts a report's files into the run's artifacts, under `report`, and its numbers into the run's metrics."""
    client = MlflowClient(tracking_uri(config))
    client.log_artifacts(run_id, str(folder), "report")
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)


def _open_store(config: Config) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, made if need be."""
    for chatty in ("alembic", "mlflow.store.db.utils"):  # they announce every table of a new store
        logging.getLogger(chatty).setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri(config))
    experiment = client.get_experiment_by_name(config.MLFLOW.EXPERIMENT)
    if experiment is not None:
        experiment_id = experiment.experiment_id
    else:
        # Beside a SQLite file; a server knows its own place.
        file = tracking_uri(config).removeprefix("sqlite:///")
        artifacts = str(Path(file).parent / "mlartifacts") if file != tracking_uri(config) else None
        experiment_id = client.create_experiment(config.MLFLOW.EXPERIMENT, artifact_location=artifacts)
    return client, experiment_id


def close_run(config: Config, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    MlflowClient(tracking_uri(config)).set_terminated(run_id, status)


class MlflowCallback(UserCallback):
    """Sends each report's metrics. What cannot be delivered is kept and sent with the next report."""

    def __init__(self, uri: str, run_id: str) -> None:
        self._uri, self._run_id = uri, run_id
        self._unsent: list[Metric] = []

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        self._unsent.extend(report_metrics(metrics[0]))
        client = MlflowClient(self._uri)
        try:
            while self._unsent:
                client.log_batch(self._run_id, metrics=self._unsent[:METRICS_PER_REQUEST])
                del self._unsent[:METRICS_PER_REQUEST]
        except MlflowException as error:
            logger.warning("MLflow %s did not take %d metrics: %s", self._uri, len(self._unsent), error)


def report_metrics(report: dict[str, Any]) -> list[Metric]:
    """The MLflow metrics of one `ray.train.report`: its intervals as `train/` and `perf/`, its epoch as `epoch/`."""
    now = int(time.time() * 1000)
    entries = [
        Metric(METRIC_NAMES[name], value, now, int(interval["step"]))
        for interval in report["intervals"]
        for name, value in interval.items()
        if name in METRIC_NAMES
    ]
    summary = report.get("epoch_summary", {})
    entries += [
        Metric(f"epoch/{name}", value, now, int(summary["step"]))
        for name, value in summary.items()
        if name not in ("epoch", "step")
    ]
    return entries
