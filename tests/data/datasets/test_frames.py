"""Frames of any name and number, and sequences whose frames do not fit their boxes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtrack.config import DataConfig
from seqtrack.data.datasets.frames import Mismatch, frame_names
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.open import open_index
from seqtrack.data.storage import DataError, Root, open_root
from tests.object_stores import s3_bucket

ALL = DataConfig(SPLIT="all")


def rename(folder: Path, name: Callable[[int], str]) -> None:
    """Gives the frames of a sequence other names, by their numbers from 0."""
    before = (folder / "img").rename(folder / "before")
    (folder / "img").mkdir()
    for number, path in enumerate(sorted(before.iterdir())):
        path.rename(folder / "img" / name(number))


def drawn(index: FrameIndex, root: Root) -> list[bytes]:
    """The bytes of each frame of the first sequence, in order."""
    return [Path(root.path, index.frame_path(0, frame)).read_bytes() for frame in range(int(index.lengths[0]))]


NAMES: dict[str, Callable[[int], str]] = {
    "six digits": lambda number: f"{number + 1:06d}.jpg",
    "no zeros before": lambda number: f"{number + 1}.jpg",
    "from 0": lambda number: f"{number:08d}.jpg",
    "upper case": lambda number: f"{number + 1:08d}.JPG",
    "jpeg": lambda number: f"{number + 1:08d}.jpeg",
    "png": lambda number: f"{number + 1:04d}.png",
    "a word before": lambda number: f"frame_{number + 1:05d}.jpg",
    "a number before": lambda number: f"video2-{number + 1:05d}.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
def test_frames_of_other_names_are_taken_in_the_order_of_their_numbers(tree: Path, kind: str) -> None:
    root = open_root(str(tree))
    before = open_index(ALL, root)
    frames = drawn(before, root)
    rename(tree / "coin/coin-1", NAMES[kind])
    index = open_index(ALL, root)
    assert drawn(index, root) == frames
    assert index.frame_path(0, 8).endswith(f"/{NAMES[kind](8)}")
    assert index.frame_path(1, 0) == "coin/coin-2/img/00000001.jpg", "others keep theirs"
    assert index.fingerprint != before.fingerprint


def test_what_other_systems_leave_beside_frames_is_not_taken_for_frames(tree: Path) -> None:
    before = open_index(ALL, open_root(str(tree))).fingerprint
    for name in (".DS_Store", "._00000001.jpg", "Thumbs.db", "list.txt"):
        (tree / "coin/coin-1/img" / name).write_bytes(b"")
    (tree / "__MACOSX/coin/coin-1").mkdir(parents=True)
    (tree / "coin/._coin-1").write_bytes(b"")
    assert open_index(ALL, open_root(str(tree))).fingerprint == before


def cut(folder: Path) -> None:
    (folder / "img/00000030.jpg").unlink()


def gap(folder: Path) -> None:
    (folder / "img/00000007.jpg").unlink()


def one_more(folder: Path) -> None:
    shutil.copy(folder / "img/00000007.jpg", folder / "img/00000031.jpg")


def link_to_nothing(folder: Path) -> None:
    (folder / "img/00000007.jpg").unlink()
    (folder / "img/00000007.jpg").symlink_to("nowhere.jpg")


def twice(folder: Path) -> None:
    shutil.copy(folder / "img/00000007.jpg", folder / "img/00000007.png")


def no_frames(folder: Path) -> None:
    shutil.rmtree(folder / "img")
    (folder / "img").mkdir()


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder / "img")


def from_five(folder: Path) -> None:
    rename(folder, lambda number: f"{number + 5:08d}.jpg")


def without_number(folder: Path) -> None:
    shutil.copy(folder / "img/00000007.jpg", folder / "img/cover.jpg")


FAULTS: dict[Callable[[Path], None], str] = {
    cut: "29 frames, numbered 1 to 29, and 30 boxes; the first missing is number 30",
    gap: "29 frames, numbered 1 to 30, and 30 boxes; the first missing is number 7",
    link_to_nothing: "29 frames, numbered 1 to 30, and 30 boxes; the first missing is number 7",
    one_more: "31 frames, numbered 1 to 31, and 30 boxes",
    twice: "00000007.jpg and 00000007.png have the same number",
    no_frames: "no frames, and 30 boxes",
    no_folder: "there is no folder kite/kite-2/img",
    from_five: "30 frames, numbered 5 to 34, and 30 boxes; the first missing is number 1",
    without_number: "cover.jpg has no number",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_frames_that_do_not_fit_the_boxes_are_named_with_both_numbers(
    tree: Path, fault: Callable[[Path], None]
) -> None:
    fault(tree / "kite/kite-2")
    with pytest.raises(DataError) as error:
        open_index(ALL, open_root(str(tree)))
    said = str(error.value)
    assert "1 of 4 sequences have frames that do not fit their boxes, the first: kite-2: " in said
    assert FAULTS[fault] in said and "DATA.ON_MISMATCH=drop leaves these sequences out" in said


def test_sequences_that_do_not_fit_are_left_out_where_that_is_asked_for(tree: Path) -> None:
    gap(tree / "kite/kite-2")
    rename(tree / "kite/kite-1", NAMES["png"])
    notes: list[str] = []
    index = open_index(DataConfig(SPLIT="all", ON_MISMATCH="drop"), open_root(str(tree)), notes.append)
    assert index.names == ["coin-1", "coin-2", "kite-1"]
    assert index.frame_path(2, 0) == "kite/kite-1/img/0001.png"
    (note,) = notes
    assert "1 of 4 sequences" in note and "kite-2: 29 frames" in note


def test_nothing_is_left_to_train_on_where_no_sequence_fits(tree: Path) -> None:
    for folder in tree.glob("*/*"):
        gap(folder)
    with pytest.raises(DataError, match="4 of 4 sequences have frames that do not fit"):
        open_index(DataConfig(SPLIT="all", ON_MISMATCH="drop"), open_root(str(tree)))


@pytest.mark.parametrize("fault", [gap, cut, one_more], ids=lambda fault: fault.__name__)
def test_frames_keep_their_boxes_where_samples_are_to_be_drawn_again(tree: Path, fault: Callable[[Path], None]) -> None:
    whole = open_index(ALL, open_root(str(tree)))
    fault(tree / "kite/kite-2")
    index = open_index(DataConfig(SPLIT="all", ON_MISMATCH="redraw"), open_root(str(tree)))
    assert index.fingerprint == whole.fingerprint
    assert index.frame_path(3, 6) == "kite/kite-2/img/00000007.jpg"


def test_a_first_number_that_cannot_be_told_is_refused_whatever_is_asked_for() -> None:
    with pytest.raises(Mismatch, match="whether numbers begin at 0 or 1 cannot be told"):
        frame_names([f"{number}.png" for number in range(1, 9)], boxes=9, complete=False)
    with pytest.raises(Mismatch, match="whether numbers begin at 0 or 1 cannot be told"):
        frame_names([f"{number}.png" for number in range(10)], boxes=9, complete=False)


def test_frames_in_an_object_store_are_found_by_listing_too(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    rename(tree / "coin/coin-1", NAMES["six digits"])
    here = open_index(ALL, open_root(str(tree)))
    with s3_bucket() as bucket:
        root = copied(tree, bucket)
        assert open_index(ALL, root).fingerprint == here.fingerprint


def copied(tree: Path, bucket: str) -> Root:
    from pyarrow import fs

    filesystem, path = fs.FileSystem.from_uri(bucket)
    fs.copy_files(str(tree), f"{path}/tree", fs.LocalFileSystem(), filesystem)
    return Root(filesystem, f"{path}/tree")
