"""A cheap stamp of the frames of a data set, which tells that frames were replaced although annotations are the same.

Reading all frames would take hours. The stamp has the hashes of some hundred, which are drawn by the fingerprint of the
annotations: the same ones each time, on every machine, for a tree, and for its packed form. The draws of training do
not know about it. A set of few frames is stamped whole. A change of one frame in a hundred is noticed in 87 of 100
cases, one of a larger share nearly always; a single other frame among millions is not.

A frame has two hashes. That of its name, size and bytes is compared where the file itself is there on both sides: a
tree, or a packed one. Tiles (`tiling.py`) are the same picture in other bytes. Then the pictures are compared, at an
eighth of their size: that is little more than the mean of each block of a JPEG, on which decoders agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from seqtrack.data.datasets.index import HEAD, MISSING, FrameIndex
from seqtrack.data.mixture import Mixture
from seqtrack.data.storage import READS_AT_ONCE, Root, Span, SpanReader, StoreError, read_bytes

DRAWN, PICTURED = 200, 4
"""Frames of a set that are drawn, and to how many of them there is one whose picture is hashed, which must be decoded.
Where no frames are drawn, since the set has few, all are."""
ABSENT, NO_PICTURE, TILED = "-", "?", "t"
"""In place of the hash of a missing frame, and of a picture that cannot be told; before the hash of a tiled file."""
DIGITS = 16
"""Hexadecimal digits of a hash in a stamp: 64 bits."""


class NoStamp(ValueError):
    """A value from a file that is no stamp. The message says why."""


class DrawnFrame(NamedTuple):
    """A frame of a set, and what is known of it."""

    path: str
    file: str = ABSENT
    """Hash of its name, size and bytes."""
    picture: str = NO_PICTURE
    """Hash of its picture."""

    def same_as(self, other: DrawnFrame) -> bool:
        """Whether it is the same frame. If only one is tiled, their pictures are compared, if both are known."""
        if ABSENT in (self.file, other.file) or self.file.startswith(TILED) == other.file.startswith(TILED):
            return self.file == other.file
        return self.picture == other.picture or NO_PICTURE in (self.picture, other.picture)


@dataclass(frozen=True)
class SetStamp:
    """The stamp of one data set."""

    annotations: str
    """The fingerprint that draws the frames, which are others if it differs."""
    frames: int
    """Number of frames."""
    size: int | None
    """Bytes of all files. Only a packed index knows them; asking for those of a tree would take as many requests."""
    tiled: bool
    drawn: tuple[DrawnFrame, ...]

    def to_json(self) -> dict[str, Any]:
        """The paths of the frames follow from the annotations."""
        return {
            "annotations": self.annotations,
            "frames": self.frames,
            "size": self.size,
            "tiled": self.tiled,
            "files": " ".join(one.file for one in self.drawn),
            "pictures": " ".join(one.picture for one in self.drawn),
        }

    @classmethod
    def parse(cls, value: Any) -> SetStamp:
        """Raises NoStamp."""
        kinds = {"annotations": str, "frames": int, "size": int | None, "tiled": bool, "files": str, "pictures": str}
        if not isinstance(value, dict) or not all(isinstance(value.get(key), kind) for key, kind in kinds.items()):
            raise NoStamp(f"has not the entries {', '.join(kinds)}")
        files, pictures = value["files"].split(), value["pictures"].split()
        if len(files) != len(pictures):
            raise NoStamp("has other numbers of files and pictures")
        drawn = tuple(DrawnFrame("", *hashes) for hashes in zip(files, pictures, strict=True))
        return cls(value["annotations"], value["frames"], value["size"], value["tiled"], drawn)

    def difference(self, then: SetStamp) -> str | None:
        """What differs from the earlier stamp of the same annotations, in words; None if nothing does."""
        pairs = list(zip(self.drawn, then.drawn, strict=False))
        others = [now.path for now, before in pairs if not now.same_as(before)]
        if others:
            return f"{len(others)} of {len(pairs)} drawn frames are not those of then, the first: {others[0]}"
        if self.tiled == then.tiled and None not in (self.size, then.size) and self.size != then.size:
            return f"its {self.frames:,} frames have {self.size:,} bytes, not {then.size:,}"
        return None


@dataclass(frozen=True)
class FrameStamp:
    """The stamps of several data sets, by name."""

    sets: Mapping[str, SetStamp]

    def to_json(self) -> dict[str, Any]:
        return {name: one.to_json() for name, one in self.sets.items()}

    def difference(self, then: Any) -> str | None:
        """What differs from an earlier stamp, as `to_json` gave it; None if nothing does. Raises NoStamp.

        Sets whose annotations differ are not compared: other frames were drawn, and the fingerprint says what changed.
        """
        found = [
            f"{name}: {difference}"
            for name, now, before in self._common(then)
            if (difference := now.difference(before)) is not None
        ]
        return "; ".join(found) or None

    def notes(self, then: Any) -> Iterator[str]:
        """Lines about how frames were compared with an earlier stamp, where that is less than usual. Raises NoStamp."""
        if then is None:
            yield "Frames were not compared, only annotations: no stamp of them was made then"
            return
        for name, now, before in self._common(then):
            if now.tiled != before.tiled:
                form = "now" if now.tiled else "no more"
                yield f"Frames of {name} were compared by their pictures: they are tiled {form}"

    def _common(self, then: Any) -> list[tuple[str, SetStamp, SetStamp]]:
        if not isinstance(then, dict):
            raise NoStamp("is no stamp for each data set")
        both = [(name, now, SetStamp.parse(then[name])) for name, now in self.sets.items() if name in then]
        return [(name, now, before) for name, now, before in both if now.annotations == before.annotations]


def stamp_mixture(mixture: Mixture) -> FrameStamp:
    """The stamp of all training sets. Raises DataError for frames that cannot be read."""
    return FrameStamp(dict(_stamp((one.name, one.index, one.root) for one in mixture.sets)))


def stamp_set(name: str, index: FrameIndex, root: Root) -> FrameStamp:
    """The stamp of one set. Raises DataError for frames that cannot be read."""
    return FrameStamp(dict(_stamp([(name, index, root)])))


def _stamp(sets: Iterable[tuple[str, FrameIndex, Root]]) -> Iterator[tuple[str, SetStamp]]:
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        begun = [(name, index, _begin(pool, index, root)) for name, index, root in sets]
        for name, index, drawn in begun:
            frames = tuple(one.result() for one in drawn)
            tiled = HEAD in index.table.column_names
            yield name, SetStamp(index.fingerprint, index.num_frames, total_size(index), tiled, frames)


def _begin(pool: ThreadPoolExecutor, index: FrameIndex, root: Root) -> list[Future[DrawnFrame]]:
    """The frames of a set's stamp, which the pool reads."""
    spans, places = SpanReader(root), draw_frames(index.fingerprint, index.num_frames, DRAWN)
    rows = index.offsets.searchsorted(places, side="right") - 1
    every = PICTURED if len(places) < index.num_frames else 1
    return [
        pool.submit(stamp_frame, index, root, spans, row, place - int(index.offsets[row]), number % every == 0)
        for number, (row, place) in enumerate(zip(rows.tolist(), places, strict=True))
    ]


