"""Indexes that are kept: when they are built again, and that nothing about the folder is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.datasets.cache import VARIABLE, cache_folder, kept_index, stamps
from seqtrack.data.datasets.index import FrameIndex, make_index
from seqtrack.data.storage import Root, open_root


class Build:
    """Builds an index, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> FrameIndex:
        self.times += 1
        offsets, boxes = np.array([0, 2]), np.arange(8, dtype=np.float32).reshape(2, 4)
        return make_index(["coin"], ["coin-1"], offsets, boxes, np.ones(2, np.uint8))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/boxes.txt").write_text("1,2,3,4")
    return open_root(str(tmp_path / "set"))


def kept(root: Root, build: Build, name: str = "SET", note: Callable[[str], None] = lambda line: None) -> FrameIndex:
    return kept_index(name, root, lambda: stamps(root, ["boxes.txt"]), build, note)


def test_an_index_is_built_once_and_read_with_all_it_had(folder: Path, root: Root) -> None:
    build = Build()
    first, second = kept(root, build), kept(root, build)
    assert build.times == 1
    assert second.table.equals(first.table)
    assert second.fingerprint == first.fingerprint


def test_an_index_is_built_again_when_an_annotation_changed_and_the_old_one_is_removed(
    folder: Path, root: Root
) -> None:
    build = Build()
    kept(root, build)
    (before,) = folder.iterdir()
    os.utime(Path(root.path, "boxes.txt"), ns=(0, 0))
    kept(root, build)
    assert build.times == 2
    assert [path.name for path in folder.iterdir()] != [before.name] and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("other", ["the size", "a file that is missing", "another set", "another place"])
def test_an_index_is_built_again_for(other: str, folder: Path, root: Root, tmp_path: Path) -> None:
    build, name = Build(), "SET"
    kept(root, build)
    file = Path(root.path, "boxes.txt")
    if other == "the size":
        times = file.stat()
        file.write_text("1,2,3,45")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif other == "a file that is missing":
        file.unlink()
    elif other == "another set":
        name = "OTHER"
    else:
        root = open_root(str(Path(root.path).rename(tmp_path / "moved")))
    kept(root, build, name)
    assert build.times == 2


@pytest.mark.parametrize("damage", ["empty", "cut off", "one bit", "text"])
def test_a_damaged_file_is_written_anew(damage: str, folder: Path, root: Root) -> None:
    build = Build()
    kept(root, build)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    at = content.index(np.float32(5).tobytes())
    damaged = {
        "empty": b"",
        "cut off": content[:-9],
        "one bit": content[:at] + b"\1" + content[at + 1 :],
        "text": b"no Arrow",
    }
    path.write_bytes(damaged[damage])
    index = kept(root, build)
    assert build.times == 2 and index.boxes_xywh(0)[1].tolist() == [4, 5, 6, 7]
    kept(root, build)
    assert build.times == 2, "the new file is whole"


def test_without_a_folder_that_can_be_written_the_index_is_built_and_a_line_says_so(
    tmp_path: Path, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file/cache"))
    build, notes = Build(), list[str]()
    for _ in range(2):
        assert kept(root, build, note=notes.append).names == ["coin-1"]
    assert build.times == 2
    assert notes[0].startswith(
        f"the index of SET is built anew at every start: {tmp_path}/file/cache cannot be written"
    )


def test_an_interrupted_write_leaves_nothing_behind(folder: Path, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    kept(root, Build())
    assert list(folder.iterdir()) == []


def test_the_folder_is_the_standard_one_unless_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache/seqtrack"
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/seqtrack")
    monkeypatch.setenv(VARIABLE, "~/mine")
    assert cache_folder() == tmp_path / "mine"
