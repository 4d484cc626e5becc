"""Says what is wrong with a data root that lacks sequences: one folder too high or too low, doubled, still zipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from seqtrack.data.storage import DataError, Root, list_folder

MOST_FOLDERS = 100
"""Folders that are looked into for a hint. LaSOT has 70 classes."""
LEVELS_UP = 3


class IncompleteSet(DataError):
    """A copy of a data set that lacks some of its sequences. The message names them.

    It can be trained on where that is asked for.
    """


def folders(root: Root, path: str, patient: bool = True) -> list[tuple[str, str]]:
    """(name, path) of the folders in a folder, hidden ones and what macOS puts into zips left out.

    `patient`: as in `list_folder`. Raises DataError if it cannot be read, or holds a link to nothing.
    """
    found = []
    for entry in list_folder(root, path, patient):
        if entry.kind == "nothing":
            raise DataError(f"{entry.path}: is a link to something that is not there")
        if entry.kind == "folder" and entry.name != "__MACOSX":
            found.append((entry.name, entry.path))
    return found


def explain_root(root: Root, setting: str) -> str:
    """`; …` with what is found around a LaSOT root that lacks sequences and what to do, or an empty string.

    `setting` names the root in messages.
    """
    hints = packed_archives(root)
    doubled = [name for name, path in _some_folders(root, root.path) if _holds(root, f"{path}/{name}", name)]
    if doubled:
        hints.append(
            f"{len(doubled)} folders hold another one of the same name, such as {doubled[0]}/{doubled[0]}; move what "
            "is in the inner one up"
        )
    elif (fitting := nearest(root, partial(_has_sequences, root))) is not None:
        hints.append(f"{setting}={fitting} would fit")
    return "".join(f"; {hint}" for hint in hints)


def explain_place(
    root: Root, setting: str = "", fits: Callable[[str], bool] = lambda path: False, inside: Sequence[str] = ()
) -> str:
    """What `explain_root` says, for a data set of another layout, whose root `setting` names.

    `fits`: whether a folder could be the root. `inside`: folders below the root in which archives may still be packed.
    """
    hints = packed_archives(root)
    for folder in inside:
        hints += [f"{folder}: {hint}" for hint in packed_archives(Root(root.filesystem, f"{root.path}/{folder}"))]
    if (fitting := nearest(root, fits)) is not None:
        hints.append(f"{setting}={fitting} would fit")
    return "".join(f"; {hint}" for hint in hints)


def packed_archives(root: Root) -> list[str]:
    """A line about archives in the root that are still to be unpacked, if there are any."""
    names = [name for name, _ in _files(root, root.path) if name.lower().endswith((".zip", ".tar", ".tgz", ".gz"))]
    if len(names) > 1:
        return [f"{len(names)} archives are still to be unpacked there, such as {names[0]}"]
    return [f"{name} is still to be unpacked there" for name in names]


def nearest(root: Root, fits: Callable[[str], bool]) -> str | None:
    """The nearest folder above or below the root (whose path `fits`), or None."""

    def suits(path: str) -> bool:
        try:
            return fits(path)
        except DataError:  # what is being looked for is only a hint
            return False

    above = root.path
    for _ in range(LEVELS_UP):
        above = above.rpartition("/")[0]
        if above and suits(above):
            return above
    below = [path for _, path in _some_folders(root, root.path)]
    deeper = [path for parent in below for _, path in _some_folders(root, parent)][:MOST_FOLDERS]
    return next((path for path in (*below, *deeper) if suits(path)), None)


def explain_sequence(root: Root, folder: str) -> str:
    """`; …` with what is wrong with a sequence's folder (below the root) that lacks its annotations."""
    path = f"{root.path}/{folder}"
    name = folder.rpartition("/")[2]
    inside = [*_some_folders(root, path), *_files(root, path)]
    if not inside:
        return "; the folder of the sequence is empty"
    if any(inner == name for inner, _ in inside):
        return f"; {folder} holds another folder {name}: move what is in it up"
    if archives := [inner for inner, _ in inside if inner.lower().endswith(".zip")]:
        return f"; {archives[0]} is still to be unpacked there"
    return ""


def _has_sequences(root: Root, path: str) -> bool:
    return any(_holds(root, inner, name) for name, inner in _some_folders(root, path))


def _holds(root: Root, path: str, class_name: str) -> bool:
    """Whether a folder holds sequences of this class."""
    return any(name.rpartition("-")[0] == class_name for name, _ in _some_folders(root, path))


def _some_folders(root: Root, path: str) -> list[tuple[str, str]]:
    try:
        return folders(root, path, patient=False)[:MOST_FOLDERS]
    except DataError:  # what is being looked for is only a hint
        return []


def _files(root: Root, path: str) -> list[tuple[str, str]]:
    try:
        return [(entry.name, entry.path) for entry in list_folder(root, path, patient=False) if entry.kind == "file"]
    except DataError:
        return []
