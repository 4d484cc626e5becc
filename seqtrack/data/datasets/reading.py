"""Reads the annotations of many sequences at once into arrays that grow in place, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from seqtrack.data.datasets.index import FIRST_FRAME, FrameIndex, make_index
from seqtrack.data.storage import READS_AT_ONCE

Item = TypeVar("Item")


class Annotation(NamedTuple):
    """What a sequence's files say."""

    boxes: NDArray[np.float32]
    """(F, 4) boxes xywh in pixels."""
    visible: NDArray[np.uint8]
    """(F,) 1 where the target can be seen, else 0."""
    object_class: str


class Annotations(NamedTuple):
    """The annotations of many sequences, one after another."""

    offsets: NDArray[np.int64]
    """(S + 1,) first frame of each sequence."""
    boxes: NDArray[np.float32]
    visible: NDArray[np.uint8]
    classes: list[str]

    def to_index(self, names: Sequence[str], first_frames: Sequence[str]) -> FrameIndex:
        """The index of sequences of these names, whose frames count up from the paths `first_frames`."""
        firsts = pa.array(first_frames, pa.string())
        return make_index(self.classes, names, self.offsets, self.boxes, self.visible, **{FIRST_FRAME: firsts})


def has_size(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(F,) whether a box has four finite numbers, and width and height above 0."""
    return np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def read_annotations(read: Callable[[Item], Annotation], sequences: Sequence[Item], title: str) -> Annotations:
    """What `read` gives for each sequence, many at a time, with a progress bar called `title`.

    Raises what `read` raises.
    """
    boxes, visible = bytearray(), bytearray()  # these grow without being copied; a list of arrays would need them twice
    lengths, classes = [0], []
    with (
        ThreadPoolExecutor(READS_AT_ONCE) as pool,
        tqdm(total=len(sequences), desc=f"Indexing {title}", unit="sequence") as progress,
    ):
        for annotation in pool.map(read, sequences):
            boxes += annotation.boxes.astype(np.float32).tobytes()
            visible += annotation.visible.astype(np.uint8).tobytes()
            lengths.append(len(annotation.visible))
            classes.append(annotation.object_class)
            progress.update()
    return Annotations(
        np.cumsum(lengths, dtype=np.int64),
        np.frombuffer(boxes, np.float32).reshape(-1, 4),
        np.frombuffer(visible, np.uint8),
        classes,
    )
