"""What all programs have in common: settings from the command line, exit codes, and what they say when they end."""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import select
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from seqtrack.config import Config, ConfigError, check_supported, load_config, recipe_names
from seqtrack.config.supported import SETS
from seqtrack.errors import InputError, Stopped, did_you_mean
from seqtrack.failures import explain
from seqtrack.shown import LineFormatter, shown, shown_lines

if TYPE_CHECKING:
    from typing_extensions import Buffer

LASOT = "LASOT"
"""The data set of programs that do not say another one."""
GOES_ON = "The same command goes on from here."
TO_GO_ON = "To go on: {command}"
"""What `to_go_on` of a program can be; `command` stands for the command that was given."""


TRACEBACK_VARIABLE = "SEQTRACK_TRACEBACK"
"""Environment variable that, like `--traceback`, shows where an error came from."""


class ProgramError(Exception):
    """A program failed, and not because of its input. Programs print it without a traceback and exit with 1."""

    def __init__(self, message: str, *more: str) -> None:
        """`more`: lines for below the message."""
        super().__init__(message)
        self.more = more


def say(*lines: str, error: bool = False) -> None:
    """Prints lines, each as one line, whatever names it has; at once, even where the output is no console.

    `error`: to stderr.
    """
    for line in lines:
        print(shown(line), file=sys.stderr if error else sys.stdout, flush=True)


def run_program(program: Callable[[], int], to_go_on: str | None = None, with_traceback: bool = False) -> int:
    """Runs a program and returns its exit code, however it ends.

    2: its input was wrong. 1: it failed. 128 + n: signal n stopped it; Ctrl-C is 130. `to_go_on` says how to go on
    where it failed or was stopped. An error that nobody expected is one line too; its traceback goes into a file.
    `with_traceback`: show the traceback of every error before its line.
    """
    try:
        return program()
    except InputError as error:
        _show_traceback(with_traceback)
        say(f"error: {error}", error=True)
        return 2
    except ProgramError as error:
        _show_traceback(with_traceback)
        say(f"error: {error}", *error.more, *filter(None, [to_go_on]), error=True)
        return 1
    except Stopped as stopped:
        say(f"Stopped. {to_go_on or ''}")
        return 128 + stopped.number
    except KeyboardInterrupt:
        say("", to_go_on or "", error=True)
        return 128 + signal.SIGINT
    except Exception as error:
        _show_traceback(with_traceback)
        kept = "" if with_traceback else f" (for a report: {_keep_traceback()})"
        say(f"error: {explain(error)}{kept}", *filter(None, [to_go_on]), error=True)
        return 1


def prepare_output() -> None:
    """Makes stdout and stderr take whatever is printed, so that output never ends a program.

    A letter that a terminal or a log lacks becomes `?`. What nobody reads on, or what a full disk does not take, is
    lost. A stream that is closed gets a place to go, so that no file that is opened later takes its number. A warning
    that is logged is one line.
    """
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LineFormatter())
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        stream = getattr(sys, name)
        if stream is None or (isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__")):
            file = io.BufferedWriter(Output(number, "w", closefd=False))
            encoding = "utf-8" if stream is None else stream.encoding
            unbuffered = stream is not None and stream.write_through
            whole_lines = unbuffered or number == 2 or file.isatty()
            setattr(sys, name, io.TextIOWrapper(file, encoding, "replace", line_buffering=whole_lines))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class Output(io.FileIO):
    """A file that takes whatever is written: what cannot be is lost."""

    _lost = False

    def write(self, data: Buffer) -> int:
        """Writes all of the bytes, and waits where a terminal is slow. Returns their number."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and not self._lost:
                written = super().write(left)
                if written is None:  # a terminal that another program set to not wait
                    select.select([], [self], [])
                left = left[written or 0 :]
        except OSError as error:
            self._lost = True
            # `head` has seen enough, and says so by leaving; anything else should not pass unseen.
            if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
                say(f"warning: the output cannot be written and is lost: {explain(error)}", error=True)
        return size


def _show_traceback(wanted: bool) -> None:
    if wanted:
        print(shown_lines(traceback.format_exc().rstrip("\n")), file=sys.stderr)


def _keep_traceback() -> str:
    """Writes the current error's traceback, and the command, into a new file and returns its path."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="replace", prefix="seqtrack-error-", suffix=".log", delete=False
        ) as file:
            file.write(f"{shlex.join(sys.argv)}\n{traceback.format_exc()}")
            return file.name
    except OSError:
        return f"{TRACEBACK_VARIABLE}=1 shows its traceback"


def check_extra(extra: str, *packages: str) -> None:
    """Raises InputError unless the packages that `seqtrack[extra]` installs can be imported."""
    try:
        for package in packages:
            importlib.import_module(package)
    except Exception as error:  # one that is there may be broken, or not fit the others
        raise InputError(f"{explain(error)}: pip install 'seqtrack[{extra}]'") from error


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Adds what programs take that work with a trained model: `--weights` and `--config`."""
    parser.add_argument(
        "--weights", metavar="SOURCE", required=True,
        help="a run, a checkpoint, hf://user/repo, or a file of weights (.pth.tar, .safetensors) with --config",
    )  # fmt: skip
    parser.add_argument("--config", metavar="NAME|FILE", help="settings of a file of weights")


def add_set(parser: argparse.ArgumentParser) -> None:
    """Adds `--set`, the data set that a program is about."""
    parser.add_argument(
        "--set", metavar="NAME", dest="set_name", default=LASOT,
        help="the data set, as DATA.TRAIN.DATASETS_NAME has it (default: LASOT)",
    )  # fmt: skip


def chosen_set(options: argparse.Namespace) -> str:
    """What `--set` says. Raises ConfigError for a set that is not known."""
    name = str(options.set_name)
    if name not in SETS:
        hint = did_you_mean(name, SETS) or f"; known: {', '.join(SETS)}"
        raise ConfigError(f"--set {name}: no such data set{hint}")
    return name


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
