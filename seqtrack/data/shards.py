"""One shard of a packed tree, which `packed.py` describes: written, read back and compared, and its frames located."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seqtrack.data.datasets.index import HEAD, MISSING, ROW_SIZES, FrameIndex
from seqtrack.data.heads import NotTiled
from seqtrack.data.jpeg import is_cut_off
from seqtrack.data.packed import Mark, find_fault_of_tiles, read_mark
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, read_bytes
from seqtrack.data.tiling import tile

ROW_GROUP_BYTES = 64 << 20
LENGTH_BYTES = 4
"""Size of the length that Parquet writes before each value of a binary column."""
TILED_AT_ONCE = 2
"""Frames that a shard's threads tile at the same time: it has one CPU, and jpegtran and threads wait for each other."""
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=False)
        for name, kind in (
            ("sequence", pa.string()),
            ("frame", pa.int32()),
            ("size", pa.int32()),
            ("jpeg", pa.binary()),
        )
    ]
)
TILED_SCHEMA = pa.schema([*SCHEMA, *(pa.field(name, pa.binary(), nullable=False) for name in (HEAD, ROW_SIZES))])


class Tiles(NamedTuple):
    """How the frames of a shard are tiled. Both are empty for a frame that is not."""

    heads: pa.DictionaryArray
    """(F,) binary."""
    row_sizes: pa.LargeBinaryArray
    """(F,)"""


class PackedShard(NamedTuple):
    """Where the frames of a shard are: those of all its sequences, one sequence after another."""

    starts: NDArray[np.int64]
    """(F,) where each frame begins in the shard."""
    sizes: NDArray[np.int32]
    """(F,) size of each frame in bytes, or MISSING."""
    cut_off: list[str]
    """Paths of frames that are cut off in the tree. They are packed as they are."""
    tiles: Tiles | None = None
    """None if frames were not to be tiled."""
    reasons: Mapping[str, int] = {}
    """Why frames could not be tiled, and how many. Nothing is known of a shard that was there already."""

    @property
    def num_frames(self) -> int:
        """Frames that are there."""
        return int((self.sizes != MISSING).sum())

    @property
    def num_untiled(self) -> int:
        """Frames that could not be tiled."""
        empty = np.zeros(len(self.sizes), bool) if self.tiles is None else pc.equal(self.tiles.row_sizes, b"")
        return int((np.asarray(empty) & (self.sizes != MISSING)).sum())


class Written(NamedTuple):
    """What was found while a shard was written."""

    cut_off: list[str]
    """Paths of frames."""
    missing: list[str]
    """Paths of frames."""
    reasons: Counter[str]
    """As in `PackedShard`."""

    @classmethod
    def nothing(cls) -> Written:
        return cls([], [], Counter())


class _Frame(NamedTuple):
    """What a shard has of a frame."""

    content: bytes
    head: bytes = b""
    row_sizes: bytes = b""
    reason: str | None = None
    """Why it could not be tiled."""


def write_shard(index: FrameIndex, tree: Root, sink: pa.NativeFile, mark: Mark, rows: Sequence[int]) -> Written:
    """Writes the frames of these rows. Raises DataError, OSError, and InputError if jpegtran is needed and missing."""
    found = Written.nothing()
    schema = TILED_SCHEMA if mark.tiled else SCHEMA
    with (
        pq.ParquetWriter(
            sink,
            schema.with_metadata(mark.metadata()),
            compression="none",
            use_dictionary=[HEAD] if mark.tiled else False,
            write_statistics=False,
            write_page_checksum=True,
            # One page per row group.
            data_page_size=2 * ROW_GROUP_BYTES,
            max_rows_per_page=ROW_GROUP_BYTES,
        ) as writer,
        ThreadPoolExecutor(READS_AT_ONCE) as pool,
    ):
        group: list[tuple[str | int | bytes, ...]] = []

        def flush() -> None:
            if group:
                writer.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=schema))
                group.clear()

        held = 0
        for path, sequence, number, frame in _read_frames(index, tree, rows, pool, mark.tiled):
            if frame is None:
                found.missing.append(path)
                continue
            content = frame.content
            if is_cut_off(content) or not content:
                found.cut_off.append(path)
            if frame.reason is not None:
                found.reasons[frame.reason] += 1
            if held + len(content) > ROW_GROUP_BYTES:
                flush()
                held = 0
            tiles = (frame.head, frame.row_sizes) if mark.tiled else ()
            group.append((sequence, number, len(content), content, *tiles))
            held += len(content)
        flush()
    return found


