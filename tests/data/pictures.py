"""Pictures made by formula, as the published implementation was given them."""

from __future__ import annotations

import numpy as np

from seqtrack.data.decoding import Image


def smooth(height: int, width: int, salt: float) -> Image:
    """(H, W, 3) waves whose phase and length follow the salt."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    channels = [
        127.5 + 120 * np.sin(x / (23 + 5 * c + salt) + 0.7 * c) * np.cos(y / (31 - 4 * c) + 0.3 * salt)
        for c in range(3)
    ]
    return np.clip(np.rint(np.stack(channels, axis=-1)), 0, 255).astype(np.uint8)
