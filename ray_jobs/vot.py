"""Tracks for the VOT toolkit: `seqtrack vot`. Does not start Ray."""

from __future__ import annotations

import sys

from seqtrack import cli
from seqtrack.commands.program import run_as_process


def main(arguments: list[str] | None = None) -> int:
    return cli.main(["vot", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    run_as_process(main)
