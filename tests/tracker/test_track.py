"""`seqtrack track` from the command line to its files."""

from __future__ import annotations

import csv
import itertools
import shutil
import signal
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import PIL.Image
import pytest

from seqtrack.cli import main
from seqtrack.tracker import BatchTracker
from tests.tracker.videos import disc, turn, write_video
from tests.training.loops import trained_run


@pytest.fixture(scope="module")
def run(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4", [disc(number)[0] for number in range(20)])


BOX = "16,26,29,29"


def track(run: Path, source: Path, out: Path, *arguments: str) -> int:
    return main(["track", "--weights", str(run), "--source", str(source), "--out", str(out), *arguments])


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "boxes.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_video_becomes_a_video_a_table_and_a_text_file(run: Path, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert track(run, video, out, "--box", BOX) == 0
    table = rows(out)
    assert [int(row["frame"]) for row in table] == list(range(20))
    assert [float(row["time"]) for row in table] == pytest.approx([number / 25 for number in range(20)], abs=1e-3)
    assert [float(table[0][name]) for name in "xywh"] == [16, 26, 29, 29]
    boxes = np.loadtxt(out / "clip.txt", delimiter="\t")
    assert boxes.tolist() == [[float(row[name]) for name in "xywh"] for row in table]
    assert len(np.loadtxt(out / "clip_time.txt")) == 20
    with av.open(str(out / "clip.mp4")) as container:
        stream = container.streams.video[0]
        shown = list(container.decode(stream))
        assert stream.codec_context.codec.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        assert [frame.time for frame in shown] == pytest.approx([number / 25 for number in range(20)], abs=1e-3)


def test_several_targets_of_one_video_have_the_boxes_that_each_has_alone(
    run: Path, video: Path, tmp_path: Path
) -> None:
    (tmp_path / "boxes.txt").write_text("60, 20, 30, 30\n")
    together = ["--box", BOX, "--box-file", str(tmp_path / "boxes.txt"), "--no-video"]
    assert track(run, video, tmp_path / "both", *together) == 0
    assert track(run, video, tmp_path / "first", "--box", BOX, "--no-video") == 0
    assert track(run, video, tmp_path / "second", "--box", "60,20,30,30", "--no-video") == 0
    for number, alone in ((1, "first"), (2, "second")):
        text = (tmp_path / "both" / f"clip_{number}.txt").read_text()
        assert text == (tmp_path / alone / "clip.txt").read_text()
    assert not (tmp_path / "both/clip.mp4").exists()


def test_a_sequence_brings_its_first_box_and_is_scored(
    run: Path, lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(run, lasot_root / "coin/coin-1", tmp_path / "out", "--crops", "--stop", "6") == 0
    said = capsys.readouterr().out
    assert "Mean IoU with the annotation 0." in said and "over 6 frames" in said
    assert f"Wrote {tmp_path}/out/coin-1.mp4" in said
    assert len(list((tmp_path / "out/crops").glob("*.jpg"))) == 6


def test_frames_are_chosen_by_start_stop_and_stride(run: Path, video: Path, tmp_path: Path) -> None:
    chosen = ["--start", "3", "--stop", "12", "--stride", "4", "--box", BOX]
    assert track(run, video, tmp_path / "out", *chosen) == 0
    assert [int(row["frame"]) for row in rows(tmp_path / "out")] == [3, 7, 11]


def test_frames_may_change_their_size(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(6):
        size = (96, 128) if number < 3 else (192, 256)
        cv2.imwrite(str(folder / f"{number}.png"), disc(number, *size)[0][..., ::-1])
    assert track(run, folder, tmp_path / "out", "--box", BOX) == 0
    assert len(rows(tmp_path / "out")) == 6


@pytest.mark.parametrize("kind", ["grey", "16 bits", "alpha"])
def test_pictures_of_any_kind_are_tracked_in(run: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        picture: Any = disc(number)[0]
        if kind == "grey":
            picture = picture[..., 0]
        elif kind == "16 bits":
            picture = picture.astype(np.uint16) * 257
        else:
            picture = np.dstack((picture, np.full(picture.shape[:2], 200, np.uint8)))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    assert track(run, folder, tmp_path / "out", "--box", BOX, "--no-video") == 0


def test_a_video_that_is_cut_off_is_tracked_to_the_cut(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(tmp_path / "clip.mkv", [disc(number)[0] for number in range(60)])
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert track(run, video, tmp_path / "out", "--box", BOX) == 1
    assert "clip.mkv: is cut off after" in capsys.readouterr().err
    assert 5 < len(rows(tmp_path / "out")) < 60


def test_a_start_beyond_the_cut_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "clip.mkv", [disc(number)[0] for number in range(60)])
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert track(run, video, tmp_path / "out", "--box", BOX, "--start", "58") == 2
    assert capsys.readouterr().err.endswith("; frame 58 is not among them\n")


def test_ctrl_c_finishes_the_files_with_what_was_tracked(
    run: Path, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a sweep of an earlier test may have left its own
    calls = itertools.count(1)
    find = BatchTracker.track

    def track_until_ctrl_c(tracker: BatchTracker, frames: Any) -> Any:
        if next(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return find(tracker, frames)

    monkeypatch.setattr(BatchTracker, "track", track_until_ctrl_c)
    assert track(run, video, tmp_path / "out", "--box", BOX) == 128 + signal.SIGINT
    signal.signal(signal.SIGINT, before)
    assert [int(row["frame"]) for row in rows(tmp_path / "out")] == [0, 1, 2, 3, 4]
    with av.open(str(tmp_path / "out/clip.mp4")) as container:
        assert len(list(container.decode(video=0))) == 5


@pytest.mark.parametrize("orientation", [3, 6])
def test_it_is_said_which_way_round_a_picture_is_tracked_in(
    run: Path, tmp_path: Path, orientation: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(2):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        PIL.Image.fromarray(disc(number)[0]).save(folder / f"{number}.jpg", exif=exif)
    assert track(run, folder, tmp_path / "out", "--box", BOX, "--no-video") == 0
    size = "128 × 96" if orientation == 3 else "96 × 128"
    said = f"turned as its EXIF orientation says, {orientation} of 1 to 8; boxes are in its pixels as shown, {size}"
    assert said in capsys.readouterr().out


def test_it_is_said_that_a_video_was_filmed_sideways(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(run, turn(video), tmp_path / "out", "--box", BOX, "--no-video") == 0
    said = "turned by 90° clockwise, as the file says; boxes are in its pixels as shown, 96 × 128"
    assert said in capsys.readouterr().out


FAULTS = {
    "no box": ([], "no target: --box X,Y,W,H names it"),
    "three numbers": (["--box", "1,2,3"], "--box 1,2,3: a box is four numbers, x,y,w,h in pixels"),
    "words": (["--box", "here"], "--box here: a box is four numbers"),
    "outside": (["--box", "500,500,20,20"], "box 500,500,20,20: lies outside the frame, which has 128 × 96 pixels"),
    "no size": (["--box", "5,5,0,20"], "box 5,5,0,20: its width and height must be above 0"),
    "no number": (["--box", "5,5,nan,20"], "a box is four finite numbers"),
    "no such frame": (["--box", BOX, "--start", "99"], "has no frame 99"),
    "nothing between": (["--box", BOX, "--start", "9", "--stop", "9"], "--stop 9: no frame is left"),
    "no such file": (["--box-file", "nowhere.txt"], "--box-file nowhere.txt: "),
    "no such device": (["--box", BOX, "--device", "tpu"], "--device tpu: is not here (cpu)"),
    "no screen": (["--box", BOX, "--show"], "--show: there is no screen here"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_tracked_is_said_in_a_line(
    run: Path, video: Path, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    arguments, message = FAULTS[fault]
    assert track(run, video, tmp_path / "out", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_a_model_is_named(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run / "checkpoint_epoch_0002", tmp_path / "checkpoint_epoch_0002")
    (copy / "model.safetensors").unlink()
    assert track(copy, video, tmp_path / "out", "--box", BOX) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_file_of_weights_needs_its_settings(
    run: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(shutil.copy(run / "checkpoint_epoch_0002/model.safetensors", tmp_path / "model.safetensors"))
    assert track(weights, video, tmp_path / "out", "--box", BOX) == 2
    assert "holds weights only; --config NAME|FILE names the settings" in capsys.readouterr().err
    arguments = ["--box", BOX, "--no-video", "--config", str(run / "config.yaml")]
    assert track(weights, video, tmp_path / "a", *arguments) == 0
    assert track(run, video, tmp_path / "b", "--box", BOX, "--no-video") == 0
    assert (tmp_path / "a/clip.txt").read_text() == (tmp_path / "b/clip.txt").read_text()
