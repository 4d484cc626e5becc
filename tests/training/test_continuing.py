"""On a real cluster, a run that was stopped or killed continues as if nothing had happened, bit for bit.

Dropout and all augmentation are on. Every run is compared with one that nothing happened to. What needs no cluster is
in `test_loop.py`.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient

from seqtrack.config import load_config
from tests.training.loops import checkpoint_of, train, train_together
from tests.training.pair import LONG, run_long
from tests.training.runs import REPOSITORY, WorkerKiller, assert_same_bits, job, records, step_metrics

STEPS_PER_EPOCH = 40
LAST = "checkpoint_epoch_0002"


def test_a_cluster_trains_as_the_loop_alone(whole: Path, looped: Path) -> None:
    """So the results of tests of the loop hold on a cluster, too, whose samples come from many processes."""
    assert_same_bits(whole, looped, LAST)
    assert records(whole) == records(looped)


def test_a_run_leaves_a_log_checkpoints_and_curves_and_says_where(whole: Path) -> None:
    run = whole
    console, log = run.with_suffix(".console").read_text(), (run / "train.log").read_text()
    assert "4 sequences, 120 frames, 158 samples and 40 steps an epoch, 2 epochs, seed 3" in log
    assert "Starting weights : random" in log
    assert re.findall(r"Epoch (\d) of 2 done in .*waited for data [\d.]+% of the time", log) == ["1", "2"]
    shown = iter(console.splitlines())
    assert all(line in shown for line in log.splitlines())  # in their order, perhaps with Ray's own between
    names = [f"checkpoint_epoch_000{epoch}_step_0000{step}" for epoch in range(2) for step in (10, 20, 30)]
    names += [f"checkpoint_epoch_000{epoch}" for epoch in (1, 2)]
    assert sorted(path.name for path in run.glob("checkpoint_epoch*")) == sorted(names)
    files = sorted(path.name for path in (run / LAST).iterdir())
    assert files == ["SHA256SUMS", "meta.json", "model.safetensors", "rng_rank_0000.pt", "state.pt"]
    assert yaml.safe_load((run / "config.yaml").read_text())["TRAIN"]["LR"] == 0.001
    assert f"--resume-from {run}/{LAST} TRAIN.EPOCH=4" in console

    store = f"sqlite:///{run.parent}/mlflow.db"
    assert f"ui --backend-store-uri {store}" in console
    meta = json.loads((run / LAST / "meta.json").read_text())
    client = MlflowClient(store)
    mlflow_run = client.get_run(meta["mlflow_run_id"])
    assert (mlflow_run.info.status, mlflow_run.info.run_name) == ("FINISHED", "whole")
    assert mlflow_run.data.params["TRAIN.LR"] == "0.001"
    run_id = mlflow_run.info.run_id
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [*range(2, 81, 2)]
    epochs = [point.value for point in client.get_metric_history(run_id, "epoch/loss")]
    assert epochs == [summary["loss"] for summary in meta["history"]]
    assert len(meta["frames"]["LASOT"]["files"].split()) == 120  # the stamp of the frames


def test_two_workers_of_which_one_is_killed_train_as_the_loop_alone(cluster: None, together: Path, config: str) -> None:
    """The log says why they were started again; only the newest checkpoints are kept, as asked."""
    reference, run = together / "pair", together / "killed"
    killer = WorkerKiller(run, [54], STEPS_PER_EPOCH)
    killer.start()
    arguments = ["RUN.WORKERS=2", f"RUN.NAME={run.name}", "RUN.MAX_FAILURES=4", "TRAIN.KEEP_CHECKPOINTS=2"]
    assert job.main(["--config", config, *arguments]) == 0
    assert killer.killed
    assert_same_bits(run, reference, LAST)
    assert records(run) == records(reference)
    log = (run / "train.log").read_text()
    why = re.findall(r"Worker [01] failed \(\w+: .+\); failure (\d), and RUN.MAX_FAILURES permits 4", log)
    assert why and set(why) == {"1"}, log
    left = sorted(path.name for path in run.glob("checkpoint_epoch*"))
    assert left == ["checkpoint_epoch_0001_step_000030", LAST]


class Process:
    """The job as a process of its own, with a Ray cluster of its own."""

    def __init__(self, config: str, *arguments: str) -> None:
        command = [sys.executable, "ray_jobs/train.py", "--config", config, *arguments]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=os.environ | {"RAY_ADDRESS": "local"}, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} was not printed:\n{self.output}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill_cluster(self) -> None:
        """Kills the job and every process that it started, at once."""
        family = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            process.kill()

    def end(self) -> int:
        assert self._process.stdout is not None
        self.output += self._process.stdout.read()
        return self._process.wait()


@pytest.mark.soak
def test_the_whole_cluster_killed_then_the_job_asked_to_stop(together: Path, config: str) -> None:
    """After each interruption, the same command is run again."""
    reference, run = together / "pair", together / "interrupted"
    arguments = (config, "RUN.WORKERS=2", f"RUN.NAME={run.name}")

    process = Process(*arguments)
    process.read_until("Epoch 1 : 120")
    process.kill_cluster()
    process.end()

    process = Process(*arguments)
    process.read_until("Restored")
    process.read_until("Epoch 2 : 40")
    process.send(signal.SIGTERM)
    assert process.end() == 128 + signal.SIGTERM
    stopped = re.search(r"Stopped by SIGTERM after step (\d+); the checkpoint is (.*)\nTo go on: (.*)", process.output)
    assert stopped is not None and f"RUN.NAME={run.name}" in stopped[3]
    assert torch.equal(step_metrics(run, Path(stopped[2]).name), step_metrics(reference, LAST)[: int(stopped[1])])

    process = Process(*arguments)
    process.read_until(f"Restored {stopped[2]}")
    assert process.end() == 0
    assert_same_bits(run, reference, LAST)


@pytest.mark.soak
def test_nodes_that_come_and_go(settings: dict[str, Any], config: str, tmp_path: Path) -> None:
    """A checkpoint is written at the announcement. Samples are made on the node that is labelled for it, as long as it
    is there and has room, and then elsewhere."""
    train_together(functools.partial(run_long, settings=settings), tmp_path)
    runs = Path(settings["RUN"]["STORAGE_PATH"])
    run, reference = runs / "nodes", runs / "long"
    changes = LONG | {"RUN.WORKERS": 2, "RUN.CPUS_PER_WORKER": 0.5, "TRAIN.CHECKPOINT_EVERY_STEPS": 80}
    file = Path(config).with_name("long.yaml")
    file.write_text(load_config(config).with_settings(changes).to_yaml())
    program = [sys.executable, "-m", "tests.training.nodes", str(run), "--config", str(file)]
    program += ["RUN.WORKER_LABELS={seqtrack-role: train}", "RUN.DATA_CPUS=2"]
    environment = os.environ | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    environment.pop("RAY_ADDRESS", None)
    ended = subprocess.run(program, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    log = (run / "train.log").read_text()
    announced = re.search(r"Preemption : a node of this run is about to go; writing a checkpoint at step (\d+)", log)
    assert announced is not None, log
    assert f"Restored {run}/checkpoint_epoch_0000_step_" in log
    restored = [int(step) for step in re.findall(r"Restored \S+ : step (\d+)", log)]
    assert restored[0] >= int(announced[1]), "what was written at the announcement was not used"
    made = re.search(r"(\d+) of (\d+) blocks of samples were made on the data node", ended.stdout)
    assert made is not None and int(made[1]) > int(made[2]) / 2, ended.stdout
    assert "the data node is gone" in ended.stdout
    assert log.count("Training vit_demo_patch16 on 2 workers") == 3
    assert_same_bits(run, reference, "checkpoint_epoch_0001")


def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(
    looped: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = looped.with_name("damaged")
    shutil.copytree(looped, run)
    state = run / LAST / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    for arguments in (["--config", config, f"RUN.NAME={run.name}"], ["--resume-from", str(run), "RUN.NAME=other"]):
        assert job.main(arguments) == 2
        assert f"{LAST}/state.pt is damaged" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert not run.with_name("other").exists()


def test_a_full_disk_stops_the_run_with_a_line_and_leaves_the_checkpoint_before_whole(
    cluster: None, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small tmpfs: {mounted.stderr.decode().strip()}")
    try:
        run = ["--config", config, f"RUN.STORAGE_PATH={small}", "RUN.NAME=full"]
        assert job.main([*run, "RUN.MAX_FAILURES=0", f"MLFLOW.TRACKING_URI=sqlite:///{tmp_path}/mlflow.db"]) == 1
        error = capsys.readouterr().err
        assert re.search(
            r"checkpoint \S+ cannot be written: .*(No space left on device|[0-2]\.\d MiB are free)", error
        ), error
        assert re.search(r"\nTo go on from checkpoint_epoch_\d{4}(_step_\d{6})?: ", error)
        left = sorted(path.name for path in (small / "full").glob("*checkpoint_epoch*"))
        assert left and not any(name.startswith(".") for name in left)
        elsewhere = {"RUN.STORAGE_PATH": str(tmp_path / "runs"), "RUN.NAME": "saved", "TRAIN.EPOCH": 1}
        full = load_config(config, [f"RUN.STORAGE_PATH={small}", "RUN.NAME=full"])
        assert train(full.with_settings(elsewhere), checkpoint_of(full, left[-1])).step == STEPS_PER_EPOCH
    finally:
        subprocess.run(["umount", str(small)], check=True)
