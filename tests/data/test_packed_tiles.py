"""A tree that is packed with tiles gives the same samples as the tree, bit for bit, from fewer bytes, or an error."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from seqtrack.config import Config, DataConfig, DataTrainConfig, SyntheticConfig, parse_config
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.datasets.synthetic_sets import KINDS, write_synthetic_set
from seqtrack.data.decoding import FrameDecoder
from seqtrack.data.heads import parse_head
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_data, open_index
from seqtrack.data.packed import open_packed_set
from seqtrack.data.packing import check_done, pack_shard, plan_shards
from seqtrack.data.storage import DataError, Root, Span, SpanReader
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import child
from tests.data.jpegs import needs_jpegtran
from tests.data.packs import ALL, FRAMES, LAYOUTS, assert_same_samples, index_of, local, pack
from tests.settings import make_mixture_settings

pytestmark = [needs_jpegtran, pytest.mark.usefixtures("small_shards")]


def test_samples_and_fingerprint_are_the_trees(tiny_config: Config, wide_root: Path, wide_packed: Path) -> None:
    assert open_index(ALL, local(wide_packed)).fingerprint == index_of(wide_root).fingerprint
    assert_same_samples(tiny_config, local(wide_packed), local(wide_root))


def test_frames_that_can_be_tiled_are_and_the_others_stay_and_are_counted(wide_root: Path, tmp_path: Path) -> None:
    shards = pack(wide_root, local(tmp_path), tiled=True)
    assert [shard.num_untiled for shard in shards] == [0, FRAMES // 2]
    assert shards[1].reasons == {
        "it is shown turned or mirrored, or its orientation is not clear": FRAMES // 6,
        "not a JPEG": FRAMES // 6,
        "it is not a baseline JPEG": FRAMES // 6,
    }
    index, reader = open_index(ALL, local(tmp_path)), SpanReader(local(tmp_path))
    assert [index.tiles(1, frame) is not None for frame in range(6)] == [True, True, False, False, False, True]
    for frame in range(FRAMES):
        span = index.span(1, frame)
        assert span is not None
        ours, theirs = reader.read(span), (wide_root / index.frame_path(1, frame)).read_bytes()
        assert (ours == theirs) == (index.tiles(1, frame) is None)
        whole = [FrameDecoder(by_region=False).open("a", data).pixels(0, 0, 640, 360) for data in (ours, theirs)]
        np.testing.assert_array_equal(whole[0], whole[1])


def test_frames_of_a_sequence_have_one_head(wide_packed: Path) -> None:
    heads = pq.read_table(wide_packed / "frames/coin-000.parquet")["head"].unique().to_pylist()
    assert len(heads) == 1
    assert parse_head(heads[0]).grid.columns == 4


def test_missing_and_cut_off_frames_are_what_they_are_in_the_tree(
    tiny_config: Config, tree: Path, tmp_path: Path
) -> None:
    for path in sorted(tree.rglob("*.jpg"))[::3]:
        path.unlink() if path.name.endswith("1.jpg") else path.write_bytes(path.read_bytes()[:50])
    shards = pack(tree, local(tmp_path / "packed"), allow_missing=True, tiled=True)
    assert [len(shard.cut_off) for shard in shards] == [9, 9, 9, 9]
    assert [shard.num_untiled for shard in shards] == [9, 9, 9, 9]
    assert_same_samples(tiny_config, local(tmp_path / "packed"), local(tree))


def test_mixtures_with_an_image_set_have_the_samples_of_their_trees(wide_root: Path, tmp_path: Path) -> None:
    for kind in KINDS:
        drawn = SyntheticConfig(SEQUENCES=4, FRAMES=24, HEIGHT=180, WIDTH=320)
        write_synthetic_set(kind, tmp_path / kind, drawn)
    trees = packed = parse_config(make_mixture_settings(wide_root, tmp_path, tmp_path / "runs"), "mixture")
    for name in trees.DATA.TRAIN.DATASETS_NAME:
        _, place = trees.DATA.place_of(name)
        pack(Path(str(place)), local(tmp_path / "packed" / name), name=name, tiled=True)
        packed = packed.with_settings({f"DATA.ROOTS.{name}": str(tmp_path / "packed" / name)})
    mixtures = [open_data(config).mixture for config in (trees, packed)]
    assert mixtures[0].description == mixtures[1].description
    assert all(one.index.tiles(0, 0) is not None for one in mixtures[1].sets)
    made = [
        TripletSource.from_config(config, mixture).samples(range(80))
        for config, mixture in zip((trees, packed), mixtures, strict=True)
    ]
    for (ours, _), (theirs, _) in zip(*made, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_packed_set_has_the_trees_index(name: str, synthetic_sets: Path, tmp_path: Path) -> None:
    tree = synthetic_sets / LAYOUTS[name]
    pack(tree, local(tmp_path), name=name, tiled=True)
    index, theirs = open_packed_set(name, local(tmp_path), partial_set=True), index_of(tree, name)
    assert index.table.select(theirs.table.column_names).equals(theirs.table)
    assert index.fingerprint == theirs.fingerprint
    assert all(index.tiles(row, 0) is not None for row in range(len(index.names)))


def asked(requests: list[str]) -> list[int]:
    """Bytes that each request asked for."""
    ranges = [re.search(r"bytes=(\d+)-(\d+)", line) for line in requests if line.startswith("GET")]
    return [int(found[2]) - int(found[1]) + 1 for found in ranges if found]


@pytest.mark.parametrize("name", ["LASOT", "COCO17"])
def test_an_object_store_is_asked_once_for_each_frame_and_for_its_rows_only(
    name: str, tiny_config: Config, tmp_path: Path, bucket: tuple[str, list[str]]
) -> None:
    """Templates and search region of an image are one request."""
    drawn = SyntheticConfig(SEQUENCES=2, FRAMES=FRAMES, HEIGHT=360, WIDTH=640)
    tree = tmp_path / "tree"
    write_synthetic(tree, drawn) if name == "LASOT" else write_synthetic_set(name, tree, drawn)
    config = tiny_config.with_settings({"DATA.TRAIN.DATASETS_NAME": [name], "DATA.ROOT": None})
    counts: dict[bool, list[int]] = {}
    made = []
    for tiled in (False, True):
        location = child(bucket[0], f"{name}-{tiled}".lower())
        pack(tree, Root(*fs.FileSystem.from_uri(location)), name=name, tiled=tiled)
        config = config.with_settings({f"DATA.ROOTS.{name}": location})
        source = TripletSource.from_config(config, open_data(config).mixture)
        bucket[1].clear()
        made.append([source.samples(range(first, first + 4)) for first in range(0, 40, 4)])
        counts[tiled] = asked(bucket[1])
    assert len(counts[True]) == len(counts[False]) <= 40 * (3 if name == "LASOT" else 1)
    assert sum(counts[True]) < 0.8 * sum(counts[False])
    for ours, theirs in zip(*made, strict=True):
        for (one, _), (other, _) in zip(ours, theirs, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_disk_is_read_by_rows(tiny_config: Config, wide_packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read = SpanReader.read

    def counted(reader: SpanReader, span: Span) -> bytes:
        sizes.append(span.size)
        return read(reader, span)

    monkeypatch.setattr(SpanReader, "read", counted)
    index = open_index(DataConfig(SPLIT="all", TRAIN=DataTrainConfig(CLASSES=("coin",))), local(wide_packed))
    root = local(wide_packed)
    TripletSource.from_config(tiny_config, Mixture.of_lasot(index, root)).samples(range(40))
    whole = {span.size for frame in range(FRAMES) if (span := index.span(0, frame)) is not None}
    assert len(sizes) == 3 * 40
    assert sum(sizes) / len(sizes) < 0.8 * sum(whole) / len(whole)


def test_packing_goes_on_the_same_way_and_no_other(wide_root: Path, tmp_path: Path) -> None:
    root, target, index = local(wide_root), local(tmp_path / "packed"), index_of(wide_root)
    (path, rows), *_ = plan_shards(index).items()
    pack_shard(index, root, target, path, rows, tiled=True)
    said = "was packed with --tiles; the same command goes on, and another folder keeps both"
    with pytest.raises(DataError, match=f"{path}: {said}"):
        pack(wide_root, target)
    written = (tmp_path / "packed" / path).stat().st_mtime_ns
    shards = pack(wide_root, target, tiled=True)
    assert (tmp_path / "packed" / path).stat().st_mtime_ns == written
    pack(wide_root, local(tmp_path / "whole"), tiled=True)
    for file in ("index.parquet", path):
        assert (tmp_path / "packed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert check_done(index, target, tiled=True)
    with pytest.raises(DataError, match=f"index.parquet: {said}"):
        check_done(index, target)
    assert shards[0].num_untiled == 0


def test_a_node_without_jpegtran_is_named_and_nothing_is_packed_untiled(
    wide_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"^node \S+: jpegtran is not installed"):
        pack(wide_root, local(tmp_path / "packed"), tiled=True)
    assert not list((tmp_path / "packed").rglob("*.parquet"))
