"""Readers return or refuse, whatever is damaged; and the program that looks for more finds what is there."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.fuzz import Finding, Trial, read_many
from seqtrack.errors import InputError
from tests.readers import CANARY, READERS, Original, Reader

INPUTS = {
    "weights": 200,
    "checkpoints": 120,
    "shards": 150,
    "annotations": 100,
    "results": 80,
    "tracks": 120,
    "sets": 100,
    "tiles": 200,
    "pictures": 150,
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "files").mkdir()
    reader, trial = READERS[name](tmp_path / "files"), Trial(tmp_path)
    read_many(reader, trial, 2026, INPUTS[name])
    assert trial.read > 0 and trial.refused > 0


@pytest.mark.parametrize("name", READERS)
def test_the_files_to_be_damaged_are_valid(tmp_path: Path, name: str) -> None:
    reader = READERS[name](tmp_path)
    for original in reader.originals:
        original.undo()
    if name == "weights":
        return  # whose files share one place; the last one may be an attack
    reader.read()


def write_more(path: Path) -> None:
    path.with_name(CANARY).write_text("")


def fail(_: Path) -> None:
    raise KeyError("a")


def use_memory(_: Path) -> None:
    size = 64 << 20
    mmap.mmap(-1, size).write(b"1" * size)  # not from malloc, which would give what other tests have freed


def run_out_of_memory(_: Path) -> None:
    raise InputError("cannot be read") from MemoryError()


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (write_more, "code from the file was run"),
        (use_memory, "MiB of memory"),
        (run_out_of_memory, "were asked for"),
    ],
)
def test_what_a_reader_must_not_do_is_found(
    tmp_path: Path, read: Callable[[Path], None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "MOST_BYTES", 32 << 20)
    with pytest.raises(Finding, match=found):
        read_many(faulty_reader(tmp_path, read), Trial(tmp_path), 1, 2)


def test_other_errors_are_found(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        read_many(faulty_reader(tmp_path, fail), Trial(tmp_path), 1, 2)


def test_the_program_says_what_each_reader_did_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz", "--seconds", "1", "--reader", "annotations", "--seed", "5"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fuzz.main() == 0
    assert "annotations: " in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def faulty_reader(folder: Path, read: Callable[[Path], None]) -> Reader:
    (folder / "files").mkdir()
    path = folder / "files/a"
    return Reader([Original("a", b"content", lambda content: _write(path, content))], lambda: read(path), (b"word",))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
