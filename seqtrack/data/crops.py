"""From frames and boxes to crops: jitter, cut-out, resize, and the box inside the crop.

Boxes are NumPy float32 `xywh` in pixels. Coordinates are computed in float32 in the published order of operations, so
that they agree with the published implementation to the last bits. Pixels stay uint8; brightness and normalisation
happen on the training device (`seqtrack.model.images.prepare_images`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.config import DataConfig, SearchConfig
from seqtrack.data.decoding import Frame, Image
from seqtrack.data.sampling import Draws

Box = NDArray[np.float32]


MAX_CROP_SIDE = 32_767
"""Largest side, in pixels, of a square that is cut out of a frame: beyond it OpenCV's resizing fails."""


MAX_KEPT_SIDE = 2_048
"""Largest square for which memory is kept."""


class _Canvas(threading.local):
    """Memory for a square with a black border. Where it is new each time, most of the time goes to its page faults."""

    pixels: Image = np.empty(0, np.uint8)

    def of_side(self, side: int) -> Image | None:
        """(side, side, 3) of any content, which is overwritten the next time; None for a square that is too large."""
        size = side * side * 3
        if side > MAX_KEPT_SIDE:
            return None
        if self.pixels.size < size:
            self.pixels = np.empty(size, np.uint8)
        return self.pixels[:size].reshape(side, side, 3)


_canvas = _Canvas()


class HugeCrop(ValueError):
    """A box asks for a crop that is larger than can be made."""

    def __init__(self, frame: int, box_xywh: Box, side: int) -> None:
        w, h = box_xywh[2:].tolist()
        super().__init__(f"a box of {w:,.0f} × {h:,.0f} pixels asks for a crop of {side:,} pixels a side")
        self.frame = frame
        """Number of the frame, from 0."""


class Region(NamedTuple):
    """A square of the frame in whole pixels. It may reach beyond the frame."""

    left: int
    top: int
    side: int


class Cut(NamedTuple):
    """One crop of a sample, as it is known before a pixel is read."""

    target: Box
    """(4,) the target in the frame, or in its mirror image if the whole sample is mirrored."""
    around: Box
    """(4,) the jittered box that the crop is cut around."""
    region: Region


class Sample(NamedTuple):
    """One triplet: the crops and the search target."""

    template: Image
    """(T, h, w, 3) RGB."""
    search: Image
    """(H, W, 3) RGB."""
    box_xywh: Box
    """(4,) the target in the search crop, normalised to it."""
    brightness: NDArray[np.float32]
    """(T + 1,) factor for each crop, templates first, still to be applied."""
    set_number: int = 0
    """Which of the run's training sets it is from."""


def jitter_box(box_xywh: Box, normal: Sequence[float], uniform: Sequence[float], settings: SearchConfig) -> Box:
    """The box that the crop is cut around: size × exp(normal · SCALE_JITTER), centre shifted by CENTER_JITTER.

    `normal`, `uniform`: two standard normal and two U(0, 1) draws.
    """
    size = box_xywh[2:] * np.exp(np.asarray(normal, np.float32) * np.float32(settings.SCALE_JITTER))
    max_offset = np.sqrt(size.prod(dtype=np.float32)) * np.float32(settings.CENTER_JITTER)
    centre = box_xywh[:2] + np.float32(0.5) * box_xywh[2:]
    centre = centre + max_offset * (np.asarray(uniform, np.float32) - np.float32(0.5))
    return np.concatenate((centre - np.float32(0.5) * size, size)).astype(np.float32)


def crop_region(box_xywh: NDArray[np.floating], factor: float) -> Region:
    """The square of side ceil(sqrt(w·h) · factor) around the box's centre."""
    x, y, w, h = (float(value) for value in box_xywh)
    side = math.ceil(math.sqrt(w * h) * factor)
    return Region(left=round(x + 0.5 * w - side * 0.5), top=round(y + 0.5 * h - side * 0.5), side=side)


