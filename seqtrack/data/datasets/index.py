"""The frame index: the annotations of every sequence as one Arrow table, for any data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqtrack.data.storage import Span

FRAME_NAMES = "frame_names"
MISSING = -1
"""`frame_size` of a frame that does not exist."""


def default_name(frame: int) -> str:
    """LaSOT's name for a frame (from 0)."""
    return f"{frame + 1:08d}.jpg"


@dataclass(frozen=True)
class FrameIndex:
    """Boxes and visibility of every frame of every sequence, as one Arrow table with a row per sequence.

    Columns: `class`, `sequence` (names), `boxes_xywh` (list of 4 × float32), `visible` (list of uint8: not fully
    occluded, not out of view, finite, width and height > 0). Where frames do not have LaSOT's names, there is also
    `frame_names` (list of strings, empty for a sequence whose frames have them). The index of a packed tree has three
    more (`packed.py`): `shard`, and `frame_start` and `frame_size` (lists of int64 and int32). Arrays below are views
    of the table, not copies.
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
        return np.array([len(self.visible_frames(row)) for row in range(len(self.names))])

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
        name = default_name(frame)
        if own is not None and own.offsets[row] != own.offsets[row + 1]:
            name = own.values[own.offsets[row].as_py() + frame].as_py()
        return f"{self.classes[row]}/{self.names[row]}/img/{name}"

    @property
    def packed(self) -> bool:
        return "shard" in self.table.column_names

    @cached_property
    def shards(self) -> list[str]:
        """Path of each sequence's shard below the root of a packed tree."""
        return self.table["shard"].to_pylist()

    def span(self, row: int, frame: int) -> Span | None:
        """Where a frame (from 0) is in a packed tree, or None if it was missing when the tree was packed."""
        place = self.offsets[row] + frame
        size = int(self._sizes[place])
        return Span(self.shards[row], int(self._starts[place]), size) if size != MISSING else None

    def end_in_shard(self, row: int) -> int:
        """First byte after the frames of a sequence in its shard."""
        part = slice(self.offsets[row], self.offsets[row + 1])
        return int((self._starts[part] + self._sizes[part]).max())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, boxes and visibility, and over the names of frames that are not LaSOT's.

        It does not depend on where the annotations are stored.
        """
        digest = hashlib.sha256("\n".join(self.names).encode())
        for array in (self.offsets, self._boxes, self._visible):
            digest.update(np.ascontiguousarray(array).data)
        if self._own_names is not None:
            digest.update("\n".join([*map(str, self._own_names.offsets), *map(str, self._own_names.values)]).encode())
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

    def __getstate__(self) -> dict[str, pa.Table]:
        return {"table": self.table}  # the receiving process makes the cached views again