def _read_frames(
    index: FrameIndex, tree: Root, rows: Sequence[int], pool: ThreadPoolExecutor, tiled: bool
) -> Iterator[tuple[str, str, int, _Frame | None]]:
    """Path, sequence, number and file of each frame, in order, many read in parallel. The file is None if missing."""
    turn = threading.Semaphore(TILED_AT_ONCE)

    def read(path: str) -> _Frame | None:
        try:
            content = read_bytes(tree, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{tree.path}/{path}: cannot be read ({error})") from error
        if not tiled:
            return _Frame(content)
        try:
            with turn:
                return _Frame(*tile(content))
        except NotTiled as reason:
            return _Frame(content, reason=str(reason))

    places = ((row, frame) for row in rows for frame in range(int(index.lengths[row])))
    while batch := list(islice(places, READS_AT_ONCE)):
        paths = [index.frame_path(row, frame) for row, frame in batch]
        for (row, frame), path, content in zip(batch, paths, pool.map(read, paths), strict=True):
            yield path, index.names[row], frame + 1, content


def locate_frames(file: pa.NativeFile, name: str, index: FrameIndex, mark: Mark, rows: Sequence[int]) -> PackedShard:
    """Where the frames of an existing shard are. Raises DataError if it is for other annotations or damaged."""
    ends = np.cumsum(index.lengths[list(rows)]).tolist()
    ranges = {index.names[row]: range(end - int(index.lengths[row]), end) for row, end in zip(rows, ends, strict=True)}
    starts = np.zeros(ends[-1], np.int64)
    sizes = np.full(len(starts), MISSING, np.int32)
    shard = pq.ParquetFile(file, page_checksum_verification=True)
    check_mark(shard.schema_arrow, name, mark)
    names = ["sequence", "frame", "size", *((HEAD, ROW_SIZES) if mark.tiled else ())]
    groups: list[pa.Table] = []
    order = np.full(len(starts), -1, np.int64)
    held = 0
    for group in range(shard.num_row_groups):
        columns = shard.read_row_group(group, names)
        places = []
        for sequence, number in zip(columns["sequence"].to_pylist(), columns["frame"].to_pylist(), strict=True):
            if not 1 <= number <= len(ranges.get(sequence, ())):
                raise DataError(f"{name}: is damaged: it has a frame {number} of {sequence}, which has no annotation")
            places.append(ranges[sequence][number - 1])
        group_sizes = columns["size"].to_numpy()
        group_starts = _starts_in_group(shard, group, group_sizes)
        if (group_sizes < 0).any() or (group_starts < LENGTH_BYTES).any():
            raise DataError(f"{name}: is damaged: the sizes of its frames are not those of a shard")
        # Starts are counted from the end of the page, so the first is wrong if the page is not as it was written.
        if file.read_at(LENGTH_BYTES, int(group_starts[0]) - LENGTH_BYTES) != group_sizes[0].astype("<i4").tobytes():
            raise DataError(f"{name}: was written again by another program; remove it to pack it again")
        starts[places], sizes[places] = group_starts, group_sizes
        order[places] = np.arange(held, held + len(places))
        held += len(places)
        groups.append(columns)
    return PackedShard(starts, sizes, [], _tiles_of(groups, order, name) if mark.tiled else None)


def _tiles_of(groups: Sequence[pa.Table], order: NDArray[np.int64], name: str) -> Tiles:
    """`order`: for each frame, its place in the shard, or -1 if it is missing. Raises DataError."""

    def ordered(column: str, kind: pa.DataType) -> pa.Array:
        parts = [group[column].combine_chunks().cast(kind) for group in groups]
        values = pa.concat_arrays([*parts, pa.array([b""], kind)])
        return values.take(pa.array(np.where(order < 0, len(values) - 1, order)))

    tiles = Tiles(ordered(HEAD, pa.binary()).dictionary_encode(), ordered(ROW_SIZES, pa.large_binary()))
    if fault := find_fault_of_tiles(*tiles):
        raise DataError(f"{name}: is damaged: {fault}")
    return tiles


def _starts_in_group(shard: pq.ParquetFile, group: int, sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each frame of a row group begins in the file. Its page has a header, then each frame's length and bytes."""
    column = shard.metadata.row_group(group).column(SCHEMA.get_field_index("jpeg"))
    end = column.data_page_offset + column.total_compressed_size
    return end - np.cumsum((sizes.astype(np.int64) + LENGTH_BYTES)[::-1])[::-1] + LENGTH_BYTES


def verify(file: pa.NativeFile, name: str) -> None:
    """Raises DataError unless the byte ranges of all frames hold what Parquet reads, with correct checksums."""
    shard = pq.ParquetFile(file, page_checksum_verification=True)
    for group in range(shard.num_row_groups):
        columns = shard.read_row_group(group)
        sizes = columns["size"].to_numpy()
        starts = _starts_in_group(shard, group, sizes)
        raw = file.read_at(int(starts[-1] + sizes[-1] - starts[0]), int(starts[0]))
        for row, (start, size) in enumerate(zip((starts - starts[0]).tolist(), sizes.tolist(), strict=True)):
            if raw[start : start + size] != columns["jpeg"][row].as_py():
                frame = f"{columns['sequence'][row]}, frame {columns['frame'][row]}"
                raise DataError(f"{name}: is not as it was written ({frame})")


def check_mark(schema: pa.Schema, name: str, expected: Mark) -> None:
    """Raises DataError for a file of another kind, or of another set or other annotations than expected."""
    mark = read_mark(schema, name)
    if mark.name != expected.name:
        raise DataError(f"{name}: holds {mark.name}, not {expected.name}; another folder keeps both")
    if mark.tiled != expected.tiled:
        raise DataError(
            f"{name}: was packed {'with' if mark.tiled else 'without'} --tiles; "
            "the same command goes on, and another folder keeps both"
        )
    if mark.fingerprint != expected.fingerprint:
        raise DataError(f"{name}: holds other sequences or annotations; another folder keeps both")
