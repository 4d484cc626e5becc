"""Compares what was packed earlier with what the tree has now, so that no packed tree has old and new frames."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from seqtrack.data.datasets.index import MISSING, FrameIndex
from seqtrack.data.shards import PackedShard
from seqtrack.data.stamp import FrameStamp, draw_frames, hash_picture, read_frame
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, Span, SpanReader, first_of

COMPARED = 200
"""Frames of a shard that are drawn and compared."""
START_ANEW = "another folder keeps both, and without its index.parquet and frames/ this one is packed anew"


def compare_kept(
    index: FrameIndex, tree: Root, target: Root, path: str, rows: Sequence[int], shard: PackedShard
) -> None:
    """Raises DataError if drawn frames of a shard that an earlier start wrote are not those that the tree has now."""
    ends = np.cumsum(index.lengths[list(rows)])
    places = draw_frames(index.fingerprint + path, int(ends[-1]), COMPARED)
    spans = SpanReader(target)

    def differs(place: int) -> str | None:
        number = int(ends.searchsorted(place, side="right"))
        frame = index.frame_path(rows[number], place - int(ends[number] - index.lengths[rows[number]]))
        size = int(shard.sizes[place])
        kept = None if size == MISSING else Span(path, int(shard.starts[place]), size)
        ours, theirs = read_frame(tree, spans, frame), read_frame(target, spans, kept)
        if ours is None or theirs is None or shard.tiles is None or not len(shard.tiles.row_sizes[place].as_py()):
            return None if ours == theirs else frame
        return None if hash_picture(ours) == hash_picture(theirs) else frame

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        others = list(filter(None, pool.map(differs, places)))
    if others:
        raise DataError(
            f"{target.path}/{path}: {len(others)} of {len(places)} drawn frames are not those that {tree.path} has "
            f"now, {first_of(others)}; frames were replaced since it was packed: {START_ANEW}"
        )


def check_frames(tree: Root, target: Root, frames: FrameStamp, packed: Any) -> None:
    """Raises DataError if a packed tree has other frames than its tree has now. `packed`: its stamp, as JSON."""
    if (difference := frames.difference(packed)) is not None:
        raise DataError(
            f"{target.path}: holds other frames than {tree.path} has now: {difference}; frames were replaced since it "
            f"was packed: {START_ANEW}"
        )
