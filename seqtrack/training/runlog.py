"""What rank 0 writes into a run's folder, wherever it is: `train.log` for people, `metrics.jsonl` for programs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

from pyarrow import ArrowException, fs

LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"


class RunFile:
    """A text file that grows by lines, on any pyarrow filesystem.

    Object stores cannot append, so there the whole is written again, at `flush`.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        self._filesystem, self._path = filesystem, path
        self._local = isinstance(filesystem, fs.LocalFileSystem)
        self._text = "" if self._local else read_text(filesystem, path)
        self._written = len(self._text)

    def append(self, line: str) -> None:
        if self._local:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            self._text += line + "\n"

    def flush(self) -> None:
        if len(self._text) > self._written:
            with self._filesystem.open_output_stream(self._path) as file:
                file.write(self._text.encode())
            self._written = len(self._text)


class RunLogHandler(logging.Handler):
    """Appends log lines to `train.log`."""

    def __init__(self, filesystem: fs.FileSystem, path: str) -> None:
        super().__init__(logging.INFO)
        self._file = RunFile(filesystem, path)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.append(self.format(record))

    def flush(self) -> None:
        self._file.flush()


class MetricsFile:
    """Appends records to `metrics.jsonl`: one JSON object a line, with its `step`, its `time` (ms) and metrics by name.

    A run that goes on from `step` first forgets what an interrupted start wrote beyond it, so that every step is there
    once.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, step: int) -> None:
        kept = [record for record in read_metrics(filesystem, path) if record["step"] <= step]
        if kept or filesystem.get_file_info(path).type == fs.FileType.File:
            # Beside it, then renamed: a crash in between must not lose what was there. Object stores write all or none.
            local = isinstance(filesystem, fs.LocalFileSystem)
            target = f"{path}.partial" if local else path
            with filesystem.open_output_stream(target) as file:
                file.write("".join(json.dumps(record) + "\n" for record in kept).encode())
            if local:
                filesystem.move(target, path)
        self._file = RunFile(filesystem, path)

    def add(self, record: Mapping[str, float]) -> None:
        self._file.append(json.dumps(record))

    def flush(self) -> None:
        self._file.flush()


def read_metrics(filesystem: fs.FileSystem, path: str) -> list[dict[str, float]]:
    """The records so far; not a line that is still being written, or was cut off."""
    lines = read_text(filesystem, path).split("\n")[:-1]
    return [json.loads(line) for line in lines]


def read_text(filesystem: fs.FileSystem, path: str) -> str:
    """A file's text, or nothing where there is none yet."""
    if filesystem.get_file_info(path).type != fs.FileType.File:
        return ""
    with filesystem.open_input_stream(path) as file:
        return file.read().decode(errors="replace")


class LogFollower:
    """Shows a growing `train.log` on the console while the block that it guards runs."""

    def __init__(self, filesystem: fs.FileSystem, path: str, seconds: float = 0.5, out: TextIO | None = None) -> None:
        self._filesystem, self._path, self._seconds = filesystem, path, seconds
        self._out = out or sys.stdout
        self._shown = self._size()  # what an earlier start of the run wrote was shown then
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log-follower", daemon=True)

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._show()

    def _follow(self) -> None:
        while not self._ended.wait(self._seconds):
            self._show()

    def _show(self) -> None:
        try:
            if self._size() <= self._shown:
                return
            with self._filesystem.open_input_stream(self._path) as file:
                new = file.read()[self._shown :]
        except (OSError, ArrowException):  # an object store that cannot be reached now is asked again
            return
        whole_lines = new[: new.rfind(b"\n") + 1]
        self._out.write(whole_lines.decode(errors="replace"))
        self._out.flush()
        self._shown += len(whole_lines)

    def _size(self) -> int:
        return self._filesystem.get_file_info(self._path).size or 0
