"""Runs whose checkpoints and data live in an object store: trained there, resumed from there."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack.locations import child
from seqtrack.runs.checkpoint import StoredCheckpoint, open_checkpoint, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from tests.object_stores import gcs_bucket, s3_bucket
from tests.store_faults import Fault, FaultPlan
from tests.training.loops import named, train
from tests.training.runs import assert_same_bits, job, write_config


@pytest.mark.parametrize(
    ("bucket", "with_data"),
    [
        pytest.param(functools.partial(s3_bucket, faulty=True), True, id="failing-s3"),
        pytest.param(gcs_bucket, False, id="gcs", marks=pytest.mark.soak),  # the emulator lists no folders
    ],
)
def test_a_run_resumed_from_an_object_store_repeats_the_run_on_data_from_disk(
    cluster: None,
    bucket: Callable[[], AbstractContextManager[str]],
    with_data: bool,
    lasot_root: Path,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bucket() as uri:
        storage = child(uri, "runs")
        changes = {"RUN.STORAGE_PATH": storage, "MLFLOW.TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        train(named(tiny_settings, "whole", changes))
        config = write_config(tiny_settings, tmp_path)
        arguments = ["--config", config, *(f"{key}={value}" for key, value in changes.items()), "RUN.NAME=resumed"]
        if with_data:
            data = child(uri, "lasot")
            filesystem, folder = fs.FileSystem.from_uri(data)
            fs.copy_files(str(lasot_root), folder, fs.LocalFileSystem(), filesystem)
            arguments.append(f"DATA.ROOT={data}")
        assert job.main([*arguments, "--resume-from", child(child(storage, "whole"), "1")]) == 0
        assert f"Checkpoints and log:  {child(storage, 'resumed')}" in capsys.readouterr().out
        filesystem, folder = fs.FileSystem.from_uri(storage)
        fs.copy_files(folder, str(tmp_path / "copied"), filesystem, fs.LocalFileSystem())
    assert_same_bits(tmp_path / "copied/resumed", tmp_path / "copied/whole", "checkpoint_epoch_0002")
    assert "Restored" in (tmp_path / "copied/resumed/train.log").read_text()


PART = Fault("503", "UploadPart", r"/refused/checkpoint_epoch_0002/model\.safetensors$")
"""What is refused of a run's second checkpoint."""


@pytest.fixture
def refusing_store(tiny_settings: dict[str, Any]) -> Iterator[tuple[FaultPlan, str]]:
    """The plan of an S3 server, and storage there with the run `whole`, which nothing happened to."""
    plan = FaultPlan()
    with s3_bucket(plan=plan) as uri:
        storage = child(uri, "runs")
        train(named(tiny_settings, "whole", {"RUN.STORAGE_PATH": storage}))
        yield plan, storage


def train_on(storage: str, tiny_settings: dict[str, Any], folder: Path) -> int:
    """The exit code of the run `refused`, which keeps one checkpoint."""
    config = write_config(tiny_settings, folder)
    settings = [f"RUN.STORAGE_PATH={storage}", "RUN.NAME=refused", "TRAIN.KEEP_CHECKPOINTS=1"]
    return int(job.main(["--config", config, *settings, f"MLFLOW.TRACKING_URI=sqlite:///{folder}/mlflow.db"]))


def sha256(storage: str, file: str) -> str:
    filesystem, folder = fs.FileSystem.from_uri(storage)
    with filesystem.open_input_stream(f"{folder}/{file}") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


@pytest.mark.soak
def test_a_store_that_refuses_a_part_for_a_minute_does_not_change_the_result(
    cluster: None, refusing_store: tuple[FaultPlan, str], tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    plan, storage = refusing_store
    fault = replace(PART, seconds=60)
    with plan.failing(fault):
        assert train_on(storage, tiny_settings, tmp_path) == 0
    assert fault.met > 6, "one try of ours was enough"  # the client of a worker asks three times
    last = "checkpoint_epoch_0002/model.safetensors"
    assert sha256(storage, f"refused/{last}") == sha256(storage, f"whole/{last}")
    assert whole_checkpoints(RunFolder.at(child(storage, "refused"))) == ["checkpoint_epoch_0002"]


@pytest.mark.soak
def test_a_store_that_refuses_for_ever_ends_the_run_with_a_line_and_leaves_the_checkpoint_before(
    cluster: None,
    refusing_store: tuple[FaultPlan, str],
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan, storage = refusing_store
    with plan.failing(replace(PART)):
        assert train_on(storage, tiny_settings, tmp_path) == 1
    error = capsys.readouterr().err
    assert re.search(r"^.*checkpoint \S+/refused/checkpoint_epoch_0002 cannot be written: .*UploadPart", error, re.M)
    assert re.search(r"^To go on from checkpoint_epoch_0001: ", error, re.M)
    run = RunFolder.at(child(storage, "refused"))
    assert whole_checkpoints(run) == ["checkpoint_epoch_0001"]
    open_checkpoint(StoredCheckpoint(run, "checkpoint_epoch_0001"))
    assert train_on(storage, tiny_settings, tmp_path) == 0
    last = "checkpoint_epoch_0002/model.safetensors"
    assert sha256(storage, f"refused/{last}") == sha256(storage, f"whole/{last}")
