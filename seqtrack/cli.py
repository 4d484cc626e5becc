"""The `seqtrack` command: one program for each module of `seqtrack.commands`.

It imports no more than the settings until a program really starts, so that help and mistakes in what was typed are
answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

import shtab

from seqtrack.commands import (
    convert_weights,
    deliver,
    doctor,
    evaluate,
    export,
    fetch,
    fetch_lasot,
    pack,
    pack_lasot,
    reproduce,
    sweep,
    track,
    train,
    vot,
)
from seqtrack.commands.program import TRACEBACK_VARIABLE, prepare_output, run_as_process, run_program
from seqtrack.environment import command
from seqtrack.shown import shown, shown_command

PROGRAMS = {
    module.__name__.rpartition(".")[2].replace("_", "-"): module
    for module in (
        train,
        reproduce,
        sweep,
        track,
        evaluate,
        export,
        vot,
        fetch,
        fetch_lasot,
        pack,
        pack_lasot,
        deliver,
        convert_weights,
        doctor,
    )
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with an argument."""

    def error(self, message: str) -> NoReturn:
        super().error(shown(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `PROGRAM ARGUMENT …` and returns its exit code. Raises SystemExit for help and for wrong arguments.

    Without `arguments`, those of the process are taken, which then ends with the program.
    """
    if arguments is None:
        run_as_process(partial(main, sys.argv[1:]))
    prepare_output()
    parser, programs = make_parsers()
    name, *rest = arguments or ["--help"]
    if name not in programs:
        parser.parse_args([name, *rest])
        return 0
    options = programs[name].parse_intermixed_args(rest)
    to_go_on = options.to_go_on and options.to_go_on.format(command=shown_command(command(name, rest)))
    with_traceback = options.traceback or os.environ.get(TRACEBACK_VARIABLE, "0") != "0"
    return run_program(partial(PROGRAMS[name].run, options), to_go_on, with_traceback)


def make_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser of the command, and those of its programs by name.

    Those are called by themselves: only so can options stand between values of KEY=VALUE.
    """
    parser = Parser("seqtrack", description="Train SeqTrack, a visual object tracker, on Ray.")
    shtab.add_argument_to(parser, help="print a script that makes the shell complete this command")
    choices = parser.add_subparsers(metavar="PROGRAM", title="programs", required=True)
    programs = {}
    for name, module in PROGRAMS.items():
        summary, _, more = str(module.__doc__).partition("\n")
        programs[name] = choices.add_parser(
            name, help=summary, description=f"{summary}\n{more}", formatter_class=argparse.RawDescriptionHelpFormatter
        )
        programs[name].set_defaults(to_go_on=None)
        module.add_arguments(programs[name])
        programs[name].add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser, programs
