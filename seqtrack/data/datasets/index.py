"""The frame index: the annotations of every sequence as one Arrow table, for any data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqtrack.data.storage import Span

FRAME_NAMES = "frame_names"
FIRST_FRAME = "first_frame"
STILL = "still"
HEAD, ROW_SIZES = "head", "row_sizes"
NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)", re.DOTALL)
"""The name of a frame: what is before its number, the number, and the ending."""
MISSING = -1
"""`frame_size` of a frame that does not exist."""


def default_name(frame: int) -> str:
    """LaSOT's name for a frame (from 0)."""
    return f"{frame + 1:08d}.jpg"


def count_from(first: str) -> Callable[[int], str]:
    """Number of a frame (from 0) -> its name, where the first frame's is `first`. Paths are names too.

    Numbers are counted up, and zeros before them stay: `00000001.jpg`, `00000002.jpg` …, but `0.jpg` … `10.jpg`.
    """
    parts = NUMBERED.fullmatch(first)
    if parts is None:
        return lambda frame: first
    before, ending = parts[1], parts[3]
    number, digits = int(parts[2]), len(parts[2])
    return lambda frame: f"{before}{number + frame:0{digits}d}{ending}"


@dataclass(frozen=True)
class FrameIndex:
    """Boxes and visibility of every frame of every sequence, as one Arrow table with a row per sequence.

    Columns: `class`, `sequence` (names), `boxes_xywh` (list of 4 × float32), `visible` (list of uint8: not fully
    occluded, not out of view, finite, width and height > 0; each data set has its own rule).

    Other columns say where frames are. `first_frame` is the path of a sequence's first frame below the root; the others
    count up from it (`count_from`). Without this column, paths are those of LaSOT. Where frames of a sequence have
    other names, `frame_names` lists them (list of strings, empty for the other sequences). The index of a packed tree
    has three more (`packed.py`): `shard`, and `frame_start` and `frame_size` (lists of int64 and int32). If its frames
    are tiled, it also has `head` and `row_sizes` (lists of binary, both empty for a frame that could not be tiled):
    `heads.Head.content`, which is stored once where it is the same, and the bytes of each row of tiles as little-endian
    uint16.

    `still` (bool) marks the sequences of an image set: one frame, which gives templates and search region alike.
    Without this column there are none. Arrays below are views of the table, not copies.
    """

    table: pa.Table

    @cached_property
    def names(self) -> list[str]:
        return self.table["sequence"].to_pylist()

    @cached_property
    def classes(self) -> list[str]:
        return self.table["class"].to_pylist()

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """(S + 1,) first frame of each sequence in the concatenated frames."""
        return self.table["visible"].chunk(0).offsets.to_numpy()

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(S,) frames of each sequence."""
        return np.diff(self.offsets)

    @cached_property
    def visible_counts(self) -> NDArray[np.int64]:
        """(S,) visible frames of each sequence."""
        before = np.concatenate(([0], np.cumsum(self._visible != 0, dtype=np.int32)))
        return np.diff(before[self.offsets]).astype(np.int64)

    @cached_property
    def stills(self) -> NDArray[np.bool_]:
        """(S,) which sequences are one image, of which templates and search region are both cut."""
        if STILL not in self.table.column_names:
            return np.zeros(len(self.table), bool)
        return self.table[STILL].chunk(0).to_numpy(zero_copy_only=False)

    @property
    def num_frames(self) -> int:
        return int(self.offsets[-1])

    def boxes_xywh(self, row: int) -> NDArray[np.float32]:
        """(F, 4) boxes of a sequence in pixels."""
        return self._boxes[self.offsets[row] : self.offsets[row + 1]]

    def visible_frames(self, row: int) -> NDArray[np.int64]:
        """Frame numbers, from 0 and ascending, in which the target of a sequence is visible."""
        return np.flatnonzero(self._visible[self.offsets[row] : self.offsets[row + 1]])

    def frame_path(self, row: int, frame: int) -> str:
        """Path of a frame (from 0) below the root."""
        own = self._own_names
        if own is not None and own.offsets[row] != own.offsets[row + 1]:
            return f"{self._folder(row)}/{own.values[own.offsets[row].as_py() + frame].as_py()}"
        if self._first_frames is not None:
            first = self._first_frames[row].as_py()
            return count_from(first)(frame) if frame else str(first)
        return f"{self._folder(row)}/{default_name(frame)}"

    def _folder(self, row: int) -> str:
        """Path of the folder of a sequence's frames below the root."""
        if self._first_frames is None:
            return f"{self.classes[row]}/{self.names[row]}/img"
        return str(self._first_frames[row].as_py().rpartition("/")[0])

    @property
    def packed(self) -> bool:
        return "shard" in self.table.column_names

    @cached_property
    def shards(self) -> list[str]:
        """Path of each sequence's shard below the root of a packed tree."""
        paths = self.table["shard"].combine_chunks().dictionary_encode()
        names = paths.dictionary.to_pylist()  # a text for each shard, not for each of COCO's 860,001 objects
        return [names[number] for number in paths.indices.to_numpy().tolist()]

    def span(self, row: int, frame: int) -> Span | None:
        """Where a frame (from 0) is in a packed tree, or None if it was missing when the tree was packed."""
        place = self.offsets[row] + frame
        size = int(self._sizes[place])
        return Span(self.shards[row], int(self._starts[place]), size) if size != MISSING else None

    def tiles(self, row: int, frame: int) -> tuple[bytes, NDArray[np.uint16], int] | None:
        """What `tiles.TiledJpeg.of_sizes` needs for a frame (from 0) of a packed tree, or None if it is not tiled."""
        if HEAD not in self.table.column_names:
            return None
        place = self.offsets[row] + frame
        start, stop = self._row_size_offsets[place : place + 2].tolist()
        if start == stop:
            return None
        head = self._heads.dictionary[int(self._head_numbers[place])].as_py()
        return head, self._row_size_bytes[start:stop].view("<u2"), int(self._sizes[place])

    @property
    def ends_in_shard(self) -> NDArray[np.int64]:
        """(S,) first byte after the frames of each sequence in its shard."""
        ends = np.zeros(len(self.table), np.int64)
        some = self.lengths > 0
        if some.any():
            ends[some] = np.maximum.reduceat(self._starts + self._sizes, self.offsets[:-1][some])
        return ends

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, boxes and visibility, and over the names of frames that are not LaSOT's.

        It does not depend on where annotations and frames are stored, so the folders of frames are not part of it.
        """
        digest = hashlib.sha256("\n".join(self.names).encode())
        for array in (self.offsets, self._boxes, self._visible):
            digest.update(np.ascontiguousarray(array).data)
        if self._own_names is not None:
            digest.update("\n".join([*map(str, self._own_names.offsets), *map(str, self._own_names.values)]).encode())
        if self._first_frames is not None:
            digest.update("\n".join(path.rpartition("/")[2] for path in self._first_frames.to_pylist()).encode())
        return digest.hexdigest()

    @cached_property
    def description(self) -> dict[str, Any]:
        """Summary of the data for checkpoints: sequences and frames, in total and by class, and the fingerprint."""
        classes: dict[str, dict[str, int]] = {}
        for name, frames in zip(self.classes, self.lengths.tolist(), strict=True):
            sizes = classes.setdefault(name, {"sequences": 0, "frames": 0})
            sizes["sequences"] += 1
            sizes["frames"] += frames
        return {
            "sequences": len(self.names),
            "frames": self.num_frames,
            "classes": classes,
            "fingerprint": self.fingerprint,
        }

    @cached_property
    def _own_names(self) -> pa.LargeListArray | None:
        """Names of frames that are not LaSOT's, or None if there are none."""
        names = self.table[FRAME_NAMES].chunk(0) if FRAME_NAMES in self.table.column_names else None
        return names if names is not None and len(names.values) else None

    @cached_property
    def _first_frames(self) -> pa.StringArray | None:
        """Paths of first frames, or None where they are LaSOT's."""
        return self.table[FIRST_FRAME].chunk(0) if FIRST_FRAME in self.table.column_names else None

    @cached_property
    def _boxes(self) -> NDArray[np.float32]:
        return self.table["boxes_xywh"].chunk(0).values.flatten().to_numpy().reshape(-1, 4)

    @cached_property
    def _visible(self) -> NDArray[np.uint8]:
        return self.table["visible"].chunk(0).values.to_numpy()

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self.table["frame_start"].chunk(0).values.to_numpy()

    @cached_property
    def _sizes(self) -> NDArray[np.int32]:
        return self.table["frame_size"].chunk(0).values.to_numpy()

    @cached_property
    def _heads(self) -> pa.DictionaryArray:
        return self.table[HEAD].chunk(0).values

    @cached_property
    def _head_numbers(self) -> NDArray[np.int32]:
        return self._heads.indices.to_numpy()

    @cached_property
    def _row_size_offsets(self) -> NDArray[np.int64]:
        """(F + 1,) where the row sizes of each frame begin in `_row_size_bytes`."""
        sizes = self.table[ROW_SIZES].chunk(0).values
        return np.frombuffer(sizes.buffers()[1], np.int64)[sizes.offset : sizes.offset + len(sizes) + 1]

    @cached_property
    def _row_size_bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(self.table[ROW_SIZES].chunk(0).values.buffers()[2] or b"", np.uint8)

    def __getstate__(self) -> dict[str, pa.Table]:
        return {"table": self.table}  # the receiving process makes the cached views again


def make_index(
    classes: Sequence[str] | pa.Array,
    names: Sequence[str] | pa.Array,
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    visible: NDArray[np.uint8],
    **columns: pa.Array,
) -> FrameIndex:
    """The index of sequences whose frames are `offsets[i]` to `offsets[i + 1]` of `boxes` (F, 4) and `visible` (F,).

    `columns`: what else the table has.
    """
    lists = pa.FixedSizeListArray.from_arrays(boxes.reshape(-1), 4)
    return FrameIndex(
        pa.table(
            {
                "class": classes,
                "sequence": names,
                "boxes_xywh": pa.LargeListArray.from_arrays(offsets, lists),
                "visible": pa.LargeListArray.from_arrays(offsets, visible),
                **columns,
            }
        )
    )
