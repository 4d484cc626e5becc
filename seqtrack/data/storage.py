"""Reads bytes from the place where data are: a folder on this machine, or an object store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
from pyarrow import fs

from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.locations import filesystem_at

logger = logging.getLogger(__name__)

READS_AT_ONCE = 16
"""Parallel reads from an object store, which answers slowly but serves many requests at a time."""
PATIENCE = 300.0
"""Seconds for which failing reads from an object store are repeated."""
LONGEST_PAUSE = 15.0
"""Longest pause in seconds before such a read is repeated."""


class DataError(InputError):
    """Data that cannot be used. The message names the file, the line where there is one, and what is wrong."""


class StoreError(DataError):
    """An object store does not deliver. Unlike other faults of data, this one may pass by itself."""


class NoSuchFolder(DataError):
    """A folder that is not there."""


class Root(NamedTuple):
    """A data root that exists."""

    filesystem: fs.FileSystem
    path: str

    @property
    def local(self) -> bool:
        """Whether it is on a disk. Unlike those of an object store, a disk's errors do not pass by themselves."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


def open_root(root: str, setting: str = "DATA.ROOT") -> Root:
    """Resolves a folder or URI. Raises DataError, which begins with `setting`, if nothing is there."""
    try:
        filesystem, path = filesystem_at(root)
        found = filesystem.get_file_info(path).type
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{setting} {root}: cannot be reached ({error})") from error
    if found != fs.FileType.Directory:
        raise DataError(f"{setting} {root}: no such folder")
    return Root(filesystem, path)


class Entry(NamedTuple):
    """What a folder holds."""

    name: str
    path: str
    kind: Literal["file", "folder", "nothing"]
    """`nothing`: a link to something that is not there."""


def list_folder(root: Root, path: str) -> list[Entry]:
    """What is in a folder of the root's filesystem, sorted by name, without hidden files.

    Raises NoSuchFolder or another DataError. On a disk, no more is asked than the names: pyarrow would ask for the size
    of each file, and leaves out links to nothing without a word.
    """
    try:
        if root.local:
            with os.scandir(path) as found:
                entries = [Entry(one.name, one.path, _kind(one)) for one in found]
        else:
            infos = root.filesystem.get_file_info(fs.FileSelector(path))
            kinds: dict[fs.FileType, Literal["file", "folder"]]
            kinds = {fs.FileType.File: "file", fs.FileType.Directory: "folder"}
            entries = [Entry(info.base_name, info.path, kinds[info.type]) for info in infos if info.type in kinds]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchFolder(f"{path}: no such folder") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({explain(error)})") from error
    return sorted(entry for entry in entries if not entry.name.startswith("."))


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "nothing"]:
    if entry.is_dir():
        return "folder"
    return "nothing" if entry.is_symlink() and not Path(entry.path).exists() else "file"


def read_bytes(root: Root, path: str) -> bytes:
    """The bytes of one file below the root. Raises FileNotFoundError, or another OSError."""

    def read() -> bytes:
        with root.filesystem.open_input_stream(f"{root.path}/{path}") as file:
            return file.read()

    return _patiently(read, root, path)


class Span(NamedTuple):
    """A part of a file below the root, in bytes."""

    path: str
    start: int
    size: int


class SpanReader:
    """Reads parts of files and keeps the files open, so that each part costs one request. Threads may share it."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._files: dict[str, pa.NativeFile] = {}

    def __reduce__(self) -> tuple[type[SpanReader], tuple[Root]]:
        return SpanReader, (self._root,)  # open files stay here; another process opens its own

    def read(self, span: Span) -> bytes:
        """The bytes of a span. Raises DataError naming the file if it cannot be read or is too short."""
        name = f"{self._root.path}/{span.path}"

        def read() -> bytes:
            if span.path not in self._files:
                self._files[span.path] = self._root.filesystem.open_input_file(name)
            return self._files[span.path].read_at(span.size, span.start)

        try:
            content = _patiently(read, self._root, span.path)
        except OSError as error:
            kind = DataError if self._root.local else StoreError
            raise kind(f"{name}: cannot be read ({error})") from error
        if len(content) < span.size:
            raise DataError(f"{name}: is cut off before byte {span.start + span.size}")
        return content


def _patiently(read: Callable[[], bytes], root: Root, path: str) -> bytes:
    """Calls `read`. A failing object store is tried again for PATIENCE seconds, after its client's own retries."""
    ends, pause = time.monotonic() + (0 if root.local else PATIENCE), 1.0
    while True:
        try:
            return read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if time.monotonic() + pause > ends:
                raise
            logger.warning("%s/%s: %s; it is read again in %g s", root.path, path, error, pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def first_of(names: Sequence[str]) -> str:
    """Lists the first few of these names, for an error message."""
    return "the first: " + ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
