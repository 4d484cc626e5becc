"""Result files: what is written, what is read, and what is said of a file that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from seqtrack.data.storage import DataError
from seqtrack.evaluation.protocols import Truth
from seqtrack.evaluation.results import Results, Track, frames_per_second, read_results, write_track
from seqtrack.evaluation.sequences import BenchmarkSequence
from tests.evaluation.trees import BOX, write

LOCAL = fs.LocalFileSystem()


def sequence(name: str = "coin-3", frames: int = 3, also_called: tuple[str, ...] = ()) -> BenchmarkSequence:
    boxes = np.tile([10.0, 20, 30, 40], (frames, 1))
    return BenchmarkSequence(name, Truth(boxes, np.zeros(frames, bool)), also_called=also_called)


def read(folder: Path, *sequences: BenchmarkSequence) -> Results:
    return read_results(str(folder), sequences or [sequence()])


def refusal(folder: Path, text: str | bytes, name: str = "coin-3.txt") -> str:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as error:
        read(folder)
    return str(error.value).removeprefix(f"{folder}/")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    boxes = np.array([[10, 20, 30, 40], [1.23456, -2.5, 30.00004, 1e4], [0, 0, 0.00001, 7]])
    write_track(LOCAL, str(tmp_path / "a"), "coin-3", Track(boxes, np.array([0.5, 0.25, 0.0])))
    assert (tmp_path / "a/coin-3.txt").read_text().splitlines()[1] == "1.2346\t-2.5000\t30.0000\t10000.0000"
    results = read(tmp_path / "a")
    track = results.tracks["coin-3"]
    assert track.boxes_xywh == pytest.approx(boxes, abs=5e-5)
    assert track.seconds is not None and track.seconds.tolist() == [0.5, 0.25, 0.0]
    assert (results.integers, results.missing, results.notes) == (False, (), ())


def test_whole_pixels_are_cut_as_published_files_are(tmp_path: Path) -> None:
    write_track(LOCAL, str(tmp_path), "coin-3", Track(np.array([[10.9, -2.9, 30.5, 40.1]] * 3)), integers=True)
    assert (tmp_path / "coin-3.txt").read_text() == "10\t-2\t30\t40\n" * 3
    assert read(tmp_path).integers
    assert not (tmp_path / "coin-3_time.txt").exists()


@pytest.mark.parametrize(
    "text", [BOX * 3, "10\t20\t30\t40\r\n" * 3, "\ufeff10 20 30 40\n" * 1 + "1e1, 20, 3.0e+01, 40\n" * 2]
)
def test_files_are_read_as_tools_write_them(tmp_path: Path, text: str) -> None:
    write(tmp_path / "coin-3.txt", text)
    assert read(tmp_path).tracks["coin-3"].boxes_xywh.tolist() == [[10, 20, 30, 40]] * 3


def test_results_are_found_under_the_names_of_other_tools(tmp_path: Path) -> None:
    write(tmp_path / "GOT-10k_Val_000001/GOT-10k_Val_000001_001.txt", BOX * 3)
    write(tmp_path / "GOT-10k_Val_000001/GOT-10k_Val_000001_time.txt", "0.5,0.6\n" * 3)
    write(tmp_path / "bird1_2.txt", BOX * 3)
    results = read(tmp_path, sequence("GOT-10k_Val_000001"), sequence("uav_bird1_2", also_called=("bird1_2",)))
    assert list(results.tracks) == ["GOT-10k_Val_000001", "uav_bird1_2"]
    seconds = results.tracks["GOT-10k_Val_000001"].seconds
    assert seconds is not None and seconds.tolist() == [0.5] * 3


def test_sequences_without_results_and_files_without_a_sequence_are_named(tmp_path: Path) -> None:
    write(tmp_path / "coin-3.txt", BOX * 3)
    write(tmp_path / "coin-6_.txt", BOX * 3)
    results = read(tmp_path, sequence(), sequence("coin-6"))
    assert results.missing == ("coin-6",)
    assert results.notes == (f"{tmp_path}: 1 files belong to none of the sequences, the first: coin-6_.txt",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOX * 2, "has 2 boxes, and the sequence has 3 frames"),
        ("", "is empty"),
        (BOX + "10,20,30\n" + BOX, "line 2 has 3 numbers, not 4: '10,20,30'"),
        ("10,20,30\n" * 3, "line 1 has 3 numbers, not 4: '10,20,30'"),
        (BOX * 2 + "10,20,30,40,50\n", "line 3 has 5 numbers, not 4: '10,20,30,40,50'"),
        (BOX + "NaN,NaN,NaN,NaN\n" + BOX, "line 2: NaN is no box; a tracker gives one for each frame"),
        ("\n\n" + BOX + BOX + "1,nan,3,4", "line 5: NaN is no box; a tracker gives one for each frame"),
        (BOX * 2 + "10,20,-30,40\n", "line 3: a box of -30 × 40 pixels"),
        (BOX * 2 + "10,20,inf,40\n", "line 3: inf is not a finite number"),
        (BOX + "10,20,thirty,40\n" + BOX, "line 2: 'thirty' is not a number"),
        (BOX + "\n" + BOX * 2, "line 2 is blank, and others follow"),
        (b"\x89PNG\r\n\x1a\n\xff", "is not text (invalid start byte at byte 0)"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert refusal(tmp_path, text) == f"coin-3.txt: {said}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.1\n0.1\n", "has 2 times, and the sequence has 3 frames"),
        ("0.1\n-1\n0.1\n", "line 2: -1 is no time in seconds"),
        ("0.1\n0.1\nnan\n", "line 3: nan is no time in seconds"),
        ("fast\n" * 3, "line 1: 'fast' is not a number"),
    ],
)
def test_wrong_times_are_refused_with_their_name_and_line(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path / "coin-3.txt", BOX * 3)
    assert refusal(tmp_path, text, "coin-3_time.txt") == f"coin-3_time.txt: {said}"


def test_a_file_that_is_too_long_is_cut_and_named(tmp_path: Path) -> None:
    write(tmp_path / "coin-3.txt", BOX * 5)
    write(tmp_path / "coin-3_time.txt", "0.1\n" * 5)
    results = read(tmp_path)
    assert len(results.tracks["coin-3"].boxes_xywh) == 3
    (note,) = results.notes
    assert note.endswith("1 files have more boxes than frames and are cut, the first: coin-3 (2 boxes)")


def test_a_folder_without_results_is_answered_with_what_was_expected_and_the_one_that_fits(tmp_path: Path) -> None:
    write(tmp_path / "seqtrack/b256/coin-3.txt", BOX * 3)
    for given, found in ((tmp_path, "seqtrack"), (tmp_path / "seqtrack", "b256")):
        with pytest.raises(DataError) as error:
            read(given)
        assert str(error.value) == (
            f"{given}: no results of these 1 sequences; expected files such as coin-3.txt or coin-3/coin-3_001.txt; "
            f"found {found}; {tmp_path / 'seqtrack/b256'} would fit"
        )
    with pytest.raises(DataError, match=r"results .*nowhere: no such folder"):
        read(tmp_path / "nowhere")


def test_speed_is_that_of_all_frames_but_the_given_ones() -> None:
    boxes = np.zeros((3, 4))
    tracks = [Track(boxes, np.array([9.0, 0.1, 0.3])), Track(boxes, np.array([9.0, 0.1, 0.1])), Track(boxes)]
    assert frames_per_second(tracks) == pytest.approx(4 / 0.6)
    assert frames_per_second([Track(boxes)]) is None
