"""Download LaSOT classes from the Hugging Face Hub.

Takes the settings of a training. The classes (DATA.TRAIN.CLASSES; all, if none is named) come from the Hub's dataset
repository DATA.DOWNLOAD_FROM, which keeps one zip a class, into the folder DATA.ROOT. A class appears there when it is
whole. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import GOES_ON, ProgramError, add_settings
from seqtrack.config import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.set_defaults(to_go_on=GOES_ON)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)

    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    from seqtrack.integrations.lasot_download import fetch

    try:
        fetch(config.DATA, say=print)
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ProgramError(str(error).strip().splitlines()[0]) from error
    return 0
