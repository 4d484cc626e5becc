"""The two-phase experiment as a whole, on a real Ray cluster."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from tests.settings import make_tiny_settings
from tests.training.runs import REPOSITORY, load_job, write_config

job = load_job("reproduce")


@pytest.fixture(scope="module")
def config(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("reproduce")
    settings = make_tiny_settings(lasot_root, folder / "runs")
    settings["TRAIN"] |= {"EPOCH": 3}
    settings["RUN"]["NAME"] = "twice"
    return write_config(settings, folder)


@pytest.fixture(scope="module")
def experiment(cluster: None, config: str) -> tuple[int, str, Path]:
    """Exit code, output and folder of an experiment that was killed in its second phase and given again."""
    command = [sys.executable, "ray_jobs/reproduce.py", "--config", config]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("Phase 2, in" in line for line in process.stdout)
        process.kill()
    with redirect_stdout(io.StringIO()) as shown:
        code = job.main(["--config", config])
    return code, shown.getvalue(), Path(config).parent / "runs/twice"


def test_the_second_phase_reproduces_the_first_though_the_job_is_killed(experiment: tuple[int, str, Path]) -> None:
    code, shown, folder = experiment
    assert code == 0
    assert "It was trained to its end before." in shown
    assert "Phase 2 against phase 1: bitwise equal" in shown
    assert "Steps 13 to 18 were compared." in shown
    assert "Phase 2 against phase 1: bitwise equal" in (folder / "report/index.html").read_text()

    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("seqtrack").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "twice"]
    children = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children == {"phase1", "phase2"}
    (phase2,) = [run for run in runs if run.info.run_name == "phase2"]
    assert phase2.data.tags["phase"] == "resumed"
    assert phase2.data.tags["resumed_from"].endswith("phase1/checkpoint_epoch_0002")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["reproduced"] == 1
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/report.md", "report/loss.png", "report/loss.svg"} <= files


def test_a_checkpoint_that_was_tampered_with_is_noticed(
    experiment: tuple[int, str, Path], config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One weight changed by 1e-6, and the sums made to fit."""
    first = tmp_path / "first"
    shutil.copytree(experiment[2] / "phase1", first)
    checkpoint = first / "checkpoint_epoch_0002"
    weights = load_file(checkpoint / "model.safetensors")
    weights["vocab_embed.layers.2.bias"][0] += 1e-6
    save_file(weights, checkpoint / "model.safetensors")
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    sums = re.sub(r"\w{64}(?=  model)", digest, (checkpoint / "SHA256SUMS").read_text())
    (checkpoint / "SHA256SUMS").write_text(sums)
    assert not torch.equal(weights["vocab_embed.layers.2.bias"], torch.zeros(18))

    assert job.main(["--config", config, "RUN.NAME=tampered", "--phase1", str(first)]) == 1
    assert re.search(r"Phase 2 against phase 1: different from step 1[3-8] on", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume-epoch", "4"], "--resume-epoch 4: not one of 2 to TRAIN.EPOCH, 3"),
        (["--resume-epoch", "1"], "--resume-epoch 1: not one of 2 to TRAIN.EPOCH, 3"),
        (["TRAIN.KEEP_CHECKPOINTS=1"], "TRAIN.KEEP_CHECKPOINTS: the report needs the checkpoints of all epochs"),
        (["--phase1", "/nowhere/a", "--phase2", "/nowhere/b"], "phase 1 has no finished checkpoint"),
    ],
)
def test_bad_input_gets_one_line(
    config: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert job.main(["--config", config, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
