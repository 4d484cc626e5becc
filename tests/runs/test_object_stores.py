"""Runs whose checkpoints and data live in an object store: trained there, resumed from there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack.locations import child
from tests.object_stores import gcs_bucket, s3_bucket
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
