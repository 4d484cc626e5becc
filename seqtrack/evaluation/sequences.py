"""A sequence of a benchmark: its annotation, and where its frames are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.datasets.frames import Mismatch, by_number, list_pictures
from seqtrack.data.datasets.index import default_name
from seqtrack.data.storage import Root, Span
from seqtrack.evaluation.protocols import Truth


class Incomplete(Exception):
    """A sequence that cannot be tracked. The message says what it lacks."""


class Frames(Protocol):
    """The frames of a sequence, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, frame: int) -> str | Span:
        """The path of a frame (from 0) below the root, or where it is in a packed tree."""


@dataclass(frozen=True)
class FrameFiles:
    """Frames that are files in one folder."""

    folder: str
    """Path of the folder below the root."""
    count: int
    names: tuple[str, ...] | None
    """Names of the files; None where they are LaSOT's."""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, frame: int) -> str:
        return f"{self.folder}/{default_name(frame) if self.names is None else self.names[frame]}"


@dataclass(frozen=True)
class PackedFrames:
    """Frames that are parts of one file."""

    shard: str
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, frame: int) -> Span:
        return Span(self.shard, int(self.starts[frame]), int(self.sizes[frame]))


@dataclass(frozen=True)
class BenchmarkSequence:
    """A sequence of a benchmark."""

    name: str
    """The name that result files have."""
    truth: Truth
    frames: Frames | None = None
    """The places of the frames; None if they were not asked for."""
    withheld: bool = False
    """Whether only the first box is public, as in test sets that a server scores."""
    object_class: str | None = None
    attributes: tuple[str, ...] = ()
    also_called: tuple[str, ...] = ()
    """What other tools call its result files."""
    notes: tuple[str, ...] = ()
    """What was missing beside it, in words that fit several sequences."""

    def __len__(self) -> int:
        return len(self.truth.absent) if self.frames is None else len(self.frames)


def sorted_pictures(root: Root, folder: str) -> list[str]:
    """Sorted names. Raises Incomplete if there are none."""
    pictures = list_pictures(root, folder)
    if not pictures:
        raise Incomplete(f"there is no folder {folder}" if pictures is None else f"{folder} holds no frames")
    return pictures


def numbered_frames(root: Root, folder: str, count: int | None, first: int = 1) -> FrameFiles:
    """The frames with the numbers from `first` on: `count`, or all. Raises Incomplete if one is missing."""
    pictures = sorted_pictures(root, folder)
    try:
        numbered = by_number(pictures)
    except Mismatch as mismatch:
        raise Incomplete(f"{folder}: {mismatch}") from None
    wanted = range(first, first + (len(numbered) if count is None else count))
    missing = [number for number in wanted if number not in numbered]
    if missing:
        have = f"{len(numbered)} frames, numbered {min(numbered)} to {max(numbered)}"
        raise Incomplete(f"{folder} has {have}; {len(missing)} are missing, the first: number {missing[0]}")
    return FrameFiles(folder, len(wanted), _unless_default([numbered[number] for number in wanted]))


def _unless_default(names: Sequence[str]) -> tuple[str, ...] | None:
    return None if all(name == default_name(frame) for frame, name in enumerate(names)) else tuple(names)
