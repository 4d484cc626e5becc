"""What may be in a zip that comes from elsewhere: every member is looked at before the first one is used."""

from __future__ import annotations

import errno
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from seqtrack.data.storage import DataError
from seqtrack.failures import explain
from seqtrack.shown import shown

LONGEST_PART, LONGEST_PATH = 255, 4095
"""Bytes that a disk allows for a name, and for a whole path."""
ENCRYPTED = 0x1
"""Bit of a member's flags."""
UNREADABLE = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError, EOFError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What zipfile raises for bytes that are no zip, or one that it cannot read, beside an OSError for a wrong place."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Raises DataError, beginning with `where`, for a zip that cannot be read. OSErrors of the disk pass."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a place before the file's beginning
            raise
        raise DataError(f"{where}: cannot be unpacked (it is damaged)") from error
    except UNREADABLE as error:
        raise DataError(f"{where}: cannot be unpacked ({explain(error)})") from error


def files_in(
    infos: Iterable[zipfile.ZipInfo], refuse: Callable[[str], DataError]
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """The files among a zip's members by their paths, without folders.

    Raises what `refuse` makes of the name of a member that no honest zip of data has, and of what is wrong with it.
    """
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for info in infos:
        # zipfile cuts a name off at its first null byte, and later versions replace it by one in Unicode
        for name in (info.orig_filename, info.filename):
            if fault := _fault(info, name):
                raise refuse(f"{_quoted(name)} {fault}")
        if info.filename.endswith("/"):
            continue
        path = PurePosixPath(info.filename)
        if path in files:
            raise refuse(f"{_quoted(info.filename)} is there twice")
        files[path] = info
    check_places(files, refuse)
    return files


def check_places(paths: Iterable[PurePosixPath], refuse: Callable[[str], DataError], folds_case: bool = False) -> None:
    """Raises what `refuse` makes of two paths that cannot both be files of one folder, and of one that is too long.

    `folds_case`: the disk takes `A` and `a` for one name.
    """
    files: dict[str, PurePosixPath] = {}
    for path in paths:
        if len(os.fsencode(str(path))) > LONGEST_PATH or any(
            len(os.fsencode(one)) > LONGEST_PART for one in path.parts
        ):
            raise refuse(f"{_quoted(str(path))} is a longer name than a disk takes")
        key = str(path).casefold() if folds_case else str(path)
        if key in files:
            other = "" if files[key] == path else f" and {_quoted(str(files[key]))}"
            raise refuse(f"{_quoted(str(path))}{other} would be one file")
        files[key] = path
    for key, path in files.items():
        for above in PurePosixPath(key).parents:
            if str(above) in files:
                raise refuse(
                    f"{_quoted(str(files[str(above)]))} would be a file and the folder of {_quoted(str(path))}"
                )


def _fault(info: zipfile.ZipInfo, name: str) -> str:
    """What is wrong with a member of this name by itself; empty if nothing is."""
    path, kind = PurePosixPath(name), stat.S_IFMT(info.external_attr >> 16)
    if shown(name) != name:
        return "has a character that cannot be seen"
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        return "points out of its folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "points out of its folder: it is a link" if kind == stat.S_IFLNK else "is no file"
    if name.endswith("/"):
        return "is a folder and has content" if info.file_size else ""
    if not path.parts:
        return "names no file"
    if kind == stat.S_IFDIR:
        return "is a folder by its mode and a file by its name"
    return "is encrypted" if info.flag_bits & ENCRYPTED else ""


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]} …")
