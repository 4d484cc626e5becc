"""Refuses settings that no run can start with: published ones that this project does not support, and wrong names."""

from __future__ import annotations

from seqtrack.config.config import Config, ConfigError
from seqtrack.config.servers import check_servers
from seqtrack.errors import InputError
from seqtrack.locations import check_name


def check_supported(config: Config) -> None:
    """Raises ConfigError for a published setting that this project does not support, for a missing DATA.ROOT, and for
    a RUN.NAME that no folder can have, and for names and addresses of MLflow and the Hub that cannot be right. Runs of
    any name are read; only what starts is checked.
    """
    others = [name for name in config.DATA.TRAIN.DATASETS_NAME if name != "LASOT"]
    if others:
        raise ConfigError(
            f"DATA.TRAIN.DATASETS_NAME: {', '.join(others)} cannot be trained on here, only LASOT "
            "(DATA.TRAIN.DATASETS_NAME=[LASOT] DATA.TRAIN.DATASETS_RATIO=[1])"
        )
    if config.DATA.SAMPLER_MODE != "order":
        raise ConfigError(f"DATA.SAMPLER_MODE {config.DATA.SAMPLER_MODE} is not supported, only order")
    if config.DATA.ROOT is None:
        raise ConfigError("DATA.ROOT is not set: the LaSOT folder or URI, or `synthetic` for a small made-up data set")
    if config.RUN.NAME is not None:
        try:
            check_name(config.RUN.NAME)
        except InputError as error:
            raise ConfigError(f"RUN.NAME {error}") from None
    check_servers(config)
