"""Reads bytes from the place where data are: a folder on this machine or a mount of it, or an object store.

What a read may end with is of two kinds. "There is no such file" says something of the data: the frame is missing, for
every process and every time. Everything else (a stale handle, a time-out, no memory, too many open files) says
something of this moment and this machine. It is asked again, and then ends the run: another sample in its place would
change the run.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from seqtrack import patience
from seqtrack.errors import InputError
from seqtrack.failures import explain
from seqtrack.locations import filesystem_at

READS_AT_ONCE = 16
"""Parallel reads from an object store, which answers slowly but serves many requests at a time."""
PATIENCE = patience.PATIENCE
"""Seconds for which failing reads from an object store are repeated, after its client's own retries."""
LOCAL_PATIENCE = 60.0
"""Seconds for which those from a disk or a mount are. Its kernel has waited and tried by itself before."""
DENIED_PATIENCE = 5.0
"""Seconds for which a disk that denies permission is asked again, which it nearly always does for good."""
FIRST_PAUSE, LOCAL_FIRST_PAUSE = 1.0, 0.1
"""Seconds before a failed read is repeated, from a store and from a disk; the pauses double."""
NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})
"""Error numbers that say that there is no such file: nothing, a folder, a link to itself, a name that none can have."""
DENIED = frozenset({errno.EACCES, errno.EPERM})
Answer = TypeVar("Answer")


class DataError(InputError):
    """Data that cannot be used. The message names the file, the line where there is one, and what is wrong."""


class StoreError(DataError):
    """A store or disk does not deliver, or memory is short. Unlike other faults of data, this may pass by itself."""


class NoSuchFolder(DataError):
    """A folder that is not there."""


