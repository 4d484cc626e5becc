"""Train SeqTrack many times, with other values of some settings.

Ray Tune runs one training for each combination of the sweep's values, several in parallel where the cluster has room.
The exit code is 0 if every trial ended well and 1 if any failed. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import TO_GO_ON, add_settings, add_take_over, read_experiment, say
from seqtrack.config import find_recipe, recipe_names
from seqtrack.locations import stem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, config_needed=True)
    sweeps = ", ".join(recipe_names("sweeps"))
    parser.add_argument(
        "--sweep", metavar="NAME|FILE", required=True, help=f"what varies: a YAML file or one of {sweeps}"
    )
    add_take_over(parser)
    parser.set_defaults(to_go_on=TO_GO_ON)


def run(options: argparse.Namespace) -> int:
    config = read_experiment(options, f"{stem(options.config)}-{stem(options.sweep)}")
    file = find_recipe(options.sweep, "sweeps")

    from seqtrack.sweeps.settings import load_sweep

    sweep = load_sweep(file)
    sweep.check(config, options.sweep)

    from seqtrack.sweeps.run import run as run_sweep

    return run_sweep(config, sweep, say, options.take_over)
