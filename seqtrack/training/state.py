"""All that a run is at one moment: what a checkpoint is made from, and what it is turned back into."""

from __future__ import annotations

import copy
import platform
import random
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from seqtrack.config import Config, parse_config
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import MODEL_FILE, Weights, describe_mismatch
from seqtrack.training.checkpoint import META_FILE, STATE_FILE, CheckpointError, generator_file, load_plain
from seqtrack.training.meters import EpochMeter
from seqtrack.training.optimization import build_optimizer, build_scheduler

DECISIVE_PACKAGES = ("seqtrack", "torch", "timm", "numpy", "opencv-python", "nvidia-nvimgcodec-cu12")
"""Another version of these may compute other bits."""
OTHER_PACKAGES = ("ray", "pyarrow", "mlflow", "huggingface-hub")


@dataclass
class TrainState:
    """What training changes. `step` counts finished steps over the whole run: it is the position."""

    model: SeqTrack
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    step: int = 0
    meter: EpochMeter = field(default_factory=EpochMeter)
    history: list[dict[str, float]] = field(default_factory=list)
    """One summary for each finished epoch."""
    metrics: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Loss, IoU, gradient norm and learning rate of every step since the run began."""

    @classmethod
    def fresh(cls, config: Config, rank: int, device: torch.device, weights: Weights | None = None) -> TrainState:
        """The state before the first step: same weights on every rank, then a generator of its own for each.

        `weights` replace the random ones of the parameters that they name.
        """
        seed_generators(config.SEED, 0)
        model = build_model(config)
        model.load_state_dict(weights or {}, strict=False)
        model.to(device)
        seed_generators(config.SEED, 1 + rank)
        optimizer = build_optimizer(model, config.TRAIN)
        return cls(model, optimizer, build_scheduler(optimizer, config.TRAIN))

    def snapshot(self) -> tuple[Weights, dict[str, Any]]:
        """Copies in host memory, of the model and of the rest, that later steps do not touch."""
        optimizer = self.optimizer.state_dict()
        return {name: _on_host(tensor) for name, tensor in self.model.state_dict().items()}, {
            "optimizer": {
                "state": {
                    index: {name: _on_host(value) for name, value in state.items()}
                    for index, state in optimizer["state"].items()
                },
                "param_groups": copy.deepcopy(optimizer["param_groups"]),
            },
            "scheduler": copy.deepcopy(self.scheduler.state_dict()),
            "step": self.step,
            "meter": asdict(self.meter),
            "history": copy.deepcopy(self.history),
            "metrics": torch.tensor(self.metrics, dtype=torch.float64).reshape(-1, 4),
        }

    def load(self, directory: Path, new_schedule: bool = False) -> None:
        """Takes over a verified checkpoint. Raises CheckpointError if it does not fit.

        `new_schedule`: learning rates and weight decay are those of this state's settings at the checkpoint's epoch,
        not the stored ones.
        """
        check_model_fits(directory, self.model)
        training = load_plain(directory / STATE_FILE)
        optimizer, epochs = training["optimizer"], len(training["history"])
        try:
            self.model.load_state_dict(load_file(directory / MODEL_FILE))
            if new_schedule:
                with warnings.catch_warnings():  # that no step of the optimizer lies between
                    warnings.simplefilter("ignore", UserWarning)
                    for _ in range(epochs):
                        self.scheduler.step()
                optimizer["param_groups"] = self.optimizer.state_dict()["param_groups"]
            else:
                self.scheduler.load_state_dict(training["scheduler"])
            self.optimizer.load_state_dict(optimizer)
            self.step = training["step"]
            self.meter = EpochMeter(**training["meter"])
            self.history = training["history"]
            self.metrics = [tuple(row) for row in training["metrics"].tolist()]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{directory / STATE_FILE}: does not fit this run ({error})") from error

    def meta(self, config: Config, **extra: Any) -> dict[str, Any]:
        """The readable part: settings, position, and whatever else the runner knows."""
        return {
            "step": self.step,
            "epoch": self.step // config.steps_per_epoch,
            "steps_per_epoch": config.steps_per_epoch,
            "history": copy.deepcopy(self.history),
            **extra,
            "versions": installed_versions(),
            "config": config.model_dump(mode="json"),
        }


def seed_generators(*seed: int) -> None:
    """Seeds torch, NumPy and Python; different tuples of numbers give streams independent of each other."""
    words = np.random.SeedSequence(seed).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    random.seed(int(words[3]))


def generator_states() -> dict[str, Any]:
    """The state of every random generator of this process, as plain values."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": numpy_state | {"state": numpy_state["state"] | {"key": numpy_state["state"]["key"].tolist()}},
        "python": random.getstate(),
    }


def load_generators(directory: Path, rank: int) -> bool:
    """Restores `generator_states` of this rank; False where the checkpoint has none (fewer workers wrote it)."""
    path = directory / generator_file(rank)
    if not path.exists():
        return False
    states = load_plain(path)
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)
    random.setstate(states["python"])
    return True


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run uses."""
    versions = {"python": platform.python_version()}
    for package in DECISIVE_PACKAGES + OTHER_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def changed_since(meta: Mapping[str, Any], config: Config, dataset: Mapping[str, Any]) -> dict[str, str]:
    """What alters a step and is not as it was when a checkpoint was written: key -> `this, not that`.

    Keys are settings, `dataset`, and packages.
    """
    changed = config.changed_settings(parse_config(meta["config"], META_FILE))
    if meta["dataset"] != dataset:
        changed["dataset"] = f"{_describe(dataset)}, not {_describe(meta['dataset'])}"
    now = installed_versions()
    for package in DECISIVE_PACKAGES:
        then = meta["versions"].get(package)
        if now[package] != then:
            changed[package] = f"{now[package]}, not {then}"
    return changed


def check_allowed(changed: Mapping[str, str], allowed: Collection[str], path: str) -> None:
    """Raises CheckpointError naming what differs from the checkpoint at `path` without being allowed to."""
    refused = {key: change for key, change in changed.items() if key not in allowed}
    if refused:
        listed = "; ".join(f"{key}: {change}" for key, change in refused.items())
        raise CheckpointError(
            f"{path} cannot be continued exactly: {listed} (--allow-changed {','.join(refused)} goes on all the same)"
        )


def _describe(dataset: Mapping[str, Any]) -> str:
    return f"{dataset['sequences']} sequences, {dataset['frames']} frames, annotations {dataset['fingerprint'][:12]}"


def check_model_fits(directory: Path, model: SeqTrack) -> None:
    """Compares names and shapes without reading the weights. Raises CheckpointError naming what differs."""
    path = directory / MODEL_FILE
    try:
        with safe_open(path, "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    wanted: Mapping[str, Any] = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if mismatch := describe_mismatch(stored, wanted):
        raise CheckpointError(f"{path}: does not fit the model; {mismatch}")


def _on_host(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
