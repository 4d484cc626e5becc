"""What all programs have in common: settings from the command line, exit codes, and what they say when they end."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from seqtrack.config import Config, check_supported, load_config, recipe_names
from seqtrack.errors import InputError, Stopped
from seqtrack.failures import explain

GOES_ON = "The same command goes on from here."
TO_GO_ON = "To go on: {command}"
"""What `to_go_on` of a program can be; `command` stands for the command that was given."""


TRACEBACK_VARIABLE = "SEQTRACK_TRACEBACK"
"""Environment variable that, like `--traceback`, shows where an error came from."""


class ProgramError(Exception):
    """A program failed, and not because of its input. Programs print it without a traceback and exit with 1."""


def run_program(program: Callable[[], int], to_go_on: str | None = None, with_traceback: bool = False) -> int:
    """Runs a program and returns its exit code, however it ends.

    2: its input was wrong. 1: it failed. 128 + n: signal n stopped it; Ctrl-C is 130. `to_go_on` says how to go on
    where it failed or was stopped. An error that nobody expected is one line too; its traceback goes into a file.
    `with_traceback`: show the traceback of every error before its line.
    """
    prepare_output()
    try:
        return program()
    except InputError as error:
        _show_traceback(with_traceback)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ProgramError as error:
        _show_traceback(with_traceback)
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
    except Exception as error:
        _show_traceback(with_traceback)
        kept = "" if with_traceback else f" (for a report: {_keep_traceback()})"
        print("\n".join(filter(None, (f"error: {explain(error)}{kept}", to_go_on))), file=sys.stderr)
        return 1


def prepare_output() -> None:
    """Makes stdout and stderr take whatever is printed: a letter that a terminal or a log lacks becomes `?`.

    A stream that is closed gets a place to go, so that no file that is opened later takes its number.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _show_traceback(wanted: bool) -> None:
    if wanted:
        traceback.print_exc()


def _keep_traceback() -> str:
    """Writes the current error's traceback, and the command, into a new file and returns its path."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="seqtrack-error-", suffix=".log", delete=False) as file:
            file.write(f"{shlex.join(sys.argv)}\n{traceback.format_exc()}")
            return file.name
    except OSError:
        return f"{TRACEBACK_VARIABLE}=1 shows its traceback"


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
    if config.RUN.NAME is None:
        config = config.with_settings({"RUN.NAME": default_name})
    check_supported(config)
    return config
