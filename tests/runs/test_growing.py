"""Growing files: cut back and read from where it matters, so that a start does not get longer with the run."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest

from seqtrack.locations import child
from seqtrack.runs import growing, log
from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.runs.growing import Tail, line_blocks, lines_from_end
from seqtrack.runs.log import METRICS_FILE, MetricsFile, NewRecords, append_to_log, parse_record, read_metrics
from tests.object_stores import s3_bucket

BEGAN = 1_700_000_000_000


@pytest.fixture(params=["disk", "store"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """A run's folder; `store`: a subtree of the disk stands for any filesystem that cannot append."""
    (tmp_path / "run").mkdir()
    if request.param == "disk":
        return RunFolder(fs.LocalFileSystem(), str(tmp_path / "run"), "run")
    return RunFolder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run", "run")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file with the run's records."""
    return tmp_path / "run" / METRICS_FILE


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every line that is taken for a record."""
    lines: list[str] = []

    def parse(line: str, where: str) -> dict[str, float]:
        lines.append(line)
        return parse_record(line, where)

    monkeypatch.setattr(log, "parse_record", parse)
    return lines


@pytest.fixture(params=[7, 2**20])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in parts of so many bytes."""
    monkeypatch.setattr(growing, "BLOCK_BYTES", request.param)


def write(run: RunFolder, start: int, stop: int, clock: int = 0) -> None:
    file = MetricsFile(run, start)
    for step in range(start + 1, stop + 1):
        file.add({"step": step, "time": BEGAN + clock + step, "train/loss": 1 / step})
    file.flush()


def steps(run: RunFolder) -> list[float]:
    return [record["step"] for record in read_metrics(run)]


@pytest.mark.parametrize("step", [0, 1, 17, 29, 30, 40])
def test_records_after_the_checkpoint_are_cut_off_and_those_before_stay_as_they_are(
    run: RunFolder, path: Path, blocks: None, step: int
) -> None:
    write(run, 0, 30)
    before = path.read_bytes().splitlines(keepends=True)
    with path.open("ab") as file:
        file.write(b'{"step": 31, "ti')  # a process was killed here
    MetricsFile(run, step)
    assert path.read_bytes() == b"".join(before[:step])
    write(run, step, 45)
    assert steps(run) == [*range(1, min(step, 30) + 1), *range(step + 1, 46)]


def test_a_start_reads_what_it_removes_and_not_the_rest(run: RunFolder, parsed: list[str]) -> None:
    write(run, 0, 5000)
    MetricsFile(run, 4990)
    assert len(parsed) == 11


def test_a_start_that_removes_nothing_writes_nothing(run: RunFolder, path: Path) -> None:
    write(run, 0, 30)
    os.utime(path, (1, 1))
    MetricsFile(run, 30).flush()
    assert path.stat().st_mtime == 1


@pytest.mark.parametrize("clock", [0, -900_000, 5])
def test_what_replaces_a_record_is_later_whatever_the_clock_says(run: RunFolder, clock: int) -> None:
    write(run, 0, 30)
    latest = read_metrics(run)[-1]["time"]
    write(run, 10, 30, clock)
    times = [record["time"] for record in read_metrics(run)]
    assert times == sorted(set(times)) and times[10] > latest


def test_a_damaged_line_at_the_end_is_named_and_one_far_from_it_by_who_reads_all(run: RunFolder, path: Path) -> None:
    write(run, 0, 30)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], "{", *lines[3:]]) + "\n")
    MetricsFile(run, 20)
    with pytest.raises(RunFileError, match=f"{METRICS_FILE}, line 4: is no record of a step: '{{'"):
        read_metrics(run)
    with path.open("a") as file:
        file.write('{"step": NaN}\n{"step": 21}\n')
    with pytest.raises(RunFileError, match=f"{METRICS_FILE}, line 22: is no record of a step"):
        MetricsFile(run, 20)


