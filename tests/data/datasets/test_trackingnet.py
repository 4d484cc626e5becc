"""TrackingNet's training chunks: what is read from them, and what is said about a copy that lacks some."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqtrack.data.datasets import trackingnet
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.layout import IncompleteSet
from seqtrack.data.datasets.trackingnet import open_index
from seqtrack.data.storage import DataError, open_root


def write_sequence(root: Path, chunk: int, name: str, text: str = "1,2,3,4\n" * 3) -> None:
    """The annotation of a sequence, without its frames."""
    folder = root / f"TRAIN_{chunk}"
    (folder / "anno").mkdir(parents=True, exist_ok=True)
    (folder / "frames").mkdir(exist_ok=True)
    (folder / f"anno/{name}.txt").write_text(text)


def index_of(root: Path) -> FrameIndex:
    return open_index(open_root(str(root)), partial_set=True)


def refusal(root: Path, partial_set: bool = True) -> str:
    with pytest.raises(DataError) as error:
        open_index(open_root(str(root)), setting="DATA.ROOTS.TRACKINGNET", partial_set=partial_set)
    return str(error.value)


def test_sequences_are_sorted_by_the_number_of_their_chunk_and_their_name(tmp_path: Path) -> None:
    for chunk, name in ((11, "a_0"), (2, "b_0"), (2, "-a_0"), (0, "z.y_1")):
        write_sequence(tmp_path, chunk, name)
    index = index_of(tmp_path)
    assert index.names == ["z.y_1", "-a_0", "b_0", "a_0"]
    assert index.frame_path(3, 2) == "TRAIN_11/frames/a_0/2.jpg"
    assert index.frame_path(0, 0) == "TRAIN_0/frames/z.y_1/0.jpg"
    assert set(index.classes) == {"unknown"} and not index.stills.any()


@pytest.mark.parametrize("box", ["1,2,0,4", "1,2,3,0", "1,2,-3,4", "nan,nan,nan,nan"])
def test_a_box_without_size_is_not_visible(tmp_path: Path, box: str) -> None:
    write_sequence(tmp_path, 0, "a", f"1.5,2,3,4\n{box}\n1,2,3,4\n")
    index = index_of(tmp_path)
    assert index.visible_frames(0).tolist() == [0, 2]
    assert index.boxes_xywh(0)[0].tolist() == [1.5, 2, 3, 4]


def test_a_box_outside_of_the_picture_is_kept(tmp_path: Path) -> None:
    write_sequence(tmp_path, 0, "a", "-50,-60,3,4\n")
    assert index_of(tmp_path).visible_counts.tolist() == [1]


def test_what_other_systems_leave_beside_annotations_is_not_taken_for_one(tmp_path: Path) -> None:
    write_sequence(tmp_path, 0, "a")
    for name in ("._a.txt", ".DS_Store", "readme.md"):
        (tmp_path / "TRAIN_0/anno" / name).write_bytes(b"\0")
    assert index_of(tmp_path).names == ["a"]


def test_missing_chunks_and_sequences_are_named_unless_a_part_may_be_trained_on(tmp_path: Path) -> None:
    for chunk in range(12):
        if chunk not in (3, 7):
            write_sequence(tmp_path, chunk, f"a{chunk}")
    (tmp_path / "TRAIN_7.zip").touch()
    root = open_root(str(tmp_path))
    with pytest.raises(IncompleteSet) as error:
        open_index(root)
    assert str(error.value).startswith(f"{tmp_path}: 2 of 12 chunks are missing: TRAIN_3, TRAIN_7; 10 chunks lack")
    assert "lack sequences: TRAIN_0 (1 of 2,511), TRAIN_1" in str(error.value)
    assert str(error.value).endswith("; TRAIN_7.zip is still to be unpacked there")
    notes: list[str] = []
    assert len(open_index(root, notes.append, partial_set=True).names) == 10
    assert "2 of 12 chunks are missing: TRAIN_3, TRAIN_7" in notes[0]


def test_a_whole_copy_needs_no_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackingnet, "SEQUENCES", 1)
    for chunk in range(12):
        write_sequence(tmp_path, chunk, f"a{chunk}")
    assert len(open_index(open_root(str(tmp_path))).names) == 12


@pytest.mark.parametrize("given", ["TRAIN_0", "TRAIN_0/anno", "..", "../.."])
def test_a_root_too_low_or_too_high_is_answered_with_the_one_that_fits(tmp_path: Path, given: str) -> None:
    tree = tmp_path / "sets/trackingnet"
    write_sequence(tree, 0, "a")
    said = refusal((tree / given).resolve())
    assert "no chunk (expected TRAIN_0/anno/<sequence>.txt)" in said
    assert said.endswith(f"; DATA.ROOTS.TRACKINGNET={tree} would fit")


def test_chunks_that_are_doubled_are_named(tmp_path: Path) -> None:
    for chunk in (0, 1):
        write_sequence(tmp_path / f"TRAIN_{chunk}", chunk, "a")
    assert refusal(tmp_path).endswith(
        "; 2 chunks hold another folder of their name, such as TRAIN_0/TRAIN_0; move what is in it up"
    )


def test_frames_that_are_still_in_zips_are_named(tmp_path: Path) -> None:
    write_sequence(tmp_path, 0, "a")
    (tmp_path / "TRAIN_0/frames").rename(tmp_path / "TRAIN_0/zips")
    for name in ("a.zip", "b.zip"):
        (tmp_path / "TRAIN_0/zips" / name).touch()
    assert refusal(tmp_path) == (
        f"{tmp_path}/TRAIN_0: has annotations and no folder frames (expected frames/<sequence>/0.jpg); "
        f"{tmp_path}/TRAIN_0/zips: 2 archives are still to be unpacked there, such as a.zip"
    )


def test_a_broken_annotation_is_named_with_file_and_line(tmp_path: Path) -> None:
    write_sequence(tmp_path, 0, "a")
    write_sequence(tmp_path, 4, "b", "1,2,3,4\n1,2,3\n")
    assert refusal(tmp_path) == f"{tmp_path}/TRAIN_4/anno/b.txt: line 2 has 3 numbers, not 4: '1,2,3'"
