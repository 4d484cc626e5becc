"""What all programs have in common: settings from the command line, exit codes, and what they say when they end."""

from __future__ import annotations

import argparse
import atexit
import importlib
import io
import logging
import os
import select
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from seqtrack import interruption
from seqtrack.config import Config, ConfigError, check_supported, load_config, recipe_names
from seqtrack.config.supported import SETS
from seqtrack.errors import InputError, LeaseLostError, ProgramError, Stopped, did_you_mean
from seqtrack.failures import explain, is_of_ray
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


def say(*lines: str, error: bool = False) -> None:
    """Prints lines, each as one line, whatever names it has; at once, even where the output is no console.

    `error`: to stderr.
    """
    for line in lines:
        print(shown(line), file=sys.stderr if error else sys.stdout, flush=True)


def run_program(program: Callable[[], int], to_go_on: str | None = None, with_traceback: bool = False) -> int:
    """Runs a program and returns its exit code, however it ends.

    2: its input was wrong. 1: it failed. 128 + n: signal n stopped it; Ctrl-C is 130. `to_go_on` says how to go on
    where it failed or was stopped; an error's notes say it better. An error that nobody expected is one line too; its
    traceback goes into a file. `with_traceback`: show the traceback of every error before its line.
    """
    interruption.forget()
    try:
        with interruption.stopping_on_sigterm():
            return program()
    except (Exception, KeyboardInterrupt) as error:
        reason = interruption.reason()
        if reason is not None:  # all else follows from it
            reason.__notes__ = [*getattr(reason, "__notes__", ()), *getattr(error, "__notes__", ())]
            return _ended_by(reason, to_go_on, with_traceback)
        if isinstance(error, KeyboardInterrupt):
            say("", *_how_to_go_on(error, to_go_on), error=True)
            return 128 + signal.SIGINT
        return _ended_by(error, to_go_on, with_traceback)


def _ended_by(error: Exception, to_go_on: str | None, with_traceback: bool) -> int:
    """Says how a program ended. Returns its exit code."""
    if isinstance(error, Stopped):
        say(" ".join(["Stopped.", *_how_to_go_on(error, to_go_on)]))
        return 128 + error.number
    _show_traceback(with_traceback)
    if isinstance(error, InputError):
        say(f"error: {error}", error=True)
        return 2
    if isinstance(error, LeaseLostError):
        say(f"error: {error}; this job has ended, and wrote nothing more there", error=True)
        return 1
    if isinstance(error, ProgramError):
        said = str(error)
    elif is_of_ray(error):
        said = explain(error)
    else:
        said = explain(error) + ("" if with_traceback else f" (for a report: {_keep_traceback()})")
    say(f"error: {said}", *_how_to_go_on(error, to_go_on), error=True)
    return 1


def _how_to_go_on(error: BaseException, to_go_on: str | None) -> list[str]:
    """Lines below the error's own: its notes, or else what the program says."""
    return list(getattr(error, "__notes__", ())) or ([to_go_on] if to_go_on else [])


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


def run_as_process(program: Callable[[], int]) -> NoReturn:
    """Runs a program as all that this process is for, and ends the process with its exit code.

    Threads may be left that cannot be ended: one that waits for a server, or for Ray, inside of C++. If the interpreter
    goes while such a thread is there, the process often aborts (exit code 134, and a C++ stack) in place of its own
    exit code. So the interpreter is not waited for in this case, after all else that ends a process has been done.
    """
    code = [1]
    atexit.register(_leave, code)  # before all others, so that it comes after them: Ray, MLflow, temporary files
    try:
        code[0] = program()
    except SystemExit as ended:
        code[0] = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    sys.exit(code[0])


def _leave(code: list[int]) -> None:
    """Ends the process if threads are left."""
    if threading.active_count() == 1:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code[0])


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
        help="a run, RUN/3, a checkpoint, hf://user/repo, or a file of weights (.pth.tar, .safetensors) with --config",
    )  # fmt: skip
    parser.add_argument("--config", metavar="NAME|FILE", help="settings of a file of weights")


def add_take_over(parser: argparse.ArgumentParser) -> None:
    """Adds `--take-over`, for programs that work in a folder that has one owner at a time."""
    parser.add_argument(
        "--take-over", action="store_true",
        help="take the folder from another job that works in it, which then ends without writing anything more",
    )  # fmt: skip


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
