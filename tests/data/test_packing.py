"""Packing: what is written, whole shards or none, and what goes on where it was interrupted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqtrack.data import packing
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.open import open_index
from seqtrack.data.packed import open_packed_set
from seqtrack.data.packing import check_done, pack_shard, plan_shards, stored_once
from seqtrack.data.storage import DataError, open_root
from tests.data.packs import ALL, LAYOUTS, index_of, local, pack

pytestmark = pytest.mark.usefixtures("small_shards")


def test_packing_goes_on_where_it_was_interrupted(lasot_root: Path, tmp_path: Path) -> None:
    whole, target = local(tmp_path / "whole"), local(tmp_path / "packed")
    pack(lasot_root, whole)
    root = open_root(str(lasot_root))
    index = build_index(ALL, root)
    first, *_ = plan_shards(index)
    pack_shard(index, root, target, first, [0])
    for left in (".coin-001.parquet.unfinished", ".0123.partial.parquet"):
        (tmp_path / "packed/frames" / left).write_bytes(b"PAR1 and no more")
    written = (tmp_path / "packed" / first).stat().st_mtime_ns
    with pytest.raises(DataError, match=r"has frames but no index.parquet: `seqtrack pack` has not finished"):
        open_index(ALL, target)
    assert not check_done(index, target)
    pack(lasot_root, target)
    assert (tmp_path / "packed" / first).stat().st_mtime_ns == written
    assert check_done(index, target)
    files = sorted(path.relative_to(whole.path) for path in (tmp_path / "whole").rglob("*.parquet"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "packed" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "packed/frames").iterdir()) == sorted(
        file.name for file in files if file.parent.name == "frames"
    )


def test_packing_that_ends_within_its_index_goes_on(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, write_bytes = local(tmp_path / "packed"), Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, "write_bytes", half)
        pack(lasot_root, target)
    index = build_index(ALL, open_root(str(lasot_root)))
    assert not check_done(index, target)
    pack(lasot_root, target)
    assert check_done(index, target)


def test_a_frame_that_is_missing_stops_its_shard_unless_allowed(tree: Path, tmp_path: Path) -> None:
    (tree / "kite/kite-2/img/00000007.jpg").unlink()
    target = local(tmp_path / "packed")
    with pytest.raises(DataError, match=r"1 of 30 frames of kite are missing, the first: kite/kite-2/img/00000007.jpg"):
        pack(tree, target)
    assert not (tmp_path / "packed/frames/kite-001.parquet").exists()
    pack(tree, target, allow_missing=True)
    index = open_index(ALL, target)
    assert index.span(3, 6) is None
    (tmp_path / "packed/index.parquet").unlink()
    with pytest.raises(DataError, match=r"kite-001.parquet: was packed with --allow-missing and lacks frames"):
        pack(tree, target)


def test_a_shard_that_is_not_as_it_was_written_does_not_appear(
    lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = packing.verify

    def damage_and_verify(file: pa.NativeFile, name: str) -> None:
        content = bytearray(Path(name).read_bytes())
        content[len(content) // 2] ^= 1
        Path(name).write_bytes(content)
        verify(file, name)

    monkeypatch.setattr(packing, "verify", damage_and_verify)
    with pytest.raises(DataError, match=r"coin-000.parquet: cannot be packed \(.*[Cc][Rr][Cc].*\)"):
        pack(lasot_root, local(tmp_path))
    assert not (tmp_path / "frames/coin-000.parquet").exists()


def test_other_annotations_are_not_mixed_in(tree: Path, tmp_path: Path) -> None:
    target = local(tmp_path / "packed")
    pack(tree, target)
    (tree / "coin/coin-1/groundtruth.txt").write_text("1,1,9,9\n" * 30)
    with pytest.raises(DataError, match=r"coin-000.parquet: holds other sequences or annotations"):
        pack(tree, target)
    with pytest.raises(DataError, match=r"index.parquet: holds other sequences or annotations"):
        check_done(build_index(ALL, local(tree)), target)


def test_shards_hold_whole_sequences_of_one_class(monkeypatch: pytest.MonkeyPatch, lasot_root: Path) -> None:
    index = build_index(ALL, local(lasot_root))
    monkeypatch.setattr(packing, "FRAMES_PER_SHARD", 31)
    assert plan_shards(index) == {"frames/coin-000.parquet": [0, 1], "frames/kite-000.parquet": [2, 3]}


def test_a_shard_with_other_frames_than_the_index_is_refused_by_name(tree: Path, tmp_path: Path) -> None:
    target, root = local(tmp_path / "packed"), open_root(str(tree))
    pack(tree, target)
    index = build_index(ALL, root)
    (path, rows), *_ = plan_shards(index).items()
    shard = pq.read_table(tmp_path / "packed" / path)
    numbers = pa.array(range(1000, 1000 + len(shard)), pa.int32())
    place = shard.schema.get_field_index("frame")
    pq.write_table(shard.set_column(place, shard.schema.field(place), numbers), tmp_path / "packed" / path)
    with pytest.raises(DataError, match=f"{path}: is damaged: it has a frame 1000 of coin-1"):
        pack_shard(index, root, target, path, rows)


@pytest.mark.parametrize(
    "options", [{"compression": "zstd"}, {"compression": "none"}, {"compression": "none", "use_dictionary": False}]
)
def test_a_shard_that_another_program_wrote_again_is_named(options: dict[str, Any], tree: Path, tmp_path: Path) -> None:
    """Any Parquet reader reads it, but its frames are not where a shard has them."""
    target, root = local(tmp_path / "packed"), open_root(str(tree))
    pack(tree, target)
    index = build_index(ALL, root)
    (path, rows), *_ = plan_shards(index).items()
    shard = tmp_path / "packed" / path
    pq.write_table(pq.read_table(shard), shard, data_page_size=10_000, **options)
    with pytest.raises(DataError, match=f"{path}: (was written again by another program|is damaged: the sizes)"):
        pack_shard(index, root, target, path, rows)


def test_shards_of_other_sets_are_filled_whatever_the_classes(
    synthetic_sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = index_of(synthetic_sets / "GOT10K", "GOT10K_train_full")
    assert len(set(index.classes)) == 2
    monkeypatch.setattr(packing, "FRAMES_PER_SHARD", 30)
    paths = [f"frames/GOT10K_train_full-00{number}.parquet" for number in (0, 1)]
    assert plan_shards(index, "GOT10K_train_full") == {paths[0]: [0, 1], paths[1]: [2, 3]}


def test_an_image_that_shows_several_objects_is_stored_once(
    synthetic_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FRAMES_PER_SHARD", 6)
    tree = synthetic_sets / "COCO17"
    pack(tree, local(tmp_path), name="COCO17")
    stored = [row for shard in sorted(tmp_path.glob("frames/*")) for row in pq.read_table(shard).to_pylist()]
    images = sorted(tree.glob("images/train2017/*.jpg"))
    assert [(row["sequence"], row["frame"]) for row in stored] == [(path.name, 1) for path in images]
    assert all(row["jpeg"] == path.read_bytes() for row, path in zip(stored, images, strict=True))
    index = open_packed_set("COCO17", local(tmp_path))
    *_, one, other = range(len(index.names))
    assert index.frame_path(one, 0) == index.frame_path(other, 0) and index.span(one, 0) == index.span(other, 0)
    assert len({index.span(row, 0) for row in range(len(index.names))}) == len(images) == len(index.names) - 1


@pytest.mark.parametrize("name", LAYOUTS)
def test_packing_of_a_set_goes_on_where_it_was_interrupted(
    name: str, synthetic_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "FRAMES_PER_SHARD", 6)
    tree, whole, target = synthetic_sets / LAYOUTS[name], tmp_path / "whole", tmp_path / "packed"
    pack(tree, local(whole), name=name)
    stored = stored_once(index_of(tree, name)).index
    (first, rows), *_ = plan_shards(stored, name).items()
    pack_shard(stored, local(tree), local(target), first, rows, name=name)
    written = (target / first).stat().st_mtime_ns
    assert not check_done(index_of(tree, name), local(target), name)
    pack(tree, local(target), name=name)
    assert (target / first).stat().st_mtime_ns == written
    assert check_done(index_of(tree, name), local(target), name)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.parquet"))
    assert len(files) > 3
    assert all((whole / file).read_bytes() == (target / file).read_bytes() for file in files)


def test_a_folder_that_holds_another_set_is_not_packed_into(synthetic_sets: Path, tmp_path: Path) -> None:
    """Even if both have the same sequences, as in small parts of GOT-10k."""
    tree = synthetic_sets / "GOT10K"
    pack(tree, local(tmp_path), name="GOT10K_train_full")
    index = index_of(tree, "GOT10K_train_full")
    with pytest.raises(DataError, match="holds GOT10K_train_full, not GOT10K_vottrain; another folder keeps both"):
        check_done(index, local(tmp_path), "GOT10K_vottrain")
    (path, rows), *_ = plan_shards(index, "GOT10K_train_full").items()
    with pytest.raises(DataError, match="holds GOT10K_train_full, not GOT10K_vottrain; another folder keeps both"):
        pack_shard(index, local(tree), local(tmp_path), path, rows, name="GOT10K_vottrain")


def test_a_missing_image_is_named_or_left_out(synthetic_sets: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(synthetic_sets / "COCO17", tmp_path / "tree")
    index = index_of(tree, "COCO17")
    gone = index.frame_path(3, 0)
    (tree / gone).unlink()
    with pytest.raises(DataError, match=f"1 of 16 frames of COCO17 are missing, the first: {gone} .--allow-missing"):
        pack(tree, local(tmp_path / "packed"), name="COCO17")
    pack(tree, local(tmp_path / "packed"), allow_missing=True, name="COCO17")
    packed = open_packed_set("COCO17", local(tmp_path / "packed"))
    assert packed.fingerprint == index.fingerprint
    assert [row for row in range(len(packed.names)) if packed.span(row, 0) is None] == [3]


def test_two_sequences_of_one_name_are_refused(synthetic_sets: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(synthetic_sets / "TRACKINGNET", tmp_path / "tree")
    shutil.copytree(tree / "TRAIN_0", tree / "TRAIN_7")
    with pytest.raises(DataError, match="TRACKINGNET: the sequence coin0000_0 is there more than once"):
        pack(tree, local(tmp_path / "packed"), name="TRACKINGNET")
