"""Pack a LaSOT tree into Parquet files.

Takes the settings of a training, and packs the sequences of DATA.SPLIT and DATA.TRAIN.CLASSES, one Ray task a file. The
frames stay as they are: training from DATA.ROOT=<packed> gives the same bits as training from the tree. The same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
from functools import partial

from seqtrack.commands.program import GOES_ON, ProgramError, add_settings
from seqtrack.config import ConfigError, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument("--to", metavar="FOLDER", required=True, help="a new folder or URI, which becomes a DATA.ROOT")
    parser.add_argument("--allow-missing", action="store_true", help="pack what is there where frames are missing")
    parser.set_defaults(to_go_on=GOES_ON)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    if config.DATA.ROOT is None:
        raise ConfigError("DATA.ROOT: name the tree to pack")

    from pyarrow import ArrowException
    from ray.exceptions import RayError

    from seqtrack.experiments.pack import pack

    try:
        pack(config, options.to, options.allow_missing, partial(print, flush=True))
    except (OSError, ArrowException, RayError) as error:
        raise ProgramError(str(error)) from error
    return 0
