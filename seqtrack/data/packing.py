"""Packs a tree of frames: writes the shards and the index that `packed.py` describes and reads.

LaSOT's shards are `<class>-000.parquet`, those of other sets `<set>-000.parquet`.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs

from seqtrack.data.datasets import lasot
from seqtrack.data.datasets.index import FIRST_FRAME, HEAD, MISSING, ROW_SIZES, FrameIndex
from seqtrack.data.kept import compare_kept
from seqtrack.data.packed import FOLDER, INDEX, Mark, is_packed, read_packed_index
from seqtrack.data.shards import PackedShard, Written, check_mark, locate_frames, verify, write_shard
from seqtrack.data.storage import DataError, Root, first_of
from seqtrack.data.tiling import find_jpegtran
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.files import replacing, write_atomically
from seqtrack.patience import patiently
from seqtrack.transfer import send

FRAMES_PER_SHARD = 12_000
"""Frames after which a shard is full: about a gigabyte of LaSOT. No sequence is divided, so a shard may have more."""

TILED_OPTIONS = {
    "write_page_checksum": True,
    "write_statistics": False,
    "use_dictionary": ["class", "sequence", "shard", FIRST_FRAME, f"{HEAD}.list.element"],
    "dictionary_pagesize_limit": 64 << 20,
}
"""How the index of a tiled tree is written: with room for the different heads of all frames of a set, and checked, as a
wrong head would show wrong pixels."""


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
    tiled: bool = False,
) -> PackedShard:
    """Writes a shard, which appears only after it was read back and compared. An existing shard is kept.

    `index`: what is stored of the set `name`. `tiled`: frames are tiled if they can be. Raises DataError naming the
    frames that are missing (unless allowed), the file that cannot be read or written, or the node without jpegtran.
    """
    place = f"{target.path}/{path}"
    filesystem = target.filesystem
    mark = Mark(index.fingerprint, name, tiled=tiled)
    written: Written | None = None
    try:
        if filesystem.get_file_info(place).type != fs.FileType.File:
            if tiled:
                _check_jpegtran()
            patiently(partial(filesystem.create_dir, f"{target.path}/{FOLDER}", recursive=True), place)
            with _appearing(target, place) as unfinished:
                with fs.LocalFileSystem().open_output_stream(str(unfinished)) as sink:
                    written = write_shard(index, tree, sink, mark, rows)
                missing = written.missing
                if missing and not allow_missing:
                    group = Path(path).stem.rpartition("-")[0]
                    frames = int(index.lengths[list(rows)].sum())
                    raise DataError(
                        f"{tree.path}: {len(missing)} of {frames} frames of {group} are missing, {first_of(missing)} "
                        "(--allow-missing packs the rest)"
                    )
                with fs.LocalFileSystem().open_input_file(str(unfinished)) as file:
                    verify(file, str(unfinished))
        with filesystem.open_input_file(place) as file:
            shard = locate_frames(file, place, index, mark, rows)
    except DataError:
        raise
    except Exception as error:  # Arrow raises many types for a shard that is there and damaged
        raise DataError(f"{place}: cannot be packed ({explain(error)})") from error
    if not allow_missing and (shard.sizes == MISSING).any():
        raise DataError(f"{place}: was packed with --allow-missing and lacks frames; remove it to pack it again")
    if written is None:
        compare_kept(index, tree, target, path, rows, shard)
        written = Written.nothing()
    return shard._replace(cut_off=written.cut_off, reasons=written.reasons)


@contextmanager
def _appearing(target: Root, place: str) -> Iterator[Path]:
    """A file of this machine to write a shard to; after the block it is at `place`, whole. Raises OSError.

    A store gets it in one go. (To rename it there would be a copy, and S3 copies no object of more than 5 GiB so.)
    """
    if target.local:
        with replacing(Path(place)) as unfinished:
            yield unfinished
        return
    with tempfile.TemporaryDirectory(prefix="seqtrack-shard-") as folder:
        unfinished = Path(folder, Path(place).name)
        yield unfinished
        send(Path(folder), target.filesystem, place.rpartition("/")[0])
    try:
        with target.filesystem.open_input_file(place) as file:
            verify(file, place)
    except DataError:
        target.filesystem.delete_file(place)
        raise


def _check_jpegtran() -> None:
    """Raises DataError naming this node if frames cannot be tiled here."""
    try:
        find_jpegtran()
    except InputError as error:
        raise DataError(f"node {socket.gethostname()}: {error}") from error


def check_done(index: FrameIndex, target: Root, name: str = lasot.SET, tiled: bool = False) -> bool:
    """Whether the target holds all of this index of the set `name` already. Raises DataError if it holds another."""
    if not is_packed(target):
        return False
    mark = Mark(index.fingerprint, name, tiled=tiled)
    check_mark(read_packed_index(target, name).schema, f"{target.path}/{INDEX}", mark)
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
    if target.local:
        for left in Path(target.path, FOLDER).glob(".*"):  # by killed processes: all shards are there by now
            left.unlink(missing_ok=True)
    stored = stored_once(index)
    paths = [path for path, rows_of_shard in plan.items() for _ in rows_of_shard]
    offsets = index.table["visible"].chunk(0).offsets
    starts, sizes = (np.concatenate(parts) for parts in zip(*((one.starts, one.sizes) for one in shards), strict=True))
    of_frames: dict[str, pa.Array] = {"frame_start": pa.array(starts), "frame_size": pa.array(sizes)}
    tiles = [one.tiles for one in shards if one.tiles is not None]
    if tiles:
        for column, parts in zip((HEAD, ROW_SIZES), zip(*tiles, strict=True), strict=True):
            of_frames[column] = pa.concat_arrays(parts)
    if stored.index is not index:
        paths = [paths[row] for row in stored.rows]
        of_frames = {column: values.take(pa.array(stored.rows)) for column, values in of_frames.items()}
    table = index.table.append_column("shard", pa.array(paths))
    for column, values in of_frames.items():
        table = table.append_column(column, pa.LargeListArray.from_arrays(offsets, values))
    mark = Mark(index.fingerprint, name, tuple(listed), tiled=bool(tiles))
    content = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata(mark.metadata()),
        content,
        compression="zstd",
        **(TILED_OPTIONS if tiles else {}),
    )
    write_atomically(target.filesystem, f"{target.path}/{INDEX}", content.getvalue().to_pybytes())
