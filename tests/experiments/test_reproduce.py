"""The two-phase experiment: trained on a real Ray cluster and interrupted once, and with runs that are given."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from seqtrack.config import load_config
from seqtrack.experiments import reproduce as experiment
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.experiments.evaluate_run import RunEvaluation
from seqtrack.experiments.evaluators import Plan
from seqtrack.experiments.train import Outcome
from seqtrack.runs.evaluations import read_evaluations
from seqtrack.runs.folder import RunFolder
from seqtrack.training.loop import HopelessError
from tests.folders import run_at, stored_at
from tests.settings import make_tiny_settings
from tests.training.loops import train
from tests.training.runs import REPOSITORY, assert_refused, load_job, write_config

job = load_job("reproduce")


@pytest.fixture(scope="module")
def config(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three epochs of six steps."""
    folder = tmp_path_factory.mktemp("reproduce")
    settings = make_tiny_settings(lasot_root, folder / "runs")
    settings["TRAIN"] |= {"EPOCH": 3}
    settings["RUN"]["NAME"] = "twice"
    return write_config(settings, folder)


class Story(NamedTuple):
    """What an experiment showed."""

    code: int
    shown: str
    folder: Path


@pytest.fixture(scope="module")
def story(cluster: None, config: str, lasot_root: Path) -> Story:
    """The first phase has been trained before, without Ray. Checkpoints of both phases are measured."""
    measured = [f"EVAL.BENCHMARKS={{mine: {lasot_root}}}", "EVAL.SEQUENCES=1"]
    settings = load_config(config, measured)
    folder = Path(config).parent / "runs/twice"
    phase1 = settings.with_settings({"RUN.STORAGE_PATH": str(folder), "RUN.NAME": "phase1"})
    train(phase1)
    one = Plan(workers=1, slots=1, device="cpu", precision="fp32")
    evaluation = RunEvaluation(phase1, RunFolder.of(phase1), open_for_run(phase1), None, lambda: one)
    evaluation.start()
    assert evaluation.finish()
    evaluation.close()
    with redirect_stdout(io.StringIO()) as shown:
        code = job.main(["--config", config, *measured])
    return Story(code, shown.getvalue(), folder)


