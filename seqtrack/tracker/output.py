"""What tracking leaves: a video with the boxes, a table, and the text files that the field's tools read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import av
import cv2
import numpy as np

from seqtrack.data.decoding import Image
from seqtrack.evaluation.results import box_line, time_line
from seqtrack.tracker.sources import Shot
from seqtrack.tracker.tracker import Tracked

TICKS = Fraction(1, 90_000)
"""Unit of time in written videos, fine enough for any rate."""
COLUMNS = ("frame", "time", "target", "x", "y", "w", "h", "confidence")


class VideoWriter:
    """Writes H.264 in an MP4, which browsers play, with each frame at the time at which the source shows it."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self._rate = rate
        self._stream: av.VideoStream | None = None
        self._last = -1

    def write(self, image: Image, seconds: float) -> None:
        """Appends a frame. All are shown in the size of the first one, whose sides are rounded to even numbers."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": "20"})
            height, width = image.shape[:2]
            self._stream.width, self._stream.height = max(width - width % 2, 2), max(height - height % 2, 2)
            self._stream.pix_fmt = "yuv420p"
            self._stream.time_base = TICKS
            self._stream.codec_context.time_base = TICKS
        size = (self._stream.width, self._stream.height)
        if image.shape[1::-1] != size:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.time_base = TICKS
        self._last = frame.pts = max(round(seconds / TICKS), self._last + 1)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()


class Tables:
    """`boxes.csv` and, for each target, a text file in the format that all tools share, with its times beside it."""

    def __init__(self, folder: Path, name: str, targets: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = [name] if targets == 1 else [f"{name}_{target + 1}" for target in range(targets)]
        self.files = [folder / "boxes.csv", *(folder / f"{one}.txt" for one in names)]
        self._times = [folder / f"{one}_time.txt" for one in names]
        self._open: list[TextIO] = [
            path.open("w", encoding="utf-8", newline="") for path in (*self.files, *self._times)
        ]
        self._csv = csv.writer(self._open[0])
        self._csv.writerow(COLUMNS)
        self._targets = targets

    def write(self, shot: Shot, found: Sequence[Tracked], seconds: float) -> None:
        """`seconds`: what finding the targets took. Boxes have four decimals: to whole pixels, small targets lose."""
        for target, one in enumerate(found):
            line = box_line(one.box_xywh)
            self._csv.writerow([shot.number, f"{shot.seconds:.6f}", target + 1, *line.split(), f"{one.confidence:.4f}"])
            self._open[1 + target].write(line)
            self._open[1 + self._targets + target].write(time_line(seconds / len(found)))

    def close(self) -> None:
        for file in self._open:
            file.close()