def draw_frames(fingerprint: str, count: int, most: int) -> list[int]:
    """Numbers from 0 to count - 1, ascending: all of them, or so many that follow from the fingerprint.

    They are made of SHA-256, because NumPy's generators may draw other numbers in another version.
    """
    if count <= most:
        return list(range(count))
    found: set[int] = set()
    number = 0
    while len(found) < most:
        digest = hashlib.sha256(f"{fingerprint} {number}".encode()).digest()
        found.add(int.from_bytes(digest[:8], "big") % count)
        number += 1
    return sorted(found)


def stamp_frame(
    index: FrameIndex, root: Root, spans: SpanReader, row: int, frame: int, pictured: bool = True
) -> DrawnFrame:
    """What is known of a frame (from 0) of a sequence. `spans` reads packed trees. Raises DataError."""
    path = index.frame_path(row, frame)
    content = read_frame(root, spans, index.span(row, frame) if index.packed else path)
    if content is None:
        return DrawnFrame(path)
    file = hash_file(f"{index.names[row]} {frame}", content)
    picture = hash_picture(content) if pictured else NO_PICTURE
    return DrawnFrame(path, file if index.tiles(row, frame) is None else TILED + file, picture)


def read_frame(root: Root, spans: SpanReader, place: str | Span | None) -> bytes | None:
    """The bytes of a frame's file: a path below the root, a part of a packed tree, or None. None if it is missing.

    Raises DataError.
    """
    if place is None or isinstance(place, Span):
        return None if place is None else spans.read(place)
    try:
        return read_bytes(root, place)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{root.path}/{place}: cannot be read ({error})") from error


def hash_file(name: str, content: bytes) -> str:
    return hashlib.sha256(f"{name} {len(content)}\n".encode() + content).hexdigest()[:DIGITS]


def hash_picture(content: bytes) -> str:
    """The hash of the small picture in a JPEG that can be decoded; no other picture can be tiled."""
    from seqtrack.data.decoding import small_picture  # imports OpenCV, which scoring does not need

    small = small_picture(content)
    if small is None:
        return NO_PICTURE
    return hashlib.sha256(f"{small.shape}".encode() + small.tobytes()).hexdigest()[:DIGITS]


def total_size(index: FrameIndex) -> int | None:
    """Bytes of all frames of a packed tree, those of a frame that several objects share for each of them."""
    if not index.packed:
        return None
    sizes = index.table["frame_size"].chunk(0).values.to_numpy()
    return int(sizes[sizes != MISSING].sum(dtype="int64"))
