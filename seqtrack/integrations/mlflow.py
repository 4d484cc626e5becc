"""MLflow as a mirror of a run's folder.

Workers write `metrics.jsonl` and checkpoints into the run's folder, whatever MLflow does. A thread of the job brings
the run's page up to date with them. It asks the server what it has, so it can be interrupted anywhere, and sends
nothing twice. A server that is slow, away or failing delays no step; it gets the rest when it is back, or later by

    seqtrack deliver RUN_FOLDER
"""

from __future__ import annotations

import functools
import logging
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.validation import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)
from pyarrow import ArrowException

from seqtrack.config import SETTINGS_FILE, Config
from seqtrack.integrations.mirror_state import MirrorNote, shown_changes
from seqtrack.integrations.mlflow_store import (
    EVALUATION,
    find_experiment,
    find_run,
    make_client,
    send_evaluations,
    tracking_uri,
)
from seqtrack.model.weights import read_weights
from seqtrack.reports.plots import report_figures
from seqtrack.reports.snapshots import snapshot_figure
from seqtrack.runs.checkpoint import StoredCheckpoint, whole_checkpoints
from seqtrack.runs.evaluations import EVALUATIONS_FILE, read_evaluations
from seqtrack.runs.folder import RunFileError, RunFolder, read_settings
from seqtrack.runs.growing import Tail, copy_text
from seqtrack.runs.log import LOG_FILE, NewRecords
from seqtrack.runs.record import read_phase
from seqtrack.sums import NAME, CheckpointError, checkpoint_name

logger = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
CHANGED = "changed/"
"""Before a setting's name: the tag that tells of its changes."""
REPLACED = "trained_again"
"""The tag that tells which points are of earlier starts."""


