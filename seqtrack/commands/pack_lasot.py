"""Pack a LaSOT tree into Parquet files: `seqtrack pack` of the set LASOT.

Takes the settings of a training, and packs the sequences of DATA.SPLIT and DATA.TRAIN.CLASSES, one Ray task a file. The
frames stay as they are: training from DATA.ROOT=<packed> gives the same bits as training from the tree. The same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands import pack
from seqtrack.commands.program import GOES_ON, LASOT, add_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    pack.add_target(parser)
    parser.set_defaults(to_go_on=GOES_ON, set_name=LASOT)


run = pack.run
