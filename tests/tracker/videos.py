"""Videos for tests: a textured disc that moves over a plain ground."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from seqtrack.data.decoding import Image

TICKS = Fraction(1, 90_000)
IDENTITY = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
QUARTER_TURN = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
"""Display matrices in an MP4's track header (ISO/IEC 14496-12): as it is, and turned clockwise by 90 degrees."""


def disc(number: int, height: int = 96, width: int = 128) -> tuple[Image, tuple[float, float, float, float]]:
    """Frame `number`, and the disc's box."""
    picture = np.full((height, width, 3), (70, 90, 110), np.uint8)
    x, y, radius = 30 + 2 * number, 40 + number, 14
    cv2.circle(picture, (x, y), radius, (230, 180, 40), -1)
    cv2.circle(picture, (x, y), radius // 2, (200, 40, 40), -1)
    return picture, (x - radius, y - radius, 2 * radius + 1, 2 * radius + 1)


def write_video(
    path: Path, frames: Sequence[Image], codec: str = "libx264", moments: Sequence[float] | None = None
) -> Path:
    """`moments`: seconds at which frames are shown; else 25 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICKS
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            seconds = number / 25 if moments is None else moments[number]
            frame.pts, frame.time_base = round(seconds / TICKS), TICKS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path) -> Path:
    """Marks an MP4 as filmed sideways, as a phone does."""
    content = path.read_bytes()
    header = content.index(b"tkhd")
    matrix = content.index(IDENTITY, header)
    path.write_bytes(content[:matrix] + QUARTER_TURN + content[matrix + len(IDENTITY) :])
    return path
