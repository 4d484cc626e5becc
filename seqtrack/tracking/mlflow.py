"""MLflow as a mirror of a run's folder.

Workers write `metrics.jsonl` and checkpoints into the run's folder, whatever MLflow does. A thread of the job brings
the run's page up to date with them. It asks the server what it has, so it can be interrupted anywhere, and sends
nothing twice. A server that is slow, away or failing delays no step; it gets the rest when it is back, or later by

    python -m seqtrack.tracking.mlflow RUN_FOLDER
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)
from pyarrow import fs

from seqtrack.config import SETTINGS_FILE, Config, load_settings
from seqtrack.locations import absolute, child, is_uri, lasting
from seqtrack.model.weights import read_weights
from seqtrack.reports.plots import report_figures
from seqtrack.reports.report import read_phase
from seqtrack.reports.snapshots import snapshot_figure
from seqtrack.training.checkpoint import SUMS_FILE, checkpoint_name, local_copy
from seqtrack.training.runlog import LOG_FILE, METRICS_FILE, read_metrics, read_text

logger = logging.getLogger(__name__)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
MIRROR_FILE = "mlflow.json"
SNAPSHOTS = "snapshots"
SECONDS_BETWEEN_LOOKS = 2.0
LONGEST_PAUSE = 30.0
"""Between two tries at a server that does not take what it is sent."""
SECONDS_TO_OPEN = 20.0
"""So long a start waits for the run's id, which its checkpoints then name."""


@dataclass
class MirrorState:
    """`mlflow.json` in the run's folder."""

    run_id: str | None = None
    """None until a server was reached."""
    status: Status = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    """Beside the settings."""