def test_new_records_are_found_by_their_time(run: RunFolder, blocks: None) -> None:
    begun: list[float] = []
    write(run, 0, 30)
    for known in (0, 12, 30):
        new = NewRecords(run, BEGAN + known, begun.append)
        assert [record["step"] for part in new.read() for record in part] == list(range(known + 1, 31))
        assert list(new.read()) == []
    write(run, 20, 33)
    assert [record["step"] for part in new.read() for record in part] == list(range(21, 34))
    assert begun == [0, 12, 30, 20]


def test_a_file_that_is_cut_back_and_grows_to_the_same_size_is_read_again(run: RunFolder, path: Path) -> None:
    path.write_text("one\ntwo\n")
    tail = Tail(run, METRICS_FILE)
    assert list(tail.read()) == [["one", "two"]]
    path.write_text("one\nten\n")
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime + 1))
    assert list(tail.read()) == [["one", "ten"]]
    path.unlink()
    assert list(tail.read()) == []
    path.write_text("one\n")
    assert list(tail.read()) == [["one"]]


def test_a_long_file_is_read_in_parts(run: RunFolder, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "BLOCK_BYTES", 100)
    lines = [f"{number} {'long ' * (number % 50)}" for number in range(500)]
    path.write_text("".join(f"{line}\n" for line in lines) + "unfinished")
    parts = list(Tail(run, METRICS_FILE).read())
    assert [line for part in parts for line in part] == lines
    assert max(sum(map(len, part)) for part in parts) < 400


def test_lines_from_the_end_are_the_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws, path = random.Random(1), tmp_path / "lines"
    for _ in range(100):
        monkeypatch.setattr(growing, "BLOCK_BYTES", draws.choice([1, 2, 7, 100]))
        content = bytes(draws.choices(b"ab\n", k=draws.randint(0, 30)))
        path.write_bytes(content)
        whole: Iterator[bytes] = (line + b"\n" for line in content.split(b"\n")[:-1])
        expected, end = [], 0
        for line in whole:
            end += len(line)
            expected.append((end, line[:-1]))
        assert list(lines_from_end(path)) == expected[::-1]
        assert b"".join(line_blocks(io.BytesIO(content))) == content[:end]
    assert list(lines_from_end(tmp_path / "nothing")) == []


def test_records_in_a_real_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_bucket() as uri:
        run = RunFolder.at(child(uri, "run"))
        write(run, 0, 30)
        new = NewRecords(run, 0)
        assert sum(map(len, new.read())) == 30
        write(run, 20, 33)
        assert steps(run) == list(range(1, 34))
        assert [record["step"] for part in new.read() for record in part] == list(range(21, 34))


class Forgetful(fs.SubTreeFileSystem):
    """A store that says once that there is no such file."""

    asked = 0

    def get_file_info(self, what: Any) -> Any:
        if isinstance(what, str) and not self.asked:
            self.asked += 1
            return super().get_file_info(f"{what}-that-is-not-there")
        return super().get_file_info(what)


def test_one_wrong_answer_that_there_is_no_file_replaces_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    log_file = tmp_path / "run/train.log"
    log_file.write_text("first\n")
    store = Forgetful(str(tmp_path), fs.LocalFileSystem())
    append_to_log(RunFolder(store, "run", "run"), ["second"])
    assert store.asked == 1 and log_file.read_text() == "first\nsecond\n"


def test_a_flush_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a checkpoint, which is synced too, never outlasts the records before it."""
    synced: list[str] = []
    monkeypatch.setattr(growing, "sync_file", lambda path: synced.append(path.name))
    run = RunFolder.at(str(tmp_path))
    write(run, 0, 3)
    assert synced == [METRICS_FILE]
    MetricsFile(run, 2)
    assert synced == [METRICS_FILE, METRICS_FILE]
    assert json.loads((tmp_path / METRICS_FILE).read_text().splitlines()[-1])["step"] == 2
