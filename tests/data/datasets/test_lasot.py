from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from seqtrack.config import Config, load_config
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.storage import DataError, Root, open_root, read_bytes

Write = Callable[..., Path]


@pytest.fixture
def write_sequence(tmp_path: Path) -> Write:
    """Writes the annotations of one sequence below tmp_path/lasot; texts replace files' contents."""

    def write(name: str, frames: int = 3, **texts: str) -> Path:
        folder = tmp_path / "lasot" / name.rpartition("-")[0] / name
        folder.mkdir(parents=True)
        flags = ",".join("0" * frames)
        contents = {"groundtruth": "10,20,5,6\n" * frames, "full_occlusion": flags, "out_of_view": flags} | texts
        for file, text in contents.items():
            (folder / f"{file}.txt").write_text(text)
        return tmp_path / "lasot"

    return write


def index_of(root: Path | str, **settings: Any) -> FrameIndex:
    data = Config().with_settings({f"DATA.{key}": value for key, value in ({"SPLIT": "all"} | settings).items()}).DATA
    return build_index(data, open_root(str(root)))


def test_the_index_holds_boxes_and_visibility_of_every_frame(write_sequence: Write) -> None:
    write_sequence("coin-2", 2)
    root = write_sequence(
        "coin-1",
        4,
        groundtruth="1,2,3,4\n5.5,6,7,8\n9,9,0,5\nNaN,NaN,NaN,NaN",
        full_occlusion="0,0,0,0",
        out_of_view="0,0,0,1",
    )
    index = index_of(root)
    assert index.names == ["coin-1", "coin-2"]
    assert index.num_frames == 6
    assert index.boxes_xywh(0)[1].tolist() == [5.5, 6, 7, 8]
    assert index.visible_frames(0).tolist() == [0, 1]  # no width; no numbers and out of view
    assert index.frame_path(1, 0) == "coin/coin-2/img/00000001.jpg"


@pytest.mark.parametrize("kind", ["full_occlusion", "out_of_view"])
def test_an_absent_target_is_not_visible(write_sequence: Write, kind: str) -> None:
    assert index_of(write_sequence("coin-1", 3, **{kind: "0,1,0"})).visible_frames(0).tolist() == [0, 2]


def test_flags_may_also_stand_one_a_line(write_sequence: Write) -> None:
    assert index_of(write_sequence("coin-1", 3, out_of_view="0\n1\n0\n")).visible_frames(0).tolist() == [0, 2]


def test_sequences_are_sorted_by_number(write_sequence: Write) -> None:
    for number in (10, 9, 1):
        root = write_sequence(f"coin-{number}")
    assert index_of(root).names == ["coin-1", "coin-9", "coin-10"]


def test_classes_restrict_the_index(write_sequence: Write) -> None:
    write_sequence("coin-1")
    assert index_of(write_sequence("kite-1"), **{"TRAIN.CLASSES": ["kite"]}).names == ["kite-1"]


def test_a_split_file_restricts_the_index(write_sequence: Write, tmp_path: Path) -> None:
    write_sequence("coin-1")
    root = write_sequence("coin-2")
    split = tmp_path / "mine.txt"
    split.write_text("coin-2\n")
    assert index_of(root, SPLIT=str(split)).names == ["coin-2"]


def test_the_fingerprint_follows_the_annotations_and_not_the_place(write_sequence: Write, tmp_path: Path) -> None:
    root = write_sequence("coin-1")
    before = index_of(root).fingerprint
    moved = shutil.copytree(root, tmp_path / "moved")
    assert index_of(moved).fingerprint == before
    (moved / "coin/coin-1/out_of_view.txt").write_text("0,0,1")
    assert index_of(moved).fingerprint != before


def test_an_index_survives_pickling(write_sequence: Write) -> None:
    index = index_of(write_sequence("coin-1"))
    copy = pickle.loads(pickle.dumps(index))
    assert copy.fingerprint == index.fingerprint
    np.testing.assert_array_equal(copy.boxes_xywh(0), index.boxes_xywh(0))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"groundtruth": "1,2,3,4\n1,2,x,4\n1,2,3,4"}, "groundtruth.txt: line 2: 'x' is not a number"),
        ({"groundtruth": "1,2,3,4\n1,2,3\n1,2,3,4"}, "groundtruth.txt: line 2 has 3 numbers, not 4: '1,2,3'"),
        ({"groundtruth": "1,2,3\n" * 3}, "groundtruth.txt: line 1 has 3 numbers, not 4"),
        ({"groundtruth": "1,2,3,4\n\n1,2,3,4"}, "groundtruth.txt: line 2 is blank, and others follow"),
        ({"groundtruth": "1,2,3,4\n1,2,inf,4\n1,2,3,4"}, "groundtruth.txt: line 2: inf is not a finite number"),
        ({"groundtruth": ""}, "groundtruth.txt: is empty"),
        ({"out_of_view": "0,0"}, "out_of_view.txt: 2 flags for the 3 boxes of groundtruth.txt"),
        ({"full_occlusion": "0,2,0"}, "full_occlusion.txt: entry 2 is 2, not 0 or 1"),
        ({"full_occlusion": "0,a,0"}, "full_occlusion.txt: line 1: 'a' is not a number"),
    ],
)
def test_a_broken_annotation_is_named_with_file_and_line(
    write_sequence: Write, texts: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError) as error:
        index_of(write_sequence("coin-1", **texts))
    assert str(error.value).endswith(f"coin/coin-1/{message}") or f"coin/coin-1/{message}" in str(error.value)