@pytest.mark.soak
def test_an_experiment_whose_job_is_killed_in_its_second_phase_goes_on(cluster: None, config: str) -> None:
    folder = Path(config).parent / "runs/killed"
    command = [sys.executable, "ray_jobs/reproduce.py", "--config", config, "RUN.NAME=killed"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("Phase 2, in" in line for line in process.stdout)
        process.kill()
    with redirect_stdout(io.StringIO()) as shown:
        code = job.main(["--config", config, "RUN.NAME=killed"])
    assert code == 0
    assert "It was trained to its end before." in shown.getvalue()
    assert "Phase 2 against phase 1: bitwise equal" in (folder / "report/index.html").read_text()


def test_the_second_phase_reproduces_the_first(story: Story) -> None:
    code, shown, folder = story
    assert code == 0
    assert "It was trained to its end before." in shown
    assert "Phase 2 against phase 1: bitwise equal" in shown
    assert "Steps 13 to 18 were compared." in shown
    assert "Phase 2 against phase 1: bitwise equal" in (folder / "report/index.html").read_text()


def test_mlflow_has_the_trained_phase_below_the_experiment_and_its_report(story: Story) -> None:
    client = MlflowClient(f"sqlite:///{story.folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("seqtrack").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "twice"]
    children = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert children == {"phase2"}
    (phase2,) = [run for run in runs if run.info.run_name == "phase2"]
    assert phase2.data.tags["phase"] == "resumed"
    assert phase2.data.tags["resumed_from"].endswith("phase1/checkpoint_epoch_0002")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["reproduced"] == 1
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/report.md", "report/loss.png", "report/loss.svg"} <= files


def test_both_phases_track_alike(story: Story) -> None:
    page = (story.folder / "report/report.md").read_text()
    (phase1,) = [one for one in read_evaluations(run_at(story.folder / "phase1")) if one.step == 18]
    (phase2,) = read_evaluations(run_at(story.folder / "phase2"))
    assert phase2 == phase1
    auc = f"{phase1.measures['auc']:.4f}"
    assert f"| 3 | mine_1of4/pytracking | {auc} | {auc} | 0 |" in page
    client = MlflowClient(f"sqlite:///{story.folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("seqtrack").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert runs["twice"].data.metrics["difference/auc"] == 0
    history = client.get_metric_history(runs["phase2"].info.run_id, "mine_1of4/pytracking/auc")
    assert [(point.step, point.value) for point in history] == [(18, phase2.measures["auc"])]
    pages = {artifact.path for artifact in client.list_artifacts(runs["phase2"].info.run_id, "evaluation")}
    assert pages == {"evaluation/index.html"}


@pytest.fixture(scope="module")
def phase1(config: str) -> Path:
    """A finished run, trained without Ray. Tests must not change it."""
    folder = Path(config).parent / "given"
    train(load_config(config).with_settings({"RUN.STORAGE_PATH": str(folder), "RUN.NAME": "phase1"}))
    return folder / "phase1"


def resume(config: str, phase1: Path, storage: Path) -> Path:
    """Trains the third epoch from the second one's checkpoint, without Ray."""
    settings = {"RUN.STORAGE_PATH": str(storage), "RUN.NAME": "phase2"}
    train(load_config(config).with_settings(settings), start=stored_at(phase1 / "checkpoint_epoch_0002"))
    return storage / "phase2"


def call(config: str, tmp_path: Path, *arguments: str | Path) -> int:
    """Runs the program with one MLflow store for all tests: making one takes seconds."""
    settings = [f"RUN.STORAGE_PATH={tmp_path}/runs", f"MLFLOW.TRACKING_URI=sqlite:///{Path(config).parent}/given.db"]
    code: int = job.main(["--config", config, *map(str, arguments), *settings])
    return code


def test_finished_runs_are_compared_where_their_data_are_not(
    config: str, phase1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phase2 = resume(config, phase1, tmp_path)
    assert call(config, tmp_path, "--phase1", phase1, "--phase2", phase2, "DATA.ROOT=/nowhere") == 0
    shown = capsys.readouterr().out
    assert "Phase 2 against phase 1: bitwise equal" in shown
    assert f"Report:  {tmp_path}/runs/twice/report/index.html" in shown


def test_a_checkpoint_that_was_tampered_with_is_noticed(
    config: str, phase1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One weight changed by 1e-6, and the sums made to fit."""
    first = shutil.copytree(phase1, tmp_path / "first")
    checkpoint = first / "checkpoint_epoch_0002"
    weights = load_file(checkpoint / "model.safetensors")
    weights["vocab_embed.layers.2.bias"][0] += 1e-6
    assert weights["vocab_embed.layers.2.bias"].any()
    save_file(weights, checkpoint / "model.safetensors")
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    sums = re.sub(r"\w{64}(?=  model)", digest, (checkpoint / "SHA256SUMS").read_text())
    (checkpoint / "SHA256SUMS").write_text(sums)

    second = resume(config, first, tmp_path)
    assert call(config, tmp_path, "--phase1", first, "--phase2", second) == 1
    assert re.search(r"Phase 2 against phase 1: different from step 1[3-8] on", capsys.readouterr().out)


def test_a_phase_that_fails_is_reported_with_its_reason(
    config: str, phase1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Outcome:
        raise HopelessError("the loss is not finite")

    monkeypatch.setattr(experiment, "run_prepared", fail)
    assert call(config, tmp_path, "--phase1", phase1) == 1
    assert "Phase 2 training failed: the loss is not finite" in caplog.text
    assert "Phase 1" in (tmp_path / "runs/twice/report/index.html").read_text()


def test_a_phase_that_is_stopped_stops_the_experiment_which_says_how_to_go_on(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = Outcome("runs/twice/phase1", None, [], 4, signal.SIGTERM, "")
    monkeypatch.setattr(experiment, "run_prepared", lambda *_, **__: stopped)
    assert call(config, tmp_path) == 128 + signal.SIGTERM
    shown = capsys.readouterr().out
    assert (
        f"ray_jobs/reproduce.py --config {config} RUN.STORAGE_PATH={tmp_path}/runs" in shown.partition("To go on: ")[2]
    )
    assert "Phase 2" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume-epoch", "4"], "--resume-epoch 4: not one of 2 to TRAIN.EPOCH, 3"),
        (["--resume-epoch", "1"], "--resume-epoch 1: not one of 2 to TRAIN.EPOCH, 3"),
        (["TRAIN.KEEP_CHECKPOINTS=1"], "TRAIN.KEEP_CHECKPOINTS: the report needs the checkpoints of all epochs"),
        (["--phase1", "/nowhere/a", "--phase2", "/nowhere/b"], "/nowhere/a: no finished checkpoint there"),
    ],
)
def test_bad_input_gets_one_line(
    config: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert_refused(job, ["--config", config, *arguments], message, capsys)
