"""Videos of sequences: what they show, and when they are made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from pyarrow import fs

from seqtrack.data.decoding import Image
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.results import Results, Track
from seqtrack.evaluation.summary import Evaluation, evaluate
from seqtrack.locations import filesystem_at
from seqtrack.reports import evaluation_videos
from seqtrack.reports.evaluation_videos import write_videos
from tests.evaluation.trees import opened, write_lasot
from tests.object_stores import s3_bucket

BLUE = (0, 114, 178)
NAME = "coin-3"
FRAMES = 40


@pytest.fixture
def data(tmp_path: Path) -> BenchmarkData:
    """One of LaSOT's test sequences, with frames of 90 rows and 160 columns that become brighter."""
    for number, file in enumerate(sorted((write_lasot(tmp_path / "lasot", NAME, frames=FRAMES) / "img").iterdir())):
        cv2.imwrite(str(file), np.full((90, 160, 3), 2 * number, np.uint8))
    return opened("lasot", tmp_path / "lasot")


def scored(data: BenchmarkData, shift: float = 0.0, tracker: str = "ours") -> Evaluation:
    """A tracker whose boxes are the true ones, moved to the right."""
    (sequence,) = data.sequences
    found = Track(sequence.truth.boxes_xywh + np.array((shift, 0, 0, 0)))
    (one,) = evaluate(data, {tracker: Results("here", {NAME: found}, (), ())})
    return one


def video_of(folder: Path, one: Evaluation, colour: tuple[int, int, int] = BLUE) -> Path:
    (video,) = write_videos(str(folder), one, [0], colour)
    assert video.link == f"videos/lasot/{one.tracker}/{NAME}.mp4" and not video.lacking
    return folder / video.link


def pictures(file: Path) -> list[Image]:
    with av.open(str(file)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def columns(image: Image, colour: tuple[int, int, int]) -> list[int]:
    """Columns with pixels about like this colour, below the text."""
    near = np.abs(image[30:].astype(int) - colour).max(2) < 60
    return np.flatnonzero(near.sum(0) > 3).tolist()


def test_each_frame_is_shown_with_both_boxes(data: BenchmarkData, tmp_path: Path) -> None:
    shift = 15.0
    shown = pictures(video_of(tmp_path, scored(data, shift)))
    assert len(shown) == FRAMES
    assert shown[0].shape == (360, 640, 3)
    assert [round(float(np.median(image))) for image in shown] == pytest.approx([2 * n for n in range(FRAMES)], abs=4)
    white, blue = columns(shown[20], (255, 255, 255)), columns(shown[20], BLUE)
    assert max(blue) - max(white) == pytest.approx(shift * 640 / 160, abs=6)


def test_number_and_iou_stand_in_the_frame(data: BenchmarkData, tmp_path: Path) -> None:
    exact, far = (pictures(video_of(tmp_path, scored(data, shift)))[20][:30] for shift in (0.0, 5.0))
    assert (exact > 200).any()
    assert np.abs(exact.astype(int) - far).max() > 100


def test_a_long_sequence_is_shown_at_equal_distances(
    data: BenchmarkData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_videos, "FRAMES", 14)
    shown = pictures(video_of(tmp_path, scored(data)))
    assert [round(float(np.median(image))) for image in shown] == pytest.approx([*range(0, 2 * FRAMES, 6)], abs=4)


def test_a_video_is_made_again_only_when_what_it_shows_has_changed(data: BenchmarkData, tmp_path: Path) -> None:
    def written(one: Evaluation, colour: tuple[int, int, int] = BLUE) -> int:
        return video_of(tmp_path, one, colour).stat().st_mtime_ns

    first = written(scored(data))
    assert written(scored(data)) == first
    moved = written(scored(data, 0.001))
    assert moved != first
    recoloured = written(scored(data, 0.001), (255, 0, 0))
    assert recoloured != moved
    (sequence,) = data.sequences
    absent = replace(sequence, truth=replace(sequence.truth, absent=~sequence.truth.absent))
    assert written(scored(replace(data, sequences=(absent,)), 0.001), (255, 0, 0)) != recoloured


def test_what_is_no_video_is_replaced(data: BenchmarkData, tmp_path: Path) -> None:
    file = video_of(tmp_path, scored(data))
    whole = file.read_bytes()
    for damaged in (b"", b"no video"):
        file.write_bytes(damaged)
        assert len(pictures(video_of(tmp_path, scored(data)))) == FRAMES
    assert file.stat().st_size == len(whole)


@pytest.mark.parametrize("tracker", ["..", "a/b", "Käfer 100%?", "%2E."])
def test_videos_stay_in_their_folder_whatever_a_tracker_is_called(
    data: BenchmarkData, tmp_path: Path, tracker: str
) -> None:
    (tmp_path / "out").mkdir()
    write_videos(str(tmp_path / "out"), scored(data, tracker=tracker), [0], BLUE)
    (file,) = tmp_path.rglob("*.mp4")
    assert file.parent.parent == tmp_path / "out/videos/lasot"
    assert file.parent.name.isascii() and file.parent.name[0] != "."


def test_videos_go_into_an_object_store_too(
    data: BenchmarkData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_bucket() as bucket:
        filesystem, path = filesystem_at(bucket)
        (video,) = write_videos(bucket, scored(data), [0], BLUE)
        before = filesystem.get_file_info(f"{path}/{video.link}")
        assert write_videos(bucket, scored(data), [0], BLUE) == [video]
        after = filesystem.get_file_info(f"{path}/{video.link}")
        assert after.mtime_ns == before.mtime_ns
        fs.copy_files(f"{path}/{video.link}", str(tmp_path / "a.mp4"), filesystem, fs.LocalFileSystem())
    assert len(pictures(tmp_path / "a.mp4")) == FRAMES
