"""GOT-10k's training videos: which are in which set, what counts as visible, and what is said about a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.datasets.got10k import VIDEOS, open_index, rows_of, select_sequences
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.layout import IncompleteSet
from seqtrack.data.storage import DataError, open_root

FIRST = "GOT-10k_Train_000001"


def write_video(root: Path, number: int, **texts: str) -> Path:
    """A video of four frames below `root/train`, without its frames; `texts` replace what files hold."""
    folder = root / "train" / f"GOT-10k_Train_{number:06d}"
    folder.mkdir(parents=True)
    contents = {
        "groundtruth.txt": "10.5,20,5,6\n" * 4,
        "absence.label": "0\n" * 4,
        "cover.label": "8\n" * 4,
        "meta_info.ini": "[METAINFO]\nurl: x\nobject_class: brown bear\nmotion_class: walk\n",
    }
    for file, text in (contents | {".".join(name.rsplit("_", 1)): text for name, text in texts.items()}).items():
        (folder / file).write_text(text)
    with (root / "train/list.txt").open("a") as listed:
        listed.write(f"{folder.name}\n")
    return folder


def index_of(root: Path, name: str = "GOT10K_train_full") -> FrameIndex:
    return open_index(name, open_root(str(root)), partial_set=True)


def refusal(root: Path, name: str = "GOT10K_train_full", partial_set: bool = True) -> str:
    with pytest.raises(DataError) as error:
        open_index(name, open_root(str(root)), setting="DATA.ROOTS.GOT", partial_set=partial_set)
    return str(error.value)


def test_the_sets_have_the_published_number_of_videos() -> None:
    sizes = {name: len(rows_of(f"GOT10K_{name}")) for name in ("train_full", "vottrain", "votval")}
    assert sizes == {"train_full": 9335, "vottrain": 7086, "votval": 1249}


@pytest.mark.parametrize("name", ["train_full", "vottrain", "votval"])
def test_the_sets_are_the_published_lists(name: str, shared_data: Path) -> None:
    file = {"train_full": "train_full", "vottrain": "vot_train", "votval": "vot_val"}[name]
    published = np.loadtxt(shared_data / f"splits/got10k_{file}_split.txt", dtype=int)
    assert rows_of(f"GOT10K_{name}").tolist() == sorted(published.tolist())


def test_the_published_lists_have_forbidden_videos_and_the_corrected_one_has_none(shared_data: Path) -> None:
    lines = (shared_data / "splits/got10k_vot_exclude.txt").read_text().split()
    forbidden = [int(line.rpartition("_")[2]) - 1 for line in lines]
    assert np.isin(rows_of("GOT10K_vottrain"), forbidden).sum() == 765
    assert np.isin(rows_of("GOT10K_votval"), forbidden).sum() == 125
    fixed = rows_of("GOT10K_vottrain_fixed")
    assert len(fixed) == 7081 and not np.isin(fixed, forbidden).any()
    assert not np.isin(fixed, rows_of("GOT10K_votval")).all()


def test_a_row_of_the_list_says_which_video_is_meant(tmp_path: Path) -> None:
    """The list decides, as published, and not the number in a name, as long as the list is whole."""
    names = [f"GOT-10k_Train_{number + 1:06d}" for number in range(VIDEOS)]
    names[0], names[1] = names[1], names[0]
    for name in names[:3]:
        (tmp_path / "train" / name).mkdir(parents=True)
    (tmp_path / "train/list.txt").write_text("\n".join(names))
    row = rows_of("GOT10K_vottrain")[:3].tolist()
    assert row[0] == 0 and 1 not in row
    selection = select_sequences("GOT10K_vottrain", open_root(str(tmp_path)))
    assert selection.names[0] == "GOT-10k_Train_000002" and "GOT-10k_Train_000001" not in selection.names


def test_in_a_list_of_another_length_the_number_in_a_name_says_it(tmp_path: Path) -> None:
    for number in (9, 2, 1):
        write_video(tmp_path, number)
    assert index_of(tmp_path).names == [FIRST, "GOT-10k_Train_000002", "GOT-10k_Train_000009"]
    assert "GOT-10k_Train_000002" not in index_of(tmp_path, "GOT10K_vottrain").names


def test_the_index_holds_boxes_classes_and_paths(tmp_path: Path) -> None:
    write_video(tmp_path, 1)
    index = index_of(tmp_path)
    assert index.boxes_xywh(0)[3].tolist() == [10.5, 20, 5, 6]
    assert index.classes == ["brown bear"]
    assert index.frame_path(0, 3) == f"train/{FIRST}/00000004.jpg"
    assert not index.stills.any()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("absence_label", "0\n1\n0\n0\n"),
        ("cover_label", "8\n0\n1\n8\n"),
        ("groundtruth_txt", "1,2,3,4\n1,2,0,4\n1,2,3,4\n1,2,3,4\n"),
        ("groundtruth_txt", "1,2,3,4\n1,2,3,0\n1,2,3,4\n1,2,3,4\n"),
        ("groundtruth_txt", "1,2,3,4\n1,2,-3,4\n1,2,3,4\n1,2,3,4\n"),
        ("groundtruth_txt", "1,2,3,4\nnan,nan,nan,nan\n1,2,3,4\n1,2,3,4\n"),
    ],
)
def test_a_target_that_is_absent_covered_or_without_size_is_not_visible(tmp_path: Path, file: str, text: str) -> None:
    write_video(tmp_path, 1, **{file: text})
    assert index_of(tmp_path).visible_frames(0).tolist() == [0, 2, 3]


def test_a_box_outside_of_the_picture_is_kept(tmp_path: Path) -> None:
    write_video(tmp_path, 1, groundtruth_txt="-50,-60,3,4\n9000,9000,3,4\n1,2,3,4\n1,2,3,4\n")
    index = index_of(tmp_path)
    assert index.boxes_xywh(0)[0].tolist() == [-50, -60, 3, 4] and index.visible_counts[0] == 4


def test_a_file_of_meta_information_is_not_needed(tmp_path: Path) -> None:
    (write_video(tmp_path, 1) / "meta_info.ini").unlink()
    write_video(tmp_path, 2, meta_info_ini="nothing")
    assert index_of(tmp_path).classes == ["unknown", "unknown"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth_txt", "1,2,3,4\n1,2,x,4\n", "groundtruth.txt: line 2: 'x' is not a number"),
        ("absence_label", "0\n0\n", "absence.label: 2 numbers for the 4 boxes of groundtruth.txt"),
        ("absence_label", "0\n2\n0\n0\n", "absence.label: entry 2 is 2, not 0 or 1"),
        ("cover_label", "0\n" * 5, "cover.label: 5 numbers for the 4 boxes of groundtruth.txt"),
        ("cover_label", "0\n0\n9\n0\n", "cover.label: entry 3 is 9, not 0 to 8"),
        ("cover_label", "0\n0\nnan\n0\n", "cover.label: entry 3 is nan, not 0 to 8"),
    ],
)
def test_a_broken_annotation_is_named_with_file_and_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_video(tmp_path, 1, **{file: text})
    assert refusal(tmp_path) == f"{tmp_path}/train/{FIRST}/{message}"


@pytest.mark.parametrize("file", ["groundtruth.txt", "absence.label", "cover.label"])
def test_a_missing_annotation_file_is_named(tmp_path: Path, file: str) -> None:
    (write_video(tmp_path, 1) / file).unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path}/train/{FIRST}/{file}: cannot be read")


@pytest.mark.parametrize("given", ["train", f"train/{FIRST}", "..", "../.."])
def test_a_root_too_low_or_too_high_is_answered_with_the_one_that_fits(tmp_path: Path, given: str) -> None:
    tree = tmp_path / "sets/got10k"
    write_video(tree, 1)
    said = refusal((tree / given).resolve())
    assert "train/list.txt: no such file" in said and said.endswith(f"; DATA.ROOTS.GOT={tree} would fit")


def test_archives_that_are_still_packed_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/GOT-10k_Train_split_01.zip").touch()
    assert "; train: GOT-10k_Train_split_01.zip is still to be unpacked there" in refusal(tmp_path)


def test_missing_sequences_are_named_unless_a_part_may_be_trained_on(tmp_path: Path) -> None:
    for number in (1, 2):
        write_video(tmp_path, number)
    shutil.rmtree(tmp_path / "train/GOT-10k_Train_000002")
    root = open_root(str(tmp_path))
    with pytest.raises(
        IncompleteSet, match=r"9334 of the 9,335 sequences of GOT10K_train_full are missing, the first:"
    ):
        open_index("GOT10K_train_full", root)
    notes: list[str] = []
    assert open_index("GOT10K_train_full", root, notes.append, partial_set=True).names == [FIRST]
    assert notes[0].startswith(f"{tmp_path}: 9334 of the 9,335 sequences of GOT10K_train_full are missing")


def test_a_list_of_another_length_is_named(tmp_path: Path) -> None:
    write_video(tmp_path, 1)
    assert "; train/list.txt has 1 lines and not 9,335, so videos are taken by their numbers" in refusal(
        tmp_path, partial_set=False
    )


def test_a_set_of_which_nothing_is_there_is_refused_in_any_case(tmp_path: Path) -> None:
    write_video(tmp_path, 2)
    assert "7086 of the 7,086 sequences of GOT10K_vottrain are missing" in refusal(tmp_path, "GOT10K_vottrain")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"../secret\n", "entry 1, '../secret', is not the name of a folder"),
        (b"a\nb\na\n", "a is named more than once"),
        (b"\xff\xfe\xfd", "is not text"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_video(tmp_path, 1)
    (tmp_path / "train/list.txt").write_bytes(content)
    assert refusal(tmp_path).startswith(f"{tmp_path}/train/list.txt: {message}")


def test_where_the_lists_of_vot_are_chosen_a_line_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    write_video(tmp_path, 1)
    notes: list[str] = []
    open_index("GOT10K_vottrain", open_root(str(tmp_path)), notes.append, partial_set=True)
    assert "took a video's number for its row, so 765 forbidden videos are in it" in notes[0]
