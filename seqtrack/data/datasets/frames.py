"""Finds the frames of each sequence: looks into its folder once, without opening a file, and compares with the boxes.

LaSOT's own frames are `img/00000001.jpg …`. People have others: six digits, `.JPG`, `.png`, numbered from 0. Names of
the same numbering are taken as they are, and kept in the index.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa

from seqtrack.data.datasets.index import FRAME_NAMES, FrameIndex, default_name
from seqtrack.data.storage import READS_AT_ONCE, DataError, NoSuchFolder, Root, first_of, list_folder

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Endings of the names of frames, in lower case."""
_NUMBERED = re.compile(r"(.*?)(\d+)(\.\w+)", re.DOTALL)

OnMismatch = Literal["error", "drop", "redraw"]


class Mismatch(Exception):
    """A sequence whose frames do not fit its boxes. The message says how."""


def match_frames(index: FrameIndex, root: Root, on_mismatch: OnMismatch, note: Callable[[str], None]) -> FrameIndex:
    """The index of a tree with the names of the frames that are there.

    `on_mismatch`: what happens to sequences whose frames do not fit their boxes. `error`: DataError names them. `drop`:
    they are left out. `redraw`: they stay, frames without a box are not used, and a sample that would show a missing
    frame is drawn again. `note` gets a line for the log. Raises DataError where a sequence has no frames at all.
    """
    folders = [Path(index.frame_path(row, 0)).parent.as_posix() for row in range(len(index.names))]
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        listed = list(pool.map(partial(list_pictures, root), folders))
    names: list[list[str] | None] = []
    fitting: list[int] = []
    faults: list[str] = []
    for row, pictures in enumerate(listed):
        boxes = int(index.lengths[row])
        try:
            if pictures is None:
                raise Mismatch(f"there is no folder {folders[row]}")
            names.append(frame_names(pictures, boxes, complete=on_mismatch != "redraw" or not pictures))
            fitting.append(row)
        except Mismatch as mismatch:
            names.append(None)
            faults.append(f"{index.names[row]}: {mismatch}")
    if faults:
        what = f"{root.path}: {len(faults)} of {len(listed)} sequences have frames that do not fit their boxes"
        if on_mismatch != "drop" or not fitting:
            others = "" if on_mismatch == "redraw" else ", =redraw draws a sample again that would show a missing frame"
            raise DataError(f"{what}, {first_of(faults)} (DATA.ON_MISMATCH=drop leaves these sequences out{others})")
        note(f"{what} and are left out (DATA.ON_MISMATCH drop), {first_of(faults)}")
    if len(fitting) == len(names) and not any(names):
        return index
    table = index.table
    if any(names):
        column = pa.array([[] if chosen is None else chosen for chosen in names], pa.large_list(pa.string()))
        table = table.append_column(FRAME_NAMES, column)
    return FrameIndex(table.take(fitting).combine_chunks())


def list_pictures(root: Root, folder: str) -> list[str] | None:
    """Names of the pictures in a folder below the root; None if there is no such folder. Raises DataError."""
    try:
        entries = list_folder(root, f"{root.path}/{folder}")
    except NoSuchFolder:
        return None
    return [entry.name for entry in entries if entry.kind == "file" and entry.name.lower().endswith(PICTURES)]


def frame_names(pictures: Sequence[str], boxes: int, complete: bool = True) -> list[str] | None:
    """The frames of a sequence in the order of its boxes, or None if they have LaSOT's own names.

    `pictures`: names in no particular order. Unless `complete`, frames may be missing (LaSOT's name then stands for
    one) or too many. Raises Mismatch.
    """
    numbered = by_number(pictures)
    if not numbered:
        raise Mismatch(f"no frames, and {boxes} boxes")
    first = 0 if 0 in numbered else 1
    lasots = all(name == default_name(number - 1) for number, name in numbered.items())
    if not complete and not lasots and (0 in numbered) == (boxes in numbered):
        raise Mismatch(f"{len(numbered)} frames and {boxes} boxes, and whether numbers begin at 0 or 1 cannot be told")
    wanted = range(first, first + boxes)
    if complete and numbered.keys() != set(wanted):
        missing = next((number for number in wanted if number not in numbered), None)
        gap = "" if missing is None else f"; the first missing is number {missing}"
        raise Mismatch(f"{len(numbered)} frames, numbered {min(numbered)} to {max(numbered)}, and {boxes} boxes{gap}")
    names = [numbered.get(number, default_name(frame)) for frame, number in enumerate(wanted)]
    return None if names == [default_name(frame) for frame in range(boxes)] else names


def by_number(pictures: Sequence[str]) -> dict[int, str]:
    """Names of frames by the number in them, however it is padded. Raises Mismatch."""
    numbered: dict[int, str] = {}
    prefixes: set[str] = set()
    for name in pictures:
        parts = _NUMBERED.fullmatch(name)
        if parts is None:
            raise Mismatch(f"{name} has no number")
        number = int(parts[2])
        if number in numbered:
            raise Mismatch(f"{' and '.join(sorted((name, numbered[number])))} have the same number")
        numbered[number] = name
        prefixes.add(parts[1])
    if len(prefixes) > 1:
        one, other, *_ = sorted(prefixes)
        raise Mismatch(f"frames of two kinds, {one!r} and {other!r} before the number")
    return numbered
