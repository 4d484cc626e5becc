"""What all programs have in common: settings from the command line, exit codes, and what they say when they end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable

from seqtrack.config import Config, check_supported, load_config, recipe_names
from seqtrack.errors import InputError, Stopped

GOES_ON = "The same command goes on from here."
TO_GO_ON = "To go on: {command}"
"""What `to_go_on` of a program can be; `command` stands for the command that was given."""


class ProgramError(Exception):
    """A program failed, and not because of its input. Programs print it without a traceback and exit with 1."""


def run_program(program: Callable[[], int], to_go_on: str | None = None) -> int:
    """Runs a program and returns its exit code, however it ends.

    2: its input was wrong. 1: it failed. 128 + n: signal n stopped it; Ctrl-C is 130. `to_go_on` says how to go on
    where it failed or was stopped.
    """
    try:
        return program()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProgramError as error:
        print("\n".join(filter(None, (f"error: {error}", to_go_on))), file=sys.stderr)
        return 1
    except Stopped as stopped:
        print("Stopped.", to_go_on or "")
        return 128 + stopped.number
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"\n{to_go_on or ''}", file=sys.stderr)
        return 128 + signal.SIGINT


def add_settings(parser: argparse.ArgumentParser, config_needed: bool = False) -> None:
    """Adds what most programs take: `--config` and `KEY=VALUE`."""
    recipes = ", ".join(recipe_names())
    parser.add_argument(
        "--config", metavar="NAME|FILE", required=config_needed, help=f"settings: a YAML file or a recipe ({recipes})"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that replace those of --config")


def read_experiment(options: argparse.Namespace, default_name: str) -> Config:
    """The settings of an experiment of several runs. Raises ConfigError.

    Unless RUN.NAME is set, it is `default_name`, the same at every start: so the same command goes on.
    """
    config = load_config(options.config, options.overrides)
    check_supported(config)
    return config if config.RUN.NAME is not None else config.with_settings({"RUN.NAME": default_name})
