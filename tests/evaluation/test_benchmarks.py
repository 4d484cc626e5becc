"""Benchmarks at a place: what is found in each layout, and what is said of what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs

from seqtrack.config import DataConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.packing import pack_shard, plan_shards, write_index
from seqtrack.data.storage import DataError, Root, Span, open_root
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BENCHMARKS, benchmark_named, folder_of_sequences, open_benchmark
from seqtrack.locations import filesystem_at
from tests.evaluation.trees import BOX, opened, write, write_frames, write_got10k, write_lasot, write_trackingnet
from tests.object_stores import s3_bucket

SIZES = {
    "lasot": 280,
    "lasot_ext": 150,
    "got10k_val": 180,
    "got10k_test": 180,
    "trackingnet": 511,
    "otb100": 100,
    "uav123": 123,
    "nfs": 100,
    "tnl2k": 700,
}


def refusal(name: str, root: Path) -> str:
    with pytest.raises(DataError) as error:
        opened(name, root)
    return str(error.value)


@pytest.mark.parametrize("name", SIZES)
def test_every_benchmark_has_its_published_size(name: str) -> None:
    names = BENCHMARKS[name].sequences()
    assert (len(set(names)) or BENCHMARKS[name].size) == SIZES[name]


def test_lasot_has_boxes_flags_classes_and_attributes(tmp_path: Path) -> None:
    write_lasot(tmp_path, "coin-3", frames=4)
    (one,) = opened("lasot", tmp_path).sequences
    assert (one.name, one.object_class, len(one)) == ("coin-3", "coin", 4)
    assert one.truth.absent.tolist() == [False, False, False, True]
    assert one.truth.boxes_xywh.tolist() == [[10, 20, 30, 40]] * 4
    assert one.frames is not None and one.frames[3] == "coin/coin-3/img/00000004.jpg"
    assert one.attributes == ("IV", "POC", "BC", "SV", "FOC", "LR", "ARC")


def test_boxes_keep_all_digits(tmp_path: Path) -> None:
    folder = write_lasot(tmp_path, "coin-3", frames=1)
    write(folder / "groundtruth.txt", "10.123456789,20,30,40")
    assert opened("lasot", tmp_path).sequences[0].truth.boxes_xywh[0, 0] == 10.123456789


def test_a_partial_copy_names_what_is_missing(tmp_path: Path) -> None:
    for name in ("coin-3", "coin-6", "kite-4"):
        write_lasot(tmp_path, name)
    (tmp_path / "kite/kite-4/img/00000002.jpg").unlink()
    data = opened("lasot", tmp_path)
    assert data.coverage == "2 of 280 sequences"
    assert data.missing["coin-7"] == "not there"
    assert "2 frames, numbered 1 to 3; 1 are missing, the first: number 2" in data.missing["kite-4"]
    (note,) = data.notes
    assert note.startswith(f"LaSOT test: 2 of 280 sequences at {tmp_path}; 278 are missing, the first: airplane-1 (not")


def test_annotations_alone_are_enough_to_score(tmp_path: Path) -> None:
    write_lasot(tmp_path, "coin-3")
    for frame in (tmp_path / "coin/coin-3/img").iterdir():
        frame.unlink()
    assert opened("lasot", tmp_path, with_frames=False).coverage == "1 of 280 sequences"
    assert refusal("lasot", tmp_path).endswith(
        "none of the 1 sequences of LaSOT test there is complete, the first: coin-3 (coin/coin-3/img holds no frames)"
    )


def test_any_folder_in_lasots_layout_is_a_benchmark_whose_flags_may_be_missing(tmp_path: Path) -> None:
    write_lasot(tmp_path, "dog-10", flags=False)
    write_lasot(tmp_path, "dog-9")
    write_lasot(tmp_path, "coin-3")  # not LaSOT's, so without its attributes
    data = open_benchmark(folder_of_sequences("mine"), str(tmp_path))
    assert [one.name for one in data.sequences] == ["coin-3", "dog-9", "dog-10"]
    assert data.coverage == "3 sequences (all that were found)"
    assert data.sequences[0].attributes == ()
    assert [note.partition(":")[0] for note in data.notes] == [
        "1 of 3 sequences have no full_occlusion.txt",
        "1 of 3 sequences have no out_of_view.txt",
    ]


def test_flags_of_a_published_benchmark_may_not_be_missing(tmp_path: Path) -> None:
    write_lasot(tmp_path, "coin-3", flags=False)
    assert "coin/coin-3/full_occlusion.txt: cannot be read" in refusal("lasot", tmp_path)


def test_the_extension_of_lasot_has_its_own_names(tmp_path: Path) -> None:
    write_lasot(tmp_path, "atv-1")
    write_lasot(tmp_path, "coin-3")
    data = opened("lasot_ext", tmp_path)
    assert [one.name for one in data.sequences] == ["atv-1"]
    assert data.coverage == "1 of 150 sequences"


def test_got10k_val_has_cover_resolution_and_class(tmp_path: Path) -> None:
    write_got10k(tmp_path, "val", 7)
    (one,) = opened("got10k_val", tmp_path).sequences
    assert one.truth.cover is not None and one.truth.cover.tolist() == [8, 8, 0]
    assert (one.truth.resolution, one.object_class, one.withheld) == ((1920, 1080), "bear", False)
    assert one.frames is not None and one.frames[0] == "val/GOT-10k_Val_000007/00000001.jpg"
    (tmp_path / "val/GOT-10k_Val_000007/meta_info.ini").write_text("[METAINFO]\n")
    assert "meta_info.ini: has no line such as `resolution: (1920, 1080)`" in refusal("got10k_val", tmp_path)


def test_annotations_that_a_server_keeps_are_withheld(tmp_path: Path) -> None:
    write_got10k(tmp_path, "test", 180, frames=5)
    write_trackingnet(tmp_path, "abc", frames=12)
    for name, frames in (("got10k_test", 5), ("trackingnet", 12)):
        (one,) = opened(name, tmp_path).sequences
        assert (len(one), one.withheld) == (frames, True)


def test_trackingnets_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    write_trackingnet(tmp_path, "abc", frames=12)
    data = opened("trackingnet", tmp_path)
    frames = data.sequences[0].frames
    assert frames is not None
    assert [frames[number] for number in (0, 2, 10)] == [f"TEST/frames/abc/{number}.jpg" for number in (0, 2, 10)]
    assert data.coverage == "1 of 511 sequences"


@pytest.mark.parametrize(
    ("name", "folder", "there", "boxes", "first", "length"),
    [
        ("David", "David", range(1, 771), 471, "0300.jpg", 471),
        ("BlurCar1", "BlurCar1", range(247, 989), 742, "0247.jpg", 742),
        ("Diving", "Diving", range(1, 232), 215, "0001.jpg", 215),
        ("Tiger1", "Tiger1", range(1, 355), 354, "0006.jpg", 349),
    ],
)
def test_sequences_of_otb_begin_and_end_where_the_benchmark_says(
    tmp_path: Path, name: str, folder: str, there: range, boxes: int, first: str, length: int
) -> None:
    write_frames(tmp_path / folder / "img", there, digits=4)
    write(tmp_path / folder / "groundtruth_rect.txt", "".join(f"{number}\t20\t30 40\n" for number in range(boxes)))
    (one,) = opened("otb100", tmp_path).sequences
    assert one.frames is not None and one.frames[0] == f"{folder}/img/{first}"
    assert (one.name, len(one), len(one.truth.boxes_xywh)) == (name, length, length)
    assert one.truth.boxes_xywh[-1, 0] == boxes - 1


def test_two_targets_in_the_same_frames_are_two_sequences(tmp_path: Path) -> None:
    write_frames(tmp_path / "Jogging/img", range(1, 308), digits=4)
    for target in (1, 2):
        write(tmp_path / f"Jogging/groundtruth_rect.{target}.txt", BOX * 307)
    first, second = opened("otb100", tmp_path).sequences
    assert (first.name, second.name) == ("Jogging_1", "Jogging_2")
    assert first.frames == second.frames
    assert "Jogging-1" in first.also_called


def test_boxes_that_do_not_fit_the_frames_of_the_table_make_a_sequence_incomplete(tmp_path: Path) -> None:
    write_frames(tmp_path / "David/img", range(1, 771), digits=4)
    write(tmp_path / "David/groundtruth_rect.txt", BOX * 770)
    assert "has 770 boxes for the frames 300 to 770, which are 471" in refusal("otb100", tmp_path)


def test_parts_of_a_folder_of_uav123_begin_inside_and_nan_is_kept(tmp_path: Path) -> None:
    write_frames(tmp_path / "data_seq/UAV123/bird1", range(1, 2438), digits=6)
    write(tmp_path / "anno/UAV123/bird1_2.txt", BOX * 702 + "NaN,NaN,NaN,NaN\n")
    (one,) = opened("uav123", tmp_path).sequences
    assert (one.name, one.also_called, len(one)) == ("uav_bird1_2", ("bird1_2",), 703)
    assert one.frames is not None and one.frames[0] == "data_seq/UAV123/bird1/000775.jpg"
    assert np.isnan(one.truth.boxes_xywh[-1]).all()


@pytest.mark.parametrize("lines", [3, 17, 24])
def test_every_eighth_corner_box_of_nfs_is_a_frame_unless_there_is_one_for_each(tmp_path: Path, lines: int) -> None:
    write_frames(tmp_path / "bee/30/bee", range(1, 4), digits=5)
    text = "".join(f'0 {number} 20 {number + 30} 60 {number} 0 0 0 "bee"\n' for number in range(lines))
    write(tmp_path / "bee/30/bee.txt", text)
    (one,) = opened("nfs", tmp_path).sequences
    step = 1 if lines == 3 else 8
    assert one.truth.boxes_xywh.tolist() == [[number, 20, 30, 40] for number in range(0, lines, step)]


def test_a_line_of_nfs_without_corners_is_named(tmp_path: Path) -> None:
    write(tmp_path / "bee/30/bee.txt", "0 1 2 3 4 0 0 0 0\n0 1 2\n")
    with pytest.raises(DataError, match=r"bee\.txt: line 2: '0 1 2' has no four numbers for the corners of a box"):
        opened("nfs", tmp_path, with_frames=False)


def test_frames_of_tnl2k_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path / "Cat_video_01/groundtruth.txt", BOX * 2)
    for name in ("b_2.png", "a 10.jpg"):
        write(tmp_path / "Cat_video_01/imgs" / name)
    (one,) = opened("tnl2k", tmp_path).sequences
    assert one.frames is not None
    assert [one.frames[0], one.frames[1]] == ["Cat_video_01/imgs/a 10.jpg", "Cat_video_01/imgs/b_2.png"]


def write_one(name: str, root: Path) -> Path:
    """Writes a sequence of a benchmark. Returns a folder below its root."""
    if name == "lasot":
        return write_lasot(root, "coin-3").parent
    if name == "got10k_val":
        return write_got10k(root, "val", 1).parent
    if name == "trackingnet":
        write_trackingnet(root, "abc")
        return root / "TEST"
    below, files = {
        "otb100": ("Dog", {"Dog/groundtruth_rect.txt": BOX * 127}),
        "uav123": ("anno", {"anno/UAV123/uav2.txt": BOX * 133}),
        "tnl2k": ("Cat", {"Cat/groundtruth.txt": BOX, "Cat/imgs/1.jpg": ""}),
    }[name]
    for path, text in files.items():
        write(root / path, text)
    return root / below


@pytest.mark.parametrize("name", ["lasot", "got10k_val", "trackingnet", "otb100", "uav123", "tnl2k"])
def test_a_folder_too_high_or_too_low_is_answered_with_the_one_that_fits(tmp_path: Path, name: str) -> None:
    root = tmp_path / "sets" / "copy"
    below = write_one(name, root)
    for given in (root.parent, below):
        said = refusal(name, given)
        assert said.startswith(f"{given}: no sequence of {BENCHMARKS[name].title}; expected ")
        assert said.endswith(f"; {root} would fit")


def test_what_was_found_instead_is_named(tmp_path: Path) -> None:
    write(tmp_path / "LaSOT.zip")
    write(tmp_path / "readme.txt")
    assert refusal("lasot", tmp_path).endswith(
        "expected <class>/<class>-<n>/groundtruth.txt; found LaSOT.zip, readme.txt; LaSOT.zip is still to be "
        "unpacked there"
    )
    (tmp_path / "empty").mkdir()
    assert "the folder is empty" in refusal("otb100", tmp_path / "empty")
    assert refusal("nfs", tmp_path / "nowhere") == f"NFS (30 frames/s): {tmp_path / 'nowhere'}: no such folder"


def test_an_unknown_benchmark_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"benchmark lasott: known are lasot, .*; did you mean lasot\?"):
        benchmark_named("lasott")


def test_a_part_of_the_sequences_can_be_chosen_by_name(tmp_path: Path) -> None:
    for name in ("coin-3", "coin-6"):
        write_lasot(tmp_path, name)
    data = opened("lasot", tmp_path)
    assert [one.name for one in data.only(["coin-6"]).sequences] == ["coin-6"]
    with pytest.raises(InputError, match=r"no sequence coin-7 \(not there\)"):
        data.only(["coin-7"])


def test_a_packed_tree_and_one_in_an_object_store_hold_the_same(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, packed = open_root(str(lasot_root)), Root(fs.LocalFileSystem(), str(tmp_path / "packed"))
    index = build_index(DataConfig(SPLIT="all"), tree)
    plan = plan_shards(index)
    write_index(index, packed, plan, [pack_shard(index, tree, packed, path, rows) for path, rows in plan.items()])
    mine = folder_of_sequences("mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_bucket() as uri:
        filesystem, path = filesystem_at(uri)
        fs.copy_files(str(lasot_root), path, fs.LocalFileSystem(), filesystem)
        copies = [open_benchmark(mine, place) for place in (str(lasot_root), packed.path, uri)]
    whole = copies[0].sequences
    for copy in copies[1:]:
        for one, other in zip(whole, copy.sequences, strict=True):
            assert (one.name, len(one)) == (other.name, len(other))
            assert (one.truth.boxes_xywh == other.truth.boxes_xywh).all()
            assert (one.truth.absent == other.truth.absent).all()
    frame = copies[1].sequences[0].frames
    assert frame is not None and isinstance(frame[0], Span)


def test_scoring_needs_neither_torch_nor_ray() -> None:
    modules = "benchmarks, curves, layouts, protocols, results, sequences, submissions, summary"
    program = (
        f"import sys\nfrom seqtrack.evaluation import {modules}\nprint({{'torch', 'ray', 'cv2'}} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
