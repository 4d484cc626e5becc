"""Two `seqtrack train` of one RUN.NAME on real Ray clusters: one trains, the other names it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqtrack.locations import child
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import read_metrics
from tests.object_stores import s3_bucket
from tests.training.loops import named, train
from tests.training.runs import REPOSITORY, write_config

LAST = "checkpoint_epoch_0002/model.safetensors"


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    place = contextlib.nullcontext(str(tmp_path)) if request.param == "disk" else s3_bucket()
    with place as location:
        yield child(location, "runs")


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [0, 5])
def test_of_two_starts_one_trains_as_if_alone_and_the_other_names_it(
    storage: str, seconds: float, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    train(named(tiny_settings, "whole", {"RUN.STORAGE_PATH": storage}))
    command = [sys.executable, "ray_jobs/train.py", "--config", write_config(tiny_settings, tmp_path)]
    command += [f"RUN.STORAGE_PATH={storage}", "RUN.NAME=double", f"MLFLOW.TRACKING_URI=sqlite:///{tmp_path}/mlflow.db"]
    jobs = []
    for number in range(2):
        time.sleep(number * seconds)
        jobs.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=os.environ | {"RAY_ADDRESS": "local"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [job.communicate(timeout=300)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    codes = [job.returncode for job in jobs]
    assert sorted(codes) == [0, 2], errors
    owner = jobs[codes.index(0)].pid
    assert re.search(
        rf"/runs/double.*: (belongs to|is just being claimed by) another job: .*process {owner}\b",
        errors[codes.index(2)],
    )
    assert errors[codes.index(2)].count("\n") == 1
    run, whole = (RunFolder.at(child(storage, name)) for name in ("double", "whole"))
    assert [record["step"] for record in read_metrics(run)] == [record["step"] for record in read_metrics(whole)]
    assert sha256(run) == sha256(whole)


def sha256(run: RunFolder) -> str:
    with run.filesystem.open_input_stream(run.file(LAST)) as stream:
        return hashlib.sha256(stream.read()).hexdigest()
