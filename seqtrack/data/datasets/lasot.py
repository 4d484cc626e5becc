"""The LaSOT reader: a tree on disk or in an object store becomes one Arrow table of annotations.

The tree is `root/<class>/<class>-<n>/` with `groundtruth.txt` (x,y,w,h a line, 1-based pixels), `full_occlusion.txt`,
`out_of_view.txt` (comma-separated 0/1) and `img/00000001.jpg …`. Building the index reads annotations only; frames are
read one by one when a sample needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import DataConfig
from seqtrack.data.datasets.annotations import FaultyText, decode_text, parse_boxes, parse_flags
from seqtrack.data.datasets.index import FrameIndex, make_index
from seqtrack.data.datasets.layout import explain_root, explain_sequence, folders
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, first_of, is_file, read_bytes, read_file
from seqtrack.errors import did_you_mean

SET = "LASOT"
"""Its published name."""
BENCHMARK_SPLITS = ("lasot_train", "lasot_test")
FLAGS = ("full_occlusion", "out_of_view")
Numbers = TypeVar("Numbers")


def build_index(settings: DataConfig, root: Root, note: Callable[[str], None] = lambda line: None) -> FrameIndex:
    """Reads the annotations of all sequences of SPLIT and CLASSES. Raises DataError at the first fault.

    Where SPLIT is not one of the benchmark's own, the files of flags may be missing; `note` gets a line about it.
    """
    sequences = select_sequences(settings, root, partial(sequences_on_disk, root))
    read = partial(_read_sequence, root, settings.SPLIT not in BENCHMARK_SPLITS)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        annotations = list(pool.map(read, sequences))
    for kind in FLAGS:
        without = [name for name, (*_, lacking) in zip(sequences, annotations, strict=True) if kind in lacking]
        if without:
            note(
                f"{len(without)} of {len(sequences)} sequences have no {kind}.txt; their targets count as visible in "
                f"every frame that has a box, {first_of(without)}"
            )
    boxes = np.concatenate([boxes for boxes, *_ in annotations])
    visible = np.concatenate([visible for _, visible, _ in annotations])
    offsets = np.cumsum([0] + [len(visible) for _, visible, _ in annotations], dtype=np.int64)
    return make_index([class_of(name) for name in sequences], sequences, offsets, boxes, visible)


def select_sequences(settings: DataConfig, root: Root, find: Callable[[Collection[str]], list[str]]) -> list[str]:
    """Names of the sequences of SPLIT and CLASSES, sorted by class and number. All of them exist.

    `find(classes)`: the names of all existing sequences of these classes, or of all classes if none is given. Raises
    DataError if a sequence or a class is missing.
    """
    classes = settings.TRAIN.CLASSES
    explain = partial(explain_root, root, settings.place_of("LASOT")[0])
    there = find(classes)
    candidates = there if settings.SPLIT == "all" else read_split(settings.SPLIT)
    names = [name for name in candidates if not classes or class_of(name) in classes]
    for wanted in classes:
        if not any(class_of(name) == wanted for name in names):
            known = sorted({class_of(name) for name in find([])})
            hint = did_you_mean(wanted, known) or f"; found there: {', '.join(known[:8]) or 'none'}"
            raise DataError(
                f"DATA.TRAIN.CLASSES: class {wanted} has no sequence in {root.path} (split {settings.SPLIT}){hint}"
                f"{explain()}"
            )
    missing = sorted(set(names) - set(there), key=natural_key)
    if missing:
        raise DataError(
            f"{root.path}: {len(missing)} of {len(names)} sequences of split {settings.SPLIT} are missing, "
            f"the first: {', '.join(missing[:5])} (DATA.SPLIT=all takes what is there)"
            f"{explain()}"
        )
    if not names:
        raise DataError(f"{root.path}: no sequence (expected <class>/<class>-<n>/groundtruth.txt){explain()}")
    return sorted(names, key=natural_key)


def sequences_on_disk(root: Root, classes: Collection[str]) -> list[str]:
    """Names of the sequences of these classes, or of all if none is given. Raises DataError for links to nothing."""
    names = []
    for class_name, path in folders(root, root.path):
        if not classes or class_name in classes:
            names += [name for name, _ in folders(root, path) if class_of(name) == class_name]
    return names


def read_split(split: str) -> list[str]:
    """Names of the sequences of a split of the benchmark, or in a file. Raises DataError."""
    if split in BENCHMARK_SPLITS:
        text = (resources.files("seqtrack.data.datasets") / "splits" / f"{split}.txt").read_text("utf-8")
    else:
        try:
            text = decode_text(read_file(split))
        except (OSError, FaultyText) as error:
            names = ", ".join((*BENCHMARK_SPLITS, "all"))
            raise DataError(f"DATA.SPLIT {split}: neither one of {names} nor a readable file ({error})") from error
    names_in_file = [line.strip(" \t,") for line in text.splitlines() if line.strip(" \t,")]
    duplicates = {name for name in names_in_file if names_in_file.count(name) > 1}
    if duplicates:
        raise DataError(f"DATA.SPLIT {split}: {', '.join(sorted(duplicates))} named more than once")
    return names_in_file


def _read_sequence(
    root: Root, may_lack_flags: bool, name: str
) -> tuple[NDArray[np.float32], NDArray[np.uint8], list[str]]:
    """((F, 4) boxes_xywh, (F,) visible, names of the files of flags that are not there) of one sequence."""
    folder = f"{class_of(name)}/{name}"
    boxes = read_annotation(root, f"{folder}/groundtruth.txt", parse_boxes)
    visible = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)  # NaN: the target is absent
    lacking = []
    for kind in FLAGS:
        path = f"{folder}/{kind}.txt"
        if may_lack_flags and not is_file(root, path):
            lacking.append(kind)
            continue
        flags = read_annotation(root, path, parse_flags)
        if len(flags) != len(boxes):
            raise DataError(f"{root.path}/{path}: {len(flags)} flags for the {len(boxes)} boxes of groundtruth.txt")
        visible &= flags == 0
    return boxes, visible.astype(np.uint8), lacking


def read_annotation(root: Root, path: str, parse: Callable[[bytes], Numbers]) -> Numbers:
    """What a file below the root holds. Raises DataError naming the file, and what is wrong with its folder."""
    try:
        return parse(read_bytes(root, path))
    except OSError as error:
        hint = explain_sequence(root, path.rpartition("/")[0]) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{root.path}/{path}: cannot be read ({error}){hint}") from error
    except FaultyText as fault:
        raise DataError(f"{root.path}/{path}: {fault}") from fault


def class_of(sequence: str) -> str:
    return sequence.rpartition("-")[0]


def natural_key(sequence: str) -> tuple[str, int, str]:
    class_name, _, number = sequence.rpartition("-")
    return class_name, int(number) if number.isdigit() else -1, sequence
