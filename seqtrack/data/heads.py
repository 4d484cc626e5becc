"""What a JPEG has before its compressed data that matters to its pixels: tables, size, and the grid of its tiles.

Source: ITU-T T.81, annexes B (segments) and E (restart intervals).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from seqtrack.data.jpeg import START_OF_JPEG, JpegHeader, NotAPicture, read_header

_BASELINE, _HUFFMAN, _SCAN, _QUANTIZATION, _INTERVAL = 0xC0, 0xC4, 0xDA, 0xDB, 0xDD
_APPLICATION, _COMMENT = {*range(0xE0, 0xF0)}, 0xFE
_COLOURS = {0xE0, 0xEE}
"""Application segments that say which colour space is stored: JFIF and Adobe."""
_MARGIN = 1
"""Pixels around a region on which it depends: colours of half the resolution are interpolated between neighbours."""


class NotTiled(NotAPicture):
    """A JPEG, or what should be one, that cannot be decoded by tiles. The message says why."""


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a JPEG are in its picture."""

    width: int
    """Pixels of the picture."""
    height: int
    mcu: tuple[int, int]
    """Width and height of an MCU in pixels."""
    interval: int
    """MCUs in a tile; 0 if the file has no restart markers."""
    margin: tuple[int, int]
    """Pixels at the left and right, and at the top and bottom of a region, on which its own pixels depend."""

    @property
    def mcus_per_row(self) -> int:
        return -(-self.width // self.mcu[0])

    @property
    def rows(self) -> int:
        return -(-self.height // self.mcu[1])

    @property
    def columns(self) -> int:
        """Tiles in a row. Raises NotTiled if rows do not consist of whole tiles."""
        if self.interval == 0:
            raise NotTiled("it has no restart markers")
        # Decoders enlarge the colours of a picture of up to 4 pixels in another way. A row's last tile is not so narrow
        # if it has 2 MCUs.
        if self.mcus_per_row % self.interval or (self.interval == 1 and self.mcus_per_row > 1):
            raise NotTiled(f"rows of {self.mcus_per_row} MCUs do not consist of tiles of {self.interval}")
        return self.mcus_per_row // self.interval


class Head(NamedTuple):
    """What a JPEG has before its compressed data, without what does not matter to its pixels."""

    grid: Grid
    before: bytes
    """All before the picture's height and width, which are 4 bytes."""
    after: bytes

    @property
    def scan(self) -> bytes:
        """The segment right before the compressed data."""
        return self.after[self.after.rindex(bytes((0xFF, _SCAN))) :]

    @property
    def content(self) -> bytes:
        """The head as bytes, for `parse_head`. The frames of a video usually have the same."""
        return b"".join((self.before, struct.pack(">HH", self.grid.height, self.grid.width), self.after))


@lru_cache(4096)
def parse_head(content: bytes) -> Head:
    """The head that `Head.content` gave. Raises NotTiled."""
    try:
        header = read_header(content)
    except NotAPicture as error:
        raise NotTiled(str(error)) from error
    if header.scan != len(content):
        raise NotTiled("it is not the head of a JPEG")
    return read_head(content, header)


def read_head(data: bytes, header: JpegHeader) -> Head:
    """The head of a JPEG, which need not have restart markers. `data`: at least what comes before `header.scan`.

    Raises NotTiled for a JPEG that is not baseline with 8 bits, grey or colour, in one scan, shown as it is stored.
    """
    if header.orientation != 1:
        raise NotTiled("it is shown turned or mirrored, or its orientation is not clear")
    if header.scan > len(data):
        raise NotTiled("it is cut off")
    kept: list[bytes] = [START_OF_JPEG]
    frame: bytes | None = None
    interval: int | None = None
    tail: list[bytes] = kept
    position, marker = len(START_OF_JPEG), None
    while position + 4 <= header.scan:
        prefix, marker, length = struct.unpack_from(">BBH", data, position)
        segment = data[position : position + 2 + length]
        position += 2 + length
        if prefix != 0xFF:
            raise NotTiled("it has bytes between its segments")
        if marker == _BASELINE and frame is None:
            frame, tail = segment, []
            continue
        if marker == _INTERVAL and interval is None and length == 4:
            (interval,) = struct.unpack_from(">H", segment, 4)
        elif marker in _APPLICATION - _COLOURS or marker == _COMMENT:
            continue
        elif marker not in {_QUANTIZATION, _HUFFMAN, _SCAN, *_COLOURS}:
            raise NotTiled("it is not a baseline JPEG")
        tail.append(segment)
    if frame is None or marker != _SCAN or position != header.scan:
        raise NotTiled("it is not a baseline JPEG")
    if header.width < 1 or header.height < 1:
        raise NotTiled("its size is not known")
    components = header.components
    if header.precision != 8 or components not in (1, 3) or len(frame) != 10 + 3 * components:
        raise NotTiled("it is neither grey nor colour of 8 bits")
    if len(tail[-1]) != 8 + 2 * components or tail[-1][4] != components:
        raise NotTiled("it has several scans")
    factors = [divmod(factor, 16) for factor in frame[11::3]]
    across, down = (max(of_axis) for of_axis in zip(*factors, strict=True))
    if any(
        not across_one or not down_one or across % across_one or down % down_one for across_one, down_one in factors
    ):
        raise NotTiled("its colours have an unusual resolution")
    if components == 1:
        across = down = 1  # a scan of one colour has MCUs of one block
    grid = Grid(
        header.width,
        header.height,
        (8 * across, 8 * down),
        interval or 0,
        (_MARGIN if across > 1 else 0, _MARGIN if down > 1 else 0),
    )
    return Head(grid, b"".join((*kept, frame[:5])), b"".join((frame[9:], *tail)))