class Mirror:
    """The MLflow run of one run's folder. `sync` and `finish` send what is missing, and raise what MLflow raises."""

    def __init__(self, config: Config, run: RunFolder, note: MirrorNote | None = None) -> None:
        """`note`: given if another thread writes it too. Raises RunFileError if the folder's `mlflow.json` is empty or
        cut off."""
        self._config, self._run = config, run
        self.note = note or MirrorNote(run)
        self._open = False
        self._records = NewRecords(run, 0)
        self._evaluations = Tail(run, EVALUATIONS_FILE)
        self._sent_time = 0.0
        """That of the last record which MLflow has, in ms. Later ones are new to it: `MetricsFile` takes care of it."""
        self._last_step = 0
        """The last that MLflow has a point of, perhaps of an earlier start that got further."""
        self._checkpoints: list[str] = []
        """Those that the last look found."""
        self._pictures_due: set[int] = set()
        """Steps at which an epoch ended whose picture MLflow lacks."""
        self._pictures_settled: set[int] = set()
        """Those whose picture it has, or whose checkpoint was not kept."""
        self._monitor: SystemMetricsMonitor | None = None

    def sync(self) -> None:
        """Sends what the folder has and MLflow lacks. After an error the next call asks the server what it got."""
        try:
            if not self._open:
                self._open_run()
            for records in self._records.read():
                self._send_metrics(records)
            self._send_snapshots()
            if list(self._evaluations.read()):
                send_evaluations(self._client, self._run_id, read_evaluations(self._run))
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
        self._send_evaluation_page()
        phase = read_phase(str(self._config.RUN.NAME), self._run, self._config.total_steps)
        if phase is not None:
            for name, figure in report_figures(phase, None, None).items():
                self._client.log_figure(self._run_id, figure, f"figures/{name}.png")
        self._client.set_terminated(self._run_id, self.note.state.status)

    def watch_system(self) -> None:
        """Has MLflow's own metrics of this machine sent, from now on."""
        if self._monitor is None or not any(thread.name == "SystemMetricsMonitor" for thread in threading.enumerate()):
            uri = tracking_uri(self._config)
            self._monitor = SystemMetricsMonitor(self._run_id, resume_logging=True, tracking_uri=uri)
            self._monitor.start()

    def unsent(self) -> int:
        """How many records MLflow is not known to have. Reads them. Raises OSError or ArrowException."""
        return sum(map(len, NewRecords(self._run, self._sent_time).read()))

    @functools.cached_property
    def _client(self) -> MlflowClient:
        """Made when it is first needed, in the mirror's own thread: that may fail, and is then tried again."""
        return make_client(self._config)

    @property
    def _run_id(self) -> str:
        assert self.note.state.run_id is not None
        return self.note.state.run_id

    def _open_run(self) -> None:
        """Goes on with this folder's MLflow run, or creates it."""
        run = None
        if self.note.state.run_id is not None:
            run = find_run(self._client, self.note.state.run_id)
        tags = {key: value[:MAX_TAG_VAL_LENGTH] for key, value in resolve_tags(self.note.state.tags).items()}
        if run is None:
            experiment = find_experiment(self._client, self._config)
            name = self._config.MLFLOW.RUN_NAME or self._config.RUN.NAME
            run = self._client.create_run(experiment, run_name=name, tags=tags)
            self.note.open(run.info.run_id)
        else:
            self.note.open(run.info.run_id)
            self._client.update_run(self._run_id, status="RUNNING")
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._send_settings(run)
        # Of each metric, a run has the point with the highest step, and of those at this step the one with the latest
        # time. All records up to that time were sent, because they are sent in the order of their times.
        newest = [point for point in run.to_proto().data.metrics if point.key == "train/loss"]
        self._sent_time, self._last_step = (newest[0].timestamp, newest[0].step) if newest else (0, 0)
        self._records = NewRecords(self._run, self._sent_time, self._tell_replaced)
        self._find_missing_pictures()
        self._evaluations = Tail(self._run, EVALUATIONS_FILE)
        self._open = True

    def _send_settings(self, run: Run) -> None:
        """Parameters stay as they were first sent: MLflow changes none. What holds now is told by tags."""
        now = {key: str(value) for key, value in (self.note.state.params | self._config.flat()).items()}
        changed = shown_changes(self.note.state.changes)
        new, tags = [], []
        for key, value in now.items():
            param, value = run.data.params.get(key), value[:MAX_PARAM_VAL_LENGTH]
            if param is None:
                new.append(Param(key, value))
            elif param != value and key not in changed:  # the change is older than what the folder knows
                changed[key] = f"{value} (before: {param})"
        for key, text in changed.items():
            if run.data.tags.get(f"{CHANGED}{key}") != text:
                tags.append(RunTag(f"{CHANGED}{key}", text[:MAX_TAG_VAL_LENGTH]))
        for batch in _batches(new, MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._run_id, params=batch)
        for batch in _batches(tags, MAX_PARAMS_TAGS_PER_BATCH):
            self._client.log_batch(self._run_id, tags=batch)
        for tag in run.data.tags:
            if tag.startswith(CHANGED) and tag.removeprefix(CHANGED) not in changed:
                self._client.delete_tag(self._run_id, tag)
        self._client.log_text(self._run_id, self._config.to_yaml(), SETTINGS_FILE)

    def _tell_replaced(self, step: float) -> None:
        """Records after `step` are new to MLflow. Points that it has there are of an earlier start, and cannot be
        removed: a tag tells of them. New ones are later, so they are what it shows as the run's."""
        if step < self._last_step:
            told = self._client.get_run(self._run_id).data.tags.get(REPLACED, "").partition(" :")[0]
            steps = f"steps {int(step) + 1} to {self._last_step}"
            if steps not in told.split(", "):
                text = f"{told}{told and ', '}{steps} : of two points at a step, the later one is the run's"
                self._client.set_tag(self._run_id, REPLACED, text[-MAX_TAG_VAL_LENGTH:])

    def _send_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Whole records only, so that what is there tells what is missing."""
        largest = max(map(len, records), default=1)
        for batch in _batches(records, MAX_METRICS_PER_BATCH // largest):
            metrics = [
                Metric(name, value, int(record["time"]), int(record["step"]))
                for record in batch
                for name, value in record.items()
                if name not in ("time", "step")
            ]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._sent_time = batch[-1]["time"]
            self._last_step = max(self._last_step, int(batch[-1]["step"]))
            epochs = {int(record["step"]) for record in batch if "epoch/loss" in record}
            self._pictures_due |= epochs
            self._pictures_settled -= epochs  # a picture that is there is of an earlier start

    def _find_missing_pictures(self) -> None:
        """Those of the epochs whose checkpoints are there."""
        pictures = self._client.list_artifacts(self._run_id, SNAPSHOTS)
        self._pictures_settled |= {int(Path(picture.path).stem.partition("_")[2]) for picture in pictures}
        self._pictures_settled -= self._pictures_due
        self._checkpoints = whole_checkpoints(self._run, self._checkpoints)
        epochs = [match[1] for name in self._checkpoints if (match := NAME.fullmatch(name)) and not match[2]]
        steps = {int(epoch) * self._config.steps_per_epoch for epoch in epochs}
        self._pictures_due |= steps - self._pictures_settled

    def _send_snapshots(self) -> None:
        """The same training crops after each epoch, with the true box and the model's."""
        if self._pictures_due:
            self._checkpoints = whole_checkpoints(self._run, self._checkpoints)
        names = self._checkpoints
        for step in sorted(self._pictures_due):
            epoch = step // self._config.steps_per_epoch
            name = checkpoint_name(epoch, 0)
            if name in names:
                self._send_log()
                self._send_snapshot(epoch, step, name)
            elif not names or names[-1] < name:
                continue  # still being written
            self._pictures_settled.add(step)
        self._pictures_due -= self._pictures_settled

    def _send_snapshot(self, epoch: int, step: int, name: str) -> None:
        """The picture of one epoch, unless its checkpoint is damaged, which is said."""
        try:
            with StoredCheckpoint(self._run, name).verified() as (directory, _):
                weights = read_weights(directory)
        except CheckpointError as error:
            if name in whole_checkpoints(self._run):  # or else it was not kept
                logger.warning("MLflow : epoch %d has no picture: %s", epoch, error)
            return
        figure = snapshot_figure(self._config, [(f"Search, epoch {epoch}", weights)])
        self._client.log_figure(self._run_id, figure, f"{SNAPSHOTS}/step_{step:06d}.png")

    def _send_log(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # a copy, because the log may grow while it is sent
            copy = Path(folder, LOG_FILE)
            copy_text(self._run, LOG_FILE, copy)
            self._client.log_artifact(self._run_id, str(copy))

    def _send_evaluation_page(self) -> None:
        page = f"{EVALUATION}/index.html"
        if self._run.has(page):
            self._client.log_text(self._run_id, self._run.read_text(page) or "", page)


def deliver(location: str) -> Mirror:
    """Brings MLflow up to date with the run in a folder, which no training writes meanwhile.

    Raises InputError if there is no run, OSError if the folder cannot be read, and whatever MLflow raises.
    """
    try:
        run = RunFolder.at(location)
        config = read_settings(run)
    except ArrowException as error:
        raise RunFileError(f"{location}: cannot be read ({error})") from error
    if config is None:
        raise RunFileError(f"{run.file(SETTINGS_FILE)}: no such file; this is not the folder of a run")
    mirror = Mirror(config, run)
    mirror.finish()
    return mirror


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
