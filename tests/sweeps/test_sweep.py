"""Whole sweeps on a real Ray cluster."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from pyarrow import parquet

from seqtrack.config import load_config
from seqtrack.runs.evaluations import read_evaluations
from tests.folders import run_at
from tests.settings import make_tiny_settings
from tests.training.loops import train
from tests.training.runs import REPOSITORY, assert_refused, assert_same_bits, load_job, write_config

job = load_job("sweep")

SEED = 2
GOOD, WORSE, ABSURD = (f"LR={lr},SEED={SEED}" for lr in (0.003, 1e-09, 1e30))
LAST = "checkpoint_epoch_0002"


def write_sweep(folder: Path, **values: Any) -> str:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def config(folder: Path, lasot_root: Path) -> str:
    settings = make_tiny_settings(lasot_root, folder / "runs")
    # Epochs that are long enough to be killed in, and for ASHA to stop a trial before its second one has ended.
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 318
    settings["TRAIN"]["CHECKPOINT_EVERY_STEPS"] = 10
    del settings["RUN"]["NAME"]
    return write_config(settings, folder)


@dataclass(frozen=True)
class Swept:
    code: int
    output: str
    folder: Path

    @property
    def trials(self) -> Path:
        return self.folder / "trials"

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["trial"]: row for row in parquet.read_table(self.folder / "trials.parquet").to_pylist()}


@pytest.fixture(scope="module")
def swept(cluster: None, folder: Path, config: str) -> Swept:
    """A sweep over a good learning rate, one that ASHA stops after an epoch, and an absurd one."""
    sweep = write_sweep(
        folder,
        parameters={"TRAIN.LR": {"grid": [0.003, 1e-9, 1e30]}, "SEED": {"grid": [SEED]}},
        metric="loss",
        scheduler={"type": "asha", "reduction_factor": 2},
        concurrency=1,
        retries=1,
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = job.main(["--config", config, "--sweep", sweep])
    return Swept(code, output.getvalue(), folder / "runs/tiny-sweep")


def test_asha_stops_the_worse_trial_and_the_summary_says_where(swept: Swept) -> None:
    found = {name: (row["status"], row["epochs"]) for name, row in swept.rows().items()}
    assert found == {GOOD: ("finished", 2), WORSE: ("stopped early", 1), ABSURD: ("failed", 0)}
    assert f"| 1e-09 | {SEED} | stopped early | 1 |" in (swept.folder / "summary.md").read_text()
    assert "Best: TRAIN.LR 0.003" in (swept.folder / "summary.md").read_text()
    assert "Best: TRAIN.LR 0.003" in swept.output


def test_a_trial_that_diverges_fails_with_its_reason_and_the_others_go_on(swept: Swept) -> None:
    assert swept.code == 1
    reason = swept.rows()[ABSURD]["reason"]
    assert reason.startswith("step ") and "gradient norm" in reason and "learning rate 1e+30" in reason
    assert f"{ABSURD} failed: {reason}" in swept.output


def test_a_trial_trained_alone_with_its_saved_settings_has_the_same_bits(swept: Swept, folder: Path) -> None:
    saved = swept.trials / GOOD / "config.yaml"
    train(load_config(saved).with_settings({"RUN.STORAGE_PATH": f"{folder}/alone", "RUN.NAME": "alone"}))
    assert_same_bits(folder / "alone/alone", saved.parent, LAST)


def test_each_trial_has_its_own_mlflow_run_below_the_sweeps_and_its_checkpoints_name_it(
    swept: Swept, folder: Path
) -> None:
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("seqtrack")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == swept.folder.name]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    statuses = {run.info.run_name: run.info.status for run in children}
    assert statuses == {GOOD: "FINISHED", WORSE: "FINISHED", ABSURD: "FAILED"}
    (good,) = [run for run in children if run.info.run_name == GOOD]
    assert good.data.params["_TRAIN.LR"] == good.data.params["TRAIN.LR"] == "0.003"
    assert len(client.get_metric_history(good.info.run_id, "epoch/iou")) == 2
    metas = [json.loads(path.read_text()) for path in (swept.trials / GOOD).glob("checkpoint_epoch_*/meta.json")]
    assert {meta["mlflow_run_id"] for meta in metas} == {good.info.run_id}
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/trials.csv"} <= artifacts


def test_trials_are_compared_by_how_well_they_track(swept: Swept, folder: Path, config: str, lasot_root: Path) -> None:
    """The trial is that of `swept`, of which only the tracking is left to do."""
    sweep = write_sweep(
        folder, parameters={"TRAIN.LR": {"grid": [0.003]}, "SEED": {"grid": [SEED]}}, metric="auc", concurrency=1
    )
    found = Swept(0, "", folder / "runs/measured")
    shutil.copytree(swept.trials / GOOD, found.trials / GOOD)
    (found.trials / GOOD / "trial.json").write_text(json.dumps({"params": {"TRAIN.LR": 0.003, "SEED": SEED}}))
    measured = ["RUN.NAME=measured", f"EVAL.BENCHMARKS={{mine: {lasot_root}}}", "EVAL.SEQUENCES=1"]
    assert job.main(["--config", config, "--sweep", sweep, *measured]) == 0
    evaluations = read_evaluations(run_at(found.trials / GOOD))
    assert [one.step for one in evaluations] == [80, 160]
    row = found.rows()[GOOD]
    assert (row["status"], row["auc"]) == ("finished", evaluations[-1].measures["auc"])
    assert row["best_auc"] == max(one.measures["auc"] for one in evaluations)
    assert f"with auc {row['auc']:.4f}" in (found.folder / "summary.md").read_text()


@pytest.fixture(scope="module")
def stopped(swept: Swept, folder: Path, config: str) -> tuple[subprocess.CompletedProcess[str], Path, list[str]]:
    """A sweep of two trials that gets SIGTERM early in its first one; its folder, and its arguments."""
    sweep = write_sweep(
        folder, parameters={"TRAIN.LR": {"grid": [0.003]}, "SEED": {"grid": [SEED, 7]}}, metric="loss", concurrency=1
    )
    arguments = ["--config", config, "--sweep", sweep, "RUN.NAME=stopped"]
    log = folder / "runs/stopped/trials" / GOOD / "train.log"
    with subprocess.Popen(
        [sys.executable, "ray_jobs/sweep.py", *arguments, "TRAIN.CHECKPOINT_EVERY_STEPS=null"], cwd=REPOSITORY,
        text=True, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        wait_until(lambda: process.poll() is not None or (log.exists() and "Epoch 1 : 8 " in log.read_text()))
        process.terminate()
        output, _ = process.communicate()
    assert process.returncode is not None
    ended = subprocess.CompletedProcess(process.args, process.returncode, output)
    return ended, folder / "runs/stopped", arguments


@pytest.mark.soak
def test_a_sweep_that_is_asked_to_stop_has_its_trial_write_a_checkpoint(
    stopped: tuple[subprocess.CompletedProcess[str], Path, list[str]],
) -> None:
    """Wherever it is. The trial after it does not train."""
    process, sweep, _ = stopped
    trials = sweep / "trials"
    assert process.returncode == 128 + signal.SIGTERM, process.stdout
    assert "Traceback" not in process.stdout and "Stopped. To go on: " in process.stdout
    # None but on request, or after an epoch.
    assert [path.name for path in (trials / GOOD).glob("checkpoint_epoch_*_step_*")]
    assert json.loads((trials / GOOD / "trial.json").read_text())["status"] == "unfinished"
    assert not any(trials.glob("*SEED=7/train.log"))


@pytest.mark.soak
def test_a_stopped_sweep_goes_on_and_a_killed_trial_from_its_checkpoint(
    stopped: tuple[subprocess.CompletedProcess[str], Path, list[str]], swept: Swept, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interrupted trial's process is killed too, and its numbers are those of `swept`. What is done stays."""
    _, sweep, arguments = stopped
    done, other = sweep / "trials" / "LR=0.003,SEED=7", sweep / "trials" / GOOD
    shutil.copytree(swept.trials / GOOD, done, dirs_exist_ok=True)  # as if the stopped sweep had trained it
    (done / "trial.json").write_text(json.dumps({"params": {"TRAIN.LR": 0.003, "SEED": 7}, "status": "finished"}))
    before = set(other.glob("checkpoint_epoch_*"))
    killed = threading.Event()

    def kill_the_trial() -> None:
        wait_until(lambda: set(other.glob("checkpoint_epoch_*")) > before)
        ours = {process.pid for process in psutil.Process().children(recursive=True)}
        named = psutil.process_iter(["cmdline"])
        (process,) = [one for one in named if one.pid in ours and "ray::ImplicitFunc" in str(one.info["cmdline"])]
        process.kill()
        killed.set()

    thread = threading.Thread(target=kill_the_trial, daemon=True)
    thread.start()
    assert job.main(arguments) == 0
    thread.join()
    assert killed.is_set()
    assert "2 trials of 2 epochs" in (shown := capsys.readouterr().out) and "; 1 are done" in shown
    assert_same_bits(other, swept.trials / GOOD, LAST)
    assert (done / "train.log").read_text().count("Training vit_demo") == 1
    assert (other / "train.log").read_text().count("Training vit_demo") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--sweep", str(REPOSITORY / "configs/sweeps/smoke.yaml"), "DATA.ROOT=/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_gets_one_line(
    config: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert_refused(job, ["--config", config, *arguments], message, capsys)


def test_another_sweep_of_the_same_name_is_refused(
    swept: Swept, folder: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(folder, parameters={"TRAIN.LR": {"grid": [0.5]}})
    assert job.main(["--config", config, "--sweep", sweep, f"RUN.NAME={swept.folder.name}"]) == 2
    message = "holds a sweep with other parameters, metric, direction, scheduler; another RUN.NAME keeps both"
    assert message in capsys.readouterr().err


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
