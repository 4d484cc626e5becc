"""Whole sweeps on a real Ray cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient
from pyarrow import parquet

from tests.settings import make_tiny_settings
from tests.training.runs import REPOSITORY, assert_same_bits, load_job, write_config

job, train = load_job("sweep"), load_job("train")

GOOD = "LR=0.001"
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
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 158  # 40 steps, long enough to be killed among them
    settings["TRAIN"]["CHECKPOINT_EVERY_STEPS"] = 10
    del settings["RUN"]["NAME"]
    return write_config(settings, folder)


@pytest.fixture(scope="module")
def swept(cluster: None, folder: Path, config: str) -> tuple[int, Path]:
    """Exit code and folder of a sweep over two learning rates, one of them absurd."""
    sweep = write_sweep(folder, parameters={"TRAIN.LR": {"grid": [0.001, 1e30]}, "SEED": {"grid": [2]}}, retries=1)
    return job.main(["--config", config, "--sweep", sweep]), folder / "runs/tiny-sweep"


def rows(sweep: Path) -> dict[str, dict[str, Any]]:
    return {row["trial"]: row for row in parquet.read_table(sweep / "trials.parquet").to_pylist()}


def test_trials_that_diverge_fail_with_their_reason_and_the_others_end(swept: tuple[int, Path]) -> None:
    code, sweep = swept
    assert code == 1
    found = rows(sweep)
    assert {name: row["status"] for name, row in found.items()} == {
        f"{GOOD},SEED=2": "finished",
        "LR=1e+30,SEED=2": "failed",
    }
    reason = found["LR=1e+30,SEED=2"]["reason"]
    assert reason.startswith("step ") and "gradient norm" in reason and "learning rate 1e+30" in reason
    assert "Best: TRAIN.LR 0.001" in (sweep / "summary.md").read_text()


def test_a_trial_trained_alone_with_its_saved_settings_has_the_same_bits(swept: tuple[int, Path], folder: Path) -> None:
    _, sweep = swept
    saved = sweep / f"trials/{GOOD},SEED=2/config.yaml"
    assert train.main(["--config", str(saved), f"RUN.STORAGE_PATH={folder}/alone", "RUN.NAME=alone"]) == 0
    assert_same_bits(folder / "alone/alone", saved.parent, LAST)


def test_each_trial_has_its_own_mlflow_run_below_the_sweeps(swept: tuple[int, Path], folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("seqtrack")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "tiny-sweep"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.run_name: run.info.status for run in children} == {
        f"{GOOD},SEED=2": "FINISHED",
        "LR=1e+30,SEED=2": "FAILED",
    }
    (good,) = [run for run in children if run.info.run_name == f"{GOOD},SEED=2"]
    assert good.data.params["_TRAIN.LR"] == good.data.params["TRAIN.LR"] == "0.001"
    assert len(client.get_metric_history(good.info.run_id, "epoch/iou")) == 2
    artifacts = {artifact.path for artifact in client.list_artifacts(parent.info.run_id, "report")}
    assert {"report/index.html", "report/trials.csv"} <= artifacts


def test_a_sweep_that_was_killed_goes_on_and_a_killed_trial_from_its_checkpoint(
    cluster: None, swept: tuple[int, Path], folder: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed when one of two trials is done; then the other's process is killed. The numbers are those of `swept`."""
    sweep = write_sweep(folder, parameters={"TRAIN.LR": {"grid": [0.001]}, "SEED": {"grid": [1, 2]}}, concurrency=1)
    arguments = ["--config", config, "--sweep", sweep, "RUN.NAME=killed"]
    trials = folder / "runs/killed/trials"
    done, other = trials / f"{GOOD},SEED=1", trials / f"{GOOD},SEED=2"
    environment = os.environ | {"RAY_ADDRESS": "local"}
    with subprocess.Popen(
        [sys.executable, "ray_jobs/sweep.py", *arguments], cwd=REPOSITORY, env=environment
    ) as process:
        wait_until(lambda: (other / "train.log").exists())
        process.kill()
    assert (done / LAST).exists() and not (other / LAST).exists()

    killed = threading.Event()

    def kill_the_trial() -> None:
        wait_until(lambda: any(other.glob("checkpoint_epoch_*")))
        ours = {process.pid for process in psutil.Process().children(recursive=True)}
        named = psutil.process_iter(["cmdline"])
        (process,) = [one for one in named if one.pid in ours and "ray::ImplicitFunc" in str(one.info["cmdline"])]
        process.kill()
        killed.set()

    thread = threading.Thread(target=kill_the_trial)
    thread.start()
    assert job.main(arguments) == 0
    thread.join()
    assert killed.is_set()
    assert "2 trials of 2 epochs" in (shown := capsys.readouterr().out) and "; 1 are done" in shown
    assert_same_bits(other, swept[1] / "trials" / other.name, LAST)
    assert (done / "train.log").read_text().count("Training vit_demo") == 1
    assert (other / "train.log").read_text().count("Training vit_demo") >= 2


def test_a_sweep_that_is_asked_to_stop_has_its_trial_write_a_checkpoint(folder: Path, config: str) -> None:
    """In the middle of its first epoch. The trial after it does not train; what is there goes on as after a kill."""
    sweep = write_sweep(folder, parameters={"TRAIN.LR": {"grid": [0.001]}, "SEED": {"grid": [1, 2]}}, concurrency=1)
    arguments = ["--sweep", sweep, "RUN.NAME=asked", "DATA.TRAIN.SAMPLE_PER_EPOCH=2000"]
    arguments.append("TRAIN.CHECKPOINT_EVERY_STEPS=null")
    first = folder / "runs/asked/trials" / f"{GOOD},SEED=1"
    with subprocess.Popen(
        [sys.executable, "ray_jobs/sweep.py", "--config", config, *arguments], cwd=REPOSITORY, text=True,
        env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        wait_until(lambda: (first / "train.log").exists() and "Epoch 1 : 40 " in (first / "train.log").read_text())
        process.terminate()
        output, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output and "Stopped. To go on: " in output
    assert [path.name[:29] for path in first.glob("checkpoint_epoch_*")] == ["checkpoint_epoch_0000_step_00"]
    assert not (first.with_name(f"{GOOD},SEED=2") / "train.log").exists()
    assert json.loads((first / "trial.json").read_text())["status"] == "unfinished"


def test_asha_stops_the_worse_trials_and_the_summary_says_where(
    cluster: None, folder: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(
        folder,
        parameters={"TRAIN.LR": {"grid": [0.003, 1e-9]}},
        metric="loss",
        scheduler={"type": "asha", "reduction_factor": 2},
        concurrency=1,
    )
    assert job.main(["--config", config, "--sweep", sweep, "RUN.NAME=asha"]) == 0
    found = rows(folder / "runs/asha")
    assert {name: (row["status"], row["epochs"]) for name, row in found.items()} == {
        "LR=0.003": ("finished", 2),
        "LR=1e-09": ("stopped early", 1),
    }
    assert "| 1e-09 | stopped early | 1 |" in (folder / "runs/asha/summary.md").read_text()
    assert "Best: TRAIN.LR 0.003" in capsys.readouterr().out


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
    assert job.main(["--config", config, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_sweep_of_the_same_name_is_refused(
    swept: tuple[int, Path], folder: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(folder, parameters={"TRAIN.LR": {"grid": [0.5]}})
    assert job.main(["--config", config, "--sweep", sweep, "RUN.NAME=tiny-sweep"]) == 2
    assert "holds a sweep with other parameters; another RUN.NAME keeps both" in capsys.readouterr().err


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
