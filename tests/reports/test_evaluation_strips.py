"""Strips: frames with the true box in white and the one that was found in a tracker's colour."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
from pyarrow import fs

from seqtrack.data import storage
from seqtrack.data.decoding import Image
from seqtrack.data.storage import Root
from seqtrack.evaluation.curves import Measure
from seqtrack.evaluation.protocols import Truth
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.sequences import BenchmarkSequence, FrameFiles, PackedFrames
from seqtrack.reports.evaluation_strips import Shown, read_strips, worst_rows

BLUE = (0, 114, 178)
TRUE, FOUND = (40.0, 40, 20, 20), (90.0, 40, 30, 20)
COUNT = 9


def sequence(folder: Path, name: str, frames: int = COUNT) -> BenchmarkSequence:
    """Grey frames; the target is absent in the last one."""
    (folder / name).mkdir()
    for number in range(1, frames + 1):
        cv2.imwrite(str(folder / name / f"{number:08d}.jpg"), np.full((120, 160, 3), 100, np.uint8))
    absent = np.arange(frames) == frames - 1
    return BenchmarkSequence(name, Truth(np.tile(TRUE, (frames, 1)), absent), FrameFiles(name, frames, None))


def track(frames: int = COUNT) -> Track:
    return Track(np.array([TRUE, *[FOUND] * (frames - 1)]))


def local(folder: Path) -> Root:
    return Root(fs.LocalFileSystem(), str(folder))


def strip_of(root: Root, one: BenchmarkSequence, found: Track | None = None) -> list[Shown]:
    (strip,) = read_strips(root, [(one, found or track(len(one)))], BLUE)
    assert not isinstance(strip, str), strip
    return strip


def pixels(shown: Shown) -> Image:
    content = base64.b64decode(shown.picture.removeprefix("data:image/jpeg;base64,"))
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def columns(image: Image, colour: tuple[int, int, int]) -> list[int]:
    """Columns with pixels about like this colour."""
    near = np.abs(image.astype(int) - colour).max(2) < 45
    return np.flatnonzero(near.sum(0) > 3).tolist()


def test_both_boxes_are_drawn_where_they_are(tmp_path: Path) -> None:
    strip = strip_of(local(tmp_path), sequence(tmp_path, "a"))
    assert [shown.text for shown in strip] == [
        "frame 1: given", "frame 3: IoU 0.00", "frame 5: IoU 0.00", "frame 7: IoU 0.00", "frame 9: no target",
    ]  # fmt: skip
    middle = pixels(strip[2])
    white, blue = columns(middle, (255, 255, 255)), columns(middle, BLUE)
    assert white and blue and max(white) < min(blue)  # the true box is left of the other
    widths = (max(white) - min(white), max(blue) - min(blue))
    assert widths[1] / widths[0] == pytest.approx(FOUND[2] / TRUE[2], rel=0.1)


def test_where_there_is_no_target_only_the_found_box_is_drawn(tmp_path: Path) -> None:
    last = pixels(strip_of(local(tmp_path), sequence(tmp_path, "a"))[-1])
    assert columns(last, BLUE) and not columns(last, (255, 255, 255))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_sequences_show_each_frame_once(tmp_path: Path, frames: int) -> None:
    assert len(strip_of(local(tmp_path), sequence(tmp_path, "a", frames))) == frames


@pytest.mark.parametrize(
    "box", [(-500.0, 40, 20, 20), (5000.0, 5000, 3, 3), (0.0, 0, 0, 0), (-50.0, -50, 900, 900), (np.inf, 0, 1, 1)]
)
def test_boxes_outside_of_the_frame_and_empty_ones_are_no_error(tmp_path: Path, box: tuple[float, ...]) -> None:
    one = sequence(tmp_path, "a")
    assert len(strip_of(local(tmp_path), one, Track(np.array([TRUE, *[box] * (COUNT - 1)])))) == 5


def test_packed_frames_are_shown(tmp_path: Path) -> None:
    one = sequence(tmp_path, "a")
    contents = [(tmp_path / "a" / f"{number:08d}.jpg").read_bytes() for number in range(1, COUNT + 1)]
    (tmp_path / "shard").write_bytes(b"".join(contents))
    sizes = np.array([len(content) for content in contents])
    packed = BenchmarkSequence("a", one.truth, PackedFrames("shard", np.cumsum(sizes) - sizes, sizes))
    assert strip_of(local(tmp_path), packed) == strip_of(local(tmp_path), one)


def test_a_store_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0)
    sequences = [sequence(tmp_path, name) for name in ("gone", "damaged", "broken", "whole")]
    (tmp_path / "gone" / "00000001.jpg").unlink()
    (tmp_path / "damaged" / "00000001.jpg").write_bytes(b"no picture")
    file = tmp_path / "broken" / "00000001.jpg"
    file.unlink()
    file.mkdir()  # reading it is an OSError, as when a server fails
    shown = [(one, track()) for one in sequences]
    store = Root(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
    gone, damaged, broken, after = read_strips(store, shown, BLUE)
    assert len({str(gone), str(damaged), str(broken)}) == 3
    assert after == broken
    assert isinstance(read_strips(local(tmp_path), shown, BLUE)[-1], list)


def test_the_worst_rows_are_the_lowest_numbers_without_nan() -> None:
    measure = Measure(np.array([50.0, np.nan, 10, 30]), np.ones(4))
    assert worst_rows(measure, 2) == [2, 3]
    assert worst_rows(measure, 10) == [2, 3, 0]
