"""Decodes a region of a JPEG from the tiles that cover it, and divides JPEGs into tiles without loss.

The compressed data of a JPEG can only be read from their beginning, except after a restart marker, where the decoder
starts anew. With such markers at regular distances, the data between two of them are a tile: a row of MCUs (the blocks
of 8 to 32 pixels that a JPEG consists of), or a part of one. The tiles of a region, with the file's own headers and
another size, are a small JPEG that every decoder reads. Its pixels are those that the whole file has there.

A region is trusted only if exactly the expected restart markers, in their order of eight numbers, are found in the
rows that it needs, and if these rows begin and end with the right ones. Otherwise the file is damaged there, or the
offsets of its rows are those of another file, and it has to be decoded as a whole. Damage elsewhere in the file does
not matter to a region.

Source: ITU-T T.81, annexes B (segments) and E (restart intervals).
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data.jpeg import END_OF_JPEG, START_OF_JPEG, JpegHeader, NotAPicture, check_complete, read_header
from seqtrack.errors import InputError

TILE_MCUS, SMALLEST_TILE = 10, 5
"""MCUs in a tile, as nearly as a row's width allows. Smaller tiles make the file larger, larger ones slower."""
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]
_MARKER = re.compile(rb"(\xff[^\x00])", re.DOTALL)
"""A marker in compressed data, in which every other 0xff is followed by 0."""
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


class _Head(NamedTuple):
    """What a JPEG has before its compressed data, without what does not matter to its pixels."""

    grid: Grid
    before: bytes
    """All before the picture's height and width, which are 4 bytes."""
    after: bytes


def choose_interval(mcus_per_row: int) -> int:
    """How many MCUs a tile should have: the divisor of the row nearest TILE_MCUS that is not too small, or the row."""
    fitting = [count for count in range(SMALLEST_TILE, mcus_per_row + 1) if mcus_per_row % count == 0]
    return min(fitting, key=lambda count: abs(count - TILE_MCUS), default=mcus_per_row)


def read_grid(data: bytes, header: JpegHeader) -> Grid:
    """The grid of a JPEG, which need not have restart markers yet. `data`: at least what comes before `header.scan`.

    Raises NotTiled for a JPEG that is not baseline with 8 bits, grey or colour, in one scan, shown as it is stored.
    """
    return _read_head(data, header).grid


def find_row_offsets(data: bytes, header: JpegHeader) -> NDArray[np.int32]:
    """(R + 1,) where the data of each row of tiles begin in the file, and where the picture ends.

    Reads the whole file. Raises NotTiled, also if a restart marker is missing, out of turn or one too many.
    """
    grid = read_grid(data, header)
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

    def __init__(self, data: bytes, header: JpegHeader, row_offsets: Sequence[int] | NDArray[np.int32]) -> None:
        """`data`: the file, or a part that has at least what comes before `header.scan`.

        `row_offsets`: those of `find_row_offsets`. Raises NotTiled, also if they cannot belong to this file.
        """
        self.grid, self._before, self._after = _read_head(data, header)
        self._offsets = [int(offset) for offset in row_offsets]
        self._columns = self.grid.columns
        if len(self._offsets) != self.grid.rows + 1 or self._offsets[0] != header.scan:
            raise NotTiled("the offsets of its rows are those of another file")

    def byte_range(self, top: int, bottom: int) -> tuple[int, int]:
        """First byte, and the one after the last, of the tile rows on which the pixels from `top` to `bottom` depend.

        The two bytes before a row are part of it: the marker at which the row begins.
        """
        first, last = self._rows(top, bottom)
        return self._offsets[first] - 2, self._offsets[last + 1]

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
        before = data[max(start - 2, 0) : max(start, 0)]
        if parts[1::2] != markers or (first_row and before != _RESTARTS[(first_row * columns - 1) % 8]):
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
        image = _decode(content)
        if image is None or image.shape[0] < y + bottom - top or image.shape[1] < x + right - left:
            raise NotTiled("its tiles cannot be decoded")
        return image[y : y + bottom - top, x : x + right - left]

    def _rows(self, top: int, bottom: int) -> tuple[int, int]:
        """First and last tile row on which the pixels of these rows depend."""
        margin, height = self.grid.margin[1], self.grid.mcu[1]
        return max(top - margin, 0) // height, min(bottom + margin - 1, self.grid.height - 1) // height


def find_jpegtran() -> str:
    """Path of jpegtran, which `tile` needs. Raises InputError if it is not installed."""
    found = shutil.which("jpegtran")
    if found is None:
        raise InputError(
            "jpegtran is not installed, and tiles are made with it (Debian and Ubuntu: libjpeg-turbo-progs; "
            "Fedora: libjpeg-turbo-utils; Homebrew: jpeg-turbo; conda: libjpeg-turbo)"
        )
    return found


def tile(content: bytes) -> bytes | None:
    """The same JPEG with restart markers on the grid. None if it cannot be tiled, and should be kept as it is.

    Coefficients and metadata are kept, and Huffman tables are made anew, which makes up for the markers. The result is
    decoded as a whole and compared with the original, pixel by pixel. A JPEG that is tiled already is returned
    unchanged. Threads may call this at the same time, because jpegtran is a process of its own. Raises InputError if it
    is not installed.
    """
    try:
        header = read_header(content)
        check_complete(content, header)
        grid = read_grid(content, header)
    except NotAPicture:
        return None
    if grid.mcus_per_row * grid.rows > 4 * len(content):
        return None  # an MCU takes two bits or more, so the size is damaged, and memory would be asked for in vain
    interval = choose_interval(grid.mcus_per_row)
    if interval == grid.interval and _is_tiled(content):
        return content
    command = [find_jpegtran(), "-copy", "all", "-optimize", "-restart", f"{interval}B"]
    run = subprocess.run(command, input=content, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if run.returncode != 0 or not _is_tiled(run.stdout):  # 2: with warnings, so the file is damaged
        return None
    before, after = _decode(content), _decode(run.stdout)
    if before is None or after is None or not np.array_equal(before, after):
        return None
    return run.stdout


def _is_tiled(content: bytes) -> bool:
    """Whether a file has the restart markers of its grid."""
    try:
        find_row_offsets(content, read_header(content))
    except NotAPicture:
        return False
    return True


def _restarts(first: int, count: int) -> list[bytes]:
    """The markers after `count` tiles, the first of which has this number."""
    return (_RESTARTS[first % 8 :] + _RESTARTS * (count // 8 + 1))[:count]


def _read_head(data: bytes, header: JpegHeader) -> _Head:
    """Raises NotTiled."""
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
    return _Head(grid, b"".join((*kept, frame[:5])), b"".join((frame[9:], *tail)))


def _decode(content: bytes) -> NDArray[np.uint8] | None:
    """(H, W, 3) RGB, or None."""
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    return None if image is None else np.asarray(image, np.uint8)
