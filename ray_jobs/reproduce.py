"""Trains twice and compares: `python ray_jobs/reproduce.py --config configs/demo.yaml [--resume-epoch 3] [KEY=VALUE]`.

Phase 1 trains every epoch; phase 2 starts from phase 1's checkpoint before the resume epoch and trains the rest again.
The exit code is 0 if phase 2 reproduces phase 1 and 1 if it does not. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from pyarrow import fs
from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.data.storage import DataError
from seqtrack.locations import absolute, child, parent
from seqtrack.model.weights import Weights, WeightsError, read_weights
from seqtrack.reports.phases import Comparison, Phase, compare
from seqtrack.reports.report import read_phase, verdict, write_report
from seqtrack.submission import command
from seqtrack.tracking import mlflow as tracking
from seqtrack.tracking.hub import HubError
from seqtrack.training.checkpoint import CheckpointError, checkpoint_name, local_copy
from seqtrack.training.trainer import explain_failure, open_run_folder, run_training, settle_paths
from seqtrack.training.worker import HopelessError


class Stopped(Exception):
    """A phase was asked to stop by this signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Place(NamedTuple):
    """Where a phase is or will be."""

    storage: str
    name: str

    @property
    def folder(self) -> str:
        return child(self.storage, self.name)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        config = read_settings(options)
        return reproduce(config, options)
    except (ConfigError, DataError, WeightsError, CheckpointError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"Stopped. To go on: {shlex.join(command('ray_jobs/reproduce.py', arguments or sys.argv[1:]))}")
        return 128 + stopped.number


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an experiment twice and compare, step by step.")
    parser.add_argument("--config", metavar="FILE", required=True, help="settings as YAML (see configs/)")
    parser.add_argument("--resume-epoch", type=int, default=3, metavar="N", help="the first epoch of phase 2 (3)")
    parser.add_argument("--phase1", metavar="RUN", help="the folder or URI of a finished run, instead of training it")
    parser.add_argument("--phase2", metavar="RUN", help="the same for phase 2")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference that still counts as equal (0)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    return parser.parse_intermixed_args(arguments)


def read_settings(options: argparse.Namespace) -> Config:
    """The experiment's settings; its name does not change from start to start, so that the same command goes on."""
    config = load_config(options.config, options.overrides)
    if config.RUN.NAME is None:
        config = config.with_settings({"RUN.NAME": f"{Path(options.config).stem}-reproduce"})
    if not 2 <= options.resume_epoch <= config.TRAIN.EPOCH:
        raise ConfigError(f"--resume-epoch {options.resume_epoch}: not one of 2 to TRAIN.EPOCH, {config.TRAIN.EPOCH}")
    if config.TRAIN.KEEP_CHECKPOINTS is not None:
        raise ConfigError("TRAIN.KEEP_CHECKPOINTS: the report needs the checkpoints of all epochs")
    return settle_paths(config)


def reproduce(config: Config, options: argparse.Namespace) -> int:
    storage = child(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
    if tracking.STORE_VARIABLE not in os.environ:  # the phases' own storage is further down; one store holds them all
        config = config.with_settings({"MLFLOW.TRACKING_URI": tracking.tracking_uri(config)})
    parent_run = tracking.open_parent_run(config)
    places = [given_or(options.phase1, Place(storage, "phase1")), given_or(options.phase2, Place(storage, "phase2"))]
    start = child(places[0].folder, checkpoint_name(options.resume_epoch - 1, 0))
    errors: list[str | None] = [None, None]
    for number, (place, given, resume_from) in enumerate(
        zip(places, (options.phase1, options.phase2), (None, start), strict=True)
    ):
        if given or any(errors):
            continue
        print(f"\nPhase {number + 1}, in {place.folder}", flush=True)
        phase_config = config.with_settings({"RUN.STORAGE_PATH": place.storage, "RUN.NAME": place.name})
        if is_done(phase_config, place):
            print("It was trained to its end before.")
            continue
        try:
            outcome = run_training(phase_config, resume_from, parent_run=parent_run)
        except (HopelessError, TrainingFailedError) as error:
            errors[number] = f"training failed: {explain_failure(error)}"
            continue
        if outcome.stopped_by is not None:
            raise Stopped(outcome.stopped_by)
    phases = [read(f"Phase {number + 1}", place, config, errors[number]) for number, place in enumerate(places)]
    return report(config, phases[0], phases[1], parent_run, child(storage, "report"), options.tolerance)


def is_done(config: Config, place: Place) -> bool:
    """Whether an earlier start trained this phase to its end. Raises ConfigError if it had other settings."""
    filesystem, folder = open_run_folder(config)
    phase = read_phase(place.name, filesystem, folder, config.total_steps)
    return phase is not None and phase.finished


def given_or(given: str | None, place: Place) -> Place:
    return place if given is None else Place(*parent(absolute(given)))


def read(name: str, place: Place, config: Config, error: str | None) -> Phase | None:
    """A phase as it is on disk; None if it failed before its first checkpoint, or because the first phase did."""
    filesystem, folder = fs.FileSystem.from_uri(place.folder)
    return read_phase(name, filesystem, folder, config.total_steps, error)


def report(
    config: Config, phase1: Phase | None, phase2: Phase | None, parent_run: str | None, target: str, tolerance: float
) -> int:
    """Compares, writes the report, tells MLflow, and says what came out. Returns the exit code."""
    if phase1 is None:
        raise CheckpointError("phase 1 has no finished checkpoint: nothing to report")
    comparison = compare(phase1, phase2, tolerance) if phase2 is not None else None
    with tempfile.TemporaryDirectory() as directory:
        write_report(phase1, phase2, comparison, models_to_show(phase1, phase2), Path(directory), str(config.RUN.NAME))
        filesystem, path = fs.FileSystem.from_uri(target)
        filesystem.create_dir(path, recursive=True)
        fs.copy_files(directory, path, fs.LocalFileSystem(), filesystem)
        reproduced = comparison is not None and comparison.reproduced
        status: Literal["FINISHED", "FAILED"] = "FINISHED" if reproduced else "FAILED"
        tracking.close_parent_run(config, parent_run, Path(directory), comparison_metrics(comparison), status)
    print(f"\n{verdict(comparison)}")
    for phase in (phase1, phase2):
        if phase is not None and phase.error is not None:
            print(f"{phase.name} {phase.error}", file=sys.stderr)
    if comparison is not None:
        print(f"Steps {comparison.first_step + 1} to {comparison.last_step} were compared.")
    print(f"Report:  {child(target, 'index.html')}")
    return 0 if reproduced else 1


def comparison_metrics(comparison: Comparison | None) -> dict[str, float]:
    if comparison is None:
        return {}
    numbers = {f"difference/{one.metric}": one.largest for one in comparison.steps}
    return numbers | {"difference/weights": comparison.weights or 0.0, "reproduced": float(comparison.reproduced)}


def models_to_show(phase1: Phase, phase2: Phase | None) -> list[tuple[str, Weights]]:
    """Phase 1 after its first epoch, and both phases at their ends."""
    filesystem, folder = fs.FileSystem.from_uri(phase1.folder)
    with local_copy(filesystem, f"{folder}/{phase1.checkpoints[0].name}") as directory:
        models = [(title(phase1, phase1.checkpoints[0].step), read_weights(directory))]
    return models + [(title(phase, len(phase.steps)), phase.weights) for phase in (phase1, phase2) if phase is not None]


def title(phase: Phase, step: int) -> str:
    return f"{phase.name}, epoch {step / phase.steps_per_epoch:.3g}"


if __name__ == "__main__":
    sys.exit(main())
