"""The LaSOT reader: a tree on disk or in an object store becomes one Arrow table of annotations.

The tree is `root/<class>/<class>-<n>/` with `groundtruth.txt` (x,y,w,h a line, 1-based pixels), `full_occlusion.txt`,
`out_of_view.txt` (comma-separated 0/1) and `img/00000001.jpg …`. Building the index reads annotations only; frames are
read one by one when a sample needs them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from seqtrack.config import DataConfig
from seqtrack.data.datasets.index import FrameIndex
from seqtrack.data.storage import READS_AT_ONCE, DataError, Root, read_bytes
from seqtrack.errors import did_you_mean

BENCHMARK_SPLITS = ("lasot_train", "lasot_test")


def build_index(settings: DataConfig, root: Root) -> FrameIndex:
    """Reads the annotations of all sequences of SPLIT and CLASSES. Raises DataError at the first fault."""
    sequences = select_sequences(settings, root, partial(_sequences_on_disk, root))
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        annotations = list(pool.map(lambda name: _read_sequence(root, name), sequences))
    boxes = np.concatenate([boxes for boxes, _ in annotations])
    visible = np.concatenate([visible for _, visible in annotations])
    offsets = np.cumsum([0] + [len(visible) for _, visible in annotations], dtype=np.int64)
    return FrameIndex(
        pa.table(
            {
                "class": [_class_of(name) for name in sequences],
                "sequence": sequences,
                "boxes_xywh": pa.LargeListArray.from_arrays(
                    offsets, pa.FixedSizeListArray.from_arrays(boxes.reshape(-1), 4)
                ),
                "visible": pa.LargeListArray.from_arrays(offsets, visible),
            }
        )
    )


def select_sequences(settings: DataConfig, root: Root, find: Callable[[Collection[str]], list[str]]) -> list[str]:
    """Names of the sequences of SPLIT and CLASSES, sorted by class and number. All of them exist.

    `find(classes)`: the names of all existing sequences of these classes, or of all classes if none is given. Raises
    DataError if a sequence or a class is missing.
    """
    classes = settings.TRAIN.CLASSES
    there = find(classes)
    candidates = there if settings.SPLIT == "all" else _read_split(settings.SPLIT)
    names = [name for name in candidates if not classes or _class_of(name) in classes]
    for wanted in classes:
        if not any(_class_of(name) == wanted for name in names):
            known = sorted({_class_of(name) for name in find([])})
            hint = did_you_mean(wanted, known) or f"; found there: {', '.join(known[:8]) or 'none'}"
            raise DataError(
                f"DATA.TRAIN.CLASSES: class {wanted} has no sequence in {root.path} (split {settings.SPLIT}){hint}"
            )
    missing = sorted(set(names) - set(there), key=_natural_key)
    if missing:
        raise DataError(
            f"{root.path}: {len(missing)} of {len(names)} sequences of split {settings.SPLIT} are missing, "
            f"the first: {', '.join(missing[:5])} (DATA.SPLIT=all takes what is there)"
        )
    if not names:
        raise DataError(f"{root.path}: no sequence (expected <class>/<class>-<n>/groundtruth.txt)")
    return sorted(names, key=_natural_key)


def _sequences_on_disk(root: Root, classes: Collection[str]) -> list[str]:
    """Names of the sequences of these classes, or of all if none is given."""
    wanted = set(classes)
    names = []
    for class_info in root.filesystem.get_file_info(fs.FileSelector(root.path)):
        class_name = class_info.base_name
        if class_info.type != fs.FileType.Directory or (wanted and class_name not in wanted):
            continue
        for info in root.filesystem.get_file_info(fs.FileSelector(class_info.path)):
            if info.type == fs.FileType.Directory and _class_of(info.base_name) == class_name:
                names.append(info.base_name)
    return names


def _read_split(split: str) -> list[str]:
    if split in BENCHMARK_SPLITS:
        text = (resources.files("seqtrack.data.datasets") / "splits" / f"{split}.txt").read_text()
    else:
        try:
            text = Path(split).read_text()
        except (OSError, UnicodeDecodeError) as error:
            names = ", ".join((*BENCHMARK_SPLITS, "all"))
            raise DataError(f"DATA.SPLIT {split}: neither one of {names} nor a readable file ({error})") from error
    names_in_file = [line.strip() for line in text.splitlines() if line.strip()]
    duplicates = {name for name in names_in_file if names_in_file.count(name) > 1}
    if duplicates:
        raise DataError(f"DATA.SPLIT {split}: {', '.join(sorted(duplicates))} named more than once")
    return names_in_file


def _read_sequence(root: Root, name: str) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """((F, 4) boxes_xywh, (F,) visible) of one sequence."""
    folder = f"{_class_of(name)}/{name}"
    boxes = _read_numbers(root, f"{folder}/groundtruth.txt", columns=4)
    flags = {}
    for kind in ("full_occlusion", "out_of_view"):
        path = f"{folder}/{kind}.txt"
        flags[kind] = _read_numbers(root, path, columns=None).reshape(-1)
        wrong = np.flatnonzero((flags[kind] != 0) & (flags[kind] != 1))
        if len(wrong):
            raise DataError(f"{root.path}/{path}: entry {wrong[0] + 1} is {flags[kind][wrong[0]]:g}, not 0 or 1")
        if len(flags[kind]) != len(boxes):
            raise DataError(
                f"{root.path}/{path}: {len(flags[kind])} flags for the {len(boxes)} boxes of groundtruth.txt"
            )
    has_area = (boxes[:, 2] > 0) & (boxes[:, 3] > 0)  # false for NaN, which some sets write for an absent target
    visible = has_area & (flags["full_occlusion"] == 0) & (flags["out_of_view"] == 0)
    return boxes, visible.astype(np.uint8)


def _read_numbers(root: Root, path: str, columns: int | None) -> NDArray[np.float32]:
    """Comma-separated numbers as a 2-D float32 array; with `columns`, each line must have that many."""
    try:
        text = read_bytes(root, path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{root.path}/{path}: cannot be read ({error})") from error
    if not text:
        raise DataError(f"{root.path}/{path}: is empty")
    try:
        numbers = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32, ndmin=2, comments=None)
    except ValueError:
        raise DataError(f"{root.path}/{path}: {_find_fault(text, columns)}") from None
    lines = text.count("\n") + 1
    if (columns is not None and numbers.shape[1] != columns) or len(numbers) != lines or np.isinf(numbers).any():
        raise DataError(f"{root.path}/{path}: {_find_fault(text, columns)}")
    return numbers


def _find_fault(text: str, columns: int | None) -> str:
    """Says which line cannot be read, and why. Slow, so it is called only for the error message."""
    width = columns
    for line_number, line in enumerate(text.split("\n"), start=1):
        fields = line.split(",")
        width = width or len(fields)
        if len(fields) != width:
            return f"line {line_number} has {len(fields)} numbers, not {width}: {line.strip()[:60]!r}"
        for field in fields:
            try:
                value = float(field)
            except ValueError:
                return f"line {line_number}: {field.strip()[:40]!r} is not a number"
            if np.isinf(value):
                return f"line {line_number}: {field.strip()} is not a finite number"
    return "cannot be read as comma-separated numbers"


def _class_of(sequence: str) -> str:
    return sequence.rpartition("-")[0]


def _natural_key(sequence: str) -> tuple[str, int, str]:
    class_name, _, number = sequence.rpartition("-")
    return class_name, int(number) if number.isdigit() else -1, sequence
