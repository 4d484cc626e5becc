"""Train SeqTrack on Ray.

Joins the Ray cluster at RAY_ADDRESS, or one that runs on this machine, or starts one. With the same RUN.NAME, the same
command goes on with a run that was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.commands.program import ProgramError, add_settings, add_take_over, say
from seqtrack.config import (
    Config,
    ConfigError,
    check_supported,
    load_config,
    parse_config,
    setting_docs,
    with_overrides,
)
from seqtrack.environment import command, from_here
from seqtrack.locations import lasting, parent, stem
from seqtrack.runs.allowances import check_allowances
from seqtrack.shown import shown_command

if TYPE_CHECKING:
    from seqtrack.experiments.train import Outcome
    from seqtrack.runs.checkpoint import OpenedCheckpoint

RUNS_PAGE = "/#/experiments?workflowType=machine_learning"
"""The page of an MLflow server with the runs; without it the server opens its pages about language models."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument(
        "--resume-from",
        metavar="PATH",
        help="begin from a checkpoint: folder or URI (s3, gs, hf) of one, or of a run (or RUN/latest); RUN/3: epoch 3. "
        "A run that has begun goes on from its own newest checkpoint, and must have begun from this one",
    )
    parser.add_argument(
        "--allow-changed",
        metavar="KEY,…",
        type=lambda keys: keys.split(","),
        default=[],
        help="settings, packages, `dataset` or `frames` that may differ from the checkpoint's",
    )
    parser.add_argument("--workers", metavar="N|MIN:MAX", help="RUN.WORKERS, or a range that follows the cluster")
    add_take_over(parser)
    parser.add_argument("--settings", action="store_true", help="list every setting, its default and meaning")


def run(options: argparse.Namespace) -> int:
    if options.settings:
        for key, default, meaning in setting_docs():
            say(f"{key} = {default}", *textwrap.indent(meaning, "    ").split("\n"))
        return 0
    check_allowances(options.allow_changed)
    config = settings_from_file(options) if options.config else None
    if config is None and not options.resume_from:
        raise ConfigError("--config NAME|FILE is needed, or --resume-from PATH, which brings its own settings")

    from ray.train.v2.api.exceptions import TrainingFailedError

    from seqtrack.experiments.prepare import open_start
    from seqtrack.experiments.train import run_training
    from seqtrack.runs.checkpoint import CheckpointError, newest_checkpoint
    from seqtrack.runs.folder import RunFolder
    from seqtrack.training.loop import HopelessError
    from seqtrack.training.trainer import explain_failure

    opened = None
    if config is None:
        try:
            opened = open_start(options.resume_from)
            config = settings_from_checkpoint(options, opened)
        except CheckpointError:
            if (config := settings_from_run(options)) is None:
                raise
    go_on = again(options, config)
    try:
        start = opened or options.resume_from
        outcome = run_training(config, start, options.allow_changed, options.resume_from, options.take_over)
    except (HopelessError, TrainingFailedError) as error:
        newest = newest_checkpoint(RunFolder.of(config))
        failed = ProgramError(f"training failed: {explain_failure(error)}")
        if newest is not None:
            failed.add_note(f"To go on from {newest.name}: {go_on}")
        raise failed from error
    except (Exception, KeyboardInterrupt) as error:  # whatever ends it, the same command goes on
        error.add_note(f"To go on: {go_on}")
        raise
    if outcome.stopped_by is not None:
        print_stopped(outcome, go_on)
        return 128 + outcome.stopped_by
    print_outcome(outcome)
    say(f"Track with it:        {command_to(tracking(config, outcome), 'track')}")
    return 0


def settings_from_file(options: argparse.Namespace) -> Config:
    config = named(load_config(options.config, overrides(options)), stem(options.config))
    check_supported(config)
    return config


def settings_from_checkpoint(options: argparse.Namespace, start: OpenedCheckpoint) -> Config:
    """The settings that the checkpoint was made with, for another run."""
    earlier = parse_config(start.meta["config"], f"{options.resume_from}/meta.json")
    config = earlier.with_settings({"RUN.NAME": None})
    return named(with_overrides(config, overrides(options)), f"{earlier.RUN.NAME}-resumed")


