"""The TrackingNet reader: the training chunks `root/TRAIN_0/` … `root/TRAIN_11/`.

A chunk has `anno/<sequence>.txt` (x,y,w,h a line) and `frames/<sequence>/0.jpg …`. The target counts as visible where
its box has a size. The files do not say what the targets are, so all are of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from pyarrow import fs

from seqtrack.data.datasets.annotations import parse_boxes
from seqtrack.data.datasets.cache import kept_index, stamps
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.datasets.lasot import read_annotation
from seqtrack.data.datasets.layout import IncompleteSet, explain_place, folders, packed_archives
from seqtrack.data.datasets.reading import Annotation, has_size, read_annotations
from seqtrack.data.storage import DataError, NoSuchFolder, Root, file_infos, is_folder, list_folder

SET = "TRACKINGNET"
CHUNKS = tuple(f"TRAIN_{number}" for number in range(12))
SEQUENCES = 2511
"""Sequences of a complete chunk."""
CLASS = "unknown"


def open_index(
    root: Root,
    note: Callable[[str], None] = lambda line: None,
    setting: str = "DATA.ROOT",
    partial_set: bool = False,
) -> FrameIndex:
    """The annotations of all chunks, from the cache or from their files. Single frames are not looked for.

    `setting` names the root in messages. `partial_set`: whether chunks and sequences may be missing; `note` then gets a
    line that says which. Sequences are sorted by chunk and name. Raises DataError at the first fault, and IncompleteSet
    for what may not be missing.
    """
    files = {chunk: _annotation_files(root, chunk) for chunk in CHUNKS}
    if not any(files.values()):
        raise DataError(f"{root.path}: no chunk (expected TRAIN_0/anno/<sequence>.txt){_explain(root, setting)}")
    if lacking := explain_lacking({chunk: len(found) for chunk, found in files.items()}):
        if not partial_set:
            raise IncompleteSet(f"{root.path}: {lacking}{explain_place(root)}")
        note(f"{root.path}: {lacking}")
    for chunk in CHUNKS:
        if files[chunk]:
            _check_frames(root, chunk)
    paths = [path for found in files.values() for path in found]
    return kept_index(SET, root, partial(stamps, root, paths), partial(_build, root, paths), note)


def explain_lacking(found: Mapping[str, int]) -> str:
    """What is missing of the set, or an empty string. `found`: chunk -> number of its sequences."""
    missing = [chunk for chunk in CHUNKS if not found.get(chunk)]
    short = [f"{chunk} ({found[chunk]:,} of {SEQUENCES:,})" for chunk in CHUNKS if 0 < found.get(chunk, 0) < SEQUENCES]
    lacks = [f"{len(missing)} of {len(CHUNKS)} chunks are missing: {', '.join(missing)}"] if missing else []
    lacks += [f"{len(short)} chunks lack sequences: {', '.join(short)}"] if short else []
    return "; ".join(lacks)


def _annotation_files(root: Root, chunk: str) -> list[str]:
    """Paths of a chunk's annotations below the root, sorted; none if it is not there."""
    try:
        entries = list_folder(root, f"{root.path}/{chunk}/anno")
    except NoSuchFolder:
        return []
    return [f"{chunk}/anno/{entry.name}" for entry in entries if entry.kind == "file" and entry.name.endswith(".txt")]


def _check_frames(root: Root, chunk: str) -> None:
    """Raises DataError if a chunk has annotations and no folder of frames: they come as one zip a sequence."""
    path = f"{root.path}/{chunk}"
    if is_folder(root, f"{chunk}/frames"):
        return
    hints = []
    for name, _ in (("", ""), *folders(root, path)):
        place = f"{path}/{name}".rstrip("/")
        hints += [f"{place}: {line}" for line in packed_archives(Root(root.filesystem, place))]
    raise DataError(
        f"{path}: has annotations and no folder frames (expected frames/<sequence>/0.jpg)"
        + "".join(f"; {hint}" for hint in hints)
    )


def _build(root: Root, paths: list[str]) -> FrameIndex:
    annotations = read_annotations(partial(_read_sequence, root), paths, SET)
    chunks, names = zip(*((path.partition("/")[0], _name(path)) for path in paths), strict=True)
    firsts = [f"{chunk}/frames/{name}/0.jpg" for chunk, name in zip(chunks, names, strict=True)]
    return annotations.to_index(names, firsts)


def _read_sequence(root: Root, path: str) -> Annotation:
    boxes = read_annotation(root, path, parse_boxes)
    return Annotation(boxes, has_size(boxes).astype(np.uint8), CLASS)


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".txt")


def _explain(root: Root, setting: str) -> str:
    def fits(path: str) -> bool:
        infos = file_infos(Root(root.filesystem, path), [f"{chunk}/anno" for chunk in CHUNKS])
        return any(info.type == fs.FileType.Directory for info in infos)

    doubled = [f"{chunk}/{chunk}" for chunk in CHUNKS if fits(f"{root.path}/{chunk}")]
    if doubled:
        return f"; {len(doubled)} chunks hold another folder of their name, such as {doubled[0]}; move what is in it up"
    return explain_place(root, setting, fits)
