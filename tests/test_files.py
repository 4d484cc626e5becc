"""Files are replaced whole: after an error, a kill or a loss of power there is the old one or the new one."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow import fs

from seqtrack.files import replacing, write_atomically
from seqtrack.model.weights import save_published, save_safetensors
from tests.faulty_store import FaultyStore

WEIGHTS = {"weight": torch.arange(4096.0)}
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_atomically(fs.LocalFileSystem(), str(path), "x" * 16384),
    "published weights": lambda path: save_published(WEIGHTS, path),
    "safetensors": lambda path: save_safetensors(WEIGHTS, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_where_nothing_more_fits_the_old_file_stands(tmp_path: Path, kind: str) -> None:
    """A limit on the size of files stands for a full disk: both end a write in its middle."""
    path = tmp_path / "file.pt"
    path.write_bytes(b"the old one")
    program = f"""
import resource, signal
from pathlib import Path
from tests.test_files import WRITERS
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
WRITERS[{kind!r}](Path({str(path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode == 1 and "too large" in ended.stderr) or "write" in ended.stderr, ended.stderr
    assert path.read_bytes() == b"the old one"
    assert [one.name for one in tmp_path.iterdir()] == ["file.pt"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path: Path, kind: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[kind](tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "file", list[tuple[str, bool]]()
    fsync = os.fsync

    def note(number: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{number}").readlink()), path.exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    WRITERS[kind](path)
    (unfinished, appeared), last = synced
    assert Path(unfinished).parent == tmp_path and not appeared
    assert last == (str(tmp_path), True)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "file") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_link_stays_a_link_and_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_atomically(fs.LocalFileSystem(), str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError):
        write_atomically(fs.LocalFileSystem(), str(tmp_path / "pipe"), "new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_filesystem_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").readlink().is_dir():
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomically(fs.LocalFileSystem(), str(tmp_path / "file"), "new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("fault", ["refused", "lost", "cut off"])
def test_a_store_that_does_not_take_a_small_file_is_asked_again_then_it_is_an_error(
    tmp_path: Path, quick: None, fault: str
) -> None:
    store = FaultyStore(tmp_path, {"a.json": [fault, fault], "b.json": [fault] * 1000})  # type: ignore[list-item]
    write_atomically(store.filesystem, "a.json", "{}")
    assert (tmp_path / "a.json").read_text() == "{}"
    with pytest.raises(OSError, match=r"b\.json"):
        write_atomically(store.filesystem, "b.json", "{}")
