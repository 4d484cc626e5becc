"""The stamp of the frames: the same for a tree and its packed form, another one if frames were replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pyarrow import fs

from seqtrack.config import Config
from seqtrack.data import stamp
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.kept import check_frames
from seqtrack.data.open import open_data, open_index
from seqtrack.data.packed import read_packed_index
from seqtrack.data.packing import pack_shard, plan_shards
from seqtrack.data.stamp import DrawnFrame, FrameStamp, NoStamp, draw_frames, stamp_mixture, stamp_set
from seqtrack.data.storage import DataError, open_root
from seqtrack.locations import child
from tests.data.jpegs import needs_jpegtran
from tests.data.packs import ALL, LAYOUTS, REDRAW, index_of, local, pack

SETS = ("LASOT", *LAYOUTS)


@pytest.fixture
def copy(lasot_root: Path, synthetic_sets: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies the tree of a set, so that a test may change it."""

    def copied(name: str) -> Path:
        source = lasot_root if name == "LASOT" else synthetic_sets / LAYOUTS[name]
        return shutil.copytree(source, tmp_path / "tree")

    return copied


def stamped(name: str, root: Path) -> FrameStamp:
    return stamp_set(name, index_of(root, name), local(root))


def of_packed(name: str, root: Path) -> FrameStamp:
    return stamp_set(name, FrameIndex(read_packed_index(local(root), name)), local(root))