class Root(NamedTuple):
    """A data root that exists."""

    filesystem: fs.FileSystem
    path: str

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine: on a disk, or on a mount such as NFS."""
        return isinstance(self.filesystem, fs.LocalFileSystem)


THIS_MACHINE = Root(fs.LocalFileSystem(), "")
"""Where a path is a whole one."""


def open_root(root: str, setting: str = "DATA.ROOT") -> Root:
    """Resolves a folder or URI. Raises DataError, which begins with `setting`, if nothing is there."""
    try:
        place = Root(*filesystem_at(root))

        def ask() -> fs.FileType:
            return place.filesystem.get_file_info(place.path).type

        # A store that cannot be reached now is most likely misspelt, so only a disk is asked again.
        found = patiently(ask, place, place.path) if place.local else ask()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{setting} {root}: cannot be reached ({error})") from error
    if found != fs.FileType.Directory:
        raise DataError(f"{setting} {root}: no such folder")
    return place


class Entry(NamedTuple):
    """What a folder holds."""

    name: str
    path: str
    kind: Literal["file", "folder", "nothing"]
    """`nothing`: a link to something that is not there."""


def list_folder(root: Root, path: str, patient: bool = True, hidden: bool = False) -> list[Entry]:
    """What is in a folder of the root's filesystem, sorted by name, without hidden files unless `hidden`.

    `patient=False`: a failing one is not asked again. Raises NoSuchFolder or another DataError. On a disk, no more is
    asked than the names: pyarrow would ask for the size of each file, and leaves out links to nothing without a word.
    """

    def read() -> list[Entry]:
        if root.local:
            with os.scandir(path) as found:
                return [Entry(one.name, one.path, _kind(one)) for one in found]
        infos = root.filesystem.get_file_info(fs.FileSelector(path))
        kinds: dict[fs.FileType, Literal["file", "folder"]]
        kinds = {fs.FileType.File: "file", fs.FileType.Directory: "folder"}
        return [Entry(info.base_name, info.path, kinds[info.type]) for info in infos if info.type in kinds]

    try:
        entries = patiently(read, root, path) if patient else read()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchFolder(f"{path}: no such folder") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({explain(error)})") from error
    return sorted(entry for entry in entries if hidden or not entry.name.startswith("."))


def _kind(entry: os.DirEntry[str]) -> Literal["file", "folder", "nothing"]:
    """Raises OSError, except for a link to nothing."""
    if entry.is_dir():
        return "folder"
    try:
        if entry.is_symlink():
            Path(entry.path).stat()
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return "nothing"
    return "file"


def file_infos(root: Root, paths: Sequence[str]) -> list[fs.FileInfo]:
    """What is at each path below the root. Raises StoreError."""
    places = [f"{root.path}/{path}" for path in paths]
    try:
        infos: list[fs.FileInfo] = patiently(lambda: root.filesystem.get_file_info(places), root, root.path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{root.path}: cannot be read ({error})") from error
    return infos


def is_file(root: Root, path: str) -> bool:
    """Whether there is a file at a path below the root. Raises StoreError."""
    return bool(file_infos(root, [path])[0].type == fs.FileType.File)


def is_folder(root: Root, path: str) -> bool:
    """Whether there is a folder at a path below the root. Raises StoreError."""
    return bool(file_infos(root, [path])[0].type == fs.FileType.Directory)


def read_bytes(root: Root, path: str) -> bytes:
    """The bytes of one file below the root. Raises FileNotFoundError, or another OSError."""

    def read() -> bytes:
        with root.filesystem.open_input_stream(f"{root.path}/{path}") as file:
            return file.read()

    return patiently(read, root, f"{root.path}/{path}")


def read_file(path: str | Path) -> bytes:
    """The bytes of a file on this machine. Raises FileNotFoundError, or another OSError."""
    return patiently(Path(path).read_bytes, THIS_MACHINE, str(path))


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
        """The bytes of a span.

        Raises DataError naming the file if it is not there or too short, and StoreError if it cannot be read.
        """
        name = f"{self._root.path}/{span.path}"

        def read() -> bytes:
            file = self._files.get(span.path)
            if file is None:
                file = self._files[span.path] = self._root.filesystem.open_input_file(name)
            try:
                return file.read_at(span.size, span.start)
            except (OSError, MemoryError):
                self._files.pop(span.path, None)  # a handle that has become stale stays so
                raise

        try:
            content = patiently(read, self._root, name)
        except FileNotFoundError as error:
            raise DataError(f"{name}: cannot be read ({error})") from error
        except OSError as error:
            raise StoreError(f"{name}: cannot be read ({error})") from error
        if len(content) < span.size:
            raise DataError(f"{name}: is cut off before byte {span.start + span.size}")
        return content


def patiently(ask: Callable[[], Answer], root: Root, path: str) -> Answer:
    """What `ask` gives, which reads something of the root. If it fails, it is asked again.

    `path`: the file or folder, whole. Raises FileNotFoundError at once if there is no such file, and another OSError
    after PATIENCE (of an object store) or LOCAL_PATIENCE. Memory that cannot be had counts as one, ENOMEM.
    """

    def action() -> Answer:
        try:
            return ask()
        except MemoryError as error:
            raise OSError(errno.ENOMEM, f"{os.strerror(errno.ENOMEM)}: {error}", path) from error
        except FileNotFoundError:
            raise
        except OSError as error:
            if _says_no_file(error, root, path):
                number = error.errno or errno.EISDIR
                raise FileNotFoundError(number, os.strerror(number), path) from error
            raise

    def patience_with(error: OSError) -> float:
        if isinstance(error, FileNotFoundError):
            return 0.0
        if not root.local:
            return PATIENCE
        return DENIED_PATIENCE if error.errno in DENIED else LOCAL_PATIENCE

    return patience.patiently(action, path, patience_with, LOCAL_FIRST_PAUSE if root.local else FIRST_PAUSE)


def _says_no_file(error: OSError, root: Root, path: str) -> bool:
    """Whether a disk says that there is no such file."""
    if error.errno is None:  # pyarrow's error for a folder has no number
        return root.local and Path(path).is_dir()
    return root.local and error.errno in NO_FILE


def first_of(names: Sequence[str]) -> str:
    """Lists the first few of these names, for an error message."""
    return "the first: " + ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
