"""Packed trees: some hundred Parquet files instead of millions of frames, for shared file systems and object stores.

`root/index.parquet` is the FrameIndex, which also says where each frame's bytes are in `root/frames/`, the shards. A
shard `<class>-000.parquet` has a row per frame: `sequence`, `frame` (from 1, as files are numbered), `size` and `jpeg`,
the unchanged file. Any Parquet reader can read it. The column `jpeg` is written without compression or encoding, in one
page per row group, so the bytes of a frame lie in one piece and can be read as one range.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from seqtrack.config import DataConfig
from seqtrack.data.datasets.index import FIRST_FRAME, FRAME_NAMES, MISSING, STILL, FrameIndex
from seqtrack.data.datasets.lasot import select_sequences
from seqtrack.data.jpeg import is_cut_off
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, first_of, read_bytes
from seqtrack.failures import explain
from seqtrack.files import write_atomically

FORMAT = 1
INDEX = "index.parquet"
FOLDER = "frames"
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
COLUMNS = {
    "class": pa.string(),
    "sequence": pa.string(),
    "boxes_xywh": pa.large_list(pa.list_(pa.float32(), 4)),
    "visible": pa.large_list(pa.uint8()),
    "shard": pa.string(),
    "frame_start": pa.large_list(pa.int64()),
    "frame_size": pa.large_list(pa.int32()),
}
"""What `index.parquet` must have."""
OPTIONAL = {FRAME_NAMES: pa.large_list(pa.string()), FIRST_FRAME: pa.string(), STILL: pa.bool_()}
"""What it may have beside that."""


class PackedShard(NamedTuple):
    """Where the frames of a shard are: those of all its sequences, one sequence after another."""

    starts: NDArray[np.int64]
    """(F,) where each frame begins in the shard."""
    sizes: NDArray[np.int32]
    """(F,) size of each frame in bytes, or MISSING."""
    cut_off: list[str]
    """Paths of frames that are cut off in the tree. They are packed as they are."""


def is_packed(root: Root) -> bool:
    return bool(root.filesystem.get_file_info(f"{root.path}/{INDEX}").type == fs.FileType.File)


def read_packed_index(root: Root) -> pa.Table:
    """All of `index.parquet`. Raises DataError."""
    path = f"{root.path}/{INDEX}"
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(root, INDEX)))
        table.validate(full=True)
    except Exception as error:  # Arrow raises many types for a file that is damaged
        raise DataError(f"{path}: cannot be read ({explain(error)})") from error
    _check_mark(table.schema, path, None)
    if fault := _find_fault(table):
        raise DataError(f"{path}: is damaged: {fault}")
    return table


def select_packed(settings: DataConfig, root: Root) -> FrameIndex:
    """The annotations of the sequences of SPLIT and CLASSES in a packed tree. Raises DataError."""
    table = read_packed_index(root)
    classes, names = table["class"].to_pylist(), table["sequence"].to_pylist()

    def find(wanted: Collection[str]) -> list[str]:
        return [name for name, its_class in zip(names, classes, strict=True) if not wanted or its_class in wanted]

    rows = {name: row for row, name in enumerate(names)}
    selected = [rows[name] for name in select_sequences(settings, root, find)]
    return FrameIndex(table.take(selected).combine_chunks())


def check_shards_exist(index: FrameIndex, root: Root) -> None:
    """Raises DataError if a shard is missing or cut off."""
    paths = sorted(set(index.shards))
    ends = dict.fromkeys(paths, 0)
    for row, path in enumerate(index.shards):
        ends[path] = max(ends[path], index.end_in_shard(row))
    infos = root.filesystem.get_file_info([f"{root.path}/{path}" for path in paths])
    wrong = [path for path, info in zip(paths, infos, strict=True) if (info.size or 0) < ends[path]]
    if wrong:
        raise DataError(f"{root.path}: {len(wrong)} of {len(paths)} shards are missing or cut off, {first_of(wrong)}")


def plan_shards(index: FrameIndex) -> dict[str, list[int]]:
    """Path of each shard below the root -> its rows of the index. The same index always gives the same plan."""
    plan: dict[str, list[int]] = {}
    counts: dict[str, int] = {}  # class -> number of its newest shard
    shard: list[int] = []
    for row, name in enumerate(index.classes):
        full = sum(int(index.lengths[before]) for before in shard) >= FRAMES_PER_SHARD
        if not shard or full or name != index.classes[row - 1]:
            number = counts[name] = counts.get(name, -1) + 1
            shard = plan[f"{FOLDER}/{name}-{number:03d}.parquet"] = []
        shard.append(row)
    return plan


def pack_shard(
    index: FrameIndex, tree: Root, target: Root, path: str, rows: Sequence[int], allow_missing: bool = False
) -> PackedShard:
    """Writes a shard, which appears only after it was read back and compared. An existing shard is kept.

    Raises DataError naming the frames that are missing (unless allowed), or the file that cannot be read or written.
    """
    name = f"{target.path}/{path}"
    filesystem = target.filesystem
    cut_off: list[str] = []
    try:
        if filesystem.get_file_info(name).type != fs.FileType.File:
            unfinished = f"{target.path}/{FOLDER}/.{Path(path).name}.unfinished"
            filesystem.create_dir(f"{target.path}/{FOLDER}", recursive=True)
            cut_off = _write_shard(index, tree, filesystem, unfinished, rows, allow_missing)
            with filesystem.open_input_file(unfinished) as file:
                _verify(file, unfinished)
            filesystem.move(unfinished, name)
        with filesystem.open_input_file(name) as file:
            starts, sizes = _locate_frames(file, name, index, rows)
    except DataError:
        raise
    except Exception as error:  # Arrow raises many types for a shard that is there and damaged
        raise DataError(f"{name}: cannot be packed ({explain(error)})") from error
    if not allow_missing and (sizes == MISSING).any():
        raise DataError(f"{name}: was packed with --allow-missing and lacks frames; remove it to pack it again")
    return PackedShard(starts, sizes, cut_off)


def check_done(index: FrameIndex, target: Root) -> bool:
    """Whether the target holds all of this index already. Raises DataError if it holds something else."""
    if not is_packed(target):
        return False
    _check_mark(read_packed_index(target).schema, f"{target.path}/{INDEX}", index)
    return True


def write_index(index: FrameIndex, target: Root, plan: dict[str, list[int]], shards: Sequence[PackedShard]) -> None:
    """Writes `index.parquet`, the last file, which makes the packed tree complete. Raises OSError."""
    paths = [path for path, rows in plan.items() for _ in rows]
    offsets = index.table["visible"].chunk(0).offsets
    table = index.table
    for name, values in (
        ("shard", pa.array(paths)),
        ("frame_start", pa.LargeListArray.from_arrays(offsets, np.concatenate([shard.starts for shard in shards]))),
        ("frame_size", pa.LargeListArray.from_arrays(offsets, np.concatenate([shard.sizes for shard in shards]))),
    ):
        table = table.append_column(name, values)
    content = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(_mark(index)), content, compression="zstd")
    write_atomically(target.filesystem, f"{target.path}/{INDEX}", content.getvalue().to_pybytes())


def _write_shard(
    index: FrameIndex, tree: Root, filesystem: fs.FileSystem, name: str, rows: Sequence[int], allow_missing: bool
) -> list[str]:
    """Writes the frames of these rows. Returns paths of frames that are cut off. Raises DataError, OSError."""
    cut_off: list[str] = []
    missing: list[str] = []
    with (
        filesystem.open_output_stream(name) as sink,
        pq.ParquetWriter(
            sink,
            SCHEMA.with_metadata(_mark(index)),
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
    if missing and not allow_missing:
        frames = int(index.lengths[list(rows)].sum())
        raise DataError(
            f"{tree.path}: {len(missing)} of {frames} frames of {index.classes[rows[0]]} are missing, "
            f"{first_of(missing)} (--allow-missing packs the rest)"
        )
    return cut_off


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

    for row in rows:
        for first in range(0, int(index.lengths[row]), READS_AT_ONCE):
            frames = range(first, min(first + READS_AT_ONCE, int(index.lengths[row])))
            paths = [index.frame_path(row, frame) for frame in frames]
            for frame, path, content in zip(frames, paths, pool.map(read, paths), strict=True):
                yield path, index.names[row], frame + 1, content


def _locate_frames(
    file: pa.NativeFile, name: str, index: FrameIndex, rows: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """`PackedShard.starts` and `.sizes` of an existing shard. Raises DataError if it is for other annotations."""
    ends = np.cumsum(index.lengths[list(rows)]).tolist()
    ranges = {index.names[row]: range(end - int(index.lengths[row]), end) for row, end in zip(rows, ends, strict=True)}
    starts = np.zeros(ends[-1], np.int64)
    sizes = np.full(len(starts), MISSING, np.int32)
    shard = pq.ParquetFile(file)
    _check_mark(shard.schema_arrow, name, index)
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


def _mark(index: FrameIndex) -> dict[str, str]:
    """Metadata of each file: its format, and the fingerprint of the annotations that it belongs to."""
    return {"seqtrack": json.dumps({"format": FORMAT, "fingerprint": index.fingerprint})}


def _check_mark(schema: pa.Schema, name: str, index: FrameIndex | None) -> None:
    """Raises DataError for a file of another kind, or, with `index`, for one of other annotations."""
    try:
        mark = json.loads((schema.metadata or {}).get(b"seqtrack", b"{}"))
    except (ValueError, RecursionError):
        mark = None
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise DataError(f"{name}: was not written by this version of `seqtrack pack-lasot`")
    if index is not None and mark.get("fingerprint") != index.fingerprint:
        raise DataError(f"{name}: holds other sequences or annotations; another folder keeps both")


def _find_fault(table: pa.Table) -> str | None:
    """What is wrong with the content of `index.parquet`, or None."""
    wanted = COLUMNS | {name: kind for name, kind in OPTIONAL.items() if name in table.column_names}
    for name, kind in wanted.items():
        if name not in table.column_names or table.schema.field(name).type != kind:
            return f"it has no column {name} of {kind}"
    if len(table) == 0:
        return "it has no sequences"
    columns = {name: table[name].combine_chunks() for name in wanted}
    inner = [column.values for column in columns.values() if pa.types.is_large_list(column.type)]
    if any(array.null_count for array in (*columns.values(), *inner)):
        return "it has gaps"
    frames = columns["visible"].value_lengths()
    if FRAME_NAMES in columns:
        named = columns[FRAME_NAMES].value_lengths()
        if not all(count in (0, of) for count, of in zip(named.to_pylist(), frames.to_pylist(), strict=True)):
            return f"{FRAME_NAMES} and visible are of different lengths"
    for name in ("boxes_xywh", "frame_start", "frame_size"):
        if columns[name].value_lengths() != frames:
            return f"{name} and visible are of different lengths"
    starts, sizes = (columns[name].flatten().to_numpy() for name in ("frame_start", "frame_size"))
    if len(starts) and (starts.min() < 0 or starts.max() > 1 << 60 or sizes.min() < MISSING):
        return "a frame lies outside of its shard"
    names, shards = columns["sequence"].to_pylist(), columns["shard"].to_pylist()
    if len(set(names)) < len(names):
        return "a sequence appears twice"
    if any(not path.startswith(f"{FOLDER}/") or ".." in path.split("/") for path in shards):
        return f"a shard lies outside of {FOLDER}"
    return None
