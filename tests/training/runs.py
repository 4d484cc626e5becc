"""Helpers for tests of whole runs: start them, and compare their results."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

REPOSITORY = Path(__file__).parents[2]
TIMES = ("seconds", "samples_per_second", "data_wait_fraction", "wait_seconds")


def load_job(name: str) -> ModuleType:
    """A program of `ray_jobs/`."""
    spec = importlib.util.spec_from_file_location(f"{name}_job", REPOSITORY / "ray_jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


job = load_job("train")


def kill_a_worker() -> None:
    """Ends one of the training workers of the tests' cluster, which this process started, by SIGKILL."""
    family = psutil.Process().children(recursive=True)
    workers = [one for one in family if one.cmdline()[:1] and one.cmdline()[0].startswith("ray::RayTrainWorker")]
    random.choice(workers).kill()


def write_config(settings: dict[str, Any], folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def assert_refused(program: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The program ends with exit code 2 and one line on stderr, which holds the message."""
    capsys.readouterr()
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def weights(run: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(run / checkpoint / "model.safetensors")


def step_metrics(run: Path, checkpoint: str) -> torch.Tensor:
    """(steps, 4) loss, IoU, gradient norm and learning rate of every step up to the checkpoint."""
    return torch.load(run / checkpoint / "state.pt", weights_only=True)["metrics"]


def assert_same_bits(run: Path, other: Path, checkpoint: str, generators: bool = True) -> None:
    """Compares weights, optimizer, scheduler, averages, all steps' metrics and all ranks' generators, but no times."""
    ours, theirs = weights(run, checkpoint), weights(other, checkpoint)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(step_metrics(run, checkpoint), step_metrics(other, checkpoint))
    for path in (run / checkpoint).glob("*.pt" if generators else "state.pt"):
        both = (torch.load(folder / checkpoint / path.name, weights_only=True) for folder in (run, other))
        assert_equal(next(both), next(both), path.name)


def assert_equal(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours.keys() - set(TIMES):
            assert_equal(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def records(run: Path) -> list[dict[str, float]]:
    """The records that curves are drawn from, without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in one.items() if name == "step" or name[:6] == "train/"} for one in found]


class WorkerKiller(threading.Thread):
    """Kills a training worker (SIGKILL) each time the run's log reaches the next of `steps`."""

    def __init__(self, run: Path, steps: list[int], epoch: int, batch: int = 4) -> None:
        """`epoch`: steps per epoch; `batch`: samples per step."""
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
        """The step in the newest log line, whichever start of the run wrote it."""
        lines = re.findall(r"Epoch (\d+) : (\d+) /", self._read())
        return self._epoch * (int(lines[-1][0]) - 1) + int(lines[-1][1]) // self._batch if lines else 0

    def _starts(self) -> int:
        return self._read().count("Training vit_demo_patch16")

    def _read(self) -> str:
        return self._log.read_text() if self._log.exists() else ""
