"""Packed trees: some hundred Parquet files instead of millions of frames, for shared file systems and object stores.

`root/index.parquet` is the FrameIndex, which also says where each frame's bytes are in `root/frames/`, the shards. A
shard has a row per frame: `sequence`, `frame` (from 1), `size` and `jpeg`, the unchanged file. Any Parquet reader can
read it. The column `jpeg` is written without compression or encoding, in one page per row group, so the bytes of a
frame lie in one piece and can be read as one range. `packing.py` writes all of this.

Where frames were tiled (`tiling.py`), `jpeg` is the tiled file, and shards and index have two more columns, `head` and
`row_sizes` (`FrameIndex`). With these, training reads only the rows of tiles that a crop needs.

An image of COCO is stored once, as frame 1 of a sequence that has the name of its file, and every object that it shows
points to it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from seqtrack.config import DataConfig
from seqtrack.data.datasets import coco, got10k, lasot, trackingnet
from seqtrack.data.datasets.index import FIRST_FRAME, FRAME_NAMES, HEAD, MISSING, ROW_SIZES, STILL, FrameIndex
from seqtrack.data.datasets.layout import IncompleteSet
from seqtrack.data.heads import NotTiled, parse_head
from seqtrack.data.storage import DataError, Root, StoreError, file_infos, first_of, is_file, read_bytes
from seqtrack.failures import explain

FORMAT = 1
INDEX = "index.parquet"
FOLDER = "frames"
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
TILED = {
    HEAD: pa.large_list(pa.dictionary(pa.int32(), pa.binary())),
    ROW_SIZES: pa.large_list(pa.large_binary()),
}
"""What it must have beside that if frames are tiled, and may not have otherwise."""
OPTIONAL = {FRAME_NAMES: pa.large_list(pa.string()), FIRST_FRAME: pa.string(), STILL: pa.bool_()}
"""What it may have beside that."""
OTHER_COLUMNS = {
    lasot.SET: (),
    **dict.fromkeys(got10k.SETS, (FIRST_FRAME,)),
    coco.SET: (FIRST_FRAME, STILL),
    trackingnet.SET: (FIRST_FRAME,),
}
"""Data set -> those of OPTIONAL that it must have. These are the sets that can be packed."""


class Mark(NamedTuple):
    """What each file says about itself, beside its format."""

    fingerprint: str
    """Fingerprint of the annotations that the file belongs to."""
    name: str = lasot.SET
    """Which data set it is of. Only packed LaSOT trees do not say it: they are older than the others."""
    listed: tuple[str, ...] = ()
    """Names in GOT-10k's `list.txt`, whose rows its sets are lists of. Other sets, and shards, have none."""
    tiled: bool = False
    """Whether frames were tiled, as far as they can be."""

    def metadata(self) -> dict[str, str]:
        """The mark in the form that Parquet keeps beside a schema."""
        mark = {"format": FORMAT, "fingerprint": self.fingerprint}
        if self.name != lasot.SET:
            mark["set"] = self.name
        if self.listed:
            mark["listed"] = list(self.listed)
        if self.tiled:
            mark["tiled"] = True
        return {"seqtrack": json.dumps(mark)}


def is_packed(root: Root) -> bool:
    return is_file(root, INDEX)


def read_packed_index(root: Root, name: str = lasot.SET) -> pa.Table:
    """All of `index.parquet`, each column in one piece. Raises DataError, also if it is of another set than `name`."""
    path = f"{root.path}/{INDEX}"
    try:
        content = read_bytes(root, INDEX)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({explain(error)})") from error
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        table.validate(full=True)
        table = table.combine_chunks()
    except Exception as error:  # Arrow raises many types for a file that is damaged
        raise DataError(f"{path}: cannot be read ({explain(error)})") from error
    mark = read_mark(table.schema, path)
    if mark.name != name and not (name in got10k.SETS and mark.name == got10k.EVERY):
        others = f" (a packed {got10k.EVERY} has every set of GOT-10k)" if {name, mark.name} <= {*got10k.SETS} else ""
        raise DataError(f"{path}: holds {mark.name}, not {name}{others}")
    if fault := _find_fault(table, mark):
        raise DataError(f"{path}: is damaged: {fault}")
    return table


def select_packed(settings: DataConfig, root: Root) -> FrameIndex:
    """The annotations of the sequences of SPLIT and CLASSES in a packed LaSOT tree. Raises DataError."""
    table = read_packed_index(root)
    classes, names = table["class"].to_pylist(), table["sequence"].to_pylist()

    def find(wanted: Collection[str]) -> list[str]:
        return [name for name, its_class in zip(names, classes, strict=True) if not wanted or its_class in wanted]

    rows = {name: row for row, name in enumerate(names)}
    selected = [rows[name] for name in lasot.select_sequences(settings, root, find)]
    return FrameIndex(_take(table, selected))


