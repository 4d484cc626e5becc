"""Trains SeqTrack: `python ray_jobs/train.py --config configs/demo.yaml [KEY=VALUE …]`.

Joins the Ray cluster at RAY_ADDRESS, or one already running on this machine, or starts one.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import signal
import sys
from pathlib import Path

from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.config import Config, ConfigError, load_config, parse_config, setting_docs
from seqtrack.data.storage import DataError
from seqtrack.model.weights import WeightsError
from seqtrack.submission import command
from seqtrack.tracking.hub import HubError
from seqtrack.training.checkpoint import CheckpointError
from seqtrack.training.trainer import (
    Outcome,
    check_allowances,
    explain_failure,
    open_checkpoint,
    read_checkpoint,
    run_training,
)
from seqtrack.training.worker import HopelessError

RUNS_PAGE = "/#/experiments?workflowType=machine_learning"
"""Of an MLflow server, which else opens with its pages about language models."""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.settings:
        for key, default, meaning in setting_docs():
            print(f"{key} = {default}\n    {meaning}")
        return 0
    try:
        check_allowances(options.allow_changed)
        config = read_settings(options)
        outcome = run_training(config, options.resume_from, options.allow_changed)
    except (ConfigError, DataError, WeightsError, CheckpointError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HopelessError, TrainingFailedError) as error:
        print(f"error: training failed: {explain_failure(error)}", file=sys.stderr)
        print(f"To go on from the newest checkpoint: {again(options, config)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if outcome.stopped_by is not None:
        print_stopped(outcome, again(options, config))
        return 128 + outcome.stopped_by
    print_outcome(outcome)
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train SeqTrack on Ray.")
    parser.add_argument("--config", metavar="FILE", help="settings as YAML (see configs/)")
    parser.add_argument(
        "--resume-from",
        metavar="PATH",
        help="go on from a checkpoint: folder or URI (s3, gs, hf) of one, or of a run (or RUN/latest); RUN/3: epoch 3",
    )
    parser.add_argument(
        "--allow-changed",
        metavar="KEY,…",
        type=lambda keys: keys.split(","),
        default=[],
        help="settings, packages or `dataset` that may differ from the checkpoint's",
    )
    parser.add_argument("--workers", metavar="N|MIN:MAX", help="RUN.WORKERS, or a range that follows the cluster")
    parser.add_argument("--settings", action="store_true", help="list every setting, its default and meaning")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace the file's")
    options = parser.parse_intermixed_args(arguments)
    if options.workers:
        fewest, _, most = options.workers.rpartition(":")
        options.overrides += [f"RUN.WORKERS={most}", f"RUN.MIN_WORKERS={fewest or 'null'}"]
    if not (options.config or options.resume_from or options.settings):
        parser.error("--config FILE is needed, or --resume-from PATH, which brings its own settings")
    return options


def read_settings(options: argparse.Namespace) -> Config:
    """The settings of the run: from the file, else from the checkpoint that it resumes."""
    if options.config:
        config, stem = load_config(options.config, options.overrides), Path(options.config).stem
    else:
        values = read_checkpoint(open_checkpoint(options.resume_from))["config"]
        stem = str(values["RUN"].pop("NAME")) + "-resumed"
        config = parse_config(values, f"{options.resume_from}/meta.json").with_overrides(options.overrides)
    if config.RUN.NAME is None:
        config = config.with_settings({"RUN.NAME": f"{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}"})
    return config


def again(options: argparse.Namespace, config: Config) -> str:
    """The command that goes on with this run."""
    arguments: list[str] = []
    for flag, value in (("--config", options.config), ("--resume-from", options.resume_from)):
        arguments += [flag, value] if value else []
    if options.allow_changed:
        arguments += ["--allow-changed", ",".join(options.allow_changed)]
    overrides = [override for override in options.overrides if not override.startswith("RUN.NAME=")]
    return shlex.join(command("ray_jobs/train.py", [*arguments, *overrides, f"RUN.NAME={config.RUN.NAME}"]))


def print_stopped(outcome: Outcome, go_on: str) -> None:
    name = signal.Signals(outcome.stopped_by or 0).name
    print(f"\nStopped by {name} after step {outcome.step}; the checkpoint is {outcome.last_checkpoint}")
    print(f"To go on: {go_on}")


def print_outcome(outcome: Outcome) -> None:
    if outcome.history:
        first, last = outcome.history[0], outcome.history[-1]
        print(
            f"\nFinished. Loss {first['loss']:.4f} -> {last['loss']:.4f}, "
            f"IoU {first['iou']:.4f} -> {last['iou']:.4f} (epoch {first['epoch']} -> {last['epoch']})"
        )
    print(f"Checkpoints and log:  {outcome.folder}")
    if outcome.last_checkpoint is not None and outcome.history:
        epochs = int(outcome.history[-1]["epoch"])
        more = ["--resume-from", outcome.last_checkpoint, f"TRAIN.EPOCH={2 * epochs}"]
        print(f"Train on:             {shlex.join(command('ray_jobs/train.py', more))}")
    if outcome.tracking_uri.startswith("http"):
        print(f"Look at the curves:   {outcome.tracking_uri.rstrip('/')}{RUNS_PAGE}")
    else:
        print(f"Look at the curves:   {program('mlflow')} ui --backend-store-uri {outcome.tracking_uri}")
        print(f"                      then open http://127.0.0.1:5000{RUNS_PAGE}")


def program(name: str) -> str:
    """How to call a program of this environment from here."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
