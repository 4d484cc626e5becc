"""Folders arrive whole on another filesystem, or it is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack.transfer import fetch, send
from tests.faulty_store import Fault, FaultyStore

CONTENT = {"index.html": b"<p>", "figures/a.png": b"12345", "figures/b.png": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "here"


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_to_a_store_and_back(folder: Path, tmp_path: Path) -> None:
    store = FaultyStore(tmp_path / "store")
    (tmp_path / "store").mkdir()
    send(folder, store.filesystem, "there", last=["index.html"])
    assert held(tmp_path / "store/there") == CONTENT
    assert store.written[-1] == "there/index.html"
    fetch(store.filesystem, "there", tmp_path / "back")
    assert held(tmp_path / "back") == CONTENT


def test_files_of_a_disk_are_replaced_whole(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/index.html").write_bytes(b"of before, and longer")
    send(folder, fs.LocalFileSystem(), str(tmp_path / "there"))
    assert held(tmp_path / "there") == CONTENT


@pytest.mark.parametrize("fault", ["refused", "lost", "cut off"])
@pytest.mark.parametrize("name", ["index.html", "a.png"])
def test_what_a_store_does_not_take_is_sent_again(
    folder: Path, tmp_path: Path, quick: None, fault: Fault, name: str
) -> None:
    (tmp_path / "store").mkdir()
    store = FaultyStore(tmp_path / "store", {name: [fault] * 3})
    send(folder, store.filesystem, "there", last=["index.html"])
    assert held(tmp_path / "store/there") == CONTENT and not store.faults[name]
    with pytest.raises(OSError, match=name):
        store.faults = {name: [fault] * 1000}
        send(folder, store.filesystem, "elsewhere", last=["index.html"])


def test_a_file_that_arrives_cut_off_is_fetched_again_then_it_is_an_error(
    folder: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FaultyStore(folder)
    store.cut = {"a.png": 2}
    fetch(store.filesystem, "", tmp_path / "back")
    assert held(tmp_path / "back") == CONTENT
    store.cut = {"a.png": 1000}
    with pytest.raises(OSError, match=r"a\.png: 2 bytes arrived of 5"):
        fetch(store.filesystem, "", tmp_path / "back")


def test_a_file_that_is_listed_and_not_found_is_asked_for_again(
    folder: Path, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, missing = FaultyStore(folder), ["a.png"] * 2

    def open_input_stream(path: str) -> Any:
        if path.rpartition("/")[2] in missing:
            missing.remove("a.png")
            raise FileNotFoundError(path)
        return opens(path)

    opens = store.open_input_stream
    monkeypatch.setattr(store, "open_input_stream", open_input_stream)
    fetch(store.filesystem, "", tmp_path / "back")
    assert held(tmp_path / "back") == CONTENT and not missing
