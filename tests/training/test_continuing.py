"""The promise: a run that is stopped, killed, resized or resumed continues as if nothing had happened, bit for bit.

Dropout and all augmentation are on. Every run is compared with one that nothing happened to.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
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
import torch

from seqtrack.config import load_config
from tests.training.runs import REPOSITORY, assert_same_bits, job, kill_a_worker, step_metrics

STEPS_PER_EPOCH = 40
LAST = "checkpoint_epoch_0003"


@pytest.mark.parametrize(
    ("start", "workers"),
    [
        ("checkpoint_epoch_0001", 1),
        ("2", 2),
        ("checkpoint_epoch_0001_step_000030", 1),
        ("checkpoint_epoch_0001_step_000030", 2),
    ],
)
def test_resumed_by_hand(whole: Callable[[int], Path], config: str, start: str, workers: int) -> None:
    reference = whole(workers)
    resumed = reference.with_name(f"from-{start}-{workers}")
    arguments = ["--config", config, "--resume-from", f"{reference}/{start}"]
    assert job.main([*arguments, f"RUN.WORKERS={workers}", f"RUN.NAME={resumed.name}"]) == 0
    assert_same_bits(resumed, reference, LAST)


class WorkerKiller(threading.Thread):
    """Ends a training worker by SIGKILL each time the run's log reaches the next of some steps."""

    def __init__(self, run: Path, steps: list[int], epoch: int = STEPS_PER_EPOCH, batch: int = 4) -> None:
        """`epoch`: its steps."""
        super().__init__(daemon=True)
        self._log, self._steps, self._epoch, self._batch = run / "train.log", steps, epoch, batch
        self.killed: list[int] = []

    def run(self) -> None:
        for step in self._steps:
            while self._step() < step:
                time.sleep(0.02)
            starts = self._starts()
            kill_a_worker()
            self.killed.append(self._step())
            while self._starts() == starts:
                time.sleep(0.02)

    def _step(self) -> int:
        """Of the newest line, whichever start wrote it."""
        lines = re.findall(r"Epoch (\d+) : (\d+) /", self._read())
        return self._epoch * (int(lines[-1][0]) - 1) + int(lines[-1][1]) // self._batch if lines else 0

    def _starts(self) -> int:
        return self._read().count("Training vit_demo_patch16")

    def _read(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


@pytest.mark.parametrize("workers", [1, 2], ids=["one-worker", "two-workers"])
def test_workers_killed_at_five_steps(whole: Callable[[int], Path], config: str, workers: int) -> None:
    reference = whole(workers)
    run = reference.with_name(f"killed{workers}")
    steps = sorted(random.Random(workers).sample(range(4, 112, 4), 5))
    killer = WorkerKiller(run, steps)
    killer.start()
    arguments = [f"RUN.WORKERS={workers}", f"RUN.NAME={run.name}", "RUN.MAX_FAILURES=5"]
    assert job.main(["--config", config, *arguments]) == 0
    assert len(killer.killed) == 5, f"killed at {killer.killed} only"
    assert_same_bits(run, reference, LAST)
    assert records(run) == records(reference)


def records(run: Path) -> list[dict[str, float]]:
    """What curves are drawn from, without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in one.items() if name == "step" or name[:6] == "train/"} for one in found]


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
        """The job and every process that it started, at once."""
        family = [self._process, *psutil.Process(self._process.pid).children(recursive=True)]
        for process in family:
            process.kill()

    def end(self) -> int:
        assert self._process.stdout is not None
        self.output += self._process.stdout.read()
        return self._process.wait()


def test_the_job_killed_then_asked_to_stop_then_its_whole_cluster_killed(
    whole: Callable[[int], Path], config: str
) -> None:
    """Each time the same command is given again."""
    workers = 2
    reference = whole(workers)
    run = reference.with_name(f"interrupted{workers}")
    arguments = (config, f"RUN.WORKERS={workers}", f"RUN.NAME={run.name}")

    process = Process(*arguments)
    process.read_until("Epoch 1 : 120")
    process.send(signal.SIGKILL)
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
    process.read_until("Epoch 3 : 80")
    process.kill_cluster()
    process.end()

    process = Process(*arguments)
    process.read_until("Restored")
    assert process.end() == 0
    assert_same_bits(run, reference, LAST)


@pytest.fixture(scope="module")
def long(cluster: None, config: str, settings: dict[str, Any]) -> tuple[str, Path]:
    """A run of one epoch that is long enough for nodes to come and go: its settings' file, and its folder."""
    changes: dict[str, Any] = {
        "DATA.TRAIN.SAMPLE_PER_EPOCH": 2000,
        "TRAIN.EPOCH": 1,
        "TRAIN.CHECKPOINT_EVERY_STEPS": None,
    }
    changes |= {"RUN.WORKERS": 2, "RUN.CPUS_PER_WORKER": 0.5}
    file = Path(config).with_name("long.yaml")
    file.write_text(load_config(config).with_settings(changes).to_yaml())
    assert job.main(["--config", str(file), "RUN.NAME=long"]) == 0
    return str(file), Path(settings["RUN"]["STORAGE_PATH"], "long")


def test_a_node_that_is_announced_to_go_and_goes(long: tuple[str, Path]) -> None:
    """A checkpoint is written at the announcement, and the rest is trained elsewhere from there."""
    file, reference = long
    run = reference.with_name("preempted")
    output = train_on_nodes("announced", run, file)
    log = (run / "train.log").read_text()
    announced = re.search(r"Preemption : a node of this run is about to go; writing a checkpoint at step (\d+)", log)
    assert announced is not None, log
    assert "the node is gone" in output
    assert f"{run}/checkpoint_epoch_0000_step_{int(announced[1]):06d} : step {announced[1]}" in log
    assert_same_bits(run, reference, "checkpoint_epoch_0001")


def test_a_training_node_replaced_and_the_data_node_lost(long: tuple[str, Path]) -> None:
    """Samples are made on the node that is labelled for it, as long as it is there and has room, and then elsewhere."""
    file, reference = long
    run = reference.with_name("nodes")
    placement = ["RUN.WORKER_LABELS={seqtrack-role: train}", "RUN.DATA_CPUS=2"]
    output = train_on_nodes("come_and_go", run, file, "TRAIN.CHECKPOINT_EVERY_STEPS=80", *placement)
    made = re.search(r"(\d+) of (\d+) blocks of samples were made on the data node", output)
    assert made is not None and int(made[1]) > int(made[2]) / 2, output
    assert "the nodes are gone" in output
    assert (run / "train.log").read_text().count("Training vit_demo_patch16 on 2 workers") == 2
    assert_same_bits(run, reference, "checkpoint_epoch_0001")


def train_on_nodes(story: str, run: Path, config: str, *arguments: str) -> str:
    """What a training printed on a cluster to whose nodes this happens."""
    program = [sys.executable, "-m", "tests.training.nodes", story, str(run), "--config", config, *arguments]
    environment = os.environ | {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    environment.pop("RAY_ADDRESS", None)
    ended = subprocess.run(program, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_other_numbers_of_workers_get_the_same_batches(
    cluster: None, config: str, settings: dict[str, Any], before: int, after: int
) -> None:
    """Without dropout the losses agree to rounding: gradients are summed in another order.

    That the samples of every step are the same is what `check_batch` makes sure of in each of them.
    """
    runs = Path(settings["RUN"]["STORAGE_PATH"])
    plain = ["--config", config, "MODEL.DECODER.DROPOUT=0", "MODEL.ENCODER.DROP_PATH=0"]
    reference = runs / f"plain{before}"
    assert job.main([*plain, f"RUN.WORKERS={before}", f"RUN.NAME={reference.name}", "TRAIN.EPOCH=2"]) == 0
    resumed = runs / f"plain{before}to{after}"
    start = f"{reference}/checkpoint_epoch_0001"
    assert job.main([*plain, "--resume-from", start, f"RUN.WORKERS={after}", f"RUN.NAME={resumed.name}"]) == 0
    ours = step_metrics(resumed, LAST)[STEPS_PER_EPOCH : STEPS_PER_EPOCH + 20, 0]
    theirs = step_metrics(reference, "checkpoint_epoch_0002")[STEPS_PER_EPOCH : STEPS_PER_EPOCH + 20, 0]
    assert not torch.equal(ours, torch.zeros(20))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def small(cluster: None, config: str, settings: dict[str, Any]) -> Path:
    """A run of one epoch that follows the cluster, and keeps two checkpoints."""
    run = Path(settings["RUN"]["STORAGE_PATH"], "small")
    arguments = ["--config", config, f"RUN.NAME={run.name}", "TRAIN.EPOCH=1", "--workers", "1:2"]
    assert job.main([*arguments, "TRAIN.KEEP_CHECKPOINTS=2"]) == 0
    return run


def test_a_range_of_workers_takes_what_the_cluster_has(small: Path) -> None:
    """Four CPUs have room for two workers of one CPU each, beside the data."""
    assert re.search(r"Training .* on [12] worker", (small / "train.log").read_text())


def test_only_the_newest_checkpoints_are_kept_where_asked(small: Path) -> None:
    left = sorted(path.name for path in small.glob("checkpoint_epoch*"))
    assert left == ["checkpoint_epoch_0000_step_000030", "checkpoint_epoch_0001"]


def test_where_writing_is_slower_than_training_one_checkpoint_at_a_time_is_under_way(
    cluster: None, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the state is made (+) only when the one before it has been written (-)."""
    order = tmp_path / "order"

    def train_on_a_slow_disk(settings: dict[str, Any]) -> Any:
        from seqtrack.training import worker

        snapshot, write = worker.TrainState.snapshot, worker.write_checkpoint

        def note(sign: str) -> None:
            with order.open("a") as file:
                file.write(sign)

        def noted_snapshot(state: Any) -> Any:
            note("+")
            return snapshot(state)

        def slow_write(*arguments: Any) -> None:
            time.sleep(0.5)
            write(*arguments)
            note("-")

        monkey = pytest.MonkeyPatch()  # this process is the worker's, and ends with it
        monkey.setattr(worker.TrainState, "snapshot", noted_snapshot)
        monkey.setattr(worker, "write_checkpoint", slow_write)
        return worker.train_worker(settings)

    monkeypatch.setattr("seqtrack.training.trainer.train_worker", train_on_a_slow_disk)
    often = ["TRAIN.EPOCH=1", "TRAIN.CHECKPOINT_EVERY_STEPS=5", "TRAIN.KEEP_CHECKPOINTS=1"]
    assert job.main(["--config", config, "RUN.NAME=slow", f"RUN.STORAGE_PATH={tmp_path}/runs", *often]) == 0
    assert order.read_text() == "+-" * 8
    assert [path.name for path in tmp_path.glob("runs/slow/checkpoint_epoch*")] == ["checkpoint_epoch_0001"]


def test_a_damaged_checkpoint_is_refused_and_nothing_is_overwritten(
    whole: Callable[[int], Path], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = whole(1)
    run = reference.with_name("damaged")
    shutil.copytree(reference, run)
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
        assert "To go on from the newest checkpoint: " in error
        left = sorted(path.name for path in (small / "full").glob("*checkpoint_epoch*"))
        assert left and not any(name.startswith(".") for name in left)
        elsewhere = [*run[:2], "--resume-from", f"{small}/full/latest", f"RUN.STORAGE_PATH={tmp_path}/runs"]
        assert job.main([*elsewhere, "RUN.NAME=saved", "TRAIN.EPOCH=1"]) == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)
