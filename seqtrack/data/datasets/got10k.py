"""The GOT-10k reader: its training videos, by the lists that published trackers train on.

The tree is `root/train/list.txt` and `root/train/<sequence>/` with `groundtruth.txt` (x,y,w,h a line), `absence.label`
(0/1 a line), `cover.label` (0 to 8 a line: eighths of the target that can be seen), `meta_info.ini` and
`00000001.jpg …`. The target counts as visible where it is not absent, its cover is above 0, and its box has a size.
Boxes that reach out of the picture and frames that change their size are kept; a sample that cannot be cut from them is
drawn again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.datasets.annotations import FaultyText, decode_text, parse_boxes, parse_flags, parse_numbers
from seqtrack.data.datasets.cache import kept_index, stamps
from seqtrack.data.datasets.index import FrameIndex, default_name
from seqtrack.data.datasets.lasot import read_annotation
from seqtrack.data.datasets.layout import IncompleteSet, explain_place, folders
from seqtrack.data.datasets.reading import Annotation, has_size, read_annotations
from seqtrack.data.storage import DataError, Root, first_of, is_file, read_bytes

VIDEOS = 9335
"""Videos in the training set."""
FOLDER = "train"
LIST = f"{FOLDER}/list.txt"
FILES = ("groundtruth.txt", "absence.label", "cover.label", "meta_info.ini")
EVERY = "GOT10K_train_full"
"""The set that has every video."""
SETS = {
    EVERY: "all of it",
    "GOT10K_vottrain": (
        "the training part without what VOT forbids, as published: that list took a video's number for its row, so "
        "765 forbidden videos are in it, and GOT10K_vottrain_fixed has none"
    ),
    "GOT10K_votval": "the validation part without what VOT forbids, as published, with 125 forbidden videos in it",
    "GOT10K_vottrain_fixed": "the training part without any of the 1,000 videos that VOT forbids",
}
"""The sets that this reader knows -> what each is."""


class Selection(NamedTuple):
    """Sequences of a set that are there, in the order of `list.txt`."""

    names: list[str]
    missing: list[str]
    listed: int
    """Lines of `list.txt`."""

    def lacking(self, name: str) -> str:
        """What is missing of the set of this name, or an empty string."""
        if not self.missing:
            return ""
        total = len(self.names) + len(self.missing)
        what = f"{len(self.missing)} of the {total:,} sequences of {name} are missing, {first_of(self.missing)}"
        if self.listed == VIDEOS:
            return what
        return (
            f"{what}; {LIST} has {self.listed:,} lines and not {VIDEOS:,}, so videos are taken by their numbers and "
            "not by the lines that lists of videos mean"
        )


def rows_of(name: str) -> NDArray[np.int64]:
    """The videos of a set as ascending rows (from 0) of the complete `list.txt`."""
    every = np.arange(VIDEOS)
    if name == EVERY:
        return every
    validation = np.isin(every, _numbers("got10k_val.txt"))
    forbidden = _numbers("got10k_vot_forbidden.txt")  # numbers of videos, from 1
    part = validation if name == "GOT10K_votval" else ~validation
    # The published lists leave out the row after each forbidden video's.
    return every[part & ~np.isin(every + 1 if name == "GOT10K_vottrain_fixed" else every, forbidden)]


def open_index(
    name: str,
    root: Root,
    note: Callable[[str], None] = lambda line: None,
    setting: str = "DATA.ROOT",
    partial_set: bool = False,
) -> FrameIndex:
    """The annotations of one of SETS, from the cache or from its files. Frames are not looked for.

    `setting` names the root in messages. `partial_set`: whether sequences may be missing; `note` then gets a line that
    says how many. Raises DataError at the first fault, and IncompleteSet for sequences that may not be missing.
    """
    if "vot" in name:
        note(f"{name} is {SETS[name]}")
    selection = select_sequences(name, root, setting)
    if lacking := selection.lacking(name):
        if not partial_set or not selection.names:
            raise IncompleteSet(f"{root.path}: {lacking}{explain_place(root, inside=(FOLDER,))}")
        note(f"{root.path}: {lacking}")
    files = [f"{FOLDER}/{sequence}/{file}" for sequence in selection.names for file in FILES]
    build = partial(_build, root, selection.names, name)
    return kept_index(name, root, partial(stamps, root, files), build, note)


def select_sequences(name: str, root: Root, setting: str = "DATA.ROOT") -> Selection:
    """The sequences of one of SETS, and which of them are not there. Raises DataError if `list.txt` cannot be read."""
    listed = read_list(root, setting)
    return choose_sequences(name, listed, {sequence for sequence, _ in folders(root, f"{root.path}/{FOLDER}")})


def read_list(root: Root, setting: str = "DATA.ROOT") -> list[str]:
    """The names in `list.txt`. Raises DataError."""
    if not is_file(root, LIST):
        raise DataError(f"{root.path}/{LIST}: no such file{_explain(root, setting)}")
    return read_annotation(root, LIST, _parse_list)


def choose_sequences(name: str, listed: Sequence[str], there: Collection[str]) -> Selection:
    """The sequences of one of SETS among those that `list.txt` names and those that are there.

    In a list of another length, which somebody made for a part of the data, a row does not say which video is meant, so
    there videos are taken by the number in their name.
    """
    names = listed if len(listed) == VIDEOS else [f"GOT-10k_Train_{row + 1:06d}" for row in range(VIDEOS)]
    there = set(there) & set(listed)
    wanted = [names[row] for row in rows_of(name)]
    return Selection([one for one in wanted if one in there], [one for one in wanted if one not in there], len(listed))


def _build(root: Root, names: list[str], title: str) -> FrameIndex:
    annotations = read_annotations(partial(_read_sequence, root), names, title)
    first_frames = [f"{FOLDER}/{name}/{default_name(0)}" for name in names]
    return annotations.to_index(names, first_frames)


def _read_sequence(root: Root, name: str) -> Annotation:
    folder = f"{FOLDER}/{name}"
    boxes = read_annotation(root, f"{folder}/groundtruth.txt", parse_boxes)
    absent = read_annotation(root, f"{folder}/absence.label", parse_flags)
    cover = read_annotation(root, f"{folder}/cover.label", _parse_cover)
    for file, numbers in (("absence.label", absent), ("cover.label", cover)):
        if len(numbers) != len(boxes):
            raise DataError(
                f"{root.path}/{folder}/{file}: {len(numbers)} numbers for the {len(boxes)} boxes of groundtruth.txt"
            )
    visible = has_size(boxes) & (absent == 0) & (cover > 0)
    return Annotation(boxes, visible.astype(np.uint8), _read_class(root, f"{folder}/meta_info.ini"))


def _read_class(root: Root, path: str) -> str:
    """What `meta_info.ini` calls the target, or `unknown`. It affects no sample, so a fault of this file is none."""
    try:
        found = re.search(r"^object_class: *(.+?) *$", decode_text(read_bytes(root, path)), re.MULTILINE)
    except (FileNotFoundError, FaultyText):
        found = None
    except OSError as error:
        raise DataError(f"{root.path}/{path}: cannot be read ({error})") from error
    return found[1] if found else "unknown"


def _parse_cover(data: bytes) -> NDArray[np.float64]:
    cover = parse_numbers(data, columns=None)[0].reshape(-1)
    wrong = np.flatnonzero(~((cover >= 0) & (cover <= 8)))
    if len(wrong):
        raise FaultyText(f"entry {wrong[0] + 1} is {cover[wrong[0]]:g}, not 0 to 8")
    return cover


def _parse_list(data: bytes) -> list[str]:
    names = [line.strip(" \t,") for line in decode_text(data).splitlines() if line.strip(" \t,")]
    if not names:
        raise FaultyText("is empty")
    for number, name in enumerate(names, start=1):
        if "/" in name or "\\" in name or name.startswith("."):
            raise FaultyText(f"entry {number}, {name[:60]!r}, is not the name of a folder")
    if len(set(names)) < len(names):
        double = next(name for number, name in enumerate(names) if name in names[:number])
        raise FaultyText(f"{double} is named more than once")
    return names


def _numbers(file: str) -> NDArray[np.int64]:
    text = (resources.files("seqtrack.data.datasets") / "splits" / file).read_text("utf-8")
    return np.array(text.split(), np.int64)


def _explain(root: Root, setting: str) -> str:
    return explain_place(root, setting, lambda path: is_file(Root(root.filesystem, path), LIST), (FOLDER,))
