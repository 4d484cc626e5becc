"""Refuses settings that no run can start with: published ones that this project does not support, and wrong names."""

from __future__ import annotations

import re

from seqtrack.config.config import Config, ConfigError, shown_key
from seqtrack.config.servers import check_servers
from seqtrack.config.settings import DataConfig
from seqtrack.errors import InputError, did_you_mean
from seqtrack.locations import check_name

SETS = (
    *("LASOT", "GOT10K_train_full", "GOT10K_vottrain", "GOT10K_votval", "GOT10K_vottrain_fixed"),
    *("COCO17", "TRACKINGNET"),
)
"""Names of the training sets."""
FAMILIES = ("GOT10K",)
"""Names that stand for several sets, which are parts of one tree."""
MAY_BE_PARTIAL = tuple(name for name in SETS if name not in ("LASOT", "COCO17"))
UNSUPPORTED_SETS = ("VID", "IMAGENET1K")
"""Names that the published code knows too."""


def check_supported(config: Config) -> None:
    """Raises ConfigError for what no run can start with.

    That is a published setting that this project does not support, a training set without a place, a RUN.NAME that no
    folder can have, and names and addresses of MLflow and the Hub that cannot be right. Runs of any name are read;
    only what starts is checked.
    """
    _check_sets(config.DATA)
    if config.DATA.SAMPLER_MODE != "order":
        raise ConfigError(
            f"DATA.SAMPLER_MODE {config.DATA.SAMPLER_MODE} is not supported, only order: every published recipe uses "
            "order, so there are no published results that draws of another mode could be compared with"
        )
    _check_places(config.DATA)
    if config.RUN.NAME is not None:
        try:
            check_name(config.RUN.NAME)
        except InputError as error:
            raise ConfigError(f"RUN.NAME {error}") from None
    for name in config.EVAL.BENCHMARKS:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise ConfigError(f"EVAL.BENCHMARKS {shown_key(name)}: a name has letters, digits, and . _ - between them")
    check_servers(config)


def _check_sets(data: DataConfig) -> None:
    names = data.TRAIN.DATASETS_NAME
    if not names:
        raise ConfigError(f"DATA.TRAIN.DATASETS_NAME names no set; it can have {', '.join(SETS)}")
    for name in names:
        if name in UNSUPPORTED_SETS:
            raise ConfigError(
                f"DATA.TRAIN.DATASETS_NAME: {name} cannot be trained on: no published recipe uses it, and this project "
                "does not read its layout"
            )
        if name not in SETS:
            raise ConfigError(f"DATA.TRAIN.DATASETS_NAME: no set {shown_key(name)}{_nearest(name, SETS)}")
        if names.count(name) > 1:
            raise ConfigError(
                f"DATA.TRAIN.DATASETS_NAME has {name} {names.count(name)} times; DATASETS_RATIO says how much of a set "
                "is drawn"
            )


def _check_places(data: DataConfig) -> None:
    for key in data.ROOTS:
        if key not in (*SETS, *FAMILIES):
            raise ConfigError(f"DATA.ROOTS: no set {shown_key(key)}{_nearest(key, (*SETS, *FAMILIES))}")
    if data.ROOT is not None and "LASOT" in data.ROOTS:
        raise ConfigError("DATA.ROOT and DATA.ROOTS.LASOT both say where LaSOT is; leave one of them out")
    for name in data.PARTIAL:
        if name in ("LASOT", "COCO17"):
            why = "DATA.SPLIT chooses its sequences" if name == "LASOT" else "DATA.ON_MISMATCH is for missing images"
            raise ConfigError(f"DATA.PARTIAL: {name} cannot be among them: {why}")
        if name not in MAY_BE_PARTIAL:
            raise ConfigError(f"DATA.PARTIAL: no set {shown_key(name)}{_nearest(name, MAY_BE_PARTIAL)}")
    unset = [setting for setting, place in map(data.place_of, data.TRAIN.DATASETS_NAME) if place is None]
    if unset == ["DATA.ROOT"]:
        raise ConfigError("DATA.ROOT is not set: the LaSOT folder or URI, or `synthetic` for a small made-up data set")
    if unset:
        hint = " (DATA.ROOT is only LaSOT's)" if data.ROOT is not None and "DATA.ROOT" not in unset else ""
        raise ConfigError(
            f"{', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set: the folder or URI of each training set, "
            f"or `synthetic` for a small made-up one{hint}"
        )


def _nearest(name: str, known: tuple[str, ...]) -> str:
    return did_you_mean(name, known, cutoff=0.5) or f"; there are {', '.join(known)}"
