"""Download LaSOT classes from the Hugging Face Hub.

Takes the settings of a training. The classes (DATA.TRAIN.CLASSES; all, if none is named) come from the Hub's dataset
repository DATA.DOWNLOAD_FROM, which keeps one zip a class, into the folder DATA.ROOT. A class appears there when it is
whole. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import GOES_ON, ProgramError, add_settings
from seqtrack.config import load_config
from seqtrack.config.servers import check_hub_variables, check_repository
from seqtrack.errors import InputError
from seqtrack.failures import explain


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.set_defaults(to_go_on=GOES_ON)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    check_repository("DATA.DOWNLOAD_FROM", config.DATA.DOWNLOAD_FROM)
    check_hub_variables()

    from seqtrack.integrations.lasot_download import fetch

    try:
        fetch(config.DATA, say=print)
    except InputError:
        raise
    except Exception as error:  # whatever the Hub's client raises, or the disk
        raise ProgramError(explain(error)) from error
    return 0
