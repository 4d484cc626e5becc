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


def draw(image: Image, drawn: Sequence[Drawn], caption: str = "") -> Image:
    """A copy of (H, W, 3) with the boxes, and a caption in its upper left corner.

    Lines and letters grow with the picture. The letters are those of ASCII.
    """
    picture = np.ascontiguousarray(image).copy()
    unit = max(round(min(picture.shape[:2]) / 360), 1)
    for box_xywh, text, colour in drawn:
        x, y, w, h = (float(value) for value in box_xywh)
        if not np.isfinite((x, y, w, h)).all():
            continue
        corner, opposite = (round(x), round(y)), (round(x + w), round(y + h))
        cv2.rectangle(picture, corner, opposite, (0, 0, 0), 2 * unit + 2)
        cv2.rectangle(picture, corner, opposite, colour, 2 * unit)
        _write(picture, text, (corner[0], max(corner[1] - 4 * unit, 12 * unit)), colour, unit, 0.45)
    _write(picture, caption, (6 * unit, 20 * unit), TRUTH, unit, 0.6)
    return picture


def _write(
    picture: Image, text: str, place: tuple[int, int], colour: tuple[int, int, int], unit: int, size: float
) -> None:
    """Writes a line with a dark edge. `place`: where its lower left corner is."""
    if not text:
        return
    edge = [(dx * unit, dy * unit, (0, 0, 0)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    for dx, dy, shade in [*edge, (0, 0, colour)]:  # thicker letters would be wider too
        corner = (place[0] + dx, place[1] + dy)
        cv2.putText(picture, text, corner, cv2.FONT_HERSHEY_SIMPLEX, size * unit, shade, unit, cv2.LINE_AA)
