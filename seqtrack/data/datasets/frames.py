"""Finds the frames of each sequence: looks into its folder once, without opening a file, and compares with the boxes.

LaSOT's own frames are `img/00000001.jpg …`. People have others: six digits, `.JPG`, `.png`, numbered from 0. Names of
the same numbering are taken as they are, and kept in the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

import pyarrow as pa
from pyarrow import fs

from seqtrack.data.datasets.index import FIRST_FRAME, FRAME_NAMES, NUMBERED, FrameIndex, count_from, default_name
from seqtrack.data.storage import READS_AT_ONCE, DataError, NoSuchFolder, Root, file_infos, first_of, list_folder

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""Endings of the names of frames, in lower case."""

OnMismatch = Literal["error", "drop", "redraw"]


class Mismatch(Exception):
    """A sequence whose frames do not fit its boxes. The message says how."""


def match_frames(index: FrameIndex, root: Root, on_mismatch: OnMismatch, note: Callable[[str], None]) -> FrameIndex:
    """The index of a tree with the names of the frames that are there.

    `on_mismatch`: what happens to sequences whose frames do not fit their boxes. `error`: DataError names them. `drop`:
    they are left out. `redraw`: they stay, frames without a box are not used, and a sample that would show a missing
    frame is drawn again. `note` gets a line for the log. Raises DataError where a sequence has no frames at all.
    """
    match = partial(_match_sequence, index, root, on_mismatch != "redraw")
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        matched = list(pool.map(match, range(len(index.names))))
    names = [None if isinstance(found, Mismatch) else found for found in matched]
    fitting = [row for row, found in enumerate(matched) if not isinstance(found, Mismatch)]
    faults = [f"{index.names[row]}: {found}" for row, found in enumerate(matched) if isinstance(found, Mismatch)]
    if faults:
        what = f"{root.path}: {len(faults)} of {len(matched)} sequences have frames that do not fit their boxes"
        if on_mismatch != "drop" or not fitting:
            others = "" if on_mismatch == "redraw" else ", =redraw draws a sample again that would show a missing frame"
            raise DataError(f"{what}, {first_of(faults)} (DATA.ON_MISMATCH=drop leaves these sequences out{others})")
        note(f"{what} and are left out (DATA.ON_MISMATCH drop), {first_of(faults)}")
    if len(fitting) == len(names) and not any(names):
        return index
    table = index.table
    if FIRST_FRAME in table.column_names:
        table, names = _renumbered(table, names)
    if any(names):
        column = pa.array([[] if chosen is None else chosen for chosen in names], pa.large_list(pa.string()))
        table = table.append_column(FRAME_NAMES, column)
    return FrameIndex(table.take(fitting).combine_chunks())


def _match_sequence(index: FrameIndex, root: Root, complete: bool, row: int) -> list[str] | Mismatch | None:
    """`frame_names` of a sequence, or why its frames do not fit.

    On a disk, a sequence whose first and last frames have the names that the index says is taken for complete, unless
    it is LaSOT's: TrackingNet has 14 million frames.
    """
    boxes = int(index.lengths[row])
    first = index.frame_path(row, 0)
    ends = [first, index.frame_path(row, boxes - 1)]
    if FIRST_FRAME in index.table.column_names and root.local:
        found = file_infos(root, ends)
        if all(info.type == fs.FileType.File for info in found):
            return None
    folder, _, first_name = first.rpartition("/")
    pictures = list_pictures(root, folder)
    try:
        if pictures is None:
            raise Mismatch(f"there is no folder {folder}")
        return frame_names(pictures, boxes, complete or not pictures, first_name)
    except Mismatch as mismatch:
        return mismatch


def _renumbered(table: pa.Table, names: list[list[str] | None]) -> tuple[pa.Table, list[list[str] | None]]:
    """The table with the first frames that other names count up from, and the names that remain to be listed."""
    firsts, remaining = table[FIRST_FRAME].to_pylist(), list(names)
    for row, own in enumerate(names):
        if own is not None and own == list(map(count_from(own[0]), range(len(own)))):
            firsts[row] = f"{firsts[row].rpartition('/')[0]}/{own[0]}"
            remaining[row] = None
    place = table.schema.get_field_index(FIRST_FRAME)
    return table.set_column(place, FIRST_FRAME, pa.array(firsts, pa.string())), remaining


def list_pictures(root: Root, folder: str) -> list[str] | None:
    """Names of the pictures in a folder below the root; None if there is no such folder. Raises DataError."""
    try:
        entries = list_folder(root, f"{root.path}/{folder}")
    except NoSuchFolder:
        return None
    return [entry.name for entry in entries if entry.kind == "file" and entry.name.lower().endswith(PICTURES)]


def frame_names(
    pictures: Sequence[str], boxes: int, complete: bool = True, first_name: str = default_name(0)
) -> list[str] | None:
    """The frames of a sequence in the order of its boxes, or None if they have the data set's own names.

    `pictures`: names in no particular order. `first_name`: the data set's name for a first frame. Unless `complete`,
    frames may be missing (the data set's name then stands for one) or too many. Raises Mismatch.
    """
    numbered = by_number(pictures)
    if not numbered:
        raise Mismatch(f"no frames, and {boxes} boxes")
    parts = NUMBERED.fullmatch(first_name)
    usual_first = int(parts[2]) if parts is not None else 1
    usual_name = count_from(first_name)
    usual = all(name == usual_name(number - usual_first) for number, name in numbered.items())
    first = 0 if 0 in numbered or (usual and usual_first == 0) else 1
    if not complete and not usual and (0 in numbered) == (boxes in numbered):
        raise Mismatch(f"{len(numbered)} frames and {boxes} boxes, and whether numbers begin at 0 or 1 cannot be told")
    wanted = range(first, first + boxes)
    if complete and numbered.keys() != set(wanted):
        missing = next((number for number in wanted if number not in numbered), None)
        gap = "" if missing is None else f"; the first missing is number {missing}"
        raise Mismatch(f"{len(numbered)} frames, numbered {min(numbered)} to {max(numbered)}, and {boxes} boxes{gap}")
    names = [numbered.get(number) or usual_name(frame) for frame, number in enumerate(wanted)]
    return None if names == [usual_name(frame) for frame in range(boxes)] else names


def by_number(pictures: Sequence[str]) -> dict[int, str]:
    """Names of frames by the number in them, however it is padded. Raises Mismatch."""
    numbered: dict[int, str] = {}
    prefixes: set[str] = set()
    for name in pictures:
        parts = NUMBERED.fullmatch(name)
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
