"""Packs a tree of frames: writes the shards and the index that `packed.py` describes and reads.

LaSOT's shards are `<class>-000.parquet`, those of other sets `<set>-000.parquet`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from seqtrack.data.datasets import lasot
from seqtrack.data.datasets.index import FIRST_FRAME, MISSING, FrameIndex
from seqtrack.data.jpeg import is_cut_off
from seqtrack.data.packed import FOLDER, INDEX, Mark, is_packed, read_mark, read_packed_index
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, first_of, read_bytes
from seqtrack.failures import explain
from seqtrack.files import write_atomically

FRAMES_PER_SHARD = 12_000
"""Frames after which a shard is full: about a gigabyte of LaSOT. No sequence is divided, so a shard may have more."""
ROW_GROUP_BYTES = 64 << 20
LENGTH_BYTES = 4
"""Size of the length that Parquet writes before each value of a binary column."""
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


class PackedShard(NamedTuple):
    """Where the frames of a shard are: those of all its sequences, one sequence after another."""

    starts: NDArray[np.int64]
    """(F,) where each frame begins in the shard."""
    sizes: NDArray[np.int32]
    """(F,) size of each frame in bytes, or MISSING."""
    cut_off: list[str]
    """Paths of frames that are cut off in the tree. They are packed as they are."""


@dataclass(frozen=True)
class Stored:
    """What is stored of an index, with no frame twice."""

    index: FrameIndex
    """The index itself; of an image set, an index with one row an image, whose sequence has the name of its file."""
    rows: NDArray[np.int64]
    """(S,) the row of `index` that has the frames of each sequence."""


def stored_once(index: FrameIndex) -> Stored:
    """What shards hold of an index: objects of COCO share their images."""
    if not index.stills.any():
        return Stored(index, np.arange(len(index.table)))
    paths = index.table[FIRST_FRAME].chunk(0).dictionary_encode()
    images = paths.indices.to_numpy().astype(np.int64)
    table = index.table.take(np.unique(images, return_index=True)[1]).combine_chunks()
    names = pa.array([path.rpartition("/")[2] for path in paths.dictionary.to_pylist()], pa.string())
    return Stored(FrameIndex(table.set_column(table.schema.get_field_index("sequence"), "sequence", names)), images)


def plan_shards(index: FrameIndex, name: str = lasot.SET) -> dict[str, list[int]]:
    """Path of each shard below the root -> its rows of the index. The same index always gives the same plan.

    `index`: what is stored of the set `name`. No shard has frames of two classes of LaSOT; the classes of other sets
    are too many or unknown, and do not matter. Raises DataError if two sequences have the same name.
    """
    if len(set(index.names)) < len(index.names):
        double = next(
            one for one, other in zip(sorted(index.names), sorted(index.names)[1:], strict=False) if one == other
        )
        raise DataError(f"{name}: the sequence {double} is there more than once, so frames could be mistaken")
    groups = index.classes if name == lasot.SET else [name] * len(index.names)
    plan: dict[str, list[int]] = {}
    counts: dict[str, int] = {}  # group -> number of its newest shard
    shard: list[int] = []
    held = 0
    for row, (group, frames) in enumerate(zip(groups, index.lengths.tolist(), strict=True)):
        if not shard or held >= FRAMES_PER_SHARD or group != groups[row - 1]:
            number = counts[group] = counts.get(group, -1) + 1
            shard = plan[f"{FOLDER}/{group}-{number:03d}.parquet"] = []
            held = 0
        shard.append(row)
        held += frames
    return plan


def pack_shard(
    index: FrameIndex,
    tree: Root,
    target: Root,
    path: str,
    rows: Sequence[int],
    allow_missing: bool = False,
    name: str = lasot.SET,
) -> PackedShard:
    """Writes a shard, which appears only after it was read back and compared. An existing shard is kept.

    `index`: what is stored of the set `name`. Raises DataError naming the frames that are missing (unless allowed), or
    the file that cannot be read or written.
    """
    place = f"{target.path}/{path}"
    filesystem = target.filesystem
    mark = Mark(index.fingerprint, name)
    cut_off: list[str] = []
    try:
        if filesystem.get_file_info(place).type != fs.FileType.File:
            unfinished = f"{target.path}/{FOLDER}/.{Path(path).name}.unfinished"
            filesystem.create_dir(f"{target.path}/{FOLDER}", recursive=True)
            group = Path(path).stem.rpartition("-")[0]
            with filesystem.open_output_stream(unfinished) as sink:
                cut_off, missing = _write_shard(index, tree, sink, mark, rows)
            if missing and not allow_missing:
                frames = int(index.lengths[list(rows)].sum())
                raise DataError(
                    f"{tree.path}: {len(missing)} of {frames} frames of {group} are missing, {first_of(missing)} "
                    "(--allow-missing packs the rest)"
                )
            with filesystem.open_input_file(unfinished) as file:
                _verify(file, unfinished)
            filesystem.move(unfinished, place)
        with filesystem.open_input_file(place) as file:
            starts, sizes = _locate_frames(file, place, index, mark, rows)
    except DataError:
        raise
    except Exception as error:  # Arrow raises many types for a shard that is there and damaged
        raise DataError(f"{place}: cannot be packed ({explain(error)})") from error
    if not allow_missing and (sizes == MISSING).any():
        raise DataError(f"{place}: was packed with --allow-missing and lacks frames; remove it to pack it again")
    return PackedShard(starts, sizes, cut_off)


def check_done(index: FrameIndex, target: Root, name: str = lasot.SET) -> bool:
    """Whether the target holds all of this index of the set `name` already. Raises DataError if it holds another."""
    if not is_packed(target):
        return False
    _check_mark(read_packed_index(target, name).schema, f"{target.path}/{INDEX}", Mark(index.fingerprint, name))
    return True


def write_index(
    index: FrameIndex,
    target: Root,
    plan: dict[str, list[int]],
    shards: Sequence[PackedShard],
    name: str = lasot.SET,
    listed: Sequence[str] = (),
) -> None:
    """Writes `index.parquet`, the last file, which makes the packed tree complete. Raises OSError.

    `plan` and `shards`: those of what is stored of the index. `listed`: as in `Mark`.
    """
    stored = stored_once(index)
    paths = [path for path, rows_of_shard in plan.items() for _ in rows_of_shard]
    starts, sizes = (np.concatenate(parts) for parts in zip(*((one.starts, one.sizes) for one in shards), strict=True))
    if stored.index is not index:
        paths, starts, sizes = [paths[row] for row in stored.rows], starts[stored.rows], sizes[stored.rows]
    offsets = index.table["visible"].chunk(0).offsets
    table = index.table
    for column, values in (
        ("shard", pa.array(paths)),
        ("frame_start", pa.LargeListArray.from_arrays(offsets, starts)),
        ("frame_size", pa.LargeListArray.from_arrays(offsets, sizes)),
    ):
        table = table.append_column(column, values)
    mark = Mark(index.fingerprint, name, tuple(listed))
    content = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(mark.metadata()), content, compression="zstd")
    write_atomically(target.filesystem, f"{target.path}/{INDEX}", content.getvalue().to_pybytes())


def _write_shard(
    index: FrameIndex, tree: Root, sink: pa.NativeFile, mark: Mark, rows: Sequence[int]
) -> tuple[list[str], list[str]]:
    """Writes the frames of these rows. Returns paths of frames that are cut off, and of missing ones.

    Raises DataError, OSError.
    """
    cut_off: list[str] = []
    missing: list[str] = []
    with (
        pq.ParquetWriter(
            sink,
            SCHEMA.with_metadata(mark.metadata()),
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
            # One page per row group.
            data_page_size=2 * ROW_GROUP_BYTES,
            max_rows_per_page=ROW_GROUP_BYTES,
        ) as writer,
        ThreadPoolExecutor(READS_AT_ONCE) as pool,
    ):
        group: list[tuple[str, int, int, bytes]] = []

        def flush() -> None:
            if group:
                writer.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=SCHEMA))
                group.clear()

        held = 0
        for path, sequence, number, content in _read_frames(index, tree, rows, pool):
            if content is None:
                missing.append(path)
                continue
            if is_cut_off(content) or not content:
                cut_off.append(path)
            if held + len(content) > ROW_GROUP_BYTES:
                flush()
                held = 0
            group.append((sequence, number, len(content), content))
            held += len(content)
        flush()
    return cut_off, missing


def _read_frames(
    index: FrameIndex, tree: Root, rows: Sequence[int], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, str, int, bytes | None]]:
    """Path, sequence, number and bytes of each frame, in order, many read in parallel. Bytes are None if missing."""

    def read(path: str) -> bytes | None:
        try:
            return read_bytes(tree, path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{tree.path}/{path}: cannot be read ({error})") from error

    places = ((row, frame) for row in rows for frame in range(int(index.lengths[row])))
    while batch := list(islice(places, READS_AT_ONCE)):
        paths = [index.frame_path(row, frame) for row, frame in batch]
        for (row, frame), path, content in zip(batch, paths, pool.map(read, paths), strict=True):
            yield path, index.names[row], frame + 1, content


def _locate_frames(
    file: pa.NativeFile, name: str, index: FrameIndex, mark: Mark, rows: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """`PackedShard.starts` and `.sizes` of an existing shard. Raises DataError if it is for other annotations."""
    ends = np.cumsum(index.lengths[list(rows)]).tolist()
    ranges = {index.names[row]: range(end - int(index.lengths[row]), end) for row, end in zip(rows, ends, strict=True)}
    starts = np.zeros(ends[-1], np.int64)
    sizes = np.full(len(starts), MISSING, np.int32)
    shard = pq.ParquetFile(file)
    _check_mark(shard.schema_arrow, name, mark)
    for group in range(shard.num_row_groups):
        columns = shard.read_row_group(group, ["sequence", "frame", "size"])
        places = []
        for sequence, number in zip(columns["sequence"].to_pylist(), columns["frame"].to_pylist(), strict=True):
            if not 1 <= number <= len(ranges.get(sequence, ())):
                raise DataError(f"{name}: is damaged: it has a frame {number} of {sequence}, which has no annotation")
            places.append(ranges[sequence][number - 1])
        group_sizes = columns["size"].to_numpy()
        group_starts = _starts_in_group(shard, group, group_sizes)
        if (group_sizes < 0).any() or (group_starts < 0).any():
            raise DataError(f"{name}: is damaged: the sizes of its frames are not those of a shard")
        starts[places], sizes[places] = group_starts, group_sizes
    return starts, sizes


def _starts_in_group(shard: pq.ParquetFile, group: int, sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each frame of a row group begins in the file. Its page has a header, then each frame's length and bytes."""
    column = shard.metadata.row_group(group).column(SCHEMA.get_field_index("jpeg"))
    end = column.data_page_offset + column.total_compressed_size
    return end - np.cumsum((sizes.astype(np.int64) + LENGTH_BYTES)[::-1])[::-1] + LENGTH_BYTES


