"""Download a data set from the Hugging Face Hub.

Takes the settings of a training. The set comes into the folder that DATA.ROOTS (or, for LaSOT, DATA.ROOT) names, from
the dataset repository that --from or DATA.DOWNLOAD_FROM names. LaSOT's default is DATA.DOWNLOAD_FROM's, and of LaSOT
the classes of DATA.TRAIN.CLASSES are fetched. GOT-10k and TrackingNet are fetched from a copy that you choose; for a
set without one, this program says what to download from where. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse

from seqtrack.commands.program import GOES_ON, LASOT, ProgramError, add_set, add_settings, chosen_set, say
from seqtrack.config import ConfigError, DataConfig, load_config
from seqtrack.config.servers import check_hub_variables, check_repository
from seqtrack.errors import InputError
from seqtrack.failures import explain

COCO = (
    "it is not fetched from the Hub. Download two files from the data set's own site, cocodataset.org: train2017.zip "
    "(18 GB), to be unpacked into {root}/images, so that there is {root}/images/train2017/000000000009.jpg; and "
    "annotations_trainval2017.zip, to be unpacked into {root}, so that there is "
    "{root}/annotations/instances_train2017.json"
)
GOT10K = (
    "name a dataset repository of the Hub that has a copy (--from USER/REPOSITORY); or download the full data set from "
    "its own site, got-10k.aitestunion.com, and unpack its training part, so that there are {root}/train/list.txt and "
    "{root}/train/GOT-10k_Train_000001/00000001.jpg"
)
TRACKINGNET = (
    "name a dataset repository of the Hub that has a copy (--from USER/REPOSITORY); or download the chunks as its own "
    "site, tracking-net.org, says and unpack each sequence's zip, so that there are "
    "{root}/TRAIN_0/anno/<sequence>.txt and {root}/TRAIN_0/frames/<sequence>/0.jpg"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    add_set(parser)
    parser.add_argument(
        "--from", metavar="USER/REPOSITORY", dest="repo_id", help="the dataset repository (default: DATA.DOWNLOAD_FROM)"
    )
    parser.set_defaults(to_go_on=GOES_ON)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.config, options.overrides)
    name = chosen_set(options)
    setting, place = config.DATA.place_of(name)
    own = options.repo_id or config.DATA.DOWNLOAD_FROM
    if name != LASOT and (name == "COCO17" or own == DataConfig().DOWNLOAD_FROM):
        what = COCO if name == "COCO17" else TRACKINGNET if name == "TRACKINGNET" else GOT10K
        raise InputError(f"{name}: {what.format(root=place or setting)}")
    check_repository("--from" if options.repo_id else "DATA.DOWNLOAD_FROM", own)
    check_hub_variables()
    if place is None:
        raise ConfigError(f"{setting}: name the folder to download into")

    from seqtrack.integrations import lasot_download, set_download

    try:
        if name == LASOT:
            lasot_download.fetch(config.DATA.model_copy(update={"ROOT": place, "DOWNLOAD_FROM": own}), say=say)
        else:
            set_download.fetch(name, own, place, setting, name in config.DATA.PARTIAL, say=say)
    except InputError:
        raise
    except Exception as error:  # whatever the Hub's client raises, or the disk
        raise ProgramError(explain(error)) from error
    return 0
