from __future__ import annotations

import random
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqtrack.data.decoding import BrokenFrame, TiledFrame
from seqtrack.data.heads import NotTiled, read_head
from seqtrack.data.jpeg import read_header
from seqtrack.data.tiles import TiledJpeg, find_row_offsets
from tests.data.jpegs import (
    GOOD,
    MCU,
    RESTARTS,
    UNFIT,
    WHOLE,
    assert_equal_to_whole,
    encode,
    open_tiled,
    pillow,
    with_marker,
)


def open_with(data: bytes, offsets: Any, described: bytes | None = None) -> TiledFrame:
    """A frame of which the index has these offsets, and the head of the JPEG `described`, if that is another one."""
    head = read_head(described or data, read_header(described or data))
    return TiledFrame("a.jpg", TiledJpeg(head, offsets), lambda start, stop: data[start:stop])


@st.composite
def tiled_jpegs_and_regions(draw: st.DrawFn) -> tuple[str, int, int, int, tuple[int, int, int, int]]:
    """Kind, size, restart interval and region."""
    kind = draw(st.sampled_from(sorted(MCU)))
    width, height = draw(st.integers(1, 400)), draw(st.integers(1, 130))
    mcus = -(-width // MCU[kind][0])
    interval = draw(st.sampled_from([count for count in range(2, mcus) if mcus % count == 0] + [mcus]))
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (
        kind,
        width,
        height,
        interval,
        (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))),
    )


@settings(max_examples=500, deadline=None, derandomize=True)
@given(tiled_jpegs_and_regions())
@example(("420", 36, 40, 3, (35, 39, 36, 40)))
def test_a_region_has_the_pixels_of_the_whole(case: tuple[str, int, int, int, tuple[int, int, int, int]]) -> None:
    kind, width, height, interval, region = case
    assert_equal_to_whole(encode(width, height, kind, interval), region)


@pytest.mark.parametrize("kind", MCU)
def test_every_border_between_tiles_has_the_pixels_of_the_whole(kind: str) -> None:
    across, down = MCU[kind]
    width, height = 6 * across - 3, 3 * down - 4
    data = encode(width, height, kind, interval=2)
    near = range(-3, 4)
    columns = [*range(3), *(2 * across + step for step in near), *(4 * across + step for step in near), width - 1]
    rows = [*range(3), *(down + step for step in near), *(2 * down + step for step in near), height - 1]
    for x, y in product(columns, rows):
        assert_equal_to_whole(data, (x, y, x + 1, y + 1))


def test_grey_with_sampling_factors_of_two_has_mcus_of_one_block() -> None:
    data = encode(100, 50, "grey", interval=13)
    start = data.index(b"\xff\xc0") + 11
    doubled = data[:start] + b"\x22" + data[start + 1 :]
    for region in ((0, 0, 100, 50), (30, 17, 70, 40), (99, 49, 100, 50)):
        assert_equal_to_whole(doubled, region)


def test_rgb_in_the_file_stays_rgb() -> None:
    data = bytearray(pillow(keep_rgb=True, restart_marker_blocks=10))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    data[frame + 10 : frame + 19 : 3] = data[scan + 5 : scan + 11 : 2] = b"\1\2\3"  # so only Adobe's segment says it
    assert_equal_to_whole(bytes(data), (190, 100, 230, 140))


def test_a_small_region_needs_few_bytes() -> None:
    data = encode(400, 300, "444", interval=10)
    small, left, top = open_tiled(data).small_jpeg(data, 100, 100, 140, 140)
    assert (left, top) == (20, 4)
    assert len(small) < len(data) / 8
    assert WHOLE.open("a", small).pixels(left, top, left + 40, top + 40).shape == (40, 40, 3)


def test_metadata_are_not_part_of_the_small_jpeg() -> None:
    data = pillow(restart_marker_blocks=5, comment=b"a comment", icc_profile=b"a profile")
    small, *_ = open_tiled(data).small_jpeg(data, 0, 0, 10, 10)
    assert b"a comment" not in small
    assert b"a profile" not in small


def test_the_rows_of_a_region_are_enough() -> None:
    data = encode(400, 300, "420", interval=5)
    tiled = open_tiled(data)
    for top, bottom in ((0, 16), (100, 150), (299, 300)):
        start, stop = tiled.byte_range(top, bottom)
        expected = WHOLE.open("a", data).pixels(70, top, 90, bottom)
        np.testing.assert_array_equal(tiled.pixels(data[start:stop], 70, top, 90, bottom, offset=start), expected)


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_not_tiled_is_refused(kind: str) -> None:
    with pytest.raises(NotTiled):
        find_row_offsets(UNFIT[kind], read_header(UNFIT[kind]))


@pytest.mark.parametrize("kind", [kind for kind in UNFIT if kind not in ("12 bits", "arithmetic", "no width")])
def test_what_is_not_tiled_is_never_shown_wrong_even_if_the_index_says_that_it_is(kind: str) -> None:
    """It is decoded as a whole, or broken if its size is another one."""
    whole = WHOLE.open("a", UNFIT[kind])
    for top in range(0, 260, 20):
        frame = open_with(UNFIT[kind], find_row_offsets(GOOD, read_header(GOOD)), GOOD)
        if (whole.width, whole.height) == (400, 300):
            np.testing.assert_array_equal(frame.pixels(10, top, 60, top + 30), whole.pixels(10, top, 60, top + 30))
        else:
            with pytest.raises(BrokenFrame, match=r"^a\.jpg cannot be read \(it is another picture than was packed"):
                frame.pixels(10, top, 60, top + 30)


