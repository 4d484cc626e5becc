"""What a stranger's `meta.json` may say: what cannot be right is named in a line before anything is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from seqtrack.cli import main
from seqtrack.experiments import train as experiment
from seqtrack.meta import MetaError, parse_meta
from seqtrack.runs.checkpoint import open_checkpoint
from seqtrack.runs.folder import RunFileError
from seqtrack.runs.record import read_phase
from seqtrack.sums import CheckpointError
from seqtrack.sweeps.results import TrialNote, read_trial
from seqtrack.tracker.load import load_trained
from tests.checkpoints import DATASET, make_meta
from tests.folders import run_at, stored_at
from tests.readers import write_sum
from tests.training.loops import trained_run

GONE = "an entry that is removed"
NUMBERS = [
    ("step", -5, "the entry step cannot be right: it should be greater than or equal to 0"),
    ("step", True, "the entry step cannot be right: it should be a valid integer"),
    ("step", 1e300, "the entry step cannot be right"),
    ("step", 10**300, "the entry step cannot be right"),
    ("step", 12.0, "the entry step cannot be right"),
    ("step", float("nan"), "the entry step cannot be right"),
    ("step", "12", "the entry step cannot be right"),
    ("step", None, "the entry step cannot be right"),
    ("step", GONE, "has no entry step"),
    ("epoch", 1, "epoch 1, but step 12 is in epoch 2"),
    ("epoch", False, "the entry epoch cannot be right"),
    ("steps_per_epoch", 0, "the entry steps_per_epoch cannot be right"),
    ("steps_per_epoch", 7, "epoch 2, but step 12 is in epoch 1"),
    ("world_size", 0, "the entry world_size cannot be right"),
    ("world_size", "two", "the entry world_size cannot be right"),
]
OTHERS = [
    ("history", "x", "the entry history cannot be right: it should be a valid list"),
    ("history", [], "history has 0 epochs, and 2 are finished"),
    ("history", [1, 2], "the entry history.0 cannot be right"),
    ("history", [{"epoch": 1, "step": 6}, {"epoch": 2}], "history: entry 2 has no step"),
    ("history", [{"epoch": 1, "step": 6, "loss": "low"}, {}], "the entry history.0.loss cannot be right"),
    ("history", [{"epoch": 1, "step": 6, "loss": float("nan")}, {}], "the entry history.0.loss cannot be right"),
    ("history", [{"epoch": True, "step": 6}, {}], "the entry history.0.epoch cannot be right"),
    ("dataset", [], "the entry dataset cannot be right"),
    ("dataset", {}, "has no entry dataset.sequences"),
    ("dataset", DATASET | {"fingerprint": 5}, "the entry dataset.fingerprint cannot be right"),
    ("dataset", DATASET | {"frames": "many"}, "the entry dataset.frames cannot be right"),
    ("dataset", DATASET | {"sets": ["LASOT"]}, "the entry dataset.sets cannot be right"),
    ("mlflow_run_id", GONE, "has no entry mlflow_run_id"),
    ("mlflow_run_id", ["1234"], "the entry mlflow_run_id cannot be right: it should be a valid string"),
    ("mlflow_run_id", 1234, "the entry mlflow_run_id cannot be right"),
    ("resumed_from", "x", "the entry resumed_from cannot be right"),
    ("resumed_from", {"path": "x"}, "has no entry resumed_from.step"),
    ("resumed_from", {"path": "x", "step": 99}, "resumed_from: step 99, which is after step 12"),
    ("versions", ["torch"], "the entry versions cannot be right"),
    ("versions", {"torch": 2}, "the entry versions.torch cannot be right"),
    ("config", [], "the entry config cannot be right"),
    ("hardware", 3, "the entry hardware cannot be right"),
]


def changed(meta: dict[str, Any], entry: str, value: Any) -> bytes:
    rest = {name: content for name, content in meta.items() if name != entry}
    return json.dumps(rest if value == GONE else rest | {entry: value}).encode()


@pytest.fixture(scope="module")
def run(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints. Tests must not change it."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    """A copy of its last checkpoint, in a run's folder."""
    return shutil.copytree(run / "checkpoint_epoch_0002", tmp_path / "runs/tiny/checkpoint_epoch_0002")


def put(checkpoint: Path, content: bytes) -> None:
    (checkpoint / "meta.json").write_bytes(content)
    write_sum(checkpoint, "meta.json")


@pytest.mark.parametrize(("entry", "value", "said"), NUMBERS + OTHERS)
def test_an_entry_that_cannot_be_right_is_named(entry: str, value: Any, said: str) -> None:
    with pytest.raises(MetaError) as error:
        parse_meta(changed(make_meta(2), entry, value))
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_entries_of_other_versions_are_allowed() -> None:
    more = make_meta(2) | {"stamp": {"frames": 3}, "dataset": DATASET | {"classes": {"coin": {}}, "stamp": "a"}}
    assert parse_meta(json.dumps(more)) == more
    resumed = make_meta(2) | {"resumed_from": {"path": "runs/a", "step": 6}, "world_size": 2, "code_revision": "abc"}
    assert parse_meta(json.dumps(resumed)) == resumed


@pytest.mark.parametrize(("entry", "value", "said"), [NUMBERS[0], NUMBERS[1], NUMBERS[3], *OTHERS[::4], OTHERS[15]])
def test_it_is_named_by_all_that_read_it_before_anything_is_made(
    entry: str, value: Any, said: str, checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(experiment, "run_prepared", lambda *_: pytest.fail("a training begins"))
    meta = json.loads((checkpoint / "meta.json").read_text())
    put(checkpoint, changed(meta, entry, value))
    before = sorted(tmp_path.rglob("*"))
    arguments = [f"RUN.STORAGE_PATH={tmp_path}/out", "RUN.NAME=new", "--resume-from", str(checkpoint)]
    assert main(["train", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {checkpoint}/meta.json: {said}") and told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    for read in (lambda: load_trained(str(checkpoint)), lambda: read_phase("Phase 1", run_at(checkpoint.parent), 12)):
        with pytest.raises(CheckpointError) as error:
            read()
        assert str(error.value).startswith(f"{checkpoint}/meta.json: {said}")
    with pytest.raises(RunFileError) as refused:
        read_trial(run_at(checkpoint.parent), TrialNote({}))
    assert str(refused.value).startswith(f"{checkpoint}/meta.json: {said}")


def test_a_position_that_is_not_that_of_the_state_is_named(checkpoint: Path) -> None:
    meta = json.loads((checkpoint / "meta.json").read_text())
    put(checkpoint, json.dumps(meta | {"step": 14}).encode())
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(stored_at(checkpoint))
    assert str(error.value) == f"{checkpoint}/meta.json: says step 14, and state.pt step 12"


def test_settings_that_are_none_are_named(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = json.loads((checkpoint / "meta.json").read_text())
    put(checkpoint, json.dumps(meta | {"config": {"TRAIN": {"LR": "fast"}}}).encode())
    assert main(["train", f"RUN.STORAGE_PATH={tmp_path}/out", "--resume-from", str(checkpoint)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {checkpoint}/meta.json: TRAIN.LR: ") and said.count("\n") == 1
