"""Damage in a tree that is packed with tiles: refused by name, or decoded as a whole, and never wrong pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqtrack.config import Config
from seqtrack.data.open import open_index
from seqtrack.data.packing import pack_shard, plan_shards
from seqtrack.data.shards import TILED_SCHEMA
from seqtrack.data.storage import DataError
from seqtrack.data.tiles import TiledJpeg
from tests.data.jpegs import needs_jpegtran
from tests.data.packs import ALL, FRAMES, assert_same_samples, index_of, local, source_of

pytestmark = needs_jpegtran


def lists(old: pa.Array, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(old.offsets, values)


def with_heads(change: Callable[[list[bytes]], list[Any]]) -> Callable[[pa.Array], pa.Array]:
    """Changes the different heads."""

    def changed(old: pa.Array) -> pa.Array:
        heads = pa.array(change(old.values.dictionary.to_pylist()), pa.binary())
        return lists(old, pa.DictionaryArray.from_arrays(old.values.indices, heads))

    return changed


def with_numbers(number: int | None) -> Callable[[pa.Array], pa.Array]:
    """Changes which head the first frame has."""

    def changed(old: pa.Array) -> pa.Array:
        numbers = pa.array([number, *old.values.indices.to_pylist()[1:]], pa.int32())
        heads = [*old.values.dictionary.to_pylist(), b""]
        return lists(old, pa.DictionaryArray.from_arrays(numbers, pa.array(heads, pa.binary()), safe=False))

    return changed


def with_sizes(change: Callable[[bytes], bytes | None]) -> Callable[[pa.Array], pa.Array]:
    """Changes the row sizes of the first frame."""

    def changed(old: pa.Array) -> pa.Array:
        first, *others = old.values.to_pylist()
        return lists(old, pa.array([change(first), *others], pa.large_binary()))

    return changed


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("head", None, "it has no column head of large_list"),
        ("row_sizes", None, "it has no column row_sizes of large_list"),
        ("head", lambda old: old.cast(pa.large_list(pa.binary())), "it has no column head of large_list<.*dictionary"),
        ("head", lambda old: pa.array([[]] * len(old), old.type), "head and visible are of different lengths"),
        ("row_sizes", lambda old: pa.array([[]] * len(old), old.type), "row_sizes and visible are of different"),
        ("head", with_heads(lambda heads: [b"text"] * len(heads)), "a head is not that of a tiled JPEG: not a JPEG"),
        ("head", with_heads(lambda heads: [head[:-2] for head in heads]), "a head is not that of a tiled JPEG"),
        ("head", with_heads(lambda heads: [head[::-1] for head in heads]), "a head is not that of a tiled JPEG"),
        ("head", with_numbers(None), "it has gaps"),
        ("head", with_numbers(4), "row_sizes and head are of different numbers of rows"),
        ("row_sizes", with_sizes(lambda sizes: sizes[:-2]), "row_sizes and head are of different numbers of rows"),
        ("row_sizes", with_sizes(lambda sizes: b""), "row_sizes and head are of different numbers of rows"),
        ("row_sizes", with_sizes(lambda sizes: None), "it has gaps"),
    ],
)
def test_an_index_with_damaged_tiles_is_refused_with_what_is_wrong(
    column: str, change: Any, said: str, changeable: Path
) -> None:
    file = changeable / "index.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index(column)
    old = table[column].combine_chunks()
    table = table.remove_column(place) if change is None else table.set_column(place, column, change(old))
    pq.write_table(table, file)
    with pytest.raises(DataError, match=f"index.parquet: is damaged: {said}"):
        open_index(ALL, local(changeable))


@pytest.mark.parametrize("number", [-2, 99])
def test_a_head_that_is_not_there_is_refused(number: int, changeable: Path) -> None:
    """Arrow finds it when the index is opened."""
    index = open_index(ALL, local(changeable))
    table = index.table
    old = table["head"].chunk(0)
    place = table.schema.get_field_index("head")
    damaged = table.set_column(place, "head", with_numbers(number)(old))
    with pytest.raises(pa.ArrowInvalid):
        damaged.validate(full=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda sizes: b"\xff" * len(sizes),
        lambda sizes: b"\0" * len(sizes),
        lambda sizes: sizes[2:] + sizes[:2],
        lambda sizes: sizes[::-1],
        lambda sizes: bytes((sizes[0] ^ 1, *sizes[1:])),
        lambda sizes: bytes((*sizes[:-2], sizes[-2] ^ 4, sizes[-1])),
    ],
)
def test_wrong_sizes_of_rows_never_give_wrong_pixels(
    change: Callable[[bytes], bytes], tiny_config: Config, changeable: Path, wide_root: Path
) -> None:
    file = changeable / "index.parquet"
    table = pq.read_table(file)
    old = table["row_sizes"].combine_chunks()
    changed = lists(old, pa.array([sizes and change(sizes) for sizes in old.values.to_pylist()], pa.large_binary()))
    pq.write_table(table.set_column(table.schema.get_field_index("row_sizes"), "row_sizes", changed), file)
    assert_same_samples(tiny_config, local(changeable), local(wide_root))


def test_an_index_that_does_not_say_that_it_is_tiled_is_refused(changeable: Path) -> None:
    file = changeable / "index.parquet"
    table = pq.read_table(file)
    mark = table.schema.metadata[b"seqtrack"].replace(b', "tiled": true', b"")
    pq.write_table(table.replace_schema_metadata({"seqtrack": mark}), file)
    with pytest.raises(DataError, match="its frames are tiled, but it does not say so"):
        open_index(ALL, local(changeable))


def test_damage_in_the_indexs_sizes_is_noticed_wherever_it_is(changeable: Path) -> None:
    file = changeable / "index.parquet"
    content = file.read_bytes()
    group = pq.ParquetFile(file).metadata.row_group(0)
    column = group.column(group.num_columns - 1)
    assert column.path_in_schema.startswith("row_sizes") and not column.has_dictionary_page
    end = column.data_page_offset + column.total_compressed_size
    for place in range(column.data_page_offset + 60, end, 29):
        file.write_bytes(content[:place] + bytes((content[place] ^ 1,)) + content[place + 1 :])
        with pytest.raises(DataError, match=r"index\.parquet: cannot be read"):
            open_index(ALL, local(changeable))


def test_a_shard_with_damaged_tiles_is_refused_by_name_when_packing_goes_on(changeable: Path, wide_root: Path) -> None:
    index = index_of(wide_root)
    (path, rows), *_ = plan_shards(index).items()
    table = pq.read_table(changeable / path)
    place = table.schema.get_field_index("row_sizes")
    shorter = pa.array([sizes[2:] for sizes in table["row_sizes"].to_pylist()], pa.binary())
    table = table.set_column(place, table.schema.field(place), shorter)
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 1 << 30, "max_rows_per_page": 1 << 30}
    pq.write_table(table, changeable / path, **options)
    with pytest.raises(DataError, match=f"{path}: is damaged: row_sizes and head are of different numbers of rows"):
        pack_shard(index, local(wide_root), local(changeable), path, rows, tiled=True)


def test_a_head_that_is_damaged_in_a_shard_does_not_get_into_the_index(changeable: Path, wide_root: Path) -> None:
    index = index_of(wide_root)
    (path, rows), *_ = plan_shards(index).items()
    group = pq.ParquetFile(changeable / path).metadata.row_group(0)
    column = group.column(TILED_SCHEMA.get_field_index("head"))
    content = bytearray((changeable / path).read_bytes())
    content[column.dictionary_page_offset + 120] ^= 1  # in a table of the quantisation
    (changeable / path).write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: cannot be packed"):
        pack_shard(index, local(wide_root), local(changeable), path, rows, tiled=True)


def test_markers_that_are_overwritten_in_a_shard_give_the_pixels_of_the_whole_frame(
    tiny_config: Config, changeable: Path, tmp_path: Path, wide_root: Path
) -> None:
    index = open_index(ALL, local(changeable))
    tree = shutil.copytree(wide_root, tmp_path / "tree")
    for row, frame in ((row, frame) for row in (0, 1) for frame in range(FRAMES)):
        span, stored = index.span(row, frame), index.tiles(row, frame)
        assert span is not None
        shard = changeable / span.path
        content = bytearray(shard.read_bytes())
        if stored is not None:
            tiles = TiledJpeg.of_sizes(*stored)
            for top in range(0, tiles.grid.height, 3 * tiles.grid.mcu[1]):
                end = span.start + tiles.byte_range(top + 1, top + 2)[1]
                content[end - 2 : end] = b"\0\0"
            shard.write_bytes(content)
        (tree / index.frame_path(row, frame)).write_bytes(content[span.start : span.start + span.size])
    assert_same_samples(tiny_config, local(changeable), local(tree))


def test_shards_that_another_tool_wrote_again_are_named(tiny_config: Config, changeable: Path) -> None:
    """Their frames are elsewhere."""
    source = source_of(tiny_config, local(changeable))
    for shard in changeable.glob("frames/*"):
        pq.write_table(pq.read_table(shard), shard, compression="zstd")
        shard.write_bytes(shard.read_bytes().ljust(4_000_000, b"\0"))
    with pytest.raises(DataError, match=r"no valid draw in 100 attempts; broken frames: .* cannot be read"):
        source.sample(0)
