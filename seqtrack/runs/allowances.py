"""Checks the names given to `--allow-changed`. Imports no torch, so that a typo is reported at once."""

from __future__ import annotations

from collections.abc import Collection

from seqtrack.config import ConfigError, setting_docs
from seqtrack.errors import did_you_mean

DECISIVE_PACKAGES = ("seqtrack", "torch", "timm", "numpy", "opencv-python", "nvidia-nvimgcodec-cu12")
"""Packages whose version may change the bits that are computed."""


def check_allowances(keys: Collection[str]) -> None:
    """Raises ConfigError if a key is neither a setting, nor `dataset` or `frames`, nor one of DECISIVE_PACKAGES."""
    known = {doc.key for doc in setting_docs()} | {"dataset", "frames", *DECISIVE_PACKAGES}
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"--allow-changed {key}: neither a setting nor `dataset` nor `frames` nor one of "
                f"{', '.join(DECISIVE_PACKAGES)}{did_you_mean(key, known)}"
            )
