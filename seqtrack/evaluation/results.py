"""Result files in the text format that all trackers share.

`<sequence>.txt` has a box x, y, w, h a line, separated by tabs or commas; the first line is the given box.
`<sequence>_time.txt` has the seconds of each frame. GOT-10k's toolkit has them in `<sequence>/<sequence>_001.txt` and
`<sequence>/<sequence>_time.txt`. Published files are often cut to whole pixels, which costs up to two points of AUC
where targets are small; so ours have four decimals, unless whole pixels are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from pyarrow import fs

from seqtrack.data.datasets.annotations import FaultyText, parse_numbers
from seqtrack.data.datasets.layout import nearest, packed_archives
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, first_of, is_file, list_folder, open_root, read_bytes
from seqtrack.evaluation.curves import Floats
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.failures import explain
from seqtrack.files import write_atomically


@dataclass(frozen=True)
class Track:
    """What a tracker found in a sequence of F frames."""

    boxes_xywh: Floats
    """(F, 4) in pixels."""
    seconds: Floats | None = None
    """(F,) what each frame took, if that is known."""


@dataclass(frozen=True)
class Results:
    """What is in a folder of result files."""

    place: str
    tracks: dict[str, Track]
    """Tracks by the name of the sequence, in the benchmark's order."""
    missing: tuple[str, ...]
    """Sequences without a file."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""

    @cached_property
    def integers(self) -> bool:
        """Whether all boxes are in whole pixels."""
        return all((track.boxes_xywh == np.round(track.boxes_xywh)).all() for track in self.tracks.values())


def read_results(location: str, sequences: Sequence[BenchmarkSequence]) -> Results:
    """The result files of these sequences in a folder or at a URI.

    Raises DataError, which names file and line, for a file that is wrong, and if there is no file for any sequence.
    """
    root = open_root(location, "results")
    try:
        return _read_all(root, sequences)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{root.path}: cannot be read ({explain(error)})") from error


def _read_all(root: Root, sequences: Sequence[BenchmarkSequence]) -> Results:
    there = {entry.name: entry.kind for entry in list_folder(root, root.path)}
    paths = {one.name: path for one in sequences if (path := _find(root, there, one)) is not None}
    if not paths:
        raise DataError(_nothing_there(root, sequences))
    lengths = {one.name: len(one) for one in sequences}
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = dict(
            zip(paths, pool.map(lambda name: read_track(root, paths[name], lengths[name]), paths), strict=True)
        )
    notes = []
    if longer := [f"{name} ({more} boxes)" for name, (_, more) in found.items() if more]:
        notes.append(f"{root.path}: {len(longer)} files have more boxes than frames and are cut, {first_of(longer)}")
    used = {path.partition("/")[0] for path in paths.values()}
    others = [name for name in there if name.endswith(".txt") and not name.endswith("_time.txt") and name not in used]
    if others:
        notes.append(f"{root.path}: {len(others)} files belong to none of the sequences, {first_of(others)}")
    missing = tuple(one.name for one in sequences if one.name not in paths)
    return Results(root.path, {name: track for name, (track, _) in found.items()}, missing, tuple(notes))


def read_track(root: Root, path: str, frames: int) -> tuple[Track, int]:
    """The boxes in a file below the root, and its times if they are beside it. Second: how many boxes are too many.

    Raises DataError.
    """
    boxes = _read(root, path)
    try:
        track, surplus = parse_track(boxes, frames)
    except FaultyText as fault:
        raise DataError(f"{root.path}/{path}: {fault}") from fault
    beside = f"{path.removesuffix('.txt').removesuffix('_001')}_time.txt"
    if not is_file(root, beside):
        return Track(track), surplus
    try:
        return Track(track, parse_times(_read(root, beside), frames, surplus)), surplus
    except FaultyText as fault:
        raise DataError(f"{root.path}/{beside}: {fault}") from fault


def parse_track(data: bytes, frames: int) -> tuple[Floats, int]:
    """(F, 4) boxes of a result file, and how many more it has. Raises FaultyText."""
    boxes, first_line = parse_numbers(data, columns=4)
    if len(unknown := np.flatnonzero(np.isnan(boxes).any(1))):
        raise FaultyText(f"line {first_line + int(unknown[0])}: NaN is no box; a tracker gives one for each frame")
    if len(negative := np.flatnonzero((boxes[:, 2:] < 0).any(1))):
        w, h = boxes[negative[0], 2:].tolist()
        raise FaultyText(f"line {first_line + int(negative[0])}: a box of {w:g} × {h:g} pixels")
    if len(boxes) < frames:
        raise FaultyText(f"has {len(boxes)} boxes, and the sequence has {frames} frames")
    return boxes[:frames], len(boxes) - frames


def parse_times(data: bytes, frames: int, surplus: int = 0) -> Floats:
    """(F,) seconds of each frame. Of several columns, which are repetitions, the first counts. Raises FaultyText."""
    numbers, first_line = parse_numbers(data, columns=None)
    seconds = numbers[:, 0] if len(numbers) > 1 else numbers.reshape(-1)
    if len(wrong := np.flatnonzero(~(seconds >= 0))):
        raise FaultyText(f"line {first_line + int(wrong[0])}: {seconds[wrong[0]]:g} is no time in seconds")
    if len(seconds) not in (frames, frames + surplus):
        raise FaultyText(f"has {len(seconds)} times, and the sequence has {frames} frames")
    return seconds[:frames]


def write_track(filesystem: fs.FileSystem, folder: str, name: str, track: Track, integers: bool = False) -> None:
    """Writes a sequence's files. The one with the boxes comes last and in one step: where it is, the sequence is done.

    `integers`: cut to whole pixels, as published files are. Raises OSError.
    """
    filesystem.create_dir(folder, recursive=True)
    if track.seconds is not None:
        write_atomically(filesystem, f"{folder}/{name}_time.txt", "".join(map(time_line, track.seconds.tolist())))
    lines = (box_line(box, integers) for box in track.boxes_xywh.tolist())
    write_atomically(filesystem, f"{folder}/{name}.txt", "".join(lines))


def box_line(box_xywh: Iterable[float], integers: bool = False) -> str:
    """A line of a result file. Boxes have four decimals, or are cut to whole pixels."""
    return "\t".join(str(int(value)) if integers else f"{value:.4f}" for value in box_xywh) + "\n"


def time_line(seconds: float) -> str:
    return f"{seconds:.6f}\n"


def frames_per_second(tracks: Iterable[Track]) -> float | None:
    """Over all frames whose time is known. The first ones, which are given, do not count."""
    seconds = [track.seconds[1:] for track in tracks if track.seconds is not None]
    total = sum(float(one.sum()) for one in seconds)
    return sum(map(len, seconds)) / total if total > 0 else None


def _find(root: Root, there: Mapping[str, str], sequence: BenchmarkSequence) -> str | None:
    """Path of a sequence's file below the root."""
    for name in (sequence.name, *sequence.also_called):
        if there.get(f"{name}.txt") == "file":
            return f"{name}.txt"
        nested = f"{name}/{name}_001.txt"
        if there.get(name) == "folder" and is_file(root, nested):
            return nested
    return None


def _read(root: Root, path: str) -> bytes:
    try:
        return read_bytes(root, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{root.path}/{path}: cannot be read ({explain(error)})") from error


def _nothing_there(root: Root, sequences: Sequence[BenchmarkSequence]) -> str:
    def fits(path: str) -> bool:
        place = Root(root.filesystem, path)
        try:
            there = {entry.name: entry.kind for entry in list_folder(place, path)}
            return any(_find(place, there, one) is not None for one in sequences)
        except (DataError, OSError):  # what is being looked for is only a hint
            return False

    names = [entry.name for entry in list_folder(root, root.path)]
    found = f"found {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "the folder is empty"
    hints = packed_archives(root)
    if (fitting := nearest(root, fits)) is not None:
        hints.append(f"{fitting} would fit")
    example = sequences[0].name
    expected = f"expected files such as {example}.txt or {example}/{example}_001.txt"
    return "; ".join([f"{root.path}: no results of these {len(sequences)} sequences; {expected}", found, *hints])
