"""What tests of whole runs share: starting them, and comparing what they left."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from ray.util.state import list_actors
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
    """Ends one of the training workers of the tests' cluster by SIGKILL."""
    actors = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    os.kill(random.choice(actors)["pid"], signal.SIGKILL)


def write_config(settings: dict[str, Any], folder: Path) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def weights(run: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(run / checkpoint / "model.safetensors")


def step_metrics(run: Path, checkpoint: str) -> torch.Tensor:
    """(steps, 4) loss, IoU, gradient norm and learning rate of every step up to the checkpoint."""
    return torch.load(run / checkpoint / "state.pt", weights_only=True)["metrics"]


def assert_same_bits(run: Path, other: Path, checkpoint: str, generators: bool = True) -> None:
    """Weights, optimizer, scheduler, averages, every step's metrics, each rank's generators: all but times."""
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
