"""Writes and reads the logs in a run's folder: `train.log` for people, `metrics.jsonl` for programs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO, cast

from pyarrow import ArrowException

from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.runs.growing import GrowingFile, Tail, line_blocks, lines_from_end
from seqtrack.shown import shown

LOG_FILE = "train.log"
METRICS_FILE = "metrics.jsonl"
NOTHING: tuple[int, dict[str, float]] = 0, {"step": 0}
"""What comes before the first record of a `metrics.jsonl`."""


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
    step appears once. It reads the file from its end, so a start takes as long as what is removed, however long the
    file is. Each record's time is later than all before it, and than those that it replaces, whatever the clocks of
    the machines say: so MLflow, which keeps what it was sent, can tell which of two points at a step is the run's.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        """Raises RunFileError naming a line at the end of the file that is no record."""
        self._file = GrowingFile(run, METRICS_FILE)
        kept, latest = 0, 0.0
        for end, record in _records_from_end(self._file.place, run.file(METRICS_FILE)):
            latest = max(latest, record.get("time", 0))
            if record["step"] <= step:
                kept = end
                break
        self._file.cut(kept)
        self._latest = int(latest)
        """Time of the latest record that the file has or had."""

    def add(self, record: Mapping[str, float]) -> None:
        self._latest = max(int(record["time"]), self._latest + 1)
        self._file.append(json.dumps({**record, "time": self._latest}))

    def flush(self) -> None:
        self._file.flush()


class NewRecords:
    """Reads the records of `metrics.jsonl` that were written after a time, as they come."""

    def __init__(self, run: RunFolder, time: float, begun: Callable[[float], None] = lambda step: None) -> None:
        """`time`: in ms. `begun` is told where reading begins: the step of the last record before it, 0 if there is
        none. It is told again when a restart removed records."""
        self._run, self._begun = run, begun
        self.time = time
        """That of the last record that was read."""
        self._tail = Tail(run, METRICS_FILE, self._begin)

    def read(self) -> Iterator[list[dict[str, float]]]:
        """The new records, in parts. Raises RunFileError, OSError or ArrowException."""
        for lines in self._tail.read():
            records = [parse_record(line, self._run.file(METRICS_FILE)) for line in lines]
            self.time = records[-1].get("time", self.time)
            yield records

    def _begin(self) -> int:
        """Bytes before the first record that is later than `time`."""
        end, record = self._last_known() if self._run.local else self._last_known_of_stream()
        self._begun(record["step"])
        return end

    def _last_known(self) -> tuple[int, dict[str, float]]:
        """The last record that is not later than `time`, and the bytes up to its end."""
        path = self._run.file(METRICS_FILE)
        for end, record in _records_from_end(Path(path), path):
            if record.get("time", 0) <= self.time:
                return end, record
        return NOTHING

    def _last_known_of_stream(self) -> tuple[int, dict[str, float]]:
        """The same, where a file can only be read from its beginning."""
        path, (end, known) = self._run.file(METRICS_FILE), NOTHING
        with self._run.filesystem.open_input_stream(path) as stream:
            for block in line_blocks(stream):
                last = parse_record(block[block[:-1].rfind(b"\n") + 1 :].decode(errors="replace"), path)
                if last.get("time", 0) <= self.time:
                    end, known = end + len(block), last
                    continue
                for line in block.split(b"\n"):
                    record = parse_record(line.decode(errors="replace"), path)
                    if record.get("time", 0) > self.time:
                        return end, known
                    end, known = end + len(line) + 1, record
        return end, known


def _records_from_end(place: Path, shown: str) -> Iterator[tuple[int, dict[str, float]]]:
    """The records of a `metrics.jsonl` on this machine, the last one first, each with the bytes up to its end.

    Raises RunFileError naming a line that is none; `shown`: how it names the file.
    """
    for later, (end, line) in enumerate(lines_from_end(place)):
        try:
            record = parse_record(line.decode(errors="replace"), shown)
        except RunFileError:
            with place.open("rb") as file:
                number = sum(block.count(b"\n") for block in line_blocks(file)) - later
            parse_record(line.decode(errors="replace"), f"{shown}, line {number}")
            raise
        yield end, record


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
    known = isinstance(record, dict) and "step" in record and all(type(one) in (int, float) for one in numbers)
    if not known or not all(abs(record.get(name, 0)) < 2**53 for name in ("step", "time")):
        raise RunFileError(f"{where}: is no record of a step: {line[:60]!r}")
    return cast("dict[str, float]", record)


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
            for lines in self._tail.read():
                self._print("".join(shown(line) + "\n" for line in lines))
        except (OSError, ArrowException):  # the object store cannot be reached; the next look tries again
            return

    def _print(self, text: str) -> None:
        if self._out is not None:
            try:
                self._out.write(text)
                self._out.flush()
            except (OSError, ValueError):  # nobody reads on, or letters that the terminal lacks: the log has them
                self._out = None
