"""Runs whose checkpoints live in an object store: trained there, resumed from there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack.locations import child
from tests.object_stores import gcs_bucket, s3_bucket
from tests.training.runs import assert_same_bits, job, write_config


@pytest.mark.parametrize("bucket", [s3_bucket, gcs_bucket])
def test_a_run_resumed_from_an_object_store_repeats_the_run_there(
    cluster: None,
    bucket: Callable[[], AbstractContextManager[str]],
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with bucket() as uri:
        storage = child(uri, "runs")
        arguments = ["--config", write_config(tiny_settings, tmp_path), f"RUN.STORAGE_PATH={storage}"]
        arguments.append(f"MLFLOW.TRACKING_URI=sqlite:///{tmp_path}/mlflow.db")
        assert job.main([*arguments, "RUN.NAME=whole"]) == 0
        whole = child(storage, "whole")
        assert f"Checkpoints and log:  {whole}" in capsys.readouterr().out
        assert job.main([*arguments, "RUN.NAME=resumed", "--resume-from", child(whole, "1")]) == 0
        filesystem, folder = fs.FileSystem.from_uri(storage)
        fs.copy_files(folder, str(tmp_path / "copied"), filesystem, fs.LocalFileSystem())
    assert_same_bits(tmp_path / "copied/resumed", tmp_path / "copied/whole", "checkpoint_epoch_0002")
    assert "Restored" in (tmp_path / "copied/resumed/train.log").read_text()