def test_a_jpeg_that_cannot_be_decoded_is_broken_with_offsets_too() -> None:
    frame = open_with(UNFIT["arithmetic"][:400] + b"\xff\xd9", find_row_offsets(GOOD, read_header(GOOD)), GOOD)
    with pytest.raises(BrokenFrame, match=r"^a\.jpg cannot be read"):
        frame.pixels(0, 0, 10, 10)


@pytest.mark.parametrize("row", range(19))
def test_offsets_that_are_wrong_never_give_wrong_pixels(row: int) -> None:
    generator = random.Random(row)
    offsets, whole = find_row_offsets(GOOD, read_header(GOOD)), WHOLE.open("a", GOOD).pixels(0, 0, 400, 300)
    for place in (row, row + 1) * 20:
        wrong = offsets.copy()
        near, anywhere = wrong[place] + generator.randint(-3, 3), generator.randrange(-(2**31), 2**31)
        wrong[place] = generator.choice([near, anywhere, generator.choice(offsets)])
        left, top, bottom = generator.choice([0, generator.randrange(380)]), 16 * row + 1, min(16 * row + 15, 300)
        try:
            part = open_with(GOOD, wrong).pixels(left, top, left + 20, bottom)
        except NotTiled:
            continue  # so the frame is opened as a whole
        np.testing.assert_array_equal(part, whole[top:bottom, left : left + 20])


def test_offsets_of_a_file_with_other_rows_are_refused() -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    for others in ([], offsets[:-1], [*offsets, offsets[-1]]):
        with pytest.raises(NotTiled, match="those of another file"):
            TiledJpeg(read_head(GOOD, read_header(GOOD)), others)


@pytest.mark.parametrize("other", [b"\0\0", *RESTARTS, b"\xff\xc4", b"\xff\xd9", b"\xff\xff"])
def test_a_marker_that_is_overwritten_is_noticed_where_it_matters(other: bytes) -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    for number in range(0, 94, 7):  # 5 tiles in each of 19 rows
        damaged = with_marker(number, other)
        frame, whole = open_with(damaged, offsets), WHOLE.open("a", damaged)
        top = min(16 * (number // 5), 290)
        np.testing.assert_array_equal(frame.pixels(0, top, 400, top + 10), whole.pixels(0, top, 400, top + 10))


def test_a_tile_with_damaged_data_has_the_pixels_that_it_has_in_the_whole() -> None:
    generator = random.Random(0)
    header, offsets = read_header(GOOD), find_row_offsets(GOOD, read_header(GOOD))
    for _ in range(200):
        row = generator.randrange(len(offsets) - 1)
        damaged = bytearray(GOOD)
        damaged[generator.randrange(offsets[row], offsets[row + 1] - 2)] = generator.randrange(255)
        frame, whole = open_with(bytes(damaged), offsets), WHOLE.open("a", bytes(damaged))
        top, bottom = 16 * row, min(16 * row + 16, header.height)
        left = generator.randrange(0, 320)
        np.testing.assert_array_equal(
            frame.pixels(left, top, left + 80, bottom), whole.pixels(left, top, left + 80, bottom)
        )


def test_sizes_of_rows_say_where_they_are() -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    tiled = TiledJpeg.of_sizes(
        read_head(GOOD, read_header(GOOD)).content, np.diff(offsets).astype(np.uint16), len(GOOD)
    )
    assert [tiled.byte_range(16 * row + 1, 16 * row + 15)[1] for row in range(19)] == offsets[1:].tolist()


def test_rows_larger_than_the_file_are_refused() -> None:
    sizes = np.diff(find_row_offsets(GOOD, read_header(GOOD))).astype(np.uint16)
    with pytest.raises(NotTiled, match="those of another file"):
        TiledJpeg.of_sizes(read_head(GOOD, read_header(GOOD)).content, sizes, len(GOOD) - 700)


def test_only_the_rows_of_a_region_are_read() -> None:
    parts: list[tuple[int, int | None]] = []

    def read(start: int, stop: int | None) -> bytes:
        parts.append((start, stop))
        return GOOD[start:stop]

    frame = TiledFrame("a.jpg", open_tiled(GOOD), read)
    np.testing.assert_array_equal(frame.pixels(30, 40, 60, 70), WHOLE.open("a", GOOD).pixels(30, 40, 60, 70))
    offsets = find_row_offsets(GOOD, read_header(GOOD)).tolist()
    assert parts == [(offsets[2] - 2, offsets[5])]


def test_a_first_row_that_begins_elsewhere_is_noticed() -> None:
    """No marker is before it."""
    offsets, whole = find_row_offsets(GOOD, read_header(GOOD)), WHOLE.open("a", GOOD)
    for step in (-3, -2, -1, 1, 2, 3):
        wrong = [offsets[0] + step, *offsets[1:]]
        try:
            part = open_with(GOOD, wrong).pixels(0, 0, 40, 10)
        except NotTiled:
            continue
        np.testing.assert_array_equal(part, whole.pixels(0, 0, 40, 10))
