"""The two-phase experiment: train, train the later epochs again from a checkpoint, and compare.

All of it lies in the folder that RUN.NAME names: `phase1/` and `phase2/`, which are runs like any other, and `report/`.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.config import Config
from seqtrack.data.open import Data
from seqtrack.errors import Stopped
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.experiments.evaluate_run import due_checkpoints
from seqtrack.experiments.prepare import open_experiment, prepare, settle_paths
from seqtrack.experiments.train import run_prepared
from seqtrack.integrations import mlflow_store
from seqtrack.integrations.store_uri import with_one_store
from seqtrack.lease import Lease
from seqtrack.locations import child, lasting
from seqtrack.model.weights import Weights, read_weights
from seqtrack.reports.comparison import Comparison, compare
from seqtrack.reports.report import verdict, write_report
from seqtrack.runs.checkpoint import StoredCheckpoint, find_checkpoint, open_checkpoint, whole_checkpoints
from seqtrack.runs.folder import RunFolder, open_run, own_run
from seqtrack.runs.record import Phase, read_phase
from seqtrack.sums import CheckpointError, checkpoint_name
from seqtrack.training.loop import HopelessError
from seqtrack.training.trainer import explain_failure
from seqtrack.transfer import send

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Gets the lines for the console."""


def reproduce(
    config: Config,
    resume_epoch: int,
    given: tuple[str | None, str | None] = (None, None),
    tolerance: float = 0.0,
    say: Say = print,
    take_over: bool = False,
) -> bool:
    """Returns whether phase 2, which trains from `resume_epoch` on, reproduces phase 1.

    The same call goes on after an interruption. `given`: the path or URI of a finished run that stands for phase 1, for
    phase 2. `tolerance`: the largest difference that still counts as equal. `take_over`: takes the folder from another
    job that works in it. Raises InputError, Stopped if a signal came, LeaseLostError if another job took the folder.
    """
    config = config.with_settings({"RUN.STORAGE_PATH": lasting(config.RUN.STORAGE_PATH)})
    with own_run(config, take_over) as lease:
        return _reproduce(config, lease, resume_epoch, given, tolerance, say, take_over)


def _reproduce(
    config: Config,
    lease: Lease,
    resume_epoch: int,
    given: tuple[str | None, str | None],
    tolerance: float,
    say: Say,
    take_over: bool,
) -> bool:
    finished1, finished2 = (None if location is None else find_run(location) for location in given)
    # Two finished runs can be compared where their data are not.
    config, data = (settle_paths(config), None) if all(given) else open_experiment(config)
    config = with_one_store(config)  # the phases' storage is further down
    parent_run = mlflow_store.open_parent_run(config, "reproduce")
    experiment = RunFolder.of(config).under(lease)
    config = config.with_settings({"RUN.STORAGE_PATH": experiment.location})

    run1, run2 = finished1 or experiment.child("phase1"), finished2 or experiment.child("phase2")
    start2 = child(run1.location, checkpoint_name(resume_epoch - 1, 0))
    train = partial(train_phase, config=config, data=data, parent_run=parent_run, say=say, take_over=take_over)
    error1 = None if finished1 else train(1, start=None)
    error2 = None if finished2 or error1 else train(2, start=start2)

    phase1 = read_phase("Phase 1", run1, config.total_steps, error1)
    phase2 = read_phase("Phase 2", run2, config.total_steps, error2)
    if phase1 is None:
        raise CheckpointError("phase 1 has no finished checkpoint: nothing to report")
    comparison = None if phase2 is None else compare(phase1, phase2, tolerance)
    experiment.check_owner()
    report = experiment.child("report")
    publish_report(config, run1, phase1, phase2, comparison, report, parent_run)
    say("")
    say(verdict(comparison))
    if comparison is not None:
        say(f"Steps {comparison.first_step + 1} to {comparison.last_step} were compared.")
    say(f"Report:  {child(report.location, 'index.html')}")
    return is_reproduced(comparison)


def train_phase(
    number: int, config: Config, data: Data | None, start: str | None, parent_run: str | None, say: Say, take_over: bool
) -> str | None:
    """Trains a phase unless an earlier start has, and returns why it failed if it did.

    `config`: with the experiment's folder as RUN.STORAGE_PATH. Raises InputError, and Stopped if a signal came.
    """
    config = config.with_settings({"RUN.NAME": f"phase{number}"})
    with own_run(config, take_over) as lease:
        run = open_run(config)
        say("")
        say(f"Phase {number}, in {run.location}")
        trained = checkpoint_name(config.TRAIN.EPOCH, 0) in whole_checkpoints(run)
        if trained and not due_checkpoints(config, run, open_for_run(config)):
            say("It was trained to its end before.")
            return None
        prepared = prepare(config, start, data=data)
        try:
            outcome = run_prepared(prepared, lease, parent_run)
        except (HopelessError, TrainingFailedError) as error:
            reason = f"training failed: {explain_failure(error)}"
            logger.error("Phase %d %s", number, reason)
            return reason
    if outcome.stopped_by is not None:
        raise Stopped(outcome.stopped_by)
    return None


def publish_report(
    config: Config,
    run1: RunFolder,
    phase1: Phase,
    phase2: Phase | None,
    comparison: Comparison | None,
    target: RunFolder,
    parent_run: str | None,
) -> None:
    """Writes the report into the folder `target` and into the experiment's MLflow run, and ends that."""
    with tempfile.TemporaryDirectory() as directory:
        models = models_to_show(run1, phase1, phase2)
        write_report(phase1, phase2, comparison, models, Path(directory), str(config.RUN.NAME))
        send(Path(directory), target.filesystem, target.path, last=["index.html"])
        numbers = comparison_metrics(comparison)
        status: Literal["FINISHED", "FAILED"] = "FINISHED" if is_reproduced(comparison) else "FAILED"
        mlflow_store.close_parent_run(config, parent_run, Path(directory), numbers, status)


def is_reproduced(comparison: Comparison | None) -> bool:
    return comparison is not None and comparison.reproduced


def find_run(location: str) -> RunFolder:
    """The folder of a run that was given, whose newest checkpoint is verified before anything is made.

    Raises InputError.
    """
    newest = find_checkpoint(location)
    open_checkpoint(newest)
    return newest.run


def comparison_metrics(comparison: Comparison | None) -> dict[str, float]:
    if comparison is None:
        return {}
    numbers = {f"difference/{one.metric}": one.largest for one in comparison.steps}
    if comparison.tracking:
        numbers["difference/auc"] = max(one.difference for one in comparison.tracking)
    return numbers | {"difference/weights": comparison.weights or 0.0, "reproduced": float(comparison.reproduced)}


def models_to_show(run1: RunFolder, phase1: Phase, phase2: Phase | None) -> list[tuple[str, Weights]]:
    """Titles and weights: phase 1 after its first epoch, and both phases at their ends."""
    first = phase1.checkpoints[0]
    with StoredCheckpoint(run1, first.name).verified() as (directory, _):
        models = [(title(phase1, first.step), read_weights(directory))]
    return models + [(title(phase, len(phase.steps)), phase.weights) for phase in (phase1, phase2) if phase is not None]


def title(phase: Phase, step: int) -> str:
    return f"{phase.name}, epoch {step / phase.steps_per_epoch:.3g}"
