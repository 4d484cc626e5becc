from __future__ import annotations

import io
import logging
from pathlib import Path

import pyarrow.fs as fs
import pytest

from seqtrack.training.runlog import LogFollower, RunLogHandler


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelno": logging.INFO})


@pytest.mark.parametrize("local", [True, False], ids=["local", "object store"])
def test_lines_of_a_restarted_run_follow_those_before(tmp_path: Path, local: bool) -> None:
    # A subtree of the local disk stands for any filesystem that cannot append.
    filesystem = fs.LocalFileSystem() if local else fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    path = str(tmp_path / "train.log") if local else "train.log"
    for text in ("first", "second"):
        handler = RunLogHandler(filesystem, path)
        handler.handle(record(text))
        handler.flush()
    assert (tmp_path / "train.log").read_text() == "first\nsecond\n"


def test_the_console_shows_what_is_new_and_only_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("old\n")
    out = io.StringIO()
    with LogFollower(fs.LocalFileSystem(), str(path), seconds=0.01, out=out), path.open("a") as file:
        file.write("new\nhalf a li")
    assert out.getvalue() == "new\n"


def test_a_log_that_never_came_is_no_error(tmp_path: Path) -> None:
    with LogFollower(fs.LocalFileSystem(), str(tmp_path / "train.log"), seconds=0.01, out=io.StringIO()):
        pass
