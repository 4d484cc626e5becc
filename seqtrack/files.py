"""Small files on any pyarrow filesystem, read whole and replaced in one step, and what is found in place of a file."""

from __future__ import annotations

import uuid
from pathlib import Path

from pyarrow import fs


def is_file(filesystem: fs.FileSystem, path: str) -> bool:
    return bool(filesystem.get_file_info(path).type == fs.FileType.File)


def read_text(filesystem: fs.FileSystem, path: str) -> str | None:
    """The text of a file, or None if there is no such file. Raises OSError.

    Bytes that are not UTF-8, as at the end of a line that is being written, become replacement characters.
    """
    if not is_file(filesystem, path):
        return None
    with filesystem.open_input_stream(path) as file:
        return str(file.read().decode(errors="replace"))


def write_atomically(filesystem: fs.FileSystem, path: str, content: str | bytes) -> None:
    """Replaces a file in one step: a reader finds the old or the new content, even if this process is killed.

    On a disk the content is written under another name and renamed. An object store shows an object only when it is
    complete. Raises OSError.
    """
    data = content.encode() if isinstance(content, str) else content
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as file:
            file.write(data)
        return
    place = Path(path)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}.partial")  # several processes may write the same file
    try:
        partial.write_bytes(data)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


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
