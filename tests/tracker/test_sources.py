from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.tracker.sources import CutOff, Pictures, SourceError, Video, open_source
from tests.tracker.videos import disc, turn, write_video

FRAMES = [disc(number)[0] for number in range(12)]


def close(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two pictures are the same but for what a codec loses."""
    return one.shape == other.shape and float(np.abs(one.astype(int) - other.astype(int)).mean()) < 6


@pytest.mark.parametrize(
    ("codec", "name"),
    [("libx264", "a.mp4"), ("libx265", "a.mp4"), ("libvpx-vp9", "a.webm"), ("libsvtav1", "a.mp4")],
)
def test_videos_of_many_codecs_are_read_whole_and_in_order(tmp_path: Path, codec: str, name: str) -> None:
    source = open_source(str(write_video(tmp_path / name, FRAMES, codec)))
    shots = list(source.shots())
    assert [shot.number for shot in shots] == list(range(12))
    assert [shot.seconds for shot in shots] == pytest.approx([number / 25 for number in range(12)], abs=1e-3)
    assert all(close(shot.image, frame) for shot, frame in zip(shots, FRAMES, strict=True))


def test_frames_have_the_times_at_which_they_are_shown(tmp_path: Path) -> None:
    moments = [0, 0.04, 0.12, 0.16, 0.5, 0.54, 0.58, 0.62, 1.0, 1.5, 1.54, 2.0]
    source = open_source(str(write_video(tmp_path / "a.mp4", FRAMES, moments=moments)))
    assert [shot.seconds for shot in source.shots()] == pytest.approx(moments, abs=1e-3)


def test_a_video_that_was_filmed_sideways_is_turned(tmp_path: Path) -> None:
    shots = list(open_source(str(turn(write_video(tmp_path / "a.mp4", FRAMES)))).shots())
    assert close(shots[0].image, np.rot90(FRAMES[0], -1))


def test_a_video_that_is_cut_off_is_read_to_the_cut(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", [disc(number)[0] for number in range(60)])
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    read: list[int] = []
    with pytest.raises(CutOff, match=r"a\.mkv: (is cut off after|cannot be decoded after frame) \d+"):
        read.extend(shot.number for shot in open_source(str(whole)).shots())
        pytest.fail("the cut was not noticed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a video"),
        (b"not a video" * 100, "cannot be read as a video"),
        (b"\x00" * 5000, "cannot be read as a video"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(SourceError, match=rf"a\.mp4: {message}"):
        list(open_source(str(tmp_path / "a.mp4")).shots())


def test_a_source_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", FRAMES)
    with pytest.raises(SourceError, match=r"clop\.mp4: no such file or folder; did you mean clip\.mp4\?"):
        open_source(str(tmp_path / "clop.mp4"))


def test_a_folder_of_pictures_is_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), FRAMES[number][..., ::-1])
    source = open_source(str(tmp_path))
    shown = [shot.image for shot in source.shots()]
    assert all(np.array_equal(image, FRAMES[number]) for image, number in zip(shown, (1, 2, 10), strict=True))


@pytest.mark.parametrize(
    ("layout", "annotation"),
    [("img", "groundtruth.txt"), ("img", "groundtruth_rect.txt"), (".", "groundtruth.txt")],
    ids=["lasot", "otb", "got10k"],
)
def test_a_sequence_of_a_benchmark_brings_its_annotation(tmp_path: Path, layout: str, annotation: str) -> None:
    folder = tmp_path / "coin-1"
    (folder / layout).mkdir(parents=True)
    for number, frame in enumerate(FRAMES):
        cv2.imwrite(str(folder / layout / f"{number + 1:08d}.jpg"), frame[..., ::-1])
    (folder / annotation).write_text("\n".join("\t".join(map(str, disc(number)[1])) for number in range(12)))
    source = open_source(str(folder))
    assert isinstance(source, Pictures)
    assert source.annotation is not None
    assert source.annotation.tolist() == [list(disc(number)[1]) for number in range(12)]
    assert (source.name, source.length) == ("coin-1", 12)


def test_a_folder_without_pictures_and_a_broken_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source(str(tmp_path))
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.jpg"), FRAMES[number])
    (tmp_path / "1.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:200])
    with pytest.raises(CutOff, match=r"1\.jpg cannot be read \(the JPEG is cut off\); 1 of 3 frames come before it"):
        list(open_source(str(tmp_path)).shots())


def test_real_videos_are_read(shared_data: Path) -> None:
    video = open_source(str(shared_data / "video_720p" / "04_coffee.mp4"))
    assert isinstance(video, Video)
    shot = next(video.shots())
    assert shot.image.shape == (720, 1280, 3)
