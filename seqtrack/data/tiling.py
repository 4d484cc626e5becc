"""Divides JPEGs into tiles without loss, so that `tiles.py` can decode regions of them."""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

import numpy as np

from seqtrack.data.decoding import MAX_PIXELS
from seqtrack.data.heads import NotTiled, read_head
from seqtrack.data.jpeg import NotAPicture, check_complete, read_header
from seqtrack.data.tiles import decode, find_row_offsets
from seqtrack.errors import InputError

TILE_MCUS, SMALLEST_TILE = 10, 5
"""MCUs in a tile, as nearly as a row's width allows. Smaller tiles make the file larger, larger ones slower."""
LARGEST_ROW = 0xFFFF
"""Bytes of a row of tiles, so that its size is a number of two bytes."""


class TiledFile(NamedTuple):
    """A JPEG with restart markers on the grid, and what `tiles.TiledJpeg` needs to know of it."""

    content: bytes
    head: bytes
    """`Head.content`."""
    row_sizes: bytes
    """Bytes of each row of tiles, as little-endian uint16. The last one ends with the file."""


def choose_interval(mcus_per_row: int) -> int:
    """How many MCUs a tile should have: the divisor of the row nearest TILE_MCUS that is not too small, or the row."""
    fitting = [count for count in range(SMALLEST_TILE, mcus_per_row + 1) if mcus_per_row % count == 0]
    return min(fitting, key=lambda count: abs(count - TILE_MCUS), default=mcus_per_row)


def find_jpegtran() -> str:
    """Path of jpegtran, which `tile` needs. Raises InputError if it is not installed."""
    found = shutil.which("jpegtran")
    if found is None:
        raise InputError(
            "jpegtran is not installed, and tiles are made with it (Debian and Ubuntu: libjpeg-turbo-progs; "
            "Fedora: libjpeg-turbo-utils; Homebrew: jpeg-turbo; conda: libjpeg-turbo)"
        )
    return found


def tile(content: bytes) -> TiledFile:
    """The same JPEG with restart markers on the grid.

    Coefficients and metadata are kept. Huffman tables become the standard ones, so that frames of a video have the same
    head. The result is decoded as a whole and compared with the original, pixel by pixel. Threads may call this at the
    same time, because jpegtran is a process of its own. Raises NotTiled with the reason if a JPEG, or what should be
    one, has to stay as it is, InputError if jpegtran is not installed, and OSError if it is killed.
    """
    try:
        header = read_header(content)
        check_complete(content, header)
        grid = read_head(content, header).grid
        if grid.mcus_per_row * grid.rows > 4 * len(content):
            # An MCU takes two bits or more, so the size is damaged, and memory would be asked for in vain.
            raise NotTiled("its size is not that of its data")
        if grid.width * grid.height > MAX_PIXELS:
            raise NotTiled(f"it has more than {MAX_PIXELS:,} pixels")
        command = [find_jpegtran(), "-copy", "all", "-restart", f"{choose_interval(grid.mcus_per_row)}B"]
        run = subprocess.run(command, input=content, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if run.returncode < 0:  # which says nothing of the file
            raise OSError(f"jpegtran was ended by signal {-run.returncode}")
        if run.returncode != 0:  # 2: with warnings, so the file is damaged
            raise NotTiled("jpegtran cannot read it without warnings")
        header = read_header(run.stdout)
        head, offsets = read_head(run.stdout, header), find_row_offsets(run.stdout, header)
    except NotAPicture as error:
        raise NotTiled(str(error)) from error
    sizes = np.diff(offsets)
    if offsets[-1] != len(run.stdout):
        raise NotTiled("it has bytes after its end")
    if sizes.max() > LARGEST_ROW:
        raise NotTiled(f"a row of its tiles has more than {LARGEST_ROW:,} bytes")
    before, after = decode(content), decode(run.stdout)
    if before is None or after is None or not np.array_equal(before, after):
        raise NotTiled("its pixels would not stay the same")
    return TiledFile(run.stdout, head.content, sizes.astype("<u2").tobytes())
