"""Text files in a run's folder that lines are appended to: written, cut back, and read while they grow.

A file may have millions of lines. None of this holds more than a part of it in memory.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from seqtrack.files import sync_file, sync_folder
from seqtrack.patience import patiently
from seqtrack.runs.folder import RunFolder
from seqtrack.shown import shown
from seqtrack.transfer import send_file

ANCHOR_BYTES = 256
BLOCK_BYTES = 2**20
"""What is read at a time."""


class GrowingFile:
    """A text file in a run's folder that lines are appended to. Whatever is in a line, it is one line.

    Object stores cannot append. There lines are added to a copy on this machine's disk, and `flush` sends all of it.
    Nothing is written once the folder is another job's: the training finds that out, and ends, before its next
    checkpoint.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        """Raises OSError or ArrowException if the file in an object store cannot be read."""
        self._run, self._name = run, name
        self._copy = None if run.local else tempfile.NamedTemporaryFile(prefix=f"{name}-")  # noqa: SIM115 (it stays)
        if self._copy is not None:
            copy_text(run, name, self.place)
        self._changed = False

    @property
    def place(self) -> Path:
        """The file on this machine; there need not be one yet."""
        return Path(self._run.file(self._name) if self._copy is None else self._copy.name)

    def append(self, line: str) -> None:
        if self._run.local and self._run.lost() is not None:
            return
        with self.place.open("a", encoding="utf-8") as file:
            file.write(shown(line) + "\n")
        self._changed = True

    def cut(self, size: int) -> None:
        """Removes all after the first `size` bytes, at once. Does nothing if there is no more."""
        if self.place.exists() and self.place.stat().st_size > size:
            os.truncate(self.place, size)
            self._changed = True
            self.flush()

    def flush(self) -> None:
        """Makes what was appended last: on the disk after a loss of power, or in the object store. Raises OSError."""
        if not self._changed or self._run.lost() is not None:
            return
        self._changed = False  # another thread may append meanwhile
        try:
            if self._copy is None:
                sync_file(self.place)
                sync_folder(self.place.parent)
            else:
                path = self._run.file(self._name)
                patiently(partial(self._send, path), path)
        except BaseException:
            self._changed = True
            raise

    def _send(self, path: str) -> None:
        size = self.place.stat().st_size
        send_file(self.place, self._run.filesystem, path)
        there = self._run.filesystem.get_file_info(path).size or 0
        if there < size:
            raise OSError(f"{path}: {size} bytes were sent, and {there} are there")


def copy_text(run: RunFolder, name: str, copy: Path) -> None:
    """Copies a file of a run's folder, as it is now, to this machine: an empty one if there is none.

    Raises OSError or ArrowException.
    """
    with copy.open("wb") as target:
        if run.has(name):
            with run.filesystem.open_input_stream(run.file(name)) as source:
                shutil.copyfileobj(source, target, BLOCK_BYTES)


def lines_from_end(place: Path) -> Iterator[tuple[int, bytes]]:
    """The complete lines of a file, the last one first, each with the number of bytes up to its end.

    None if there is no such file. A last line that is still being written, or was cut off, is left out.
    """
    if not place.exists():
        return
    with place.open("rb") as file:
        start = file.seek(0, io.SEEK_END)
        end, later = 0, b""
        while start > 0:
            start, block = _block_before(file, start)
            if end == 0:  # no line's end was seen yet
                end = start + block.rfind(b"\n") + 1 if b"\n" in block else 0
                block = block[: max(end - start, 0)]
            if not end:
                continue
            first, *lines = (block + later)[:-1].split(b"\n")
            for line in reversed(lines):
                yield end, line
                end -= len(line) + 1
            later = first + b"\n"
        if end:
            yield end, later[:-1]


def _block_before(file: io.BufferedReader, end: int) -> tuple[int, bytes]:
    start = max(0, end - BLOCK_BYTES)
    file.seek(start)
    return start, file.read(end - start)


def line_blocks(stream: Any) -> Iterator[bytes]:
    """The complete lines of a binary stream, many at a time."""
    unfinished = b""
    while block := stream.read(BLOCK_BYTES):
        lines, end, unfinished = (unfinished + block).rpartition(b"\n")
        if end:
            yield lines + end


class Tail:
    """Reads the new lines of a growing file: each read begins where the last one ended."""

    def __init__(self, run: RunFolder, name: str, begin: Callable[[], int] = lambda: 0, from_end: bool = False) -> None:
        """`begin`: where to begin, in bytes from the start of the file; asked at the first read, and again whenever the
        file was rewritten or cut back. `from_end`: the first time, skip what the file holds now."""
        self._run, self._path, self._begin = run, run.file(name), begin
        self._position = self._state()[0] if from_end else None
        self._anchor: bytes | None = None
        """The last bytes before `_position`. If the file has other bytes there, it was rewritten."""
        self._seen: tuple[int, int | None] | None = None

    def read(self) -> Iterator[list[str]]:
        """The complete lines since the last read, in parts. A line that is still being written is left for later.

        Raises OSError or ArrowException.
        """
        state = self._state()
        if state == self._seen:
            return
        parts = self._go_on() if state[0] > 0 and self._position is not None else None
        if parts is None:  # it is read for the first time, or is gone, or was rewritten
            self._position, self._anchor = None, None
            if state[0] > 0:
                self._position = self._begin()
                parts = self._go_on()
        yield from parts or ()
        self._seen = state

    def _go_on(self) -> Iterator[list[str]] | None:
        """The lines from `_position` on, in parts; None if the file is not the one that was read until there."""
        assert self._position is not None
        before = min(self._position, ANCHOR_BYTES)
        stream = self._open_at(self._position - before)
        anchor = stream.read(before)
        if len(anchor) < before or self._anchor not in (None, anchor):
            stream.close()
            return None
        self._anchor = anchor
        return self._parts(stream)

    def _parts(self, stream: Any) -> Iterator[list[str]]:
        with stream:
            for lines in line_blocks(stream):
                assert self._position is not None and self._anchor is not None
                self._position += len(lines)
                self._anchor = (self._anchor + lines[-ANCHOR_BYTES:])[-ANCHOR_BYTES:]
                yield lines.decode(errors="replace").split("\n")[:-1]

    def _open_at(self, start: int) -> Any:
        if self._run.local:
            file = open(self._path, "rb")  # noqa: SIM115 (closed by who reads on)
            file.seek(start)
            return file
        stream = self._run.filesystem.open_input_stream(self._path)  # seeking hangs in pyarrow's GCS client
        while start > 0 and (skipped := stream.read(min(start, BLOCK_BYTES))):
            start -= len(skipped)
        return stream

    def _state(self) -> tuple[int, int | None]:
        """Size and time of change: while both stay, so does the file."""
        info = self._run.filesystem.get_file_info(self._path)
        return info.size or 0, info.mtime_ns
