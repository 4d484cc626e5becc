"""The worst sequences of a tracker: a few frames of each, with the true box and the one that was found."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from seqtrack.data.decoding import Image
from seqtrack.data.drawing import draw
from seqtrack.data.storage import READS_AT_ONCE, Root, StoreError
from seqtrack.evaluation.curves import Floats, Measure
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.failures import explain
from seqtrack.reports.evaluation_frames import FrameBoxes, FrameReader, frame_boxes, moved
from seqtrack.reports.pages import data_uri

FRAMES = 5
"""Pictures in a strip, at equal distances from the first frame to the last."""
SIZE = (280, 210)
"""Largest width and height of a picture in pixels: ten strips take half a megabyte."""
QUALITY = 70
"""JPEG quality of a picture, of 100."""
AROUND, LEAST = 2.0, 0.4
"""A picture shows this many times the part of the frame that the boxes take, and at least so much of its sides."""


class Shown(NamedTuple):
    """A frame of a strip."""

    picture: str
    """A data URI."""
    text: str


def worst_rows(measure: Measure, count: int) -> list[int]:
    """The rows of at most `count` sequences with the lowest numbers, the lowest first."""
    rows = np.argsort(measure.values, kind="stable")  # NaN comes last
    return rows[np.isfinite(measure.values[rows])][:count].tolist()


def read_strips(
    root: Root, shown: Sequence[tuple[BenchmarkSequence, Track]], colour: tuple[int, int, int]
) -> list[list[Shown] | str]:
    """A strip for each sequence, or why there is none. A store that does not answer is not asked for the others."""
    strips: list[list[Shown] | str] = []
    gone = ""
    for sequence, track in shown:
        try:
            strips.append(gone or _strip(root, sequence, track, colour))
        except Exception as error:  # whatever is wrong with a picture, the page has the numbers
            strips.append(explain(error))
            failing = isinstance(error, (OSError, StoreError)) and not isinstance(error, FileNotFoundError)
            if failing and not root.local:
                gone = explain(error)
    return strips


def _strip(root: Root, sequence: BenchmarkSequence, track: Track, colour: tuple[int, int, int]) -> list[Shown] | str:
    if sequence.frames is None:
        return "only the annotations were read"
    numbers = np.unique(np.linspace(0, len(sequence) - 1, FRAMES).round().astype(int)).tolist()
    places = [sequence.frames[number] for number in numbers]
    reader = FrameReader(root)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        contents = list(pool.map(reader.read, places))
    return [
        _shown(reader.decode(place, content), frame_boxes(sequence, track, number, colour))
        for number, place, content in zip(numbers, places, contents, strict=True)
    ]


def _shown(image: Image, known: FrameBoxes) -> Shown:
    """The part of a frame that has all of the boxes, in small."""
    boxes = [np.asarray(one.box_xywh) for one in known.boxes]
    left, top, width, height = _part(image.shape[1], image.shape[0], boxes)
    scale = min(SIZE[0] / width, SIZE[1] / height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.resize(image[top : top + height, left : left + width], size, interpolation=cv2.INTER_AREA)
    picture = draw(np.asarray(small, np.uint8), moved(known.boxes, left, top, scale))
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, QUALITY))
    return Shown(data_uri("image/jpeg", encoded.tobytes()), known.text)


def _part(width: int, height: int, boxes_xywh: Sequence[Floats]) -> tuple[int, int, int, int]:
    """The part of a frame to show, of the frame's shape: left, top, width, height."""
    corners = np.stack([(*box[:2], *(box[:2] + box[2:])) for box in boxes_xywh])
    corners = np.clip(corners, 0, (width, height) * 2)
    low, high = corners[:, :2].min(0), corners[:, 2:].max(0)
    share = float(np.clip(AROUND * ((high - low) / (width, height)).max(), LEAST, 1))
    sides = np.maximum(np.round(share * np.array((width, height))), 1).astype(int)
    start = np.clip((low + high - sides) / 2, 0, (width, height) - sides).astype(int)
    return int(start[0]), int(start[1]), int(sides[0]), int(sides[1])
