"""Tiling keeps every pixel, or leaves a file as it is and says why."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.data.heads import NotTiled, read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.tiles import TiledJpeg, find_row_offsets
from seqtrack.data.tiling import choose_interval, tile
from seqtrack.errors import InputError
from tests.data.jpegs import (
    GOOD,
    MCU,
    NOISE,
    UNFIT,
    WHOLE,
    assert_equal_to_whole,
    encode,
    needs_jpegtran,
    open_tiled,
    pillow,
)


@pytest.mark.parametrize(
    ("mcus", "interval"),
    [(80, 10), (120, 10), (40, 10), (45, 9), (22, 11), (14, 7), (86, 43), (23, 23), (7, 7), (4, 4), (1, 1)],
)
def test_tiles_have_the_divisor_of_the_row_that_is_nearest_ten(mcus: int, interval: int) -> None:
    assert choose_interval(mcus) == interval


@needs_jpegtran
@pytest.mark.parametrize("kind", MCU)
def test_tiling_keeps_pixels_and_metadata(kind: str) -> None:
    data = encode(399, 295, kind, interval=0)
    data = data[:2] + b"\xff\xfe\x00\x0bseqtracks" + data[2:]
    tiled = tile(data).content
    grid = read_head(tiled, read_header(tiled)).grid
    assert grid.interval == choose_interval(grid.mcus_per_row)
    np.testing.assert_array_equal(
        WHOLE.open("a", tiled).pixels(0, 0, 399, 295), WHOLE.open("a", data).pixels(0, 0, 399, 295)
    )
    assert b"seqtracks" in tiled
    assert_equal_to_whole(tiled, (100, 90, 300, 200))


@needs_jpegtran
def test_restart_markers_that_do_not_fit_are_replaced() -> None:
    tiled = tile(UNFIT["tiles across two rows"]).content
    assert_equal_to_whole(tiled, (10, 20, 30, 40))


@needs_jpegtran
def test_what_is_tiled_stays_byte_for_byte() -> None:
    tiled = tile(pillow())
    assert tile(tiled.content) == tiled


@needs_jpegtran
def test_a_tiled_file_says_where_its_rows_are() -> None:
    tiled = tile(encode(399, 295, "420", interval=0))
    sizes = np.frombuffer(tiled.row_sizes, "<u2")
    assert (len(tiled.content) - sizes[::-1].cumsum()[::-1]).tolist() == find_row_offsets(
        tiled.content, read_header(tiled.content)
    )[:-1].tolist()
    np.testing.assert_array_equal(
        TiledJpeg.of_sizes(tiled.head, sizes, len(tiled.content)).pixels(tiled.content, 30, 30, 90, 90),
        WHOLE.open("a", tiled.content).pixels(30, 30, 90, 90),
    )


@needs_jpegtran
def test_files_of_other_huffman_tables_and_metadata_get_one_head() -> None:
    """So frames of a video have one head between them."""
    contents = [encode(200, 100, "420", interval=0), encode(200, 100, "420", interval=0, optimize=1)]
    contents.append(contents[0][:2] + b"\xff\xfe\x00\x0bseqtracks" + contents[0][2:])
    assert len({tile(content).head for content in contents}) == 1


@needs_jpegtran
def test_a_row_whose_size_needs_more_than_two_bytes_is_not_tiled() -> None:
    noise = np.random.RandomState(0).randint(0, 256, (16, 3000, 3)).astype(np.uint8)
    data = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    with pytest.raises(NotTiled, match="a row of its tiles has more than 65,535 bytes"):
        tile(data)


def test_a_jpegtran_that_is_killed_says_nothing_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jpegtran").write_text("#!/bin/sh\ncat > /dev/null; kill -KILL $$\n")
    (tmp_path / "jpegtran").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(OSError, match="jpegtran was ended by signal 9"):
        tile(pillow())


UNTILABLE = [
    "progressive",
    "arithmetic",
    "12 bits",
    "cmyk",
    "several scans",
    "mirrored",
    "turned",
    "a marker overwritten",
]


@needs_jpegtran
@pytest.mark.parametrize("kind", [*UNTILABLE, "cut off", "empty", "png"])
def test_what_cannot_be_tiled_is_left_alone(kind: str) -> None:
    others = {"cut off": GOOD[:5000], "empty": b"", "png": cv2.imencode(".png", NOISE)[1].tobytes()}
    with pytest.raises(NotTiled):
        tile(others[kind] if kind in others else UNFIT[kind])


@needs_jpegtran
def test_threads_may_tile_at_the_same_time() -> None:
    contents = [encode(300 + number, 200, "420", interval=0) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tile, contents)) == [tile(content) for content in contents]


def test_a_size_that_the_data_cannot_have_is_refused_before_memory_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without jpegtran
    place = GOOD.index(b"\xff\xc0") + 5
    with pytest.raises(NotTiled, match="its size is not that of its data"):
        tile(GOOD[:place] + b"\xff\x00\xff\x00" + GOOD[place + 4 :])


def test_without_jpegtran_the_error_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^jpegtran is not installed.*libjpeg-turbo-progs"):
        tile(pillow())


@needs_jpegtran
def test_regions_of_real_frames_have_the_pixels_of_the_whole(shared_data: Path) -> None:
    generator = random.Random(0)
    for path in sorted((shared_data / "sequences").rglob("*.jpg"))[::60]:
        tiled = tile(path.read_bytes()).content
        whole, tiles = WHOLE.open("a", tiled), open_tiled(tiled)
        for _ in range(10):
            left, right = sorted(generator.sample(range(whole.width + 1), 2))
            top, bottom = sorted(generator.sample(range(whole.height + 1), 2))
            part = tiles.pixels(tiled, left, top, right, bottom)
            np.testing.assert_array_equal(part, whole.pixels(left, top, right, bottom))
