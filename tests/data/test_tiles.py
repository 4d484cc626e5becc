from __future__ import annotations

import io
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from seqtrack.data.decoding import BrokenFrame, FrameDecoder
from seqtrack.data.jpeg import read_header
from seqtrack.data.tiles import NotTiled, TiledJpeg, choose_interval, find_row_offsets, read_grid, tile
from seqtrack.errors import InputError

NOISE = np.random.RandomState(0).randint(0, 256, (300, 400, 3)).astype(np.uint8)
MCU = {"444": (8, 8), "422": (16, 8), "440": (8, 16), "420": (16, 16), "411": (32, 8), "grey": (8, 8)}
"""Width and height of an MCU by the resolution of the colours."""
SAMPLING = "IMWRITE_JPEG_SAMPLING_FACTOR_"
WHOLE = FrameDecoder(by_region=False)
RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]

needs_jpegtran = pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")


def encode(width: int, height: int, kind: str, interval: int, quality: int = 85) -> bytes:
    """A JPEG of noise, with restart markers after this number of MCUs, or with none for 0."""
    sampling = [] if kind == "grey" else [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"{SAMPLING}{kind}")]
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, interval, *sampling]
    image = NOISE[:height, :width, 0] if kind == "grey" else NOISE[:height, :width]
    return cv2.imencode(".jpg", image, flags)[1].tobytes()


