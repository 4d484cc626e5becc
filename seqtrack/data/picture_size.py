"""How many pixels a picture has, read from its header: decoders would take memory for all of them first.

A PNG of 263 KiB can hold 16,000 × 16,000 pixels. Every kind of file that OpenCV decodes says its size at its beginning.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Mapping

from PIL import Image

from seqtrack.data.jpeg import START_OF_JPEG, NotAPicture, read_header

Size = tuple[int, int]
"""Width and height."""
Image.MAX_IMAGE_PIXELS = None  # Pillow would not tell the size of a picture that is above a limit of its own
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
"""TIFF's tags for the size of its tiles, which decoders hold whole, however small the picture is."""


def picture_pixels(data: bytes) -> tuple[Size, int] | None:
    """Width and height as stored, and the pixels that a decoder takes memory for. None if the file does not say it.

    `data`: a whole file of any kind.
    """
    for start, read in _HEADERS.items():
        if data.startswith(start):
            try:
                width, height = read(data)
            except (struct.error, NotAPicture, TypeError):  # cut off; for a pattern: not found
                return None
            return (width, height), width * height
    return _with_pillow(data)


def _jpeg(data: bytes) -> Size:
    header = read_header(data)
    return header.width, header.height


def _png(data: bytes) -> Size:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> Size:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp(data: bytes) -> Size:
    """Rows may be stored from the top; the height is negative then. The first version has sizes of two bytes."""
    width, height = struct.unpack_from("<HH" if data[14:18] == b"\x0c\0\0\0" else "<ii", data, 18)
    return abs(width), abs(height)


def _webp(data: bytes) -> Size:
    """Lossy, lossless, or with more than the picture itself. Source: RFC 9649."""
    kind = data[12:16]
    if kind == b"VP8X":
        low1, high1, low2, high2 = struct.unpack_from("<HBHB", data, 24)
        return 1 + low1 + (high1 << 16), 1 + low2 + (high2 << 16)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _pattern(pattern: bytes) -> Callable[[bytes], Size]:
    """Reads a header of text, which names `w` and `h`."""
    compiled = re.compile(pattern)

    def read(data: bytes) -> Size:
        found = compiled.search(data[: 1 << 16])
        if found is None:
            raise NotAPicture("its header does not say its size")
        return int(found["w"][:12]), int(found["h"][:12])

    return read


_HEADERS: Mapping[bytes, Callable[[bytes], Size]] = {
    START_OF_JPEG: _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"GIF8": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
    # These Pillow does not know, or not all of them.
    b"PF": _pattern(rb"^PF\s+(?P<w>\d+)\s+(?P<h>\d+)\s"),
    b"Pf": _pattern(rb"^Pf\s+(?P<w>\d+)\s+(?P<h>\d+)\s"),
    b"P7": _pattern(rb"(?s)\nWIDTH +(?P<w>\d+)\s.*?HEIGHT +(?P<h>\d+)\s"),
    b"#?": _pattern(rb"\n[-+]Y +(?P<h>\d+) +[-+]X +(?P<w>\d+)\n"),
}
"""First bytes of a kind of file -> what reads its size. The common kinds are read here, as leniently as decoders do."""


def _with_pillow(data: bytes) -> tuple[Size, int] | None:
    """The size of a TIFF, JPEG 2000, AVIF, PNM, Sun raster and others: Pillow reads headers and decodes nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                tags = getattr(image, "tag_v2", {})
                tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))
                return (width, height), max(width * height, tile)
    except Exception:  # Pillow passes on whatever its readers raise
        return None
