"""Check what a run would need.

Looks at Python, packages, CPUs, memory, disk, GPUs, Ray, MLflow, the Hub and the data, starts nothing and writes
nothing. The exit code is 1 if a run with these settings could not start (NO), or if that is not known, since something
did not answer in time (?). Without settings, only the machine is checked.
"""

from __future__ import annotations

import argparse
import os
import sys

from seqtrack.commands.program import add_settings, say
from seqtrack.config import load_config

GREEN, RED, YELLOW, DIM = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m"
MARKS = {True: "ok", False: "NO", None: "-"}
NOT_KNOWN = "?"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)

    from seqtrack.experiments.doctor import examine

    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    fits = True
    for name, fit, said, mend, answered in examine(config, bool(options.config or options.overrides)):
        mark = f"{MARKS[fit] if answered else NOT_KNOWN:2}"
        colour = {True: GREEN, False: RED, None: YELLOW if mend or not answered else DIM}[fit]
        print(f"{colour}{mark}\x1b[0m" if coloured else mark, end=" ")
        say(f"{name:14} {said}")
        if mend:
            say(f"   {'':14} -> {mend}")
        fits = fits and fit is not False and answered
    return 0 if fits else 1
