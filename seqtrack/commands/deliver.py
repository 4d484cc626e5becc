"""Bring MLflow up to date with a run's folder.

Sends what MLflow lacks of the run, for instance because its server was away when the run ended.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import ProgramError, say
from seqtrack.errors import InputError
from seqtrack.failures import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="folder or URI of the run")


def run(options: argparse.Namespace) -> int:
    from seqtrack.integrations.mlflow import deliver

    try:
        mirror = deliver(options.run_folder)
    except InputError:
        raise
    except Exception as error:  # whatever MLflow raises
        raise ProgramError(explain(error)) from error
    say(f"MLflow run {mirror.note.state.run_id} is up to date with {options.run_folder}")
    return 0
