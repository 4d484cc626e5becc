"""Writes and reads the logs in a run's folder: `train.log` for people, `metrics.jsonl` for programs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import TextIO

from pyarrow import ArrowException

from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.shown import shown

LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"
ANCHOR_BYTES = 256


class GrowingFile:
    """A text file in a run's folder that lines are appended to. Whatever is in a line, it is one line.

    Object stores cannot append, so there `flush` writes the whole file again.
    """

    def __init__(self, run: RunFolder, name: str) -> None:
        self._run, self._name = run, name
        self._text = "" if run.local else run.read_text(name) or ""
        self._written = len(self._text)

    def append(self, line: str) -> None:
        line = shown(line)
        if self._run.local:
            with open(self._run.file(self._name), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        else:
            self._text += line + "\n"

    def flush(self) -> None:
        if len(self._text) > self._written:
            self._run.write(self._name, self._text)
            self._written = len(self._text)


class Tail:
    """Reads the new lines of a growing file: each read begins where the last one ended."""

    def __init__(self, run: RunFolder, name: str, from_end: bool = False) -> None:
        """`from_end`: skip what the file holds now."""
        self._run, self._path = run, run.file(name)
        self._anchor = b""
        """The last bytes before `_position`. If the file has other bytes there, it was rewritten."""
        self._position = self._size() if from_end else 0

    def read(self) -> tuple[list[str], bool]:
        """The complete lines since the last read, and whether the file was rewritten, so that they are all its lines.

        A line that is still being written is left for a later read. Raises OSError or ArrowException.
        """
        size = self._size()
        if size == self._position:
            return [], False
        new = self._read_from(self._position - len(self._anchor)) if size > self._position else None
        anew = new is None or not new.startswith(self._anchor)
        if anew:
            self._position, self._anchor = 0, b""
            new = self._read_from(0)
        assert new is not None
        known = new[: new.rfind(b"\n") + 1]
        lines = known[len(self._anchor) :]
        if lines:
            self._position += len(lines)
            self._anchor = known[-ANCHOR_BYTES:]
        return lines.decode(errors="replace").split("\n")[:-1], anew

    def _read_from(self, start: int) -> bytes:
        if self._run.local:
            with open(self._path, "rb") as file:
                file.seek(start)
                return file.read()
        with self._run.filesystem.open_input_stream(self._path) as file:  # seeking hangs in pyarrow's GCS client
            return bytes(file.read()[start:])

    def _size(self) -> int:
        return self._run.filesystem.get_file_info(self._path).size or 0


class RunLogHandler(logging.Handler):
    """Appends log lines to `train.log`."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(logging.INFO)
        self._file = GrowingFile(run, LOG_FILE)

    def emit(self, record: logging.LogRecord) -> None:
        self._file.append(self.format(record))

    def flush(self) -> None:
        self._file.flush()


def append_to_log(run: RunFolder, lines: Iterable[str]) -> None:
    """Appends lines to `train.log` while no worker writes it: before the workers start, or after they failed."""
    file = GrowingFile(run, LOG_FILE)
    for line in lines:
        file.append(line)
    file.flush()


class MetricsFile:
    """Appends records to `metrics.jsonl`: one JSON object per line, with `step`, `time` (ms) and metrics by name.

    A run that continues from `step` first removes the records that an interrupted start wrote after it, so that every
    step appears once.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        if kept or run.has(METRICS_FILE):
            run.write(METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = GrowingFile(run, METRICS_FILE)

    def add(self, record: Mapping[str, float]) -> None:
        self._file.append(json.dumps(record))

    def flush(self) -> None:
        self._file.flush()


def read_metrics(run: RunFolder) -> list[dict[str, float]]:
    """The records so far, without a last line that is still being written or was cut off.

    Raises RunFileError naming the first line that is no record.
    """
    lines = (run.read_text(METRICS_FILE) or "").split("\n")[:-1]
    return [
        parse_record(line, f"{run.file(METRICS_FILE)}, line {number}") for number, line in enumerate(lines, start=1)
    ]


def parse_record(line: str, where: str) -> dict[str, float]:
    """A step's record. Raises RunFileError, beginning with `where`, if the line is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    numbers = record.values() if isinstance(record, dict) else ()
    if not isinstance(record, dict) or "step" not in record or not all(type(one) in (int, float) for one in numbers):
        raise RunFileError(f"{where}: is no record of a step: {line[:60]!r}")
    return record


class LogFollower:
    """Prints a growing `train.log` to the console while the `with` block runs."""

    def __init__(self, run: RunFolder, seconds: float = 0.5, out: TextIO | None = None) -> None:
        self._tail = Tail(run, LOG_FILE, from_end=True)  # an earlier start of the run has shown its lines itself
        self._seconds: float = seconds
        self._out: TextIO | None = out or sys.stdout
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
            lines, _ = self._tail.read()
        except (OSError, ArrowException):  # the object store cannot be reached; the next look tries again
            return
        if lines and self._out is not None:
            try:
                self._out.write("".join(shown(line) + "\n" for line in lines))
                self._out.flush()
            except (OSError, ValueError):  # nobody reads on, or letters that the terminal lacks: the log has them
                self._out = None
