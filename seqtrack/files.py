"""Small files on any pyarrow filesystem, read whole and replaced in one step, and what is found in place of a file."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from seqtrack.patience import patiently

NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""What filesystems answer that cannot sync a folder, or need not."""
LONGEST_ENDING = 32
"""Characters of a file's ending that the name of its unfinished form keeps, for libraries that go by it."""

TRIES = 3
"""How often a file is asked for of which a store says both that it is there and that it is not."""


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def has_file(filesystem: fs.FileSystem, path: str) -> bool:
    """Whether there is a file. One answer of an object store that there is none is not believed: its list of the folder
    must say so, too."""
    if is_file(filesystem, path):
        return True
    if isinstance(filesystem, fs.LocalFileSystem):
        return False
    around = fs.FileSelector(path.rpartition("/")[0], allow_not_found=True)
    return any(info.path == path and info.type == fs.FileType.File for info in filesystem.get_file_info(around))


def read_text(filesystem: fs.FileSystem, path: str) -> str | None:
    """The text of a file, or None if there is no such file, as `has_file` finds out. Raises OSError.

    Bytes that are not UTF-8, as at the end of a line that is being written, become replacement characters.
    """
    for _ in range(TRIES):
        if not has_file(filesystem, path):
            return None
        with suppress(FileNotFoundError), filesystem.open_input_stream(path) as file:
            return str(file.read().decode(errors="replace"))
    raise FileNotFoundError(f"{path}: is listed, and cannot be read")


def write_atomically(filesystem: fs.FileSystem, path: str, content: str | bytes, patience: float | None = None) -> None:
    """Replaces a file in one step: a reader finds the old or the new content, even after a kill or a loss of power.

    On a disk the content is written under another name, synced and renamed. An object store shows an object only when
    it is complete; what it refuses is tried again for `patience` seconds (as `transfer.patiently`). Raises OSError.
    """
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(filesystem, fs.LocalFileSystem):
        patiently(lambda: _write_object(filesystem, path, data), path, patience)
        return
    with replacing(Path(path)) as partial:
        partial.write_bytes(data)


def _write_object(filesystem: fs.FileSystem, path: str, data: bytes) -> None:
    """Writes an object of a store and reads it back. Raises OSError."""
    sink = filesystem.open_output_stream(path)
    sink.write(data)
    sink.close()  # a store takes or refuses the object only now
    try:
        with filesystem.open_input_stream(path) as stored:
            there = stored.read()
    except FileNotFoundError:
        there = None
    if there != data:
        raise OSError(f"{path}: the store does not have what was sent")


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[Path]:
    """Gives another name in the same folder to write to; after the block, that file takes the place of `path`.

    If the block raises, the old file stands and nothing else is left. The new one is on the disk, and not only in the
    system's memory, before it appears. It has the permissions that the umask gives, whatever the block's library gave
    it. `synced`: False for one of many files that are easily made again, which a loss of power may leave empty. Raises
    OSError.

        with replacing(Path("weights.pt")) as partial:
            torch.save(weights, partial)
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is there and is no file", str(path))
    ending = path.suffix if len(path.suffix) <= LONGEST_ENDING else ""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial{ending}")  # several processes may write the same file
    try:
        partial.touch(exist_ok=False)
        permissions = stat.S_IMODE(partial.stat().st_mode)
        yield partial
        if stat.S_IMODE(partial.stat().st_mode) != permissions:
            partial.chmod(permissions)
        if synced:
            sync_file(partial)
        partial.replace(path)
        if synced:
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Waits until a file's content is on the disk. Raises OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where a filesystem can say so. Raises OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Waits until a folder and all that is below it are on the disk. Raises OSError."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before the folder
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync_file(path)
    sync_folder(folder)


def what_came_instead(start: bytes) -> str | None:
    """What a failed download left in the place of a file, by its first bytes, to be put after its name; None if none.

    `start`: all of a small file, or some hundred bytes.
    """
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty"
    if not start.strip(b"\0"):
        return "holds nothing but zeros at its start: a download that was not finished"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: `git lfs pull` fetches it"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "is a web page (HTML): the link leads to a page about the file, or to a login"
    if text.startswith((b"<?xml", b"<error")):
        return "is an XML text: perhaps a server's error message"
    return None