def settings_from_run(options: argparse.Namespace) -> Config | None:
    """The settings of the run that is named, if it has begun: what it began from may be gone. None for a new run."""
    from seqtrack.runs.folder import RunFolder, read_settings

    asked = with_overrides(Config(), overrides(options))
    beside = parent(options.resume_from)[0]  # RUN.STORAGE_PATH may come from the checkpoint's settings
    places = [asked.RUN.STORAGE_PATH, *(place for place in (beside, parent(beside)[0]) if place)]
    for place in places if asked.RUN.NAME is not None else ():
        earlier = read_settings(RunFolder.of(asked.with_settings({"RUN.STORAGE_PATH": lasting(place)})))
        if earlier is not None:
            return with_overrides(earlier, overrides(options))
    return None


def overrides(options: argparse.Namespace) -> list[str]:
    """KEY=VALUE, those that `--workers` stands for included."""
    if options.workers is None:
        return list(options.overrides)
    fewest, _, most = options.workers.rpartition(":")
    return [*options.overrides, f"RUN.WORKERS={most}", f"RUN.MIN_WORKERS={fewest or 'null'}"]


def named(config: Config, beginning: str) -> Config:
    """The settings with a RUN.NAME: the given one, else `beginning` and the time."""
    if config.RUN.NAME is not None:
        return config
    return config.with_settings({"RUN.NAME": f"{beginning}-{datetime.datetime.now():%Y%m%d-%H%M%S}"})


def again(options: argparse.Namespace, config: Config) -> str:
    """The command that goes on with this run."""
    arguments: list[str] = []
    for flag, value in (("--config", options.config), ("--resume-from", options.resume_from)):
        arguments += [flag, value] if value else []
    if options.allow_changed:
        arguments += ["--allow-changed", ",".join(options.allow_changed)]
    arguments += [override for override in overrides(options) if not override.startswith("RUN.NAME=")]
    return command_to([*arguments, f"RUN.NAME={config.RUN.NAME}"])


def command_to(arguments: Sequence[str], program: str = "train") -> str:
    return shown_command(command(program, arguments))


def tracking(config: Config, outcome: Outcome) -> list[str]:
    """Arguments of `track` with the trained model: in a synthetic sequence that it has not seen, or a video."""
    if config.DATA.place_of("LASOT")[1] != "synthetic":
        return ["--weights", outcome.folder, "--source", "VIDEO", "--box", "X,Y,W,H"]
    from seqtrack.data.datasets.synthetic import ensure_synthetic, held_out

    sequence = ensure_synthetic(held_out(config.DATA.SYNTHETIC, sequences=2)) / "kite" / "kite-1"
    return ["--weights", outcome.folder, "--source", from_here(sequence)]


def print_stopped(outcome: Outcome, go_on: str) -> None:
    name = signal.Signals(outcome.stopped_by or 0).name
    say("", f"Stopped by {name} after step {outcome.step}; the checkpoint is {outcome.last_checkpoint}")
    say(f"To go on: {go_on}")


def print_outcome(outcome: Outcome) -> None:
    if outcome.history:
        first, last = outcome.history[0], outcome.history[-1]
        say(
            "",
            f"Finished. Loss {first['loss']:.4f} -> {last['loss']:.4f}, "
            f"IoU {first['iou']:.4f} -> {last['iou']:.4f} (epoch {first['epoch']} -> {last['epoch']})",
        )
    say(f"Checkpoints and log:  {outcome.folder}")
    if outcome.last_checkpoint is not None and outcome.history:
        epochs = int(outcome.history[-1]["epoch"])
        more = ["--resume-from", outcome.last_checkpoint, f"TRAIN.EPOCH={2 * epochs}"]
        say(f"Train on:             {command_to(more)}")
    if outcome.tracking_uri.startswith("http"):
        say(f"Look at the curves:   {outcome.tracking_uri.rstrip('/')}{RUNS_PAGE}")
    else:
        ui = [beside_python("mlflow"), "ui", "--backend-store-uri", outcome.tracking_uri]
        say(f"Look at the curves:   {shown_command(ui)}")
        say(f"                      then open http://127.0.0.1:5000{RUNS_PAGE}")


def beside_python(name: str) -> str:
    """How to call a program of this environment from the current folder."""
    path = Path(sys.executable).with_name(name)
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
