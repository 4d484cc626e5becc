"""One trial: a training of its own, in its own folder, that tells Ray Tune about each epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import ray
from ray import tune
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.cluster.resources import Resources, Share
from seqtrack.cluster.stop import is_stop_requested
from seqtrack.config import Config
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import Data
from seqtrack.data.stamp import FrameStamp
from seqtrack.errors import InputError, LeaseLostError
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.experiments.evaluate_run import RunEvaluation
from seqtrack.experiments.evaluators import plan_within
from seqtrack.experiments.prepare import PreparedRun, log_start, prepare
from seqtrack.integrations.mirror_state import await_mlflow_run
from seqtrack.model.weights import Weights
from seqtrack.runs.checkpoint import remove_unfinished
from seqtrack.runs.evaluations import CheckpointScores, forget_later
from seqtrack.runs.folder import RunFolder, own_run, write_settings
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
    mixture_ref: ray.ObjectRef[Mixture]
    """The training sets, whose indexes the sweep reads once for all trials."""
    benchmarks: tuple[BenchmarkData, ...]
    """Where checkpoints of all trials are measured."""
    resources: Resources
    stop: ray.actor.ActorHandle
    """The StopRequest of all trials."""
    weights_ref: ray.ObjectRef[tuple[Weights, str]] | None
    """The weights that new trials start from, and their source; None where trials differ in them."""
    take_over: bool = False
    """Whether a trial takes its folder from another job that trains there."""
    frames: FrameStamp | None = None
    """The stamp of the training sets' frames, which the sweep makes once for all trials."""

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
        if setting.sweep.metric in epoch:
            tune.report(dict(epoch))
    if trial.ended or is_complete(trial, config, setting.sweep) or is_stop_requested(setting.stop):
        return
    write_note(folder, replace(note, status="unfinished", reason=""))
    try:
        ended = _train(config, setting)
        if ended.error is not None:
            raise ended.error
    except LeaseLostError as error:
        raise TrialFailed(str(error)) from error  # nothing is noted: the folder is another job's
    except RayError as error:
        # Nothing is noted: where a scheduler stops a trial, Ray ends its controller before its process. What Ray Tune
        # holds for an error comes to the observer, which notes it.
        raise TrialFailed(explain_failure(error)) from error
    except (HopelessError, InputError, TrainingFailedError, TrialFailed) as error:
        reason, hopeless = explain_failure(error), isinstance(error, HopelessError)
        write_note(folder, replace(note, status="failed", reason=reason, hopeless=hopeless))
        raise TrialFailed(reason) from error


def is_complete(trial: Trial, config: Config, sweep: Sweep) -> bool:
    """Whether it was trained, and measured if that counts, to its end or to what the sweep's `stop` asks."""
    if any(sweep.is_enough(epoch) for epoch in trial.history):
        return True
    return len(trial.history) >= sweep.epochs(config) and sweep.metric in trial.history[-1]


def _train(config: Config, setting: TrialSetting) -> Ended:
    """Trains a trial whose folder is its own meanwhile. Raises LeaseLostError if another job takes that."""
    job = f"trial {config.RUN.NAME} of the sweep in {setting.folder.location}"
    with own_run(config, setting.take_over, job) as lease:
        data, shared = Data(ray.get(setting.mixture_ref), frames=setting.frames), setting.weights_ref
        weights = None if shared is None else ray.get(shared)
        prepared = prepare(config, data=data, benchmarks=setting.benchmarks, weights=weights)
        try:
            return _train_prepared(replace(prepared, run=prepared.run.under(lease)), setting)
        finally:
            lease.proof.check()


def _train_prepared(prepared: PreparedRun, setting: TrialSetting) -> Ended:
    config = prepared.config
    write_settings(config, prepared.run)
    remove_unfinished(prepared.run)
    # The trial ends itself at the sweep's last epoch. Ray Tune would kill it, and not always clean up what it killed.
    prepared = replace(prepared, config=config.with_settings({"TRAIN.EPOCH": setting.sweep.epochs(config)}))
    job = make_job(
        prepared.config,
        prepared.run,
        prepared.data.mixture,
        setting.mixture_ref,
        setting.resources,
        prepared.start.stored if prepared.start is not None else None,
        prepared.weights,
        setting.stop,
        find_mlflow_run=partial(await_mlflow_run, prepared.run),
        frames=prepared.data.frames,
    )
    log_start(prepared, setting.resources)
    by_auc = setting.sweep.metric == "auc"
    evaluation = _measure_beside(prepared, setting, report=by_auc) if prepared.benchmarks else None
    try:
        if evaluation is not None:
            evaluation.start()
        ended: Ended = build_trainer(job, setting.resources, [] if by_auc else [EpochReports()]).fit().return_value
        if evaluation is not None and ended.error is None and not ended.stopped:
            measured = evaluation.finish(lambda: is_stop_requested(setting.stop))
            known = is_complete(read_trial(prepared.run, TrialNote({})), config, setting.sweep)
            if by_auc and not measured and not known and evaluation.problem:
                raise TrialFailed(f"its AUC is not known: {evaluation.problem}")
        return ended
    finally:
        if evaluation is not None:
            evaluation.close()


def _measure_beside(prepared: PreparedRun, setting: TrialSetting, report: bool) -> RunEvaluation:
    """Measures a trial's checkpoints beside its training, or after it, on its part of the cluster.

    `report`: whether Ray Tune is told of the epochs that are measured, with their AUC.
    """
    forget_later(prepared.run, prepared.step)
    resources, workers, run = setting.resources, prepared.config.RUN.WORKERS, prepared.run
    share = resources.evaluation
    own = Share(workers * resources.cpus_per_worker, workers * resources.gpus_per_worker)

    def tell(scores: CheckpointScores) -> None:
        for epoch in read_trial(run, TrialNote({})).history:
            if epoch["step"] == scores.step and scores.benchmark == prepared.benchmarks[0].benchmark.name:
                tune.report(dict(epoch))

    return RunEvaluation(
        prepared.config,
        run,
        prepared.benchmarks,
        plan_within(share, yields=True) if share is not None else None,
        lambda: plan_within(own, yields=False),
        tell if report else lambda scores: None,
    )
