"""A store on this machine that refuses, loses or cuts off what it is sent, as real ones do now and then."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs

from seqtrack.runs.checkpoint import StoredCheckpoint
from seqtrack.runs.folder import RunFolder

Fault = Literal["refused", "lost", "cut off"]


class FaultyStore(fs.FileSystemHandler):
    """A folder as a store: an object appears when its stream is closed, and only then does the store say what it thinks
    of it."""

    def __init__(self, folder: Path, faults: dict[str, list[Fault]] | None = None) -> None:
        """`faults`: name of a file -> what happens to it, one time after the other."""
        self._inner = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.faults: dict[str, list[Fault]] = faults or {}
        self.cut: dict[str, int] = {}
        """Name of a file -> how often it arrives cut off."""
        self.written: list[str] = []
        """Paths in the order in which they were sent."""
        self.filesystem = fs.PyFileSystem(self)

    def checkpoint(self, path: str) -> StoredCheckpoint:
        run, _, name = path.rpartition("/")
        return StoredCheckpoint(RunFolder(self.filesystem, run, run), name)

    def open_output_stream(self, path: str, metadata: Any = None) -> Any:
        return pa.PythonFile(_Sent(self, path), mode="w")

    def take(self, path: str, content: bytes) -> None:
        """Stores what was sent, or does not."""
        self.written.append(path)
        planned = self.faults.get(path.rpartition("/")[2])
        fault = planned.pop(0) if planned else None
        if fault == "refused":
            raise OSError(f"{path}: 503 Slow Down")
        if fault != "lost":
            with self._inner.open_output_stream(path) as sink:
                sink.write(content[: len(content) // 2] if fault == "cut off" else content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def get_type_name(self) -> str:
        return "faulty"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self._inner.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self._inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self._inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._inner.delete_dir_contents("/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._inner.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self._inner.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self._inner.copy_file(source, target)

    def open_input_stream(self, path: str) -> Any:
        stream, name = self._inner.open_input_stream(path), path.rpartition("/")[2]
        if not self.cut.get(name):
            return stream
        self.cut[name] -= 1
        content = stream.read()
        return pa.PythonFile(io.BytesIO(content[: len(content) // 2]), mode="r")

    def open_input_file(self, path: str) -> Any:
        return self._inner.open_input_file(path)

    def open_append_stream(self, path: str, metadata: Any = None) -> Any:
        return self._inner.open_append_stream(path)


class _Sent:
    """A stream to the store: what was written is handed over by `close`."""

    def __init__(self, store: FaultyStore, path: str) -> None:
        self._store, self._path, self._parts = store, path, list[bytes]()
        self.closed = False

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None: ...

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._store.take(self._path, b"".join(self._parts))
