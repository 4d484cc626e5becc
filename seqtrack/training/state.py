"""All that a run is at one moment, and its form on disk.

A checkpoint is a directory: `model.safetensors`; `state.pt` (optimizer, LR scheduler, the epoch's meter, position,
history); `rng_rank_0000.pt` … (each worker's generators); `meta.json` (config, position, dataset fingerprint,
versions).
Everything is loaded as plain data: a checkpoint from a stranger cannot run code.
"""

from __future__ import annotations

import json
import platform
import random
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LRScheduler

from seqtrack.config import Config
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import MODEL_FILE, Weights, describe_mismatch, save_safetensors
from seqtrack.training.meters import EpochMeter
from seqtrack.training.optimization import build_optimizer, build_scheduler

STATE_FILE = "state.pt"
META_FILE = "meta.json"
VERSIONED_PACKAGES = ("torch", "timm", "numpy", "ray", "pyarrow", "opencv-python", "nvidia-nvimgcodec-cu12", "seqtrack")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names it and what does not fit."""


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

    def save(self, directory: Path) -> None:
        """Writes the parts that all ranks share: model and training state."""
        save_safetensors(self.model.state_dict(), directory / MODEL_FILE)
        training = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "step": self.step,
            "meter": self.meter.state_dict(),
            "history": self.history,
        }
        torch.save(training, directory / STATE_FILE)

    def load(self, directory: Path) -> None:
        """Takes over what `save` wrote. Raises CheckpointError if it does not fit or cannot be read."""
        check_model_fits(directory, self.model)
        training = _load_plain(directory / STATE_FILE)
        try:
            self.model.load_state_dict(load_file(directory / MODEL_FILE))
            self.optimizer.load_state_dict(training["optimizer"])
            self.scheduler.load_state_dict(training["scheduler"])
            self.step = training["step"]
            self.meter = EpochMeter(**training["meter"])
            self.history = training["history"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{directory / STATE_FILE}: does not fit this run ({error})") from error


def seed_generators(seed: int, stream: int) -> None:
    """Seeds torch, NumPy and Python from (seed, stream), so that streams are independent of each other."""
    words = np.random.SeedSequence([seed, stream]).generate_state(4)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    np.random.seed(words[2])
    random.seed(int(words[3]))


def save_generators(directory: Path, rank: int) -> None:
    """Writes the state of every random generator of this process."""
    numpy_state = np.random.get_state(legacy=False)
    torch.save(
        {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": numpy_state | {"state": numpy_state["state"] | {"key": numpy_state["state"]["key"].tolist()}},
            "python": random.getstate(),
        },
        directory / _generator_file(rank),
    )


def load_generators(directory: Path, rank: int) -> bool:
    """Restores what `save_generators` wrote; False where the checkpoint has none for this rank (fewer workers then)."""
    path = directory / _generator_file(rank)
    if not path.exists():
        return False
    states = _load_plain(path)
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    numpy_state = states["numpy"]
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
    np.random.set_state(numpy_state)
    random.setstate(states["python"])
    return True


def write_meta(directory: Path, config: Config, state: TrainState, **extra: Any) -> None:
    """Writes the readable part: config, position, versions, and whatever else the runner knows."""
    meta = {
        "step": state.step,
        "epoch": state.step // config.steps_per_epoch,
        "steps_per_epoch": config.steps_per_epoch,
        "history": state.history,
        **extra,
        "versions": installed_versions(),
        "config": config.model_dump(mode="json"),
    }
    (directory / META_FILE).write_text(json.dumps(meta, indent=1) + "\n")


def read_meta(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError naming the file."""
    path = directory / META_FILE
    try:
        meta = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not the description of a checkpoint ({error})") from error
    if not isinstance(meta, dict) or not {"step", "config"} <= meta.keys():
        raise CheckpointError(f"{path}: not the description of a checkpoint (no step or config in it)")
    return meta


def installed_versions() -> dict[str, str]:
    """Python's version and those of the packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def check_model_fits(directory: Path, model: SeqTrack) -> None:
    """Compares names and shapes without reading the weights. Raises CheckpointError naming what differs."""
    path = directory / MODEL_FILE
    try:
        with safe_open(path, "pt") as file:
            stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if mismatch := describe_mismatch(stored, wanted):
        raise CheckpointError(f"{path}: does not fit the model; {mismatch}")


def _load_plain(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through what zip, pickle and storage code raise
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def _generator_file(rank: int) -> str:
    return f"rng_rank_{rank:04d}.pt"
