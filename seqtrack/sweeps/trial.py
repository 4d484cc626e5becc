"""One trial: a training of its own, in its own folder, that tells Ray Tune about each epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import ray
from ray import tune
from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.cluster.resources import Resources
from seqtrack.config import Config
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.open import Data
from seqtrack.data.storage import Root
from seqtrack.errors import InputError
from seqtrack.experiments.prepare import log_start, prepare
from seqtrack.integrations.mirror_state import SECONDS_TO_OPEN, MirrorState
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.sweeps.epoch_reports import EpochReports
from seqtrack.sweeps.results import TRIALS, Trial, TrialNote, read_note, read_trial, write_note
from seqtrack.sweeps.settings import Params, Sweep, trial_name
from seqtrack.training.loop import Ended, HopelessError
from seqtrack.training.trainer import build_trainer, explain_failure, make_job


class TrialFailed(RuntimeError):
    """The message says why, in a line."""


@dataclass(frozen=True)
class TrialSetting:
    """What every trial of a sweep is given."""

    config: Config
    """The sweep's: RUN.NAME is the sweep's name."""
    sweep: Sweep
    folder: RunFolder
    """The sweep's."""
    index_ref: ray.ObjectRef[FrameIndex]
    """The index, which the sweep reads once for all trials."""
    root: Root
    resources: Resources
    stop: ray.actor.ActorHandle
    """The StopRequest of all trials."""

    def trial_folder(self, params: Params) -> RunFolder:
        return self.folder.child(TRIALS).child(trial_name(params))

    def trial_config(self, params: Params) -> Config:
        """A trial's whole configuration, which can be trained as it is."""
        place = {"RUN.STORAGE_PATH": self.folder.child(TRIALS).location, "RUN.NAME": trial_name(params)}
        return self.config.with_settings(params | place, "trial")


def run_trial(params: Params, setting: TrialSetting) -> None:
    """Trains a trial, from its own newest checkpoint if it has one. Raises TrialFailed."""
    config, folder = setting.trial_config(params), setting.trial_folder(params)
    note = read_note(folder) or TrialNote(params)
    if note.hopeless:
        raise TrialFailed(note.reason)
    trial = read_trial(folder, note)
    # What an earlier start of the trial reported: the scheduler, which may be new, must know it too.
    for epoch in trial.history:
        tune.report(dict(epoch))
    if trial.ended or is_complete(trial, config, setting.sweep) or ray.get(setting.stop.is_requested.remote()):
        return
    write_note(folder, replace(note, status="unfinished", reason=""))
    try:
        ended = _train(config, setting)
        if ended.error is not None:
            raise ended.error
    except (HopelessError, InputError, TrainingFailedError) as error:
        reason, hopeless = explain_failure(error), isinstance(error, HopelessError)
        write_note(folder, replace(note, status="failed", reason=reason, hopeless=hopeless))
        raise TrialFailed(reason) from error


def is_complete(trial: Trial, config: Config, sweep: Sweep) -> bool:
    """Whether it was trained to its end, or to what the sweep's `stop` asks."""
    return len(trial.history) >= sweep.epochs(config) or any(sweep.is_enough(epoch) for epoch in trial.history)


def await_mlflow_run(trial: RunFolder, patience: float = SECONDS_TO_OPEN) -> str | None:
    """The id of the trial's MLflow run, for its checkpoints; None if MLflow does not answer within `patience` seconds.

    The job's process opens the run, as it does for every trial, and notes the id in the trial's folder.
    """
    deadline = time.monotonic() + patience
    while True:
        run_id = MirrorState.read(trial).run_id
        if run_id is not None or time.monotonic() >= deadline:
            return run_id
        time.sleep(0.2)


def _train(config: Config, setting: TrialSetting) -> Ended:
    prepared = prepare(config, data=Data(ray.get(setting.index_ref), setting.root))
    write_settings(config, prepared.run)
    # The trial ends itself at the sweep's last epoch. Ray Tune would kill it, and not always clean up what it killed.
    prepared = replace(prepared, config=config.with_settings({"TRAIN.EPOCH": setting.sweep.epochs(config)}))
    job = make_job(
        prepared.config,
        prepared.run,
        prepared.data,
        setting.index_ref,
        setting.resources,
        prepared.start.stored if prepared.start is not None else None,
        prepared.weights,
        setting.stop,
        mlflow_run_id=await_mlflow_run(prepared.run),
    )
    log_start(prepared, setting.resources)
    return build_trainer(job, setting.resources, [EpochReports()]).fit().return_value