def pillow(mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def open_tiled(data: bytes) -> TiledJpeg:
    header = read_header(data)
    return TiledJpeg(data, header, find_row_offsets(data, header))


def assert_equal_to_whole(data: bytes, region: tuple[int, int, int, int]) -> None:
    """Compares a region that is decoded by tiles, and does not fall back, with that of the whole picture."""
    left, top, right, bottom = region
    whole = WHOLE.open("a", data).pixels(left, top, right, bottom)
    np.testing.assert_array_equal(open_tiled(data).pixels(data, *region), whole)


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
    header, offsets = read_header(data), find_row_offsets(data, read_header(data))
    tiled = TiledJpeg(data[: header.scan], header, offsets)
    for top, bottom in ((0, 16), (100, 150), (299, 300)):
        start, stop = tiled.byte_range(top, bottom)
        expected = WHOLE.open("a", data).pixels(70, top, 90, bottom)
        np.testing.assert_array_equal(tiled.pixels(data[start:stop], 70, top, 90, bottom, offset=start), expected)


@pytest.mark.parametrize(
    ("mcus", "interval"),
    [(80, 10), (120, 10), (40, 10), (45, 9), (22, 11), (14, 7), (86, 43), (23, 23), (7, 7), (4, 4), (1, 1)],
)
def test_tiles_have_the_divisor_of_the_row_that_is_nearest_ten(mcus: int, interval: int) -> None:
    assert choose_interval(mcus) == interval


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


@pytest.mark.parametrize("kind", UNFIT)
def test_what_is_not_tiled_is_refused(kind: str) -> None:
    with pytest.raises(NotTiled):
        find_row_offsets(UNFIT[kind], read_header(UNFIT[kind]))


def test_a_scan_of_one_colour_among_three_is_no_tiled_jpeg() -> None:
    start, end = GOOD.index(b"\xff\xda"), read_header(GOOD).scan
    first_of_three = GOOD[:start] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" + GOOD[end:]
    with pytest.raises(NotTiled, match="it has several scans"):
        read_grid(first_of_three, read_header(first_of_three))


@pytest.mark.parametrize("kind", [kind for kind in UNFIT if kind not in ("12 bits", "arithmetic", "no width")])
def test_what_is_not_tiled_is_decoded_as_a_whole_even_if_offsets_are_given(kind: str) -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    frame, whole = WHOLE.open("a", UNFIT[kind], offsets), WHOLE.open("a", UNFIT[kind])
    for top in range(0, 260, 20):
        if top + 30 < whole.height:
            np.testing.assert_array_equal(frame.pixels(10, top, 60, top + 30), whole.pixels(10, top, 60, top + 30))


def test_a_jpeg_that_cannot_be_decoded_is_broken_with_offsets_too() -> None:
    with pytest.raises(BrokenFrame, match=r"^a\.jpg cannot be read"):
        WHOLE.open("a.jpg", UNFIT["arithmetic"][:400] + b"\xff\xd9", find_row_offsets(GOOD, read_header(GOOD)))


@pytest.mark.parametrize("row", range(19))
def test_offsets_that_are_wrong_never_give_wrong_pixels(row: int) -> None:
    generator = random.Random(row)
    offsets, whole = find_row_offsets(GOOD, read_header(GOOD)), WHOLE.open("a", GOOD).pixels(0, 0, 400, 300)
    for place in (row, row + 1) * 20:
        wrong = offsets.copy()
        near, anywhere = wrong[place] + generator.randint(-3, 3), generator.randrange(-(2**31), 2**31)
        wrong[place] = generator.choice([near, anywhere, generator.choice(offsets)])
        left, top, bottom = generator.choice([0, generator.randrange(380)]), 16 * row + 1, min(16 * row + 15, 300)
        part = WHOLE.open("a", GOOD, wrong).pixels(left, top, left + 20, bottom)
        np.testing.assert_array_equal(part, whole[top:bottom, left : left + 20])


def test_offsets_of_a_file_with_other_rows_are_refused() -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    for others in ([], offsets[:-1], [*offsets, offsets[-1]]):
        with pytest.raises(NotTiled, match="those of another file"):
            TiledJpeg(GOOD, read_header(GOOD), others)


@pytest.mark.parametrize("other", [b"\0\0", *RESTARTS, b"\xff\xc4", b"\xff\xd9", b"\xff\xff"])
def test_a_marker_that_is_overwritten_is_noticed_where_it_matters(other: bytes) -> None:
    offsets = find_row_offsets(GOOD, read_header(GOOD))
    for number in range(0, 94, 7):  # 5 tiles in each of 19 rows
        damaged = with_marker(number, other)
        frame, whole = WHOLE.open("a", damaged, offsets), WHOLE.open("a", damaged)
        top = min(16 * (number // 5), 290)
        np.testing.assert_array_equal(frame.pixels(0, top, 400, top + 10), whole.pixels(0, top, 400, top + 10))


def test_a_tile_with_damaged_data_has_the_pixels_that_it_has_in_the_whole() -> None:
    generator = random.Random(0)
    header, offsets = read_header(GOOD), find_row_offsets(GOOD, read_header(GOOD))
    for _ in range(200):
        row = generator.randrange(len(offsets) - 1)
        damaged = bytearray(GOOD)
        damaged[generator.randrange(offsets[row], offsets[row + 1] - 2)] = generator.randrange(255)
        frame, whole = WHOLE.open("a", bytes(damaged), offsets), WHOLE.open("a", bytes(damaged))
        top, bottom = 16 * row, min(16 * row + 16, header.height)
        left = generator.randrange(0, 320)
        np.testing.assert_array_equal(
            frame.pixels(left, top, left + 80, bottom), whole.pixels(left, top, left + 80, bottom)
        )


@needs_jpegtran
@pytest.mark.parametrize("kind", MCU)
def test_tiling_keeps_pixels_and_metadata(kind: str) -> None:
    data = encode(399, 295, kind, interval=0)
    data = data[:2] + b"\xff\xfe\x00\x0bseqtracks" + data[2:]
    tiled = tile(data)
    assert tiled is not None
    grid = read_grid(tiled, read_header(tiled))
    assert grid.interval == choose_interval(grid.mcus_per_row)
    np.testing.assert_array_equal(
        WHOLE.open("a", tiled).pixels(0, 0, 399, 295), WHOLE.open("a", data).pixels(0, 0, 399, 295)
    )
    assert b"seqtracks" in tiled
    assert_equal_to_whole(tiled, (100, 90, 300, 200))


@needs_jpegtran
def test_restart_markers_that_do_not_fit_are_replaced() -> None:
    tiled = tile(UNFIT["tiles across two rows"])
    assert tiled is not None
    assert_equal_to_whole(tiled, (10, 20, 30, 40))


@needs_jpegtran
def test_what_is_tiled_stays_byte_for_byte() -> None:
    tiled = tile(pillow())
    assert tiled is not None
    assert tile(tiled) is tiled


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
    assert tile(others[kind] if kind in others else UNFIT[kind]) is None


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
    assert tile(GOOD[:place] + b"\xff\x00\xff\x00" + GOOD[place + 4 :]) is None


def test_without_jpegtran_the_error_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^jpegtran is not installed.*libjpeg-turbo-progs"):
        tile(pillow())


@needs_jpegtran
def test_regions_of_real_frames_have_the_pixels_of_the_whole(shared_data: Path) -> None:
    generator = random.Random(0)
    for path in sorted((shared_data / "sequences").rglob("*.jpg"))[::60]:
        tiled = tile(path.read_bytes())
        assert tiled is not None
        whole, tiles = WHOLE.open("a", tiled), open_tiled(tiled)
        for _ in range(10):
            left, right = sorted(generator.sample(range(whole.width + 1), 2))
            top, bottom = sorted(generator.sample(range(whole.height + 1), 2))
            part = tiles.pixels(tiled, left, top, right, bottom)
            np.testing.assert_array_equal(part, whole.pixels(left, top, right, bottom))
