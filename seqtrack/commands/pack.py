"""Pack a data set into Parquet files.

Takes the settings of a training, and packs the tree that DATA.ROOTS (or, for LaSOT, DATA.ROOT) names, one Ray task a
file. The frames stay as they are: training from the packed tree gives the same bits as training from the tree. Of
LaSOT, the sequences of DATA.SPLIT and DATA.TRAIN.CLASSES are packed, of another set all of them (a copy that lacks some
is packed if DATA.PARTIAL names the set). A packed GOT10K_train_full serves every set of GOT-10k. The same command goes
on after an interruption.

--tiles adds restart markers to the JPEGs, which keeps every pixel. Training then reads and decodes only the part of a
frame that a crop needs: less than half of the bytes, in less than half of the time.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import GOES_ON, ProgramError, add_set, add_settings, add_take_over, chosen_set, say
from seqtrack.config import ConfigError, load_config
from seqtrack.failures import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    add_set(parser)
    add_target(parser)
    parser.set_defaults(to_go_on=GOES_ON)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds where to pack, and what of an incomplete tree."""
    parser.add_argument("--to", metavar="FOLDER", required=True, help="a new folder or URI, to be trained from")
    parser.add_argument("--allow-missing", action="store_true", help="pack what is there where frames are missing")
    parser.add_argument(
        "--tiles", action="store_true", help="divide the JPEGs into tiles, without loss; needs jpegtran on each node"
    )
    add_take_over(parser)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    name = chosen_set(options)
    setting, place = config.DATA.place_of(name)
    if place is None:
        raise ConfigError(f"{setting}: name the tree to pack")

    from pyarrow import ArrowException
    from ray.exceptions import RayError

    from seqtrack.experiments.pack import pack

    try:
        pack(config, options.to, options.allow_missing, say, name, options.tiles, options.take_over)
    except (OSError, ArrowException, RayError) as error:
        raise ProgramError(explain(error)) from error
    return 0
