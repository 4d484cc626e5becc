"""Zips for the servers of GOT-10k and TrackingNet: their form, and what is refused before they are written."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.storage import DataError
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.evaluation.results import Track
from seqtrack.evaluation.submissions import (
    check_got10k,
    check_trackingnet,
    read_zip,
    write_got10k_zip,
    write_trackingnet_zip,
)
from tests.evaluation.trees import opened, write_got10k, write_trackingnet

TRACK = Track(np.array([[10, 20, 30, 40], [1.23456, -0.0001, 30, 1e4], [0, 0, 1, 7]]), np.array([0.0, 0.25, 0.5]))
BOXES = b"10.000,20.000,30.000,40.000\n" * 3
Change = Callable[[dict[str, bytes]], object]


@pytest.fixture
def got10k(tmp_path: Path) -> BenchmarkData:
    """Two of its test sequences, as if these were all."""
    for number in (1, 2):
        write_got10k(tmp_path / "got10k", "test", number)
    return dataclasses.replace(opened("got10k_test", tmp_path / "got10k"), size=2)


@pytest.fixture
def trackingnet(tmp_path: Path) -> BenchmarkData:
    for name in ("abc", "def"):
        write_trackingnet(tmp_path / "trackingnet", name, frames=3)
    return dataclasses.replace(opened("trackingnet", tmp_path / "trackingnet"), size=2)


def test_got10ks_zip_has_its_names_and_decimals_and_the_same_bytes_each_time(
    got10k: BenchmarkData, tmp_path: Path
) -> None:
    tracks = {one.name: TRACK for one in got10k.sequences}
    for name in ("a.zip", "b.zip"):
        write_got10k_zip(str(tmp_path / name), "SeqTrack", got10k, tracks)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        place = "SeqTrack/GOT-10k_Test_000001/GOT-10k_Test_000001"
        assert len(archive.namelist()) == 4
        assert archive.read(f"{place}_001.txt").splitlines()[1] == b"1.235,0.000,30.000,10000.000"
        assert archive.read(f"{place}_time.txt").splitlines() == [b"0.00000000", b"0.25000000", b"0.50000000"]
    check_got10k(read_zip(str(tmp_path / "a.zip")), got10k.sequences, "a.zip")


def test_trackingnets_zip_has_its_names_and_decimals(trackingnet: BenchmarkData, tmp_path: Path) -> None:
    write_trackingnet_zip(str(tmp_path / "a.zip"), trackingnet, dict.fromkeys(("abc", "def"), TRACK))
    files = read_zip(str(tmp_path / "a.zip"))
    assert sorted(files) == ["abc.txt", "def.txt"]
    assert files["abc.txt"].splitlines()[1] == b"1.23,0.00,30.00,10000.00"
    check_trackingnet(files, trackingnet.sequences, "a.zip")


def test_results_of_a_partial_copy_are_not_zipped(got10k: BenchmarkData, tmp_path: Path) -> None:
    partial = dataclasses.replace(got10k, size=180)
    with pytest.raises(InputError, match="GOT-10k test: 2 of 180 sequences; its server takes results of all sequences"):
        write_got10k_zip(str(tmp_path / "a.zip"), "SeqTrack", partial, {})
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("tracker", "tracks", "said"),
    [
        ("Seq Track", {1: TRACK, 2: TRACK}, "the tracker's name 'Seq Track' must not have spaces"),
        ("S", {1: TRACK}, "2 of 4 files are missing, the first: S/GOT-10k_Test_000002/GOT-10k_Test_000002_001.txt"),
        ("S", {1: TRACK, 2: Track(TRACK.boxes_xywh)}, "1 of 4 files are missing, .*000002_time.txt"),
        ("S", {1: TRACK, 2: Track(TRACK.boxes_xywh[:2], TRACK.seconds)}, "has 2 boxes, and the sequence has 3 frames"),
        ("S", {1: TRACK, 2: Track(np.tile(np.nan, (3, 4)), TRACK.seconds)}, "000002_001.txt: line 1: NaN is no box"),
        ("S", {1: TRACK, 2: TRACK, 3: TRACK}, "2 files do not belong there"),
    ],
)
def test_what_got10ks_server_would_refuse_is_not_written(
    got10k: BenchmarkData, tmp_path: Path, tracker: str, tracks: dict[int, Track], said: str
) -> None:
    named = {f"GOT-10k_Test_{number:06d}": track for number, track in tracks.items()}
    with pytest.raises(DataError, match=said):
        write_got10k_zip(str(tmp_path / "a.zip"), tracker, got10k, named)
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.update({"abc.txt": BOXES.replace(b",", b"\t")}), "abc.txt: line 1 is '10.000"),
        (
            lambda files: files.update({"abc.txt": BOXES.replace(b",", b", ")}),
            "not four numbers with commas",
        ),
        (lambda files: files.update({"abc.txt": b"1e2,2,3,4\n" * 3}), "line 1 is '1e2,2,3,4', not four numbers"),
        (lambda files: files.update({"abc.txt": BOXES + BOXES}), "has 6 boxes, and the sequence has 3 frames"),
        (lambda files: files.update({"abc.txt": "1,2,3,4\n".encode("utf-16")}), "has 1 boxes"),
        (lambda files: files.update({"copy/abc.txt": BOXES}), "1 names are there more than once, the first: abc.txt"),
        (lambda files: files.pop("def.txt"), "1 of 2 files are missing, the first: def.txt"),
        (lambda files: files.update({"abc_time.txt": b"1"}), "1 files do not belong there, the first: abc_time.txt"),
    ],
)
def test_what_trackingnets_server_would_refuse_is_named(trackingnet: BenchmarkData, change: Change, said: str) -> None:
    files = {"abc.txt": BOXES, "def.txt": BOXES}
    check_trackingnet(files, trackingnet.sequences, "a.zip")
    change(files)
    with pytest.raises(DataError, match=f"^a.zip: .*{said}"):
        check_trackingnet(files, trackingnet.sequences, "a.zip")


def test_results_without_a_folder_are_not_taken_for_got10ks(got10k: BenchmarkData) -> None:
    with pytest.raises(DataError, match=r"a\.zip: must hold one folder, named after the tracker; found x\.txt"):
        check_got10k({"x.txt": BOXES}, got10k.sequences, "a.zip")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no more", b"<html>"])
def test_what_is_no_zip_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: cannot be read as a zip"):
        read_zip(str(tmp_path / "a.zip"))
