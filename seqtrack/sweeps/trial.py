"""One trial: a training of its own, in its own folder, that tells Ray Tune about each epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray
from pyarrow import fs
from ray import tune
from ray.train import Checkpoint
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from seqtrack.config import Config
from seqtrack.data.lasot import FrameIndex
from seqtrack.data.storage import Root
from seqtrack.locations import child
from seqtrack.model.weights import starting_weights
from seqtrack.sweeps.results import TRIALS, Trial, TrialNote, read_note, read_trial, write_note
from seqtrack.sweeps.settings import Params, Sweep, trial_name
from seqtrack.training.runlog import LOG_FILE, RunLogHandler
from seqtrack.training.trainer import (
    Data,
    Resources,
    build_trainer,
    check_checkpoint,
    describe_dataset,
    explain_failure,
    log_start,
    make_job,
    open_run_folder,
    own_checkpoint,
    write_settings,
)
from seqtrack.training.worker import Ended, HopelessError


class TrialFailed(RuntimeError):
    """The message says why, in a line."""


@dataclass(frozen=True)
class TrialSetting:
    """What every trial of a sweep is given."""

    config: Config
    """Of the sweep: RUN.NAME is the sweep's."""
    sweep: Sweep
    index_ref: ray.ObjectRef[FrameIndex]
    """Read once, by the sweep."""
    root: Root
    resources: Resources
    stop: ray.actor.ActorHandle
    """The StopRequest of all trials."""

    def trial_config(self, params: Params) -> Config:
        """A trial's whole configuration, which train.py can take as it is."""
        storage = child(child(self.config.RUN.STORAGE_PATH, str(self.config.RUN.NAME)), TRIALS)
        return self.config.with_settings(
            {**params, "RUN.STORAGE_PATH": storage, "RUN.NAME": trial_name(params)}, "trial"
        )


class EpochReports(TuneReportCallback):
    """Passes on what Ray Train is told at each epoch's end, not at the checkpoints between."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if "epoch" in metrics[0]:
            super().after_report(run_context, metrics, None)


def run_trial(params: Params, setting: TrialSetting) -> None:
    """Trains a trial, from its own newest checkpoint if it has one. Raises TrialFailed."""
    config = setting.trial_config(params)
    filesystem, folder = open_run_folder(config)
    note = read_note(filesystem, folder) or TrialNote(params)
    if note.hopeless:
        raise TrialFailed(note.reason)
    trial = read_trial(filesystem, folder, note)
    # What an earlier start of the trial reported: the scheduler, which may be new, must know it too.
    for epoch in trial.history:
        tune.report(dict(epoch))
    if trial.ended or is_complete(trial, config, setting.sweep) or ray.get(setting.stop.is_requested.remote()):
        return
    write_note(filesystem, folder, replace(note, status="unfinished", reason=""))
    try:
        ended = _train(config, setting, filesystem, folder)
        if ended.error is not None:
            raise ended.error
    except HopelessError as error:
        write_note(filesystem, folder, replace(note, status="failed", reason=str(error), hopeless=True))
        raise TrialFailed(str(error)) from error
    except TrainingFailedError as error:
        reason = explain_failure(error)
        write_note(filesystem, folder, replace(note, status="failed", reason=reason))
        raise TrialFailed(reason) from error


def is_complete(trial: Trial, config: Config, sweep: Sweep) -> bool:
    """Whether it was trained to its end, or to what the sweep's `stop` asks."""
    return len(trial.history) >= sweep.epochs(config) or any(sweep.is_enough(epoch) for epoch in trial.history)


def _train(config: Config, setting: TrialSetting, filesystem: fs.FileSystem, folder: str) -> Ended:
    data = Data(ray.get(setting.index_ref), setting.root)
    start = own_checkpoint(filesystem, folder)
    if start is not None:
        check_checkpoint(config, start, describe_dataset(data.index), finished_is_fine=True)
    weights, source = starting_weights(config) if start is None else ({}, start.path)
    write_settings(config, filesystem, folder)
    # Ended by itself and not by Ray Tune, which kills: what was killed is cleaned up later, and not always.
    config = config.with_settings({"TRAIN.EPOCH": setting.sweep.epochs(config)})
    job = make_job(config, data, setting.index_ref, setting.resources, start, weights, stop=setting.stop)
    log_start(job, setting.resources, source, RunLogHandler(filesystem, f"{folder}/{LOG_FILE}"))
    return build_trainer(job, setting.resources, [EpochReports()]).fit().return_value