def _verify(file: pa.NativeFile, name: str) -> None:
    """Raises DataError unless the byte ranges of all frames hold what Parquet reads, with correct checksums."""
    shard = pq.ParquetFile(file, page_checksum_verification=True)
    for group in range(shard.num_row_groups):
        columns = shard.read_row_group(group, ["sequence", "frame", "size", "jpeg"])
        sizes = columns["size"].to_numpy()
        starts = _starts_in_group(shard, group, sizes)
        raw = file.read_at(int(starts[-1] + sizes[-1] - starts[0]), int(starts[0]))
        for row, (start, size) in enumerate(zip((starts - starts[0]).tolist(), sizes.tolist(), strict=True)):
            if raw[start : start + size] != columns["jpeg"][row].as_py():
                frame = f"{columns['sequence'][row]}, frame {columns['frame'][row]}"
                raise DataError(f"{name}: is not as it was written ({frame})")


def _check_mark(schema: pa.Schema, name: str, expected: Mark) -> None:
    """Raises DataError for a file of another kind, or of another set or other annotations than expected."""
    mark = read_mark(schema, name)
    if mark.name != expected.name:
        raise DataError(f"{name}: holds {mark.name}, not {expected.name}; another folder keeps both")
    if mark.fingerprint != expected.fingerprint:
        raise DataError(f"{name}: holds other sequences or annotations; another folder keeps both")