class Mirror:
    """The MLflow run of one run's folder. `sync` and `finish` send what is missing, and raise what MLflow raises."""

    def __init__(self, config: Config, filesystem: fs.FileSystem, folder: str) -> None:
        self._config, self._filesystem, self._folder = config, filesystem, folder
        self._client = make_client(config)
        self._open = False
        self._sent_step = 0
        self._shown_steps: set[int] = set()
        self._read: list[dict[str, float]] = []
        self._read_version: tuple[Any, Any] = (None, None)
        self._monitor: SystemMetricsMonitor | None = None
        stored = read_text(filesystem, f"{folder}/{MIRROR_FILE}")
        self.state = MirrorState(**json.loads(stored)) if stored else MirrorState()

    def start(self, tags: dict[str, str], params: Mapping[str, Any] | None = None) -> None:
        """Notes in the folder that the run is on, with tags for its page, beside those of earlier starts.

        `params`: what the page has as parameters beside the settings.
        """
        self.state.status, self.state.tags = "RUNNING", self.state.tags | tags
        self.state.params |= params or {}
        self._write_state()

    def end(self, status: Status) -> None:
        self.state.status = status
        self._write_state()

    def sync(self) -> None:
        """Sends what the folder has and MLflow lacks. After an error the next call asks the server what it got."""
        try:
            if not self._open:
                self._open_run()
            self._send_metrics()
            self._send_snapshots()
        except BaseException:
            self._open = False
            raise

    def finish(self) -> None:
        """Sends the rest: log, curves, and how the run ended."""
        self.sync()
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._send_log()
        phase = read_phase(str(self._config.RUN.NAME), self._filesystem, self._folder, self._config.total_steps)
        if phase is not None:
            for name, figure in report_figures(phase, None, None).items():
                self._client.log_figure(self._run_id, figure, f"figures/{name}.png")
        self._client.set_terminated(self._run_id, self.state.status)

    def watch_system(self) -> None:
        """Has MLflow's own metrics of this machine sent, from now on."""
        if self._monitor is None or not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate()):
            uri = tracking_uri(self._config)
            self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def unsent(self) -> int:
        """How many records MLflow is not known to have."""
        return sum(record["step"] > self._sent_step for record in self._records())

    @property
    def _run_id(self) -> str:
        assert self.state.run_id is not None
        return self.state.run_id

    def _records(self) -> list[dict[str, float]]:
        """The file's records, read again only where it has changed: in an object store each look would fetch it."""
        path = f"{self._folder}/{METRICS_FILE}"
        info = self._filesystem.get_file_info(path)
        version = info.size, info.mtime_ns
        if version != self._read_version:
            self._read, self._read_version = read_metrics(self._filesystem, path), version
        return self._read

    def _open_run(self) -> None:
        """Goes on with this folder's MLflow run, or creates it."""
        run = None
        if self.state.run_id is not None:
            try:
                run = self._client.get_run(self.state.run_id)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
                    raise
        tags = {key: value[:MAX_TAG_VAL_LENGTH] for key, value in resolve_tags(self.state.tags).items()}
        if run is None:
            experiment = find_experiment(self._client, self._config)
            name = self._config.MLFLOW.RUN_NAME or self._config.RUN.NAME
            run = self._client.create_run(experiment, run_name=name, tags=tags)
            self.state.run_id = run.info.run_id
            self._write_state()
        else:
            self._client.update_run(self._run_id, status="RUNNING")
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        params = [
            Param(key, str(value)[:MAX_PARAM_VAL_LENGTH])
            for key, value in (self.state.params | self._config.flat()).items()
            if key not in run.data.params
        ]
        for batch in _batches(params, MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._run_id, params=batch)
        self._client.log_text(self._run_id, self._config.to_yaml(), SETTINGS_FILE)
        history = self._client.get_metric_history(self._run_id, "train/loss")
        self._sent_step = max((metric.step for metric in history), default=0)
        pictures = self._client.list_artifacts(self._run_id, SNAPSHOTS)
        self._shown_steps = {int(Path(picture.path).stem.partition("_")[2]) for picture in pictures}
        self._open = True

    def _send_metrics(self) -> None:
        """Whole records only, so that what is there tells what is missing."""
        records = [record for record in self._records() if record["step"] > self._sent_step]
        largest = max(map(len, records), default=1)
        for batch in _batches(records, MAX_METRICS_PER_BATCH // largest):
            metrics = [
                Metric(name, value, int(record["time"]), int(record["step"]))
                for record in batch
                for name, value in record.items()
                if name not in ("time", "step")
            ]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._sent_step = int(batch[-1]["step"])

    def _send_snapshots(self) -> None:
        """The same training crops after each epoch, with the true box and the model's."""
        per_epoch = self._config.steps_per_epoch
        for record in self._records():
            step = int(record["step"])
            if "epoch/loss" not in record or step in self._shown_steps:
                continue
            checkpoint = f"{self._folder}/{checkpoint_name(step // per_epoch, 0)}"
            if self._filesystem.get_file_info(f"{checkpoint}/{SUMS_FILE}").type != fs.FileType.File:
                continue  # still being written, or not kept
            self._send_log()
            with local_copy(self._filesystem, checkpoint) as directory:
                weights = read_weights(directory)
            title = f"Search, epoch {step // per_epoch}"
            figure = snapshot_figure(self._config, [(title, weights)])
            self._client.log_figure(self._run_id, figure, f"{SNAPSHOTS}/step_{step:06d}.png")
            self._shown_steps.add(step)

    def _send_log(self) -> None:
        self._client.log_text(self._run_id, read_text(self._filesystem, f"{self._folder}/{LOG_FILE}"), LOG_FILE)

    def _write_state(self) -> None:
        with self._filesystem.open_output_stream(f"{self._folder}/{MIRROR_FILE}") as file:
            file.write((json.dumps(asdict(self.state), indent=1) + "\n").encode())


class MirrorThread:
    """Keeps a Mirror up to date beside a training, and lets nothing that MLflow does reach the training."""

    def __init__(
        self,
        config: Config,
        filesystem: fs.FileSystem,
        folder: str,
        tags: dict[str, str],
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._shown = without_credentials(tracking_uri(config))
        self._mirror = Mirror(config, filesystem, folder)
        self._mirror.start(tags, params)
        self._location = child(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
        self._opened, self._ended = threading.Event(), threading.Event()
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def run_id(self) -> str | None:
        """The MLflow run's id; None where the server does not answer soon."""
        self._opened.wait(SECONDS_TO_OPEN)
        return self._mirror.state.run_id

    def end(self, status: Status) -> None:
        """The run has ended, so; only the first call counts."""
        if self._ended.is_set():
            return
        try:
            self._mirror.end(status)
        except OSError as error:  # a full disk, say, which may be why the run ended
            logger.warning("%s: the run's status cannot be noted (%s)", self._location, error)
        self._ended.set()

    def close(self, status: Status, patience: float) -> None:
        """Waits until MLflow has everything, for so many seconds at most; then says what it lacks."""
        self.end(status)
        deadline = time.monotonic() + patience
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, 5.0))
            if self._thread.is_alive():
                logger.warning(
                    "waiting for MLflow at %s, %d s more at most%s",
                    self._shown,
                    left,
                    f": {self._problem}" if self._problem else "",
                )
        if self._thread.is_alive():
            logger.warning(
                "MLflow at %s lacks a part of this run (%d records), which is in %s. To deliver it: %s -m %s %s",
                self._shown,
                self._mirror.unsent(),
                self._location,
                Path(sys.executable).name,
                "seqtrack.tracking.mlflow",
                self._location,
            )

    def _run(self) -> None:
        pause = SECONDS_BETWEEN_LOOKS
        while True:
            ended = self._ended.is_set()
            try:
                if ended:
                    self._mirror.finish()
                    return
                self._mirror.sync()
                self._mirror.watch_system()
                self._opened.set()
                if self._problem is not None:
                    logger.warning("MLflow at %s is back", self._shown)
                pause, self._problem = SECONDS_BETWEEN_LOOKS, None
            except Exception as error:  # whatever it is, it must not end this thread: the next try may succeed
                reason = explain(error)
                if self._problem is None:
                    logger.warning("MLflow at %s: %s; training goes on, and it is tried again", self._shown, reason)
                pause, self._problem = min(2 * pause, LONGEST_PAUSE), reason
            if ended:
                time.sleep(pause)
            else:
                self._ended.wait(pause)


def tracking_uri(config: Config) -> str:
    """The store: MLFLOW_TRACKING_URI, else the setting, else a SQLite file beside the runs.

    Where the runs lie in an object store, which cannot hold a SQLite file, it is in this folder's `runs/`.
    """
    folder = lasting("runs") if is_uri(config.RUN.STORAGE_PATH) else config.RUN.STORAGE_PATH
    return os.environ.get(STORE_VARIABLE) or config.MLFLOW.TRACKING_URI or f"sqlite:///{folder}/mlflow.db"


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
    # Beside a SQLite file; a server knows its own place.
    uri = tracking_uri(config)
    file = uri.removeprefix("sqlite:///")
    return client.create_experiment(
        name, artifact_location=str(Path(file).parent / "mlartifacts") if file != uri else None
    )


def open_parent_run(config: Config) -> str | None:
    """The MLflow run that holds the parts of the experiment RUN.NAME: of an earlier start of it, or a new one.

    None, with a warning, where MLflow cannot be reached.
    """
    try:
        client = make_client(config)
        experiment = find_experiment(client, config)
        found = client.search_runs([experiment], f"tags.experiment_of_parts = '{config.RUN.NAME}'", max_results=1)
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


def explain(error: Exception) -> str:
    """What an error says, without the user and password of the URIs that MLflow puts into it."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", str(error))


def without_credentials(uri: str) -> str:
    """The URI as it may be shown: without the user and password that it may hold."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def deliver(location: str) -> Mirror:
    """Brings MLflow up to date with a run's folder. Raises MlflowException, or OSError for the folder."""
    filesystem, folder = fs.FileSystem.from_uri(absolute(location))
    with filesystem.open_input_stream(f"{folder}/{SETTINGS_FILE}") as file:
        config = load_settings(file.read().decode(), f"{location}/{SETTINGS_FILE}")
    mirror = Mirror(config, filesystem, folder)
    mirror.finish()
    return mirror


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def main() -> int:
    parser = argparse.ArgumentParser(description="Bring MLflow up to date with a run's folder.")
    parser.add_argument("run", metavar="RUN_FOLDER", help="folder or URI of the run")
    options = parser.parse_args()
    try:
        mirror = deliver(options.run)
    except (MlflowException, OSError, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"MLflow run {mirror.state.run_id} is up to date with {options.run}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
