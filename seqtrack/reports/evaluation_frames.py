"""Frames of a sequence, with the true box and the one that a tracker found."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

import numpy as np
import torch

from seqtrack.boxes import iou, xywh_to_xyxy
from seqtrack.data.decoding import FrameDecoder, Image
from seqtrack.data.drawing import TRUTH, Drawn
from seqtrack.data.storage import Root, Span, SpanReader, read_bytes
from seqtrack.evaluation.curves import Floats
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.sequences import BenchmarkSequence


class FrameReader:
    """Reads and decodes whole frames below a root. Threads may share it."""

    def __init__(self, root: Root) -> None:
        self._root, self._spans, self._decoder = root, SpanReader(root), FrameDecoder(by_region=False)

    def read(self, place: str | Span) -> bytes:
        """The bytes of a frame. Raises OSError or DataError naming the file."""
        if isinstance(place, Span):
            return self._spans.read(place)
        try:
            return read_bytes(self._root, place)
        except FileNotFoundError:  # pyarrow's does not say the name
            name = f"{self._root.path}/{place}"
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None

    def decode(self, place: str | Span, content: bytes) -> Image:
        """(H, W, 3) RGB of what `read` gave. Raises BrokenFrame naming the file."""
        name = place.path if isinstance(place, Span) else place
        frame = self._decoder.open(f"{self._root.path}/{name}", content)
        return frame.pixels(0, 0, frame.width, frame.height)


class FrameBoxes(NamedTuple):
    """The boxes of a frame, and what is said of it."""

    boxes: list[Drawn]
    """Boxes in pixels: the true one, if there is a target, and the one that was found."""
    text: str
    """`frame 31: IoU 0.45`"""


def frame_boxes(sequence: BenchmarkSequence, track: Track, number: int, colour: tuple[int, int, int]) -> FrameBoxes:
    """What is known of a frame (from 0). `colour`: RGB of the found box."""
    truth, found = sequence.truth.boxes_xywh[number], track.boxes_xywh[number]
    boxes, text = [Drawn(found, "", colour)], f"frame {number + 1:,}: "
    if sequence.truth.absent[number] or not (np.isfinite(truth).all() and (truth[2:] > 0).all()):
        return FrameBoxes(boxes, f"{text}no target")
    said = f"IoU {_overlap(truth, found):.2f}" if number else "given"
    return FrameBoxes([Drawn(truth, "", TRUTH), *boxes], text + said)


def moved(boxes: list[Drawn], left: float, top: float, scale: float) -> list[Drawn]:
    """The boxes in a part of the frame that begins at `left` and `top` and is shown `scale` times as large."""
    return [one._replace(box_xywh=(np.asarray(one.box_xywh) - (left, top, 0, 0)) * scale) for one in boxes]


def _overlap(box1_xywh: Floats, box2_xywh: Floats) -> float:
    corners = xywh_to_xyxy(torch.from_numpy(np.stack((box1_xywh, box2_xywh)).astype(np.float64)))
    return float(iou(corners[0], corners[1]))
