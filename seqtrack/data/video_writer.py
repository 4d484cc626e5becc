"""Writes videos that browsers play."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from seqtrack.data.decoding import Image

TICKS = Fraction(1, 90_000)
"""Unit of time in written videos, fine enough for any rate."""


class VideoWriter:
    """Writes H.264 in an MP4, which browsers play, with each frame at the time at which the source shows it."""

    def __init__(self, path: Path, rate: Fraction, comment: str = "", threads: int = 0) -> None:
        """`comment`: kept in the file's metadata. `threads`: of the encoder; 0: as many as there are CPUs."""
        self._container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self._container.metadata["comment"] = comment
        self._threads = threads
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
            self._stream.codec_context.thread_count = self._threads
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
