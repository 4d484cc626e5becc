"""The COCO 2017 reader: every annotated object of the training images is a sequence of one frame.

The tree is `root/annotations/instances_train2017.json` and `root/images/train2017/` (or `root/train2017/`). Crowds are
left out. Boxes are x, y, w, h in pixels. An object counts as visible if its box has a size; the others stay in the
index, because as published they are drawn and the sample is drawn again. The published reader also marks boxes of at
most 50 pixels a side, but its sampler does not look at the mark of an image set, so these are trained on, here too.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from seqtrack.data.datasets.annotations import FaultyText
from seqtrack.data.datasets.cache import kept_index, stamps
from seqtrack.data.datasets.frames import OnMismatch
from seqtrack.data.datasets.index import FIRST_FRAME, STILL, FrameIndex, make_index
from seqtrack.data.datasets.json_stream import read_arrays
from seqtrack.data.datasets.layout import explain_place, explain_sequence
from seqtrack.data.datasets.reading import has_size
from seqtrack.data.storage import (
    DataError,
    Root,
    Span,
    SpanReader,
    file_infos,
    first_of,
    is_file,
    is_folder,
    list_folder,
)

SET = "COCO17"
ANNOTATIONS = "annotations/instances_train2017.json"
FOLDERS = ("images/train2017", "train2017")
"""Where images may be, below the root."""
PART_BYTES = 4 << 20


def open_index(root: Root, note: Callable[[str], None] = lambda line: None, setting: str = "DATA.ROOT") -> FrameIndex:
    """The annotations, from the cache or from the JSON file. Images are not looked for, except for their folder.

    Sequences are named after the annotations' ids and are in the order of the file. `setting` names the root in
    messages. Raises DataError.
    """
    if not is_file(root, ANNOTATIONS):
        raise DataError(f"{root.path}/{ANNOTATIONS}: no such file{_explain(root, setting)}")
    there = [name for name in FOLDERS if is_folder(root, name)]
    if not there:
        raise DataError(f"{root.path}: no folder {' or '.join(FOLDERS)} with the images{_explain(root, setting)}")

    def made_from() -> Iterator[str]:
        yield from (there[0], *stamps(root, [ANNOTATIONS]))

    return kept_index(SET, root, made_from, partial(_build, root, there[0]), note)


def match_images(index: FrameIndex, root: Root, on_mismatch: OnMismatch, note: Callable[[str], None]) -> FrameIndex:
    """The index without the objects whose images are missing, which are named. `frames.match_frames` of an image set.

    `on_mismatch`: `error`: DataError if an image is missing. `drop`: its objects are left out. `redraw`: they stay, and
    a sample that would show one is drawn again. `note` gets a line for the log. Raises DataError.
    """
    paths = index.table[FIRST_FRAME].chunk(0)
    folder = index.frame_path(0, 0).rpartition("/")[0]
    there = pa.array([f"{folder}/{entry.name}" for entry in list_folder(root, f"{root.path}/{folder}")], pa.string())
    found = pc.is_in(paths, value_set=there)
    missing = paths.filter(pc.invert(found)).unique().to_pylist()
    if not missing:
        return index
    names = [path.rpartition("/")[2] for path in missing]
    what = f"{root.path}/{folder}: {len(missing):,} of {len(paths.unique()):,} images are missing, {first_of(names)}"
    if on_mismatch == "redraw":
        note(f"{what}; samples that would show them are drawn again (DATA.ON_MISMATCH redraw)")
        return index
    if on_mismatch == "error" or not found.true_count:
        hint = explain_sequence(root, folder) if len(there) else "; the folder is empty"
        raise DataError(
            f"{what}{hint} (DATA.ON_MISMATCH=drop leaves their objects out, =redraw draws a sample again that would "
            "show one)"
        )
    note(f"{what}; their objects are left out (DATA.ON_MISMATCH drop)")
    return FrameIndex(index.table.filter(found).combine_chunks())


class _Objects:
    """What is kept of the file while it is read: numbers in arrays, not in Python objects."""

    def __init__(self) -> None:
        self.categories: dict[int, str] = {}
        self.files: dict[int, str] = {}
        self.ids, self.images, self.kinds = array("q"), array("q"), array("q")
        self.boxes = array("d")

    def take_category(self, entry: Any) -> None:
        self.categories[_integer(entry, "id")] = _text(entry, "name")

    def take_image(self, entry: Any) -> None:
        name = _text(entry, "file_name")
        if "/" in name or "\\" in name or name.startswith("."):
            raise FaultyText(f"file_name {name[:60]!r} is not the name of a file")
        self.files[_integer(entry, "id")] = name

    def take_annotation(self, entry: Any) -> None:
        if _integer(entry, "iscrowd") != 0:
            return
        box = _member(entry, "bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
            raise FaultyText("bbox is not a list of four numbers")
        try:
            self.boxes.extend(box)
        except OverflowError:
            raise FaultyText("bbox has a number that is too large") from None
        self.ids.append(_integer(entry, "id"))
        self.images.append(_integer(entry, "image_id"))
        self.kinds.append(_integer(entry, "category_id"))


def _build(root: Root, folder: str) -> FrameIndex:
    objects = _Objects()
    takers = {
        "images": objects.take_image,
        "annotations": objects.take_annotation,
        "categories": objects.take_category,
    }
    path = f"{root.path}/{ANNOTATIONS}"
    try:
        found = read_arrays(_parts(root), takers)
        if lacking := [key for key in takers if key not in found]:
            raise FaultyText(f"has no {', '.join(lacking)}; COCO's instances_train2017.json has")
        return _index(objects, folder)
    except FaultyText as fault:
        raise DataError(f"{path}: {fault}") from fault


def _parts(root: Root) -> Iterator[bytes]:
    """The bytes of the file of annotations, in parts, with a progress bar. Raises DataError."""
    reader = SpanReader(root)
    size = file_infos(root, [ANNOTATIONS])[0].size
    with tqdm(total=size, desc=f"Indexing {SET}", unit="B", unit_scale=True) as progress:
        for start in range(0, size, PART_BYTES):
            part = reader.read(Span(ANNOTATIONS, start, min(PART_BYTES, size - start)))
            progress.update(len(part))
            yield part


def _index(objects: _Objects, folder: str) -> FrameIndex:
    """Raises FaultyText if an annotation is of an image or category that is not listed."""
    count = len(objects.ids)
    if not count:
        raise FaultyText("has no annotations of single objects")
    ids = pa.array(np.frombuffer(objects.ids, np.int64))
    doubles = count - len(ids.unique())
    if doubles:
        raise FaultyText(f"has {doubles} annotations with an id that another one has")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, and the object unusable
        boxes = np.frombuffer(objects.boxes, np.float64).reshape(-1, 4).astype(np.float32)
    return make_index(
        _looked_up(objects.kinds, objects.categories, objects, "category_id"),
        ids.cast(pa.string()),
        np.arange(count + 1, dtype=np.int64),
        boxes,
        has_size(boxes).astype(np.uint8),
        **{
            FIRST_FRAME: _looked_up(
                objects.images, {key: f"{folder}/{name}" for key, name in objects.files.items()}, objects, "image_id"
            ),
            STILL: pa.repeat(True, count),
        },
    )


def _looked_up(keys: array[int], texts: dict[int, str], objects: _Objects, what: str) -> pa.StringArray:
    """The text of each key. Raises FaultyText with the annotation whose key has none."""
    places = pc.index_in(pa.array(np.frombuffer(keys, np.int64)), value_set=pa.array(list(texts), pa.int64()))
    if places.null_count:
        row = int(np.flatnonzero(places.is_null().to_numpy(zero_copy_only=False))[0])
        raise FaultyText(f"annotation {objects.ids[row]} has the {what} {keys[row]}, which is not listed")
    return pa.array(list(texts.values()), pa.string()).take(places)


def _member(entry: Any, key: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise FaultyText(f"an entry has no {key}")
    return entry[key]


def _integer(entry: Any, key: str) -> int:
    value = _member(entry, key)
    if type(value) is not int or abs(value) >= 1 << 63:
        raise FaultyText(f"{key} is not a whole number")
    return value


def _text(entry: Any, key: str) -> str:
    value = _member(entry, key)
    if not isinstance(value, str) or not value.isprintable() or not value:
        raise FaultyText(f"{key} is not a name")
    return value


def _explain(root: Root, setting: str) -> str:
    return explain_place(
        root,
        setting,
        lambda path: is_file(Root(root.filesystem, path), ANNOTATIONS),
        ("annotations", "images"),
    )
