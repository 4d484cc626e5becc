"""Where benchmarks keep their sequences, frames and annotations on a disk or in an object store.

Each layout finds the names of the sequences that are there, and reads one of them. What is not there is no error here:
copies of benchmarks are often partial.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import NamedTuple, Protocol

import numpy as np
from pyarrow import fs

from seqtrack.data.datasets.annotations import FaultyText, decode_text, parse_exact_boxes, parse_flags, parse_numbers
from seqtrack.data.datasets.index import FrameIndex, default_name
from seqtrack.data.datasets.lasot import FLAGS, class_of, read_annotation, sequences_on_disk
from seqtrack.data.datasets.layout import folders
from seqtrack.data.packed import check_shards_exist, read_packed_index
from seqtrack.data.storage import DataError, NoSuchFolder, Root, file_infos, is_file, list_folder
from seqtrack.evaluation.curves import Floats
from seqtrack.evaluation.protocols import Truth
from seqtrack.evaluation.sequences import (
    BenchmarkSequence,
    FrameFiles,
    Incomplete,
    PackedFrames,
    numbered_frames,
    sorted_pictures,
)


class Layout(Protocol):
    """How a benchmark is laid out."""

    @property
    def expected(self) -> str:
        """What is looked for below the root, in words for people."""

    def names(self, root: Root) -> list[str]:
        """The sequences that seem to be there. Raises DataError."""

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        """Raises Incomplete if frames are missing, DataError if an annotation cannot be read."""


@dataclass(frozen=True)
class LasotTree:
    """LaSOT, its extension, and all folders like them."""

    may_lack_flags: bool = False
    attributes: str | None = None
    """The table in `tables/` that has them."""
    expected: str = "<class>/<class>-<n>/groundtruth.txt"

    def names(self, root: Root) -> list[str]:
        return sequences_on_disk(root, [])

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        folder = f"{class_of(name)}/{name}"
        boxes = read_annotation(root, f"{folder}/groundtruth.txt", parse_exact_boxes)
        absent = np.zeros(len(boxes), bool)
        lacking = []
        for kind in FLAGS:
            path = f"{folder}/{kind}.txt"
            if self.may_lack_flags and not is_file(root, path):
                lacking.append(f"no {kind}.txt: their targets count as visible in every frame that has a box")
                continue
            flags = read_annotation(root, path, parse_flags)
            if len(flags) != len(boxes):
                raise DataError(f"{root.path}/{path}: {len(flags)} flags for the {len(boxes)} boxes of groundtruth.txt")
            absent |= flags == 1
        frames = numbered_frames(root, f"{folder}/img", len(boxes)) if with_frames else None
        return BenchmarkSequence(
            name,
            Truth(boxes, absent),
            frames,
            object_class=class_of(name),
            attributes=read_attributes(self.attributes).get(name, ()),
            notes=tuple(lacking),
        )


@dataclass(frozen=True)
class PackedTree:
    """A packed tree. It keeps one flag per frame, so its three LaSOT frames with bad boxes count as absent ones."""

    index: FrameIndex
    attributes: str | None = None
    expected: str = "index.parquet"

    @classmethod
    def open(cls, root: Root, tree: LasotTree, with_frames: bool) -> PackedTree:
        """`tree`: what was packed. Raises DataError if the index is damaged or a shard is missing."""
        index = FrameIndex(read_packed_index(root))
        if with_frames:
            check_shards_exist(index, root)
        return cls(index, tree.attributes)

    @cached_property
    def rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.index.names)}

    def names(self, root: Root) -> list[str]:
        return list(self.index.names)

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        row = self.rows[name]
        boxes = self.index.boxes_xywh(row).astype(np.float64)
        absent = np.ones(len(boxes), bool)
        absent[self.index.visible_frames(row)] = False
        frames = None
        if with_frames:
            spans = [self.index.span(row, frame) for frame in range(len(boxes))]
            if missing := [frame for frame, span in enumerate(spans) if span is None]:
                raise Incomplete(f"{len(missing)} frames are missing, the first: {default_name(missing[0])}")
            places = np.array([(span.start, span.size) for span in spans if span is not None], np.int64)
            frames = PackedFrames(self.index.shards[row], places[:, 0], places[:, 1])
        attributes = read_attributes(self.attributes).get(name, ())
        return BenchmarkSequence(name, Truth(boxes, absent), frames, object_class=class_of(name), attributes=attributes)


@dataclass(frozen=True)
class Got10kPart:
    """GOT-10k's `val` or `test`; the boxes of `test`, except the first ones, are not public."""

    part: str

    @property
    def expected(self) -> str:
        return f"{self.part}/GOT-10k_{self.part.capitalize()}_000001/groundtruth.txt"

    def names(self, root: Root) -> list[str]:
        return _folder_names(root, self.part)

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        folder = f"{self.part}/{name}"
        boxes = read_annotation(root, f"{folder}/groundtruth.txt", parse_exact_boxes)
        hidden = self.part == "test" and len(boxes) == 1
        frames = numbered_frames(root, folder, None if hidden else len(boxes)) if with_frames else None
        absent = np.zeros(len(boxes), bool)
        if hidden:
            return BenchmarkSequence(name, Truth(boxes, absent), frames, withheld=True)
        cover = read_annotation(root, f"{folder}/cover.label", lambda data: parse_numbers(data, None)[0].reshape(-1))
        if len(cover) != len(boxes):
            raise DataError(f"{root.path}/{folder}/cover.label: {len(cover)} numbers for the {len(boxes)} boxes")
        meta = read_annotation(root, f"{folder}/meta_info.ini", decode_text)
        size = re.search(r"^resolution: *\( *(\d+) *, *(\d+) *\)", meta, re.MULTILINE)
        if size is None:
            raise DataError(f"{root.path}/{folder}/meta_info.ini: has no line such as `resolution: (1920, 1080)`")
        kind = re.search(r"^object_class: *(.+?) *$", meta, re.MULTILINE)
        truth = Truth(boxes, absent, cover.astype(np.int64), (int(size[1]), int(size[2])))
        return BenchmarkSequence(name, truth, frames, object_class=kind[1] if kind else None)


