from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import pyarrow.fs as fs
import pytest

from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.runs.log import LogFollower, RunLogHandler, append_to_log, read_metrics
from tests.folders import run_at


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO})


@pytest.mark.parametrize("local", [True, False], ids=["local", "object store"])
def test_lines_of_a_restarted_run_follow_those_before(tmp_path: Path, local: bool) -> None:
    # A subtree of the local disk stands for any filesystem that cannot append.
    filesystem = fs.LocalFileSystem() if local else fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    run = RunFolder(filesystem, str(tmp_path) if local else "run", "run")
    (tmp_path / "run").mkdir()
    for text in ("first", "second"):
        handler = RunLogHandler(run)
        handler.handle(record(text))
        handler.flush()
    assert (tmp_path / ("train.log" if local else "run/train.log")).read_text() == "first\nsecond\n"


def test_the_console_shows_what_is_new_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("old\n")
    out = io.StringIO()
    with LogFollower(run_at(tmp_path), seconds=0.01, out=out), path.open("a") as file:
        file.write("new\nhalf a li")
    assert out.getvalue() == "new\n"


class Unreliable(fs.SubTreeFileSystem):
    """A local disk whose files cannot be read while `away` is set."""

    away = True

    def open_input_stream(self, *arguments: Any, **options: Any) -> Any:
        if self.away:
            raise OSError("cannot be reached")
        return super().open_input_stream(*arguments, **options)


def test_the_console_goes_on_when_the_log_can_be_read_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    log = tmp_path / "run/train.log"
    log.touch()
    filesystem = Unreliable(str(tmp_path), fs.LocalFileSystem())
    out = io.StringIO()
    with LogFollower(RunFolder(filesystem, "run", "run"), seconds=0.01, out=out):
        log.write_text("one\ntwo\n")
        time.sleep(0.2)
        assert out.getvalue() == ""
        filesystem.away = False
        deadline = time.monotonic() + 20
        while not out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert out.getvalue() == "one\ntwo\n"


def test_a_log_that_never_came_is_no_error(tmp_path: Path) -> None:
    with LogFollower(run_at(tmp_path), seconds=0.01, out=io.StringIO()):
        pass


def test_a_log_that_ends_within_a_character_can_be_read(tmp_path: Path) -> None:
    """The file is as it is while another process writes it, or after that was killed."""
    (tmp_path / "train.log").write_bytes("Starting 1 worker …".encode()[:-1])
    assert run_at(tmp_path).read_text("train.log") == "Starting 1 worker \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    "line", ['{"step": 2', "{}", "[2]", '{"step": "2"}', '{"step": 2, "loss": null}', "[" * 100_000, "\ufffd"]
)
def test_a_line_that_is_no_record_of_a_step_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n')
    with pytest.raises(RunFileError) as error:
        read_metrics(run_at(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/metrics.jsonl, line 2: is no record of a step: ")


def test_a_last_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2')
    (only,) = read_metrics(run_at(tmp_path))
    assert only["step"] == 1


class Broken(io.StringIO):
    """A console that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), UnicodeEncodeError("ascii", "×", 0, 1, "ordinal not in range(128)")], ids=repr
)
def test_a_console_that_takes_nothing_does_not_end_a_run(tmp_path: Path, error: Exception) -> None:
    run = run_at(tmp_path)
    with LogFollower(run, seconds=0.01, out=Broken(error)):
        append_to_log(run, ["3 × 4"])
        append_to_log(run, ["5 × 6"])
    assert (tmp_path / "train.log").read_text("utf-8") == "3 × 4\n5 × 6\n"