def frames_of(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*.jpg"))


def replace_all(tree: Path) -> None:
    """Other pictures of the same sizes."""
    for path in frames_of(tree):
        cv2.imwrite(str(path), 255 - np.asarray(cv2.imread(str(path))))


@pytest.mark.parametrize("name", SETS)
def test_a_tree_and_its_packed_form_have_the_same_stamp(
    name: str, copy: Callable[[str], Path], tmp_path: Path, small_shards: None
) -> None:
    tree = copy(name)
    pack(tree, local(tmp_path / "packed"), name=name)
    before, packed = stamped(name, tree), of_packed(name, tmp_path / "packed")
    assert packed.difference(before.to_json()) is before.difference(packed.to_json()) is None
    assert not list(packed.notes(before.to_json()))
    replace_all(tree)
    said = stamped(name, tree).difference(json.loads(json.dumps(packed.to_json())))
    count = len(before.sets[name].drawn)
    first = frames_of(tree)[0].relative_to(tree)
    assert said == f"{name}: {count} of {count} drawn frames are not those of then, the first: {first}"
    with pytest.raises(DataError, match=rf"packed: holds other frames than {tree} has now: {name}: .*another folder"):
        check_frames(local(tree), local(tmp_path / "packed"), stamped(name, tree), packed.to_json())


@pytest.mark.parametrize("change", ["one pixel", "cut off", "missing", "another one's"])
def test_one_other_frame_is_found_and_named(change: str, copy: Callable[[str], Path]) -> None:
    tree = copy("LASOT")
    before, path = stamped("LASOT", tree), tree / "kite/kite-1/img/00000007.jpg"
    if change == "missing":
        path.unlink()
    elif change == "cut off":
        path.write_bytes(path.read_bytes()[:-10])
    elif change == "another one's":
        shutil.copy(tree / "kite/kite-1/img/00000008.jpg", path)
    else:
        picture = np.asarray(cv2.imread(str(path)))
        picture[0, 0] = 255 - picture[0, 0]
        cv2.imwrite(str(path), picture)
    said = stamped("LASOT", tree).difference(before.to_json())
    assert said == "LASOT: 1 of 120 drawn frames are not those of then, the first: kite/kite-1/img/00000007.jpg"
    if change == "missing":  # and the other way round: one that was missing is there
        assert before.difference(stamped("LASOT", tree).to_json()) == said


@needs_jpegtran
def test_tiles_are_the_same_frames_and_other_pictures_are_not(wide_root: Path, wide_packed: Path) -> None:
    """With frames of every kind, of which some stay as they are."""
    tree, tiled = stamped("LASOT", wide_root), of_packed("LASOT", wide_packed)
    assert tree.difference(tiled.to_json()) is tiled.difference(tree.to_json()) is None
    assert list(tiled.notes(tree.to_json())) == ["Frames of LASOT were compared by their pictures: they are tiled now"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("a", "p"), ("a", "q"), True),  # the files are the same, so nothing else is asked
        (("a", "p"), ("b", "p"), False),
        (("ta", "p"), ("tb", "p"), False),
        (("ta", "p"), ("b", "p"), True),
        (("ta", "p"), ("b", "q"), False),
        (("ta", "p"), ("-", "?"), False),
        (("-", "?"), ("-", "?"), True),
        (("ta", "?"), ("b", "q"), True),
    ],
)
def test_pictures_count_where_only_one_is_tiled(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    first, second = DrawnFrame("a.jpg", *one), DrawnFrame("a.jpg", *other)
    assert first.same_as(second) == second.same_as(first) == same


def test_the_same_frames_are_drawn_each_time_on_every_machine() -> None:
    drawn = draw_frames("0123", 10**9, 200)
    assert len(drawn) == len(set(drawn)) == 200 and drawn == sorted(drawn)
    assert drawn[:3] == [1_709_808, 9_091_640, 13_617_227]
    assert draw_frames("0124", 10**9, 200)[:3] != drawn[:3]
    assert draw_frames("0123", 5, 200) == [0, 1, 2, 3, 4]


def test_a_large_set_costs_as_many_reads_as_are_drawn(
    bucket: tuple[str, list[str]], lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamp, "DRAWN", 8)
    uri, requests = bucket
    location = child(uri, "lasot")
    filesystem, path = fs.FileSystem.from_uri(location)
    fs.copy_files(f"{lasot_root}/coin/coin-1", f"{path}/coin/coin-1", fs.LocalFileSystem(), filesystem)
    root = open_root(location)
    index = open_index(ALL, root)
    requests.clear()
    found = stamp_set("LASOT", index, root)
    gets = [line for line in requests if line.startswith("GET") and ".jpg" in line]
    assert len(gets) == 8 and len(requests) <= 2 * 8
    assert found.sets["LASOT"].frames == 30
    assert sum(one.picture != stamp.NO_PICTURE for one in found.sets["LASOT"].drawn) == 2


def test_each_set_of_a_mixture_has_its_own(mixture_config: Config, synthetic_sets: Path, tmp_path: Path) -> None:
    roots = {name: Path(place) for name, place in mixture_config.DATA.ROOTS.items()}
    moved = shutil.copytree(roots["COCO17"], tmp_path / "coco")
    config = mixture_config.with_settings({"DATA.ROOTS": {**mixture_config.DATA.ROOTS, "COCO17": str(moved)}})
    before = stamp_mixture(open_data(config).mixture)
    assert list(before.sets) == list(config.DATA.TRAIN.DATASETS_NAME)
    replace_all(moved)
    said = stamp_mixture(open_data(config).mixture).difference(before.to_json())
    assert said is not None and said.startswith("COCO17: ") and ";" not in said


def test_sets_with_other_annotations_are_left_to_the_fingerprint(copy: Callable[[str], Path]) -> None:
    tree = copy("LASOT")
    before = stamped("LASOT", tree)
    (tree / "coin/coin-1/groundtruth.txt").write_text("1,2,30,40\n" * 30)
    replace_all(tree)
    assert stamped("LASOT", tree).difference(before.to_json()) is None


def test_a_packed_tree_knows_the_size_of_all_its_frames(lasot_root: Path, tmp_path: Path) -> None:
    pack(lasot_root, local(tmp_path))
    before = of_packed("LASOT", tmp_path).to_json()
    assert before["LASOT"]["size"] == sum(path.stat().st_size for path in frames_of(lasot_root))
    before["LASOT"]["size"] += 1
    said = of_packed("LASOT", tmp_path).difference(before)
    assert said is not None and "its 120 frames have" in said


@pytest.mark.parametrize("value", [1, [], "x", {"LASOT": 1}, {"LASOT": {}}, {"LASOT": {"files": "a b"}}])
def test_what_is_no_stamp_is_refused(value: Any, lasot_root: Path) -> None:
    with pytest.raises(NoStamp):
        stamped("LASOT", lasot_root).difference(value)


@pytest.mark.parametrize("tiled", [False, pytest.param(True, marks=needs_jpegtran)])
@pytest.mark.parametrize("change", ["nothing", "all", "one"])
def test_packing_that_goes_on_mixes_no_old_and_new_frames(
    change: str, tiled: bool, copy: Callable[[str], Path], tmp_path: Path, small_shards: None
) -> None:
    tree, target = copy("LASOT"), local(tmp_path / "packed")
    index, root = open_index(REDRAW, local(tree)), local(tree)
    path, rows = next(iter(plan_shards(index).items()))
    pack_shard(index, root, target, path, rows, tiled=tiled)
    if change == "all":
        replace_all(tree)
    elif change == "one":
        shutil.copy(tree / "coin/coin-1/img/00000009.jpg", tree / "coin/coin-1/img/00000003.jpg")
    if change == "nothing":
        pack_shard(index, root, target, path, rows, tiled=tiled)
        return
    count = 30 if change == "all" else 1
    said = rf"{path}: {count} of 30 drawn frames are not those that {tree} has now, the first: coin/coin-1/img/0000000"
    with pytest.raises(DataError, match=said):
        pack_shard(index, root, target, path, rows, tiled=tiled)