@dataclass(frozen=True)
class TrackingNetTest:
    """TrackingNet's `TEST`. Only first boxes are public."""

    expected: str = "TEST/anno/<sequence>.txt and TEST/frames/<sequence>/0.jpg"

    def names(self, root: Root) -> list[str]:
        try:
            files = list_folder(root, f"{root.path}/TEST/anno")
        except NoSuchFolder:
            return []
        return [entry.name.removesuffix(".txt") for entry in files if entry.name.endswith(".txt")]

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        boxes = read_annotation(root, f"TEST/anno/{name}.txt", parse_exact_boxes)
        hidden = len(boxes) == 1
        count = None if hidden else len(boxes)
        frames = numbered_frames(root, f"TEST/frames/{name}", count, first=0) if with_frames else None
        return BenchmarkSequence(name, Truth(boxes, np.zeros(len(boxes), bool)), frames, withheld=hidden)


@dataclass(frozen=True)
class Tnl2kTest:
    """TNL2K: names of frames differ between sequences, and their order is that of the names."""

    expected: str = "<sequence>/groundtruth.txt and <sequence>/imgs/"

    def names(self, root: Root) -> list[str]:
        found = _folder_names(root, "")
        infos = file_infos(root, [f"{name}/{inner}" for name in found for inner in ("groundtruth.txt", "imgs")])
        there = [info.type != fs.FileType.NotFound for info in infos]
        return [name for number, name in enumerate(found) if there[2 * number] and there[2 * number + 1]]

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        boxes = read_annotation(root, f"{name}/groundtruth.txt", parse_exact_boxes)
        frames = None
        if with_frames:
            pictures = sorted_pictures(root, f"{name}/imgs")
            if len(pictures) < len(boxes):
                raise Incomplete(f"{len(pictures)} frames in {name}/imgs for {len(boxes)} boxes")
            frames = FrameFiles(f"{name}/imgs", len(boxes), tuple(pictures[: len(boxes)]))
        return BenchmarkSequence(name, Truth(boxes, np.zeros(len(boxes), bool)), frames)


