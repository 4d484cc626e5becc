"""Checkpoints on disk: whole or absent, verified before use, and found by path, epoch or `latest`."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from seqtrack.runs import checkpoint as module
from seqtrack.runs.checkpoint import (
    CheckpointError,
    Contents,
    find_checkpoint,
    load_plain,
    open_checkpoint,
    remove_unfinished,
    verify_checkpoint,
    whole_checkpoints,
    write_checkpoint,
)
from seqtrack.sums import checkpoint_name
from tests.checkpoints import make_meta
from tests.faulty_store import Fault, FaultyStore
from tests.folders import run_at, stored_at
from tests.readers import write_sum

FILES = ["model.safetensors", "state.pt", "rng_rank_0000.pt", "rng_rank_0001.pt", "meta.json"]


def contents(number: float = 1.0) -> Contents:
    return Contents({"weight": torch.full((50,), number)}, {"step": 18}, [{"torch": 1}, {"torch": 2}], make_meta(3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs/a" / checkpoint_name(3, 0)
    write_checkpoint(contents(), stored_at(path))
    return path


def test_a_checkpoint_holds_its_files_and_their_sums(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "SHA256SUMS"])
    assert verify_checkpoint(folder, "a") == make_meta(3)
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
    assert verify_checkpoint(folder, "a") == make_meta(3)


def test_a_checkpoint_replaces_one_of_its_name(folder: Path) -> None:
    write_checkpoint(contents(2.0), stored_at(folder))
    verify_checkpoint(folder, "a")
    assert module.load_plain(folder / "state.pt") == {"step": 18}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_on_a_store_without_renaming_the_sums_come_last(tmp_path: Path) -> None:
    store = FaultyStore(tmp_path)
    write_checkpoint(contents(), store.checkpoint("run/checkpoint_epoch_0001"))
    order = [Path(path).name for path in store.written]
    assert order[-1] == "SHA256SUMS" and sorted(order[:-1]) == sorted(FILES)
    verify_checkpoint(tmp_path / "run/checkpoint_epoch_0001", "a")


@pytest.mark.parametrize("fault", ["refused", "lost", "cut off"])
@pytest.mark.parametrize("file", [*FILES, "SHA256SUMS"])
def test_a_file_that_a_store_does_not_take_is_sent_again(tmp_path: Path, quick: None, file: str, fault: Fault) -> None:
    store = FaultyStore(tmp_path, {file: [fault, fault]})
    write_checkpoint(contents(), store.checkpoint("run/checkpoint_epoch_0001"))
    assert not any(store.faults.values()), "no fault was met"
    verify_checkpoint(tmp_path / "run/checkpoint_epoch_0001", "a")


@pytest.mark.parametrize("fault", ["refused", "lost", "cut off"])
@pytest.mark.parametrize("file", [*FILES, "SHA256SUMS"])
def test_a_file_that_a_store_never_takes_is_an_error_and_the_checkpoint_does_not_count(
    tmp_path: Path, quick: None, file: str, fault: Fault
) -> None:
    store = FaultyStore(tmp_path)
    before, stored = store.checkpoint("run/checkpoint_epoch_0001"), store.checkpoint("run/checkpoint_epoch_0002")
    write_checkpoint(contents(), before)
    store.faults = {file: [fault] * 1000}
    with pytest.raises(CheckpointError, match=r"run/checkpoint_epoch_0002 cannot be written: .*" + file):
        write_checkpoint(contents(2.0), stored)
    assert whole_checkpoints(stored.run) == [before.name]
    verify_checkpoint(tmp_path / before.path, "a")


def test_what_a_store_has_of_another_checkpoint_of_that_name_never_counts(tmp_path: Path, quick: None) -> None:
    store = FaultyStore(tmp_path)
    stored = store.checkpoint("run/checkpoint_epoch_0001")
    write_checkpoint(contents(), stored)
    store.faults = {"state.pt": ["refused"] * 1000}
    with pytest.raises(CheckpointError):
        write_checkpoint(contents(2.0), stored)
    assert whole_checkpoints(stored.run) == []


def test_two_that_write_one_checkpoint_leave_a_whole_one(tmp_path: Path) -> None:
    stored = stored_at(tmp_path / "runs/a" / checkpoint_name(3, 0))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_checkpoint(contents(number), stored), range(40)))
    assert verify_checkpoint(Path(stored.path), "a") == make_meta(3)
    assert [path.name for path in Path(stored.path).parent.iterdir()] == [stored.name]


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, synced = stored_at(tmp_path / "runs/a" / checkpoint_name(3, 0)), list[tuple[str, bool]]()
    fsync = os.fsync

    def note(number: int) -> None:
        synced.append((Path(f"/proc/self/fd/{number}").readlink().name, Path(stored.path).exists()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note)
    write_checkpoint(contents(), stored)
    before = {name for name, appeared in synced if not appeared}
    assert {*FILES, "SHA256SUMS"} < before, "every file, before the folder has its name"
    assert synced[-1] == ("a", True), "the folder that the name is in, afterwards"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_files_of_a_checkpoint_have_the_permissions_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_checkpoint(contents(), stored_at(tmp_path / "runs/a" / checkpoint_name(3, 0)))
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "runs").rglob("*.*")}
    assert set(found.values()) == {0o666 & ~umask} and len(found) == len(FILES)


def test_what_killed_processes_left_is_removed_by_the_owner(folder: Path) -> None:
    left = folder.with_name(f".{folder.name}.0123.partial")
    left.mkdir()
    (left / "state.pt").write_bytes(b"half")
    remove_unfinished(run_at(folder.parent))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_sums_that_a_store_takes_after_it_was_given_up_make_a_whole_checkpoint(folder: Path, quick: None) -> None:
    store = FaultyStore(folder.parent, {"SHA256SUMS": ["refused"] * 100})
    stored = store.checkpoint(f"late/{folder.name}")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_checkpoint(contents(), stored)
    assert whole_checkpoints(stored.run) == []
    late = folder.parent / stored.path
    shutil.copy(folder / "SHA256SUMS", late)
    assert verify_checkpoint(late, "a") == verify_checkpoint(folder, "a")


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
        (
            "a/checkpoint_epoch_0009",
            "a/checkpoint_epoch_0009: no checkpoint_epoch_0009 there, but check",
        ),
        ("b/latest", "b/latest: no finished checkpoint there: no such folder, or an empty one; a run, RUN/3"),
        ("b", "b: no finished checkpoint there: no such folder, or an empty one; a run, RUN/3"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named_with_what_is(folder: Path, said: str, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        find_checkpoint(f"{folder.parents[1]}/{said}")
    assert str(error.value).startswith(f"{folder.parents[1]}/{message}")


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_whose_weights_are_not_finite_is_refused_when_it_is_opened(folder: Path, value: float) -> None:
    save_file({"a": torch.ones(2), "b": torch.tensor([1.0, value])}, folder / "model.safetensors")
    write_sum(folder, "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(stored_at(folder))
    assert str(error.value) == f"{folder}/model.safetensors: 1 of 2 parameters are NaN or infinite, the first: b"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "optimizer's state"])
def test_a_checkpoint_that_would_be_refused_is_not_written(folder: Path, value: float, where: str) -> None:
    odd = torch.tensor([1.0, value])
    whole = contents()
    state = {"optimizer": {"state": {0: {"exp_avg": odd}}, "param_groups": []}}
    faulty = whole._replace(model={"weight": odd}) if where == "weights" else whole._replace(training=state)
    with pytest.raises(CheckpointError, match=rf"cannot be written: the {where}: 1 of 1 parameters are NaN or infin"):
        write_checkpoint(faulty, stored_at(folder))
    assert verify_checkpoint(folder, "a") == make_meta(3), "the one before is there"


@pytest.mark.parametrize("content", [[1, 2], "text", torch.ones(2)])
def test_a_file_of_something_else_than_a_dict_is_refused_by_name(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/state.pt: holds \w+, not a dict$"):
        load_plain(tmp_path / "state.pt")