def part_inside(region: Region, width: int, height: int) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom edge of what a crop shows of a frame, or None if that is nothing.

    If the region passes the right or bottom edge, the frame's last column or row is left out: the published
    implementation pads one pixel more than is missing there.
    """
    left, top, side = region
    right, bottom = left + side, top + side
    x0, y0 = max(left, 0), max(top, 0)
    x1 = width - 1 if right >= width else right
    y1 = height - 1 if bottom >= height else bottom
    return None if x1 <= x0 or y1 <= y0 else (x0, y0, x1, y1)


def crop_image(
    frame: Frame,
    region: Region,
    size: int,
    mirrored: bool = False,
    grayscale: bool = False,
    into: Image | None = None,
) -> Image:
    """Cuts the region out, black outside of `part_inside`, and resizes it to (size, size, 3).

    `mirrored`: the region lies in the frame's mirror image. `into`: an array that is filled and returned; otherwise a
    new one is made.
    """
    crop = np.empty((size, size, 3), np.uint8) if into is None else into
    part = part_inside(region, frame.width, frame.height)
    if part is None:
        crop[:] = 0
        return crop
    x0, y0, x1, y1 = part
    if mirrored:
        square = cv2.flip(frame.pixels(frame.width - x1, y0, frame.width - x0, y1), 1)
    else:
        square = frame.pixels(x0, y0, x1, y1)
    left, top, side = region
    right, bottom = left + side, top + side
    if square.shape[:2] != (side, side):
        canvas = _canvas.of_side(side)
        square = cv2.copyMakeBorder(square, y0 - top, bottom - y1, x0 - left, right - x1, cv2.BORDER_CONSTANT, canvas)
    if grayscale:  # before the resize, as published; the two do not commute to the last bit
        square = cv2.cvtColor(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    cv2.resize(square, (size, size), dst=crop)  # bilinear
    return crop


def box_in_crop(box_xywh: Box, crop_box_xywh: Box, region: Region, size: int) -> Box:
    """The box in the coordinates of the crop around `crop_box_xywh`, divided by size - 1."""
    scale = np.float32(size / region.side)
    half = np.float32(0.5)
    crop_centre = crop_box_xywh[:2] + half * crop_box_xywh[2:]
    centre = np.float32((size - 1) / 2) + (box_xywh[:2] + half * box_xywh[2:] - crop_centre) * scale
    extent = box_xywh[2:] * scale
    return (np.concatenate((centre - half * extent, extent)) / np.float32(size - 1)).astype(np.float32)


def plan_cut(draws: Draws, position: int, boxes_xywh: Box, width: int, settings: DataConfig) -> Cut | None:
    """What the crop of this position (templates first) shows of its frame, which is `width` pixels wide.

    `boxes_xywh`: (F, 4) boxes of the drawn sequence. None if the crop would be smaller than a pixel. Raises HugeCrop.
    """
    section = _section(draws, position, settings)
    number = draws.frames[position]
    target = boxes_xywh[number]
    if draws.joint_flip:
        # x -> (W - 1) - x on both corners: the new left edge is the old right one.
        target = target.copy()
        target[0] = np.float32(width - 1) - (target[0] + target[2])
    around = jitter_box(target, draws.normal[position], draws.uniform[position], section)
    region = crop_region(around, section.FACTOR)
    if region.side < 1:
        return None
    if region.side > MAX_CROP_SIDE:
        raise HugeCrop(number, target, region.side)
    return Cut(target, around, region)


def cut_sample(
    draws: Draws,
    boxes_xywh: Box,
    open_frame: Callable[[int], Frame],
    settings: DataConfig,
    into: tuple[Image, Image] | None = None,
) -> Sample | None:
    """Makes the sample that `draws` describes, or None if a crop would be smaller than a pixel.

    `boxes_xywh`: (F, 4) boxes of the drawn sequence. `open_frame(number)` opens frame `number`, from 0; its errors and
    those of the frame are passed on. `into`: arrays for `Sample.template` and `Sample.search`; otherwise new ones are
    made. Raises HugeCrop.
    """
    template, search = into or empty_crops((), settings)
    box_xywh = np.zeros(4, np.float32)
    for position, (number, place) in enumerate(zip(draws.frames, [*template, search], strict=True)):
        frame = open_frame(number)
        cut = plan_cut(draws, position, boxes_xywh, frame.width, settings)
        if cut is None:
            return None
        size = _section(draws, position, settings).SIZE
        crop = crop_image(frame, cut.region, size, draws.joint_flip, draws.grayscale, place)
        box_xywh = box_in_crop(cut.target, cut.around, cut.region, size)
        if draws.flips[position]:
            cv2.flip(crop, 1, dst=crop)
            box_xywh[0] = np.float32(1) - box_xywh[0] - box_xywh[2]
    return Sample(template, search, box_xywh, draws.brightness)


def empty_crops(samples: tuple[int, ...], settings: DataConfig) -> tuple[Image, Image]:
    """Arrays for the crops of samples, not yet filled: (*samples, T, h, w, 3) and (*samples, H, W, 3)."""
    template, search = settings.TEMPLATE, settings.SEARCH
    return (
        np.empty((*samples, template.NUMBER, template.SIZE, template.SIZE, 3), np.uint8),
        np.empty((*samples, search.SIZE, search.SIZE, 3), np.uint8),
    )


def _section(draws: Draws, position: int, settings: DataConfig) -> SearchConfig:
    """The settings of a crop: the last is the search region, the others are templates."""
    return settings.SEARCH if position == len(draws.frames) - 1 else settings.TEMPLATE
