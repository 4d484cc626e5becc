"""Checkpoints on disk: whole or absent, verified before use, and found by path, epoch or `latest`."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from seqtrack.runs import checkpoint as module
from seqtrack.runs.checkpoint import (
    CheckpointError,
    Contents,
    StoredCheckpoint,
    checkpoint_name,
    find_checkpoint,
    load_plain,
    open_checkpoint,
    verify_checkpoint,
    whole_checkpoints,
    write_checkpoint,
)
from seqtrack.runs.folder import RunFolder
from tests.folders import run_at, stored_at
from tests.readers import write_sum

FILES = ["model.safetensors", "state.pt", "rng_rank_0000.pt", "rng_rank_0001.pt", "meta.json"]


def contents(number: float = 1.0) -> Contents:
    return Contents({"weight": torch.full((50,), number)}, {"step": 7}, [{"torch": 1}, {"torch": 2}], {"step": 7})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs/a" / checkpoint_name(3, 0)
    write_checkpoint(contents(), stored_at(path))
    return path


def test_a_checkpoint_holds_its_files_and_their_sums(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "SHA256SUMS"])
    assert verify_checkpoint(folder, "a") == {"step": 7}
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("file", [*FILES, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_checkpoint_is_refused_with_the_file_named(folder: Path, file: str, damage: str) -> None:
    content = bytearray((folder / file).read_bytes())
    if damage == "gone":
        (folder / file).unlink()
    elif damage == "cut":
        (folder / file).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        (folder / file).write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(folder, "runs/a")
    # A changed sum and a changed file look alike. In both cases, the error names a file of the checkpoint.
    assert re.match(rf"runs/a/{file if file != 'SHA256SUMS' else '[A-Z0-9a-z_.]+'} (is|cannot)", str(error.value))


def test_a_failed_write_leaves_nothing_and_the_one_before_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for name in (folder.name, checkpoint_name(4, 0)):
        with pytest.raises(CheckpointError, match=f"{name} cannot be written: .* No space left on device"):
            write_checkpoint(contents(2.0), stored_at(folder.with_name(name)))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert verify_checkpoint(folder, "a") == {"step": 7}


def test_a_checkpoint_replaces_one_of_its_name(folder: Path) -> None:
    write_checkpoint(contents(2.0), stored_at(folder))
    verify_checkpoint(folder, "a")
    assert module.load_plain(folder / "state.pt") == {"step": 7}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_on_a_store_without_renaming_the_sums_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    copy_files = fs.copy_files

    def copy_and_note(source: str, target: str, *filesystems: Any) -> None:
        order.append(Path(target).name)
        copy_files(source, target, *filesystems)

    monkeypatch.setattr(fs, "copy_files", copy_and_note)
    (tmp_path / "run/checkpoint_epoch_0001").mkdir(parents=True)
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    write_checkpoint(contents(), StoredCheckpoint(RunFolder(store, "run", "run"), "checkpoint_epoch_0001"))
    assert order[-1] == "SHA256SUMS" and sorted(order[:-1]) == sorted(FILES)
    verify_checkpoint(tmp_path / "run/checkpoint_epoch_0001", "a")


def test_unfinished_checkpoints_do_not_count_and_the_rest_are_in_order(folder: Path) -> None:
    run = folder.parent
    for epoch, step in ((2, 500), (10, 0), (2, 60), (2, 0)):
        write_checkpoint(contents(), stored_at(run / checkpoint_name(epoch, step)))
    (run / checkpoint_name(10, 0) / "SHA256SUMS").unlink()
    (run / "checkpoint_manager_snapshot.json").write_text("{}")
    names = ["checkpoint_epoch_0002", "checkpoint_epoch_0002_step_000060", "checkpoint_epoch_0002_step_000500"]
    assert whole_checkpoints(run_at(run)) == [*names, "checkpoint_epoch_0003"]
    assert whole_checkpoints(run_at(run / "nowhere")) == []


@pytest.mark.parametrize("said", ["", "/", "/latest", "/3", "/checkpoint_epoch_0003"])
def test_a_checkpoint_is_found_by_its_folder_its_run_latest_or_its_epoch(folder: Path, said: str) -> None:
    assert find_checkpoint(f"{folder.parent}{said}").path == str(folder)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("a/4", "a/4: no checkpoint_epoch_0004 there, but checkpoint_epoch_0003"),
        ("b/latest", "b/latest: no finished checkpoint there"),
        ("b", "b: no finished checkpoint there"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named_with_what_is(folder: Path, said: str, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(f"{folder.parents[1]}/{said}")
    assert str(error.value) == f"{folder.parents[1]}/{message}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read ("),
        (b"[" * 100_000, "cannot be read (RecursionError"),
        (b"\xff\xfe", "cannot be read ("),
        (b"[1]", "holds list, not an object"),
    ],
)
def test_metadata_that_is_none_is_refused_by_name(folder: Path, content: bytes, said: str) -> None:
    (folder / "meta.json").write_bytes(content)
    write_sum(folder, "meta.json")
    with pytest.raises(CheckpointError) as error:
        verify_checkpoint(folder, "runs/a")
    assert str(error.value).startswith(f"runs/a/meta.json: {said}")


def test_metadata_that_lacks_what_a_start_needs_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"^{folder}/meta.json: has no entry epoch of type int$"):
        open_checkpoint(stored_at(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_whose_weights_are_not_finite_is_refused_when_it_is_opened(tmp_path: Path, value: float) -> None:
    path = tmp_path / "runs/a" / checkpoint_name(3, 0)
    meta: dict[str, Any] = {"step": 7, "epoch": 3, "steps_per_epoch": 2, "config": {}, "dataset": {}, "versions": {}}
    weights = {"a": torch.ones(2), "b": torch.tensor([1.0, value])}
    write_checkpoint(Contents(weights, {}, [], meta), stored_at(path))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(stored_at(path))
    assert str(error.value) == f"{path}/model.safetensors: 1 of 2 parameters are NaN or infinite, the first: b"


@pytest.mark.parametrize("content", [[1, 2], "text", torch.ones(2)])
def test_a_file_of_something_else_than_a_dict_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/state.pt: holds \w+, not a dict$"):
        load_plain(tmp_path / "state.pt")
