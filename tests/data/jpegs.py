"""JPEGs of many kinds: those that can be decoded by tiles, and those that cannot."""

from __future__ import annotations

import io
import shutil
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from seqtrack.data.decoding import FrameDecoder
from seqtrack.data.heads import read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.tiles import TiledJpeg, find_row_offsets

needs_jpegtran = pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")

NOISE = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8)
MCU = {"444": (8, 8), "422": (16, 8), "440": (8, 16), "420": (16, 16), "411": (32, 8), "grey": (8, 8)}
"""Width and height of an MCU by the resolution of the colours."""
SAMPLING = "IMWRITE_JPEG_SAMPLING_FACTOR_"
WHOLE = FrameDecoder(by_region=False)
RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]


def encode(width: int, height: int, kind: str, interval: int, quality: int = 85, optimize: int = 0) -> bytes:
    """A JPEG of noise, with restart markers after this number of MCUs, or with none for 0."""
    sampling = [] if kind == "grey" else [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"{SAMPLING}{kind}")]
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval, *sampling]
    flags += [cv2.IMWRITE_JPEG_OPTIMIZE, optimize]
    image = NOISE[:height, :width, 0] if kind == "grey" else NOISE[:height, :width]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def pillow(mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def open_tiled(data: bytes) -> TiledJpeg:
    header = read_header(data)
    return TiledJpeg(read_head(data, header), find_row_offsets(data, header))


def assert_equal_to_whole(data: bytes, region: tuple[int, int, int, int]) -> None:
    """Compares a region that is decoded by tiles, and does not fall back, with that of the whole picture."""
    left, top, right, bottom = region
    whole = WHOLE.open("a", data).pixels(left, top, right, bottom)
    np.testing.assert_array_equal(open_tiled(data).pixels(data, *region), whole)


GOOD = encode(400, 300, "420", interval=5)


def of_width_0() -> bytes:
    place = GOOD.index(b"\xff\xc0") + 7
    return GOOD[:place] + b"\0\0" + GOOD[place + 2 : read_header(GOOD).scan] + GOOD[-2:]


def two_scans() -> bytes:
    """A JPEG whose scan is there twice."""
    data = encode(80, 60, "grey", interval=10)
    scan = data[data.index(b"\xff\xda") : -2]
    return data[:-2] + scan + data[-2:]


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pillow(exif=exif, restart_marker_blocks=5)


def of_12_bits() -> bytes:
    data = pillow(restart_marker_blocks=5)
    place = data.index(b"\xff\xc0") + 4
    return data[:place] + b"\x0c" + data[place + 1 :]


def with_marker(number: int, other: bytes) -> bytes:
    """GOOD, in which a restart marker is overwritten."""
    start = read_header(GOOD).scan
    place = [at for at in range(start, len(GOOD) - 2) if GOOD[at : at + 2] in RESTARTS][number]
    return GOOD[:place] + other + GOOD[place + 2 :]


UNFIT = {
    "progressive": pillow(progressive=True, restart_marker_blocks=5),
    "arithmetic": pillow(restart_marker_blocks=5).replace(b"\xff\xc0", b"\xff\xc9", 1),
    "12 bits": of_12_bits(),
    "cmyk": pillow("CMYK", restart_marker_blocks=5),
    "no width": of_width_0(),
    "several scans": two_scans(),
    "mirrored": turned(2),
    "turned": turned(6),
    "no restart markers": pillow(),
    "tiles across two rows": encode(400, 300, "420", interval=7),
    "tiles of one MCU": encode(400, 300, "420", interval=1),
    "a marker overwritten": with_marker(20, b"\0\0"),
    "a marker with another number": with_marker(20, RESTARTS[5]),
    "a marker too many": GOOD[:-2] + RESTARTS[6] + GOOD[-2:],
    "bytes between segments": GOOD[:20] + b"\0\xe5\0\2" + GOOD[20:],
}
