"""Train an experiment twice and compare, step by step.

Phase 1 trains every epoch; phase 2 starts from phase 1's checkpoint before the resume epoch and trains the rest again.
The exit code is 0 if phase 2 reproduces phase 1 and 1 if it does not. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import math

from seqtrack.commands.program import TO_GO_ON, add_settings, add_take_over, read_experiment, say
from seqtrack.config import ConfigError
from seqtrack.locations import stem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, config_needed=True)
    parser.add_argument("--resume-epoch", type=int, default=3, metavar="N", help="the first epoch of phase 2 (3)")
    parser.add_argument("--phase1", metavar="RUN", help="the folder or URI of a finished run, instead of training it")
    parser.add_argument("--phase2", metavar="RUN", help="the same for phase 2")
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference that still counts as equal (0)"
    )
    add_take_over(parser)
    parser.set_defaults(to_go_on=TO_GO_ON)


def run(options: argparse.Namespace) -> int:
    config = read_experiment(options, f"{stem(options.config)}-reproduce")
    if not 2 <= options.resume_epoch <= config.TRAIN.EPOCH:
        raise ConfigError(f"--resume-epoch {options.resume_epoch}: not one of 2 to TRAIN.EPOCH, {config.TRAIN.EPOCH}")
    if not 0 <= options.tolerance < math.inf:
        raise ConfigError(f"--tolerance {options.tolerance}: not a finite number from 0 up")
    if config.TRAIN.KEEP_CHECKPOINTS is not None:
        raise ConfigError("TRAIN.KEEP_CHECKPOINTS: the report needs the checkpoints of all epochs")

    from seqtrack.experiments.reproduce import reproduce

    given = (options.phase1, options.phase2)
    reproduced = reproduce(config, options.resume_epoch, given, options.tolerance, say, options.take_over)
    return 0 if reproduced else 1
