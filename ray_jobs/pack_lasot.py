"""Packs a LaSOT tree: `seqtrack pack-lasot` as a Ray job, whose cluster need not have the package installed."""

from __future__ import annotations

import sys

from seqtrack import cli
from seqtrack.commands.program import run_as_process


def main(arguments: list[str] | None = None) -> int:
    return cli.main(["pack-lasot", *(sys.argv[1:] if arguments is None else arguments)])


if __name__ == "__main__":
    run_as_process(main)
