"""Decodes a region of a JPEG from the tiles that cover it. `tiling.py` divides JPEGs into tiles without loss.

The compressed data of a JPEG can only be read from their beginning, except after a restart marker, where the decoder
starts anew. With such markers at regular distances, the data between two of them are a tile: a row of MCUs (the blocks
of 8 to 32 pixels that a JPEG consists of), or a part of one. The tiles of a region, with the file's own headers and
another size, are a small JPEG that every decoder reads. Its pixels are those that the whole file has there.

A region is trusted only if exactly the expected restart markers, in their order of eight numbers, are found in the
rows that it needs, and if these rows begin and end with the right ones. Before the first row there has to be the
segment with which a scan begins. Otherwise the file is damaged there, or the offsets of its rows are those of another
file, and it has to be decoded as a whole. Damage elsewhere in the file does not matter to a region.

Source: ITU-T T.81, annexes B (segments) and E (restart intervals).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data.heads import Head, NotTiled, parse_head, read_head
from seqtrack.data.jpeg import END_OF_JPEG, JpegHeader

_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]
_MARKER = re.compile(rb"(\xff[^\x00])", re.DOTALL)
"""A marker in compressed data, in which every other 0xff is followed by 0."""


def find_row_offsets(data: bytes, header: JpegHeader) -> NDArray[np.int32]:
    """(R + 1,) where the data of each row of tiles begin in the file, and where the picture ends.

    Reads the whole file. Raises NotTiled, also if a restart marker is missing, out of turn or one too many.
    """
    grid = read_head(data, header).grid
    ends = []
    for number, found in enumerate(_MARKER.finditer(data, header.scan)):
        ends.append(found.end())
        if found[0] != _RESTARTS[number % 8]:
            break
    if len(ends) != grid.rows * grid.columns or not data.startswith(END_OF_JPEG, ends[-1] - 2):
        raise NotTiled("its restart markers are not those of its grid")
    return np.array([header.scan, *ends[grid.columns - 1 :: grid.columns]], np.int32)


class TiledJpeg:
    """A JPEG that is decoded by tiles. Threads may share it."""

    def __init__(self, head: Head, row_offsets: Sequence[int] | NDArray[np.integer]) -> None:
        """`row_offsets`: those of `find_row_offsets`. Raises NotTiled if no file with this head can have them."""
        self.grid, self._before, self._after = head
        self._columns = self.grid.columns
        self._offsets = np.asarray(row_offsets, np.int64).tolist()
        if len(self._offsets) != self.grid.rows + 1 or self._offsets[0] < len(self._before) + 4 + len(self._after):
            raise NotTiled("the offsets of its rows are those of another file")
        self._scan = head.scan

    @classmethod
    def of_sizes(cls, head: bytes, row_sizes: NDArray[np.uint16], size: int) -> TiledJpeg:
        """`head`: `Head.content`. `row_sizes`: bytes of each row of tiles. The last row ends with the file.

        `size`: bytes of the file. Raises NotTiled.
        """
        ends = np.cumsum(row_sizes, dtype=np.int64)
        first = size - int(ends[-1]) if len(ends) else size
        return cls(parse_head(head), [first, *(ends + first).tolist()])

    def byte_range(self, top: int, bottom: int) -> tuple[int, int]:
        """First byte, and the one after the last, of the tile rows on which the pixels from `top` to `bottom` depend.

        What is before a row is part of it: the marker at which the row begins, or the segment that begins the scan.
        """
        first, last = self._rows(top, bottom)
        return self._offsets[first] - len(self._lead(first)), self._offsets[last + 1]

    def small_jpeg(
        self, data: bytes, left: int, top: int, right: int, bottom: int, offset: int = 0
    ) -> tuple[bytes, int, int]:
        """A JPEG of all tiles on which a region depends, and the left and upper edge of the region in it.

        `data`: the file from byte `offset` on, as far as `byte_range` of the region needs. Raises NotTiled if the
        restart markers are not where they should be.
        """
        grid, columns = self.grid, self._columns
        tile_width, tile_height = grid.interval * grid.mcu[0], grid.mcu[1]
        first_row, last_row = self._rows(top, bottom)
        first = max(left - grid.margin[0], 0) // tile_width
        last = min(right + grid.margin[0] - 1, grid.width - 1) // tile_width
        rows, width = last_row - first_row + 1, last - first + 1
        start, stop = self._offsets[first_row] - offset, self._offsets[last_row + 1] - offset
        markers = _restarts(first_row * columns, rows * columns)
        if last_row == grid.rows - 1:
            markers[-1] = END_OF_JPEG
        parts = _MARKER.split(data[max(start, 0) : max(stop, 0)])  # data and their marker, in turn
        if parts[1::2] != markers or not data.endswith(self._lead(first_row), 0, max(start, 0)):
            raise NotTiled("its restart markers are not where they should be")
        body = [b""] * (2 * rows * width)
        for row in range(rows):
            begin = 2 * (row * columns + first)
            body[2 * row * width : 2 * (row + 1) * width : 2] = parts[begin : begin + 2 * width : 2]
        body[1::2] = _restarts(0, rows * width)
        body[-1] = END_OF_JPEG
        x, y = first * tile_width, first_row * tile_height
        size = struct.pack(
            ">HH",
            min((last_row + 1) * tile_height, grid.height) - y,
            min((last + 1) * tile_width, grid.width) - x,
        )
        return b"".join((self._before, size, self._after, *body)), left - x, top - y

    def pixels(self, data: bytes, left: int, top: int, right: int, bottom: int, offset: int = 0) -> NDArray[np.uint8]:
        """(bottom - top, right - left, 3) RGB of a region within the picture. `data`, `offset`: as in `small_jpeg`.

        Raises NotTiled.
        """
        content, x, y = self.small_jpeg(data, left, top, right, bottom, offset)
        image = decode(content)
        if image is None or image.shape[0] < y + bottom - top or image.shape[1] < x + right - left:
            raise NotTiled("its tiles cannot be decoded")
        return image[y : y + bottom - top, x : x + right - left]

    def _rows(self, top: int, bottom: int) -> tuple[int, int]:
        """First and last tile row on which the pixels of these rows depend."""
        margin, height = self.grid.margin[1], self.grid.mcu[1]
        return max(top - margin, 0) // height, min(bottom + margin - 1, self.grid.height - 1) // height

    def _lead(self, row: int) -> bytes:
        """What the file has right before a row of tiles."""
        return _RESTARTS[(row * self._columns - 1) % 8] if row else self._scan


def _restarts(first: int, count: int) -> list[bytes]:
    """The markers after `count` tiles, the first of which has this number."""
    return (_RESTARTS[first % 8 :] + _RESTARTS * (count // 8 + 1))[:count]


def decode(content: bytes) -> NDArray[np.uint8] | None:
    """(H, W, 3) RGB, or None."""
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
