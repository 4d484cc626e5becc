"""Download LaSOT classes from the Hugging Face Hub: `seqtrack fetch` of the set LASOT.

Takes the settings of a training. The classes (DATA.TRAIN.CLASSES; all, if none is named) come from the Hub's dataset
repository DATA.DOWNLOAD_FROM, which keeps one zip a class, into the folder DATA.ROOT. A class appears there when it is
whole. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands import fetch
from seqtrack.commands.program import GOES_ON, LASOT, add_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.set_defaults(to_go_on=GOES_ON, set_name=LASOT, repo_id=None)


run = fetch.run
