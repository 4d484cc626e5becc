"""Draws boxes and confidences into frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data.decoding import Image

COLOURS = ((255, 200, 0), (0, 200, 255), (255, 80, 120), (120, 255, 80), (200, 120, 255), (255, 140, 60))
"""RGB of the targets' boxes, in turn."""
TRUTH = (255, 255, 255)
"""RGB of the annotation's box."""


class Drawn(NamedTuple):
    """A box and what is written above it."""

    box_xywh: Sequence[float] | NDArray[np.floating]
    """The box in pixels. It is not drawn if it is not finite."""
    text: str
    colour: tuple[int, int, int]


def colour_of(target: int) -> tuple[int, int, int]:
    return COLOURS[target % len(COLOURS)]


def draw(image: Image, drawn: Sequence[Drawn]) -> Image:
    """A copy of (H, W, 3) with the boxes; lines and letters grow with the picture."""
    picture = np.ascontiguousarray(image).copy()
    unit = max(round(min(picture.shape[:2]) / 360), 1)
    for box_xywh, text, colour in drawn:
        x, y, w, h = (float(value) for value in box_xywh)
        if not np.isfinite((x, y, w, h)).all():
            continue
        corner, opposite = (round(x), round(y)), (round(x + w), round(y + h))
        cv2.rectangle(picture, corner, opposite, (0, 0, 0), 2 * unit + 2)
        cv2.rectangle(picture, corner, opposite, colour, 2 * unit)
        if text:
            place = (corner[0], max(corner[1] - 4 * unit, 12 * unit))
            for inner, thickness in (((0, 0, 0), 3 * unit), (colour, unit)):
                cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * unit, inner, thickness, cv2.LINE_AA)
    return picture