class Listed(NamedTuple):
    """A row of a table of sequences in `tables/`."""

    sequence: str
    frames: str
    """Their folder below the root."""
    annotation: str
    first: int
    last: int | None
    """Numbers in the names of the first and the last frame; None: as many as there are boxes."""
    skipped_boxes: int
    """Boxes before that of the first frame."""


@dataclass(frozen=True)
class ListedSequences:
    """OTB100, UAV123, NFS: a table says which frames and which file of boxes belong to a sequence."""

    table: str
    expected: str
    prefix: str = ""
    """What PyTracking puts before the names of the sequences, and others do not."""
    vatic: bool = False
    """Whether boxes are lines of the annotation tool VATIC, for frames at 240 a second, of which every 8th is used."""

    def names(self, root: Root) -> list[str]:
        rows = list(read_table(self.table).values())
        infos = file_infos(root, [row.annotation for row in rows])
        return [row.sequence for row, info in zip(rows, infos, strict=True) if info.type == fs.FileType.File]

    def read(self, root: Root, name: str, with_frames: bool) -> BenchmarkSequence:
        row = read_table(self.table)[name]
        boxes = read_annotation(root, row.annotation, parse_vatic if self.vatic else parse_exact_boxes)
        if self.vatic and not (with_frames and len(sorted_pictures(root, row.frames)) == len(boxes)):
            boxes = boxes[::8]
        boxes = boxes[row.skipped_boxes :]
        if row.last is not None and len(boxes) != row.last - row.first + 1:
            raise Incomplete(
                f"{row.annotation} has {len(boxes)} boxes for the frames {row.first} to {row.last}, which are "
                f"{row.last - row.first + 1}"
            )
        frames = numbered_frames(root, row.frames, len(boxes), row.first) if with_frames else None
        plain = name.removeprefix(self.prefix)
        others = [plain] if plain != name else []
        if not self.prefix and "_" in name:  # Jogging_1, which others call Jogging-1 or Jogging.1
            others += [name.replace("_", mark) for mark in "-."]
        truth = Truth(boxes, np.zeros(len(boxes), bool))
        return BenchmarkSequence(name, truth, frames, also_called=tuple(others))


def parse_vatic(data: bytes) -> Floats:
    """(F, 4) boxes xywh from lines of VATIC: a number, left, top, right, bottom, and more. Raises FaultyText."""
    corners = []
    for number, line in enumerate(decode_text(data).splitlines(), start=1):
        try:
            corners.append([float(field) for field in line.split()[1:5]])
        except ValueError:
            raise FaultyText(f"line {number}: {line[:60]!r} has no four numbers for the corners of a box") from None
        if len(corners[-1]) != 4 or not np.isfinite(corners[-1]).all():
            raise FaultyText(f"line {number}: {line[:60]!r} has no four numbers for the corners of a box")
    if not corners:
        raise FaultyText("is empty")
    boxes = np.array(corners, np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


@cache
def read_table(name: str) -> dict[str, Listed]:
    """The rows of a table in `tables/` by the name of the sequence."""
    rows = csv.DictReader((_TABLES / name).read_text("utf-8").splitlines())
    return {
        row["sequence"]: Listed(
            row["sequence"],
            row["frames"],
            row["annotation"],
            int(row["first"]),
            int(row["last"]) if row["last"] else None,
            int(row["skipped_boxes"]),
        )
        for row in rows
    }


@cache
def read_attributes(table: str | None) -> dict[str, tuple[str, ...]]:
    """Name of a sequence -> its attributes, such as FOC for full occlusion. Nothing without a table."""
    if table is None:
        return {}
    rows = csv.DictReader((_TABLES / table).read_text("utf-8").splitlines())
    return {row["sequence"]: tuple(row["attributes"].split()) for row in rows}


_TABLES = resources.files("seqtrack.evaluation") / "tables"


def _folder_names(root: Root, folder: str) -> list[str]:
    try:
        return [name for name, _ in folders(root, f"{root.path}/{folder}".rstrip("/"))]
    except NoSuchFolder:
        return []