def open_packed_set(
    name: str, root: Root, note: Callable[[str], None] = lambda line: None, partial_set: bool = False
) -> FrameIndex:
    """The index of one of `catalog.OTHER_SETS` in a packed tree: that of the tree that was packed, and its fingerprint.

    A packed GOT10K_train_full has every set of GOT-10k. `note` gets lines for the log. `partial_set`: whether sequences
    may be missing, because the tree that was packed lacked some. Raises DataError if something cannot be read or does
    not fit, and IncompleteSet for sequences that may not be missing.
    """
    table = read_packed_index(root, name)
    lacking = ""
    if name in got10k.SETS:
        if "vot" in name:
            note(f"{name} is {got10k.SETS[name]}")
        names = table["sequence"].to_pylist()
        selection = got10k.choose_sequences(name, read_mark(table.schema, INDEX).listed, names)
        if selection.names != names and selection.names:
            rows = {sequence: row for row, sequence in enumerate(names)}
            table = _take(table, [rows[sequence] for sequence in selection.names])
        lacking, partial_set = selection.lacking(name), partial_set and bool(selection.names)
    elif name == trackingnet.SET:
        lacking = trackingnet.explain_lacking(
            Counter(path.partition("/")[0] for path in table[FIRST_FRAME].to_pylist())
        )
    if lacking and not partial_set:
        raise IncompleteSet(f"{root.path}: {lacking}")
    if lacking:
        note(f"{root.path}: {lacking}")
    index = FrameIndex(table)
    check_shards_exist(index, root)
    return index


def _take(table: pa.Table, rows: list[int]) -> pa.Table:
    """These rows of a table. All of them are no copy, which matters to the index of a large tree."""
    return table if rows == list(range(len(table))) else table.take(rows).combine_chunks()


def check_shards_exist(index: FrameIndex, root: Root) -> None:
    """Raises DataError if a shard is missing or cut off."""
    ends: dict[str, int] = {}
    for path, end in zip(index.shards, index.ends_in_shard.tolist(), strict=True):
        ends[path] = max(ends.get(path, 0), end)
    paths = sorted(ends)
    wrong = [path for path, info in zip(paths, file_infos(root, paths), strict=True) if (info.size or 0) < ends[path]]
    if wrong:
        raise DataError(f"{root.path}: {len(wrong)} of {len(paths)} shards are missing or cut off, {first_of(wrong)}")


def read_mark(schema: pa.Schema, path: str) -> Mark:
    """The mark of a file. Raises DataError for a file of another kind."""
    try:
        mark = json.loads((schema.metadata or {}).get(b"seqtrack", b"{}"))
    except (ValueError, RecursionError):
        mark = None
    if isinstance(mark, dict) and mark.get("format") == FORMAT:
        name, listed, tiled = mark.get("set", lasot.SET), mark.get("listed", []), mark.get("tiled", False)
        texts = [name, *listed] if isinstance(listed, list) else [None]
        if all(isinstance(text, str) for text in texts) and name in OTHER_COLUMNS and isinstance(tiled, bool):
            return Mark(str(mark.get("fingerprint")), name, tuple(listed), tiled)
    raise DataError(f"{path}: was not written by this version of `seqtrack pack`")


def _find_fault(table: pa.Table, mark: Mark) -> str | None:
    """What is wrong with the content of `index.parquet`, or None."""
    present = {name: kind for name, kind in OPTIONAL.items() if name in table.column_names}
    wanted = COLUMNS | {name: OPTIONAL[name] for name in OTHER_COLUMNS[mark.name]} | present
    wanted |= TILED if mark.tiled else {}
    if not mark.tiled and not TILED.keys().isdisjoint(table.column_names):
        return "its frames are tiled, but it does not say so"
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
    for name in ("boxes_xywh", "frame_start", "frame_size", *(TILED if mark.tiled else ())):
        if columns[name].value_lengths() != frames:
            return f"{name} and visible are of different lengths"
    if STILL in columns and pc.any(pc.and_(columns[STILL], pc.not_equal(frames, 1))).as_py():
        return "an image is a sequence of more than one frame"
    starts, sizes = (columns[name].flatten().to_numpy() for name in ("frame_start", "frame_size"))
    if len(starts) and (starts.min() < 0 or starts.max() > 1 << 60 or sizes.min() < MISSING):
        return "a frame lies outside of its shard"
    if len(pc.unique(columns["sequence"])) < len(table):
        return "a sequence appears twice"
    paths = columns["shard"].unique().to_pylist()
    if any(not path.startswith(f"{FOLDER}/") or ".." in path.split("/") or "\0" in path for path in paths):
        return f"a shard lies outside of {FOLDER}"
    if mark.name in got10k.SETS and not mark.listed:
        return f"it does not say what {got10k.LIST} had"
    return find_fault_of_tiles(columns[HEAD].flatten(), columns[ROW_SIZES].flatten()) if mark.tiled else None


def find_fault_of_tiles(heads: pa.DictionaryArray, row_sizes: pa.LargeBinaryArray) -> str | None:
    """What is wrong with `head` and `row_sizes` of these frames, or None."""
    if heads.dictionary.null_count or heads.null_count or row_sizes.null_count:
        return "it has gaps"
    sizes = np.zeros(len(heads.dictionary), np.int64)
    for number, head in enumerate(heads.dictionary.to_pylist()):
        try:
            sizes[number] = 2 * parse_head(head).grid.rows if head else 0
        except NotTiled as reason:
            return f"a head is not that of a tiled JPEG: {reason}"
    if (pc.binary_length(row_sizes).to_numpy() != sizes[heads.indices.to_numpy()]).any():
        return f"{ROW_SIZES} and {HEAD} are of different numbers of rows"
    return None
