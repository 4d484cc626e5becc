"""The training sets beside LaSOT, opened by their names from each layout: annotations, frames, cache, object store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from seqtrack.data.datasets import coco, got10k, trackingnet
from seqtrack.data.datasets.catalog import OTHER_SETS, open_training_set
from seqtrack.data.datasets.frames import OnMismatch
from seqtrack.data.datasets.index import FRAME_NAMES, FrameIndex
from seqtrack.data.storage import DataError, Root, open_root
from tests.object_stores import s3_bucket

LAYOUTS = {"GOT10K_train_full": "GOT10K", "COCO17": "COCO17", "TRACKINGNET": "TRACKINGNET"}
VIDEOS = {"GOT10K_train_full": "train/GOT-10k_Train_000002", "TRACKINGNET": "TRAIN_1/frames/kite0001_0"}
"""Set -> the folder of a sequence's frames, that of the second row."""


def opened(name: str, root: Path | Root, on_mismatch: OnMismatch = "error") -> FrameIndex:
    place = open_root(str(root)) if isinstance(root, Path) else root
    return open_training_set(name, place, on_mismatch, partial_set=True)


def copy_of(folder: Path, name: str, target: Path) -> Path:
    return shutil.copytree(folder / LAYOUTS[name], target / name)


@pytest.mark.parametrize("name", OTHER_SETS)
def test_every_frame_is_where_the_index_says(name: str, synthetic_sets: Path) -> None:
    root = synthetic_sets / LAYOUTS.get(name, "GOT10K")
    index = opened(name, root)
    assert index.names
    for row in range(len(index.names)):
        assert all((root / index.frame_path(row, frame)).is_file() for frame in range(int(index.lengths[row])))
    assert index.stills.all() == (name == "COCO17") and index.stills.any() == (name == "COCO17")


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_index_from_the_cache_is_the_one_that_was_built(
    name: str, synthetic_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = synthetic_sets / LAYOUTS[name]
    built = opened(name, root)
    for reader in (got10k, coco, trackingnet):
        monkeypatch.setattr(reader, "_build", lambda *_: pytest.fail("built again"))
    kept = opened(name, root)
    assert kept.table.equals(built.table) and kept.fingerprint == built.fingerprint


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_index_from_an_object_store_is_that_of_the_disk(
    name: str, synthetic_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_bucket() as bucket:
        store, path = fs.FileSystem.from_uri(bucket)
        fs.copy_files(str(synthetic_sets / LAYOUTS[name]), f"{path}/set", fs.LocalFileSystem(), store)
        index = opened(name, Root(store, f"{path}/set"))
    here = opened(name, synthetic_sets / LAYOUTS[name])
    assert index.table.equals(here.table)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_of_another_padding_are_found_and_counted_up(name: str, synthetic_sets: Path, tmp_path: Path) -> None:
    root = copy_of(synthetic_sets, name, tmp_path)
    usual = opened(name, root)
    folder = root / VIDEOS[name]
    frames = sorted(folder.glob("*.jpg"), key=lambda path: int(path.stem))
    for number, path in enumerate(frames):
        path.rename(folder / f"x{number:05d}.JPG")
    index = opened(name, root)
    assert index.frame_path(1, 10) == f"{VIDEOS[name]}/x00010.JPG"
    assert index.frame_path(0, 10) == usual.frame_path(0, 10)
    assert FRAME_NAMES not in index.table.column_names, "one name stands for all of a sequence"
    assert index.fingerprint != usual.fingerprint


@pytest.mark.parametrize("name", VIDEOS)
def test_a_sequence_that_lacks_its_end_is_named_left_out_or_drawn_again(
    name: str, synthetic_sets: Path, tmp_path: Path
) -> None:
    root = copy_of(synthetic_sets, name, tmp_path)
    usual = opened(name, root)
    (root / usual.frame_path(1, 23)).unlink()
    with pytest.raises(
        DataError, match=r"1 of 4 sequences have frames that do not fit their boxes.*23 frames, numbered"
    ):
        opened(name, root)
    assert opened(name, root, "drop").names == [usual.names[row] for row in (0, 2, 3)]
    kept = opened(name, root, "redraw")
    assert kept.fingerprint == usual.fingerprint and kept.frame_path(1, 23) == usual.frame_path(1, 23)


def test_frames_from_0_whose_first_is_missing_keep_their_numbers(synthetic_sets: Path, tmp_path: Path) -> None:
    root = copy_of(synthetic_sets, "TRACKINGNET", tmp_path)
    (root / VIDEOS["TRACKINGNET"] / "0.jpg").unlink()
    assert opened("TRACKINGNET", root, "redraw").frame_path(1, 5) == f"{VIDEOS['TRACKINGNET']}/5.jpg"


def test_a_sequence_without_a_folder_of_frames_is_named(synthetic_sets: Path, tmp_path: Path) -> None:
    root = copy_of(synthetic_sets, "TRACKINGNET", tmp_path)
    shutil.rmtree(root / VIDEOS["TRACKINGNET"])
    with pytest.raises(DataError, match="kite0001_0: there is no folder TRAIN_1/frames/kite0001_0"):
        opened("TRACKINGNET", root)