def test_a_missing_annotation_file_is_named(write_sequence: Write) -> None:
    root = write_sequence("coin-1")
    (root / "coin/coin-1/groundtruth.txt").unlink()
    with pytest.raises(DataError, match=r"coin-1/groundtruth\.txt: cannot be read"):
        index_of(root)


def test_ones_own_data_need_no_flags_and_a_line_says_how_they_are_taken(write_sequence: Write) -> None:
    write_sequence("coin-1")
    root = write_sequence("coin-2", 3, groundtruth="1,2,3,4\n0,0,0,0\n1,2,3,4\n", full_occlusion="1,0,0")
    (root / "coin/coin-2/out_of_view.txt").unlink()
    notes: list[str] = []
    settings = Config().with_settings({"DATA.SPLIT": "all"}).DATA
    index = build_index(settings, open_root(str(root)), notes.append)
    assert index.visible_frames(1).tolist() == [2]
    (note,) = notes
    assert note.startswith("1 of 2 sequences have no out_of_view.txt; their targets count as visible")
    assert note.endswith("the first: coin-2")


def test_the_benchmarks_own_sequences_need_their_flags(lasot_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for number in (3, 6, 7, 18):  # the test split's coins
        shutil.copytree(lasot_root / "coin/coin-1", root / f"coin/coin-{number}")
    (root / "coin/coin-7/out_of_view.txt").unlink()
    with pytest.raises(DataError, match=r"coin-7/out_of_view\.txt: cannot be read"):
        index_of(root, SPLIT="lasot_test", **{"TRAIN.CLASSES": ["coin"]})


ODD = {
    "byte order mark": b"\xef\xbb\xbf1,2,3,4\n5,6,7,8\n",
    "utf-16": "1,2,3,4\n5,6,7,8\n".encode("utf-16"),
    "cr lf": b"1,2,3,4\r\n5,6,7,8\r\n",
    "cr": b"1,2,3,4\r5,6,7,8",
    "tabs": b"1\t2\t3\t4\n5\t6\t7\t8",
    "spaces": b"1 2  3 4\n5 6 7 8 ",
    "spaces after commas": b"1, 2, 3, 4\n5 ,6 , 7,8\n",
    "trailing commas": b"1,2,3,4,\n5,6,7,8, \n",
    "blank lines around": b"\n \n1,2,3,4\n5,6,7,8\n\n\n",
    "exponents": b"1e0,2.,3.0,+4\n5,.6e1,7,8",
}


@pytest.mark.parametrize("kind", ODD)
def test_what_editors_leave_in_annotations_is_read(write_sequence: Write, kind: str) -> None:
    root = write_sequence("coin-1", 2)
    (root / "coin/coin-1/groundtruth.txt").write_bytes(ODD[kind])
    assert index_of(root).boxes_xywh(0).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize("flags", ["\ufeff0,1,\n", "0, 1", "0 1\r\n", "\n0\n1\n", "0\t1"])
def test_what_editors_leave_in_flags_is_read(write_sequence: Write, flags: str) -> None:
    assert index_of(write_sequence("coin-1", 2, out_of_view=flags)).visible_frames(0).tolist() == [0]


def test_what_editors_leave_in_a_split_is_read(write_sequence: Write, tmp_path: Path) -> None:
    write_sequence("coin-1")
    root = write_sequence("coin-2")
    (tmp_path / "mine.txt").write_bytes(b"\xef\xbb\xbf\r\ncoin-2 ,\r\n\r\ncoin-1\t\r\n")
    assert index_of(root, SPLIT=str(tmp_path / "mine.txt")).names == ["coin-1", "coin-2"]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ("\n\n1,2,3,4\n1,,3,4", "line 4: '' is not a number"),
        ("1,5 2,5 3 4\n1 2 3 4", "line 1 has 6 numbers, not 4"),
        ("1;2;3;4\n1;2;3;4", "line 1 has 1 numbers, not 4"),
        ("1,2,3,1_0\n1,2,3,4", "line 1: '1_0' is not a number"),
        ("1,2,3,0x10\n1,2,3,4", "line 1: '0x10' is not a number"),
        ("1,2,3,4\n1,2,1e39,4", "line 2: 1e39 is not a finite number"),
        ("1,2,3,4\n1,2,30000,20000", "line 2: a box of 30,000 × 20,000 pixels, larger than any video"),
        ("\x00" * 40, "line 1 has 1 numbers, not 4"),
    ],
)
def test_what_is_ambiguous_or_wrong_is_named_with_its_line(write_sequence: Write, boxes: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        index_of(write_sequence("coin-1", 2, groundtruth=boxes))
    assert "coin-1/groundtruth.txt: " in str(error.value) and message in str(error.value)


def test_a_file_that_is_not_text_is_named(write_sequence: Write) -> None:
    root = write_sequence("coin-1")
    (root / "coin/coin-1/groundtruth.txt").write_bytes(b"\x89PNG\xff\xfe\x00")
    with pytest.raises(DataError, match=r"groundtruth\.txt: is not text"):
        index_of(root)


@pytest.mark.parametrize("box", ["nan,2,3,4", "1,nan,3,4", "1,2,nan,4", "1,2,3,NaN"])
def test_a_box_with_a_coordinate_that_is_no_number_is_that_of_an_absent_target(write_sequence: Write, box: str) -> None:
    index = index_of(write_sequence("coin-1", 2, groundtruth=f"{box}\n1,2,3,4"))
    assert index.visible_frames(0).tolist() == [1]


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DATA.ROOT .*nowhere: no such folder"):
        open_root(str(tmp_path / "nowhere"))


def test_an_empty_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sequence"):
        index_of(tmp_path)


def test_a_sequence_of_the_split_that_is_not_there_is_named(write_sequence: Write) -> None:
    root = write_sequence("coin-1")
    with pytest.raises(DataError, match=r"15 of 16 sequences of split lasot_train are missing, the first: coin-2"):
        index_of(root, SPLIT="lasot_train", **{"TRAIN.CLASSES": ["coin"]})


def test_a_class_without_a_sequence_is_named_with_the_nearest(write_sequence: Write) -> None:
    root = write_sequence("coin-1")
    with pytest.raises(DataError, match=r"class coins has no sequence in .*; did you mean coin\?"):
        index_of(root, **{"TRAIN.CLASSES": ["coin", "coins"]})
    with pytest.raises(DataError, match=r"class zebra has no sequence in .*; found there: coin"):
        index_of(root, **{"TRAIN.CLASSES": ["coin", "zebra"]})


def test_a_split_that_is_not_there_is_named(write_sequence: Write) -> None:
    with pytest.raises(DataError, match=r"DATA.SPLIT mine.txt: neither one of lasot_train, lasot_test, all nor"):
        index_of(write_sequence("coin-1"), SPLIT="mine.txt")


def test_the_coin_and_kite_experiment_has_the_reports_size(shared_data: Path) -> None:
    config = load_config(
        Path(__file__).parents[3] / "configs" / "seqtrack_b256_lasot_coin_kite.yaml",
    )
    index = build_index(config.DATA, open_root(str(shared_data / "lasot_annotations")))
    assert (len(index.names), index.num_frames) == (32, 81_120)
    assert (config.DATA.TRAIN.SAMPLE_PER_EPOCH, config.steps_per_epoch) == (27_040, 2_254)


class Away(LocalFileSystem):
    """A file system that pyarrow does not take for a local disk, and whose first reads fail."""

    times = 3

    def _open(self, *arguments: Any, **options: Any) -> Any:
        if self.times:
            self.times -= 1
            raise OSError("away")
        return super()._open(*arguments, **options)


def test_a_store_that_is_away_is_asked_again_after_ever_longer_pauses(
    lasot_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("seqtrack.patience.time.sleep", pauses.append)
    store = Root(fs.PyFileSystem(fs.FSSpecHandler(Away(skip_instance_cache=True))), str(lasot_root))
    path = "coin/coin-1/img/00000001.jpg"
    assert read_bytes(store, path) == (lasot_root / path).read_bytes()
    assert pauses == [1, 2, 4]
    assert f"{lasot_root}/{path}: away; it is tried again in 4 s" in caplog.text


def test_a_disk_that_fails_is_asked_once(lasot_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtrack.patience.time.sleep", lambda seconds: pytest.fail("it was asked again"))
    with pytest.raises(OSError):
        read_bytes(open_root(str(lasot_root)), "coin")  # a folder
