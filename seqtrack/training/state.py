"""The whole state of a run at one step: a checkpoint is made from it and restores it."""

from __future__ import annotations

import copy
import logging
import random
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from seqtrack.config import Config
from seqtrack.data.stamp import FrameStamp
from seqtrack.environment import installed_versions
from seqtrack.failures import explain
from seqtrack.model.compile import compile_blocks
from seqtrack.model.seqtrack import SeqTrack, build_model
from seqtrack.model.weights import Weights, check_finite
from seqtrack.runs.checkpoint import StoredCheckpoint, generator_file, load_plain, stored_shapes, tensors_of
from seqtrack.runs.compatibility import PACKAGES, changed_since, check_allowed, check_model_fits
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import MODEL_FILE, STATE_FILE, CheckpointError
from seqtrack.training.meters import EpochMeter
from seqtrack.training.step import build_optimizer, build_scheduler

logger = logging.getLogger("seqtrack.training")

IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")
"""Entries of an optimizer's groups that say how it computes on a device, not what. A checkpoint stores them too."""


@dataclass
class TrainState:
    """Everything that training changes. `step` counts the finished steps of the whole run; it is the run's position."""

    model: SeqTrack
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    step: int = 0
    meter: EpochMeter = field(default_factory=EpochMeter)
    history: list[dict[str, float]] = field(default_factory=list)
    """One summary for each finished epoch."""
    metrics: list[tuple[float, float, float, float]] = field(default_factory=list)
    """Loss, IoU, gradient norm and learning rate of every step since the run began."""
    compiled: bool = False
    """Whether the model's blocks are compiled: TRAIN.COMPILE is set, and there is a compiler."""

    @classmethod
    def fresh(cls, config: Config, rank: int, device: torch.device, weights: Weights | None = None) -> TrainState:
        """The state before the first step: the same weights on every rank, different random generators on each.

        `weights` replace the random values of the parameters that they name.
        """
        seed_generators(config.SEED, 0)
        model = build_model(config)
        model.load_state_dict(weights or {}, strict=False)
        model.to(device)
        compiled = config.TRAIN.COMPILE and compile_blocks(model, device)
        seed_generators(config.SEED, 1 + rank)
        optimizer = build_optimizer(model, config.TRAIN)
        return cls(model, optimizer, build_scheduler(optimizer, config.TRAIN), compiled=compiled)

    def snapshot(self) -> tuple[Weights, dict[str, Any]]:
        """Copies the model's weights and the rest of the state to host memory. Later steps do not change the copies."""
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
            "meter": self.meter.state_dict(),
            "history": copy.deepcopy(self.history),
            "metrics": torch.tensor(self.metrics, dtype=torch.float64).reshape(-1, 4),
        }

    def load(self, directory: Path, new_schedule: bool = False) -> None:
        """Loads a verified checkpoint. Raises CheckpointError if it does not fit.

        `new_schedule`: take learning rates and weight decay from this state's settings, at the checkpoint's epoch,
        instead of the stored ones.
        """
        check_model_fits(stored_shapes(directory), self.model, str(directory / MODEL_FILE))
        training = load_plain(directory / STATE_FILE)
        try:
            optimizer, epochs = training["optimizer"], len(training["history"])
            check_finite(tensors_of(optimizer), "the optimizer's state")
            self.model.load_state_dict(load_file(directory / MODEL_FILE))
            if new_schedule:
                with warnings.catch_warnings():  # it warns that the optimizer makes no step in between
                    warnings.simplefilter("ignore", UserWarning)
                    for _ in range(epochs):
                        self.scheduler.step()
                optimizer["param_groups"] = self.optimizer.state_dict()["param_groups"]
            else:
                _check_same_entries(training["scheduler"], self.scheduler.state_dict())
                self.scheduler.load_state_dict(training["scheduler"])
            # Those of this device stay: a checkpoint that was written on another would switch fused kernels off, or on.
            for stored, ours in zip(optimizer["param_groups"], self.optimizer.param_groups, strict=True):
                stored |= {name: ours[name] for name in IMPLEMENTATION}
            self.optimizer.load_state_dict(optimizer)
            self.step = training["step"]
            self.meter = EpochMeter(**training["meter"])
            self.history = training["history"]
            self.metrics = [tuple(row) for row in training["metrics"].tolist()]
        except Exception as error:  # the values may be anything, and torch checks few of them
            raise CheckpointError(f"{directory / STATE_FILE}: does not fit this run ({explain(error)})") from error

    def meta(self, config: Config, **extra: Any) -> dict[str, Any]:
        """Content of `meta.json`: settings, position, versions, and the `extra` entries."""
        return {
            "step": self.step,
            "epoch": self.step // config.steps_per_epoch,
            "steps_per_epoch": config.steps_per_epoch,
            "history": copy.deepcopy(self.history),
            **extra,
            "versions": installed_versions(PACKAGES),
            "config": config.model_dump(mode="json"),
        }


def restore(
    state: TrainState,
    start: StoredCheckpoint,
    config: Config,
    dataset: Mapping[str, Any],
    allow_changed: Collection[str],
    rank: int,
    hardware: str,
    run: RunFolder,
    frames: FrameStamp | None = None,
) -> dict[str, Any] | None:
    """Verifies a checkpoint and restores `state` and this rank's random generators from it.

    Returns path and step of the other run's checkpoint that `run` began from, or None if it began from none. Raises
    CheckpointError if the checkpoint is damaged, or if more than `allow_changed` has changed since.
    """
    with start.verified() as (directory, meta):
        changed = changed_since(meta, config, dataset, frames)
        check_allowed(changed, allow_changed, start.path)
        state.load(directory, new_schedule=any(key.startswith("TRAIN.") for key in changed))
        if config.TRAIN.SLOTS is None:
            # First all of them: a checkpoint of a CPU has no state for a GPU's, which would begin again at its start.
            seed_generators(config.SEED, 1 + rank, state.step)
            if not load_generators(directory, rank):
                logger.warning("the checkpoint has no random generators for rank %d; it draws new ones", rank)
    if meta.get("hardware") != hardware:
        logger.warning("The checkpoint was written on %s, this is %s: bits may differ", meta.get("hardware"), hardware)
    epoch = state.step // config.steps_per_epoch
    logger.info("Restored %s : step %d, epoch %d of %d", start.path, state.step, epoch, config.TRAIN.EPOCH)
    own = start.run.path == run.path
    origin: dict[str, Any] | None = meta.get("resumed_from") if own else {"path": start.path, "step": state.step}
    return origin


def seed_generators(*seed: int) -> None:
    """Seeds torch, NumPy and Python. Different tuples of numbers give independent streams."""
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
    """Restores the `generator_states` of this rank. False if the checkpoint has none (fewer workers wrote it).

    GPUs that the writer did not have keep their generators, and states of GPUs that are not here are left out. Raises
    CheckpointError.
    """
    path = directory / generator_file(rank)
    if not path.exists():
        return False
    states = load_plain(path)
    try:
        torch.set_rng_state(states["torch"])
        for device, one in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
            torch.cuda.set_rng_state(one, device)
        numpy_state = states["numpy"]
        numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], np.uint32)
        if not 0 <= numpy_state["state"]["pos"] <= len(numpy_state["state"]["key"]):  # NumPy would read beyond it
            raise ValueError("NumPy's position is outside of its state")
        np.random.set_state(numpy_state)
        random.setstate(states["python"])
    except Exception as error:  # the values may be anything
        raise CheckpointError(f"{path}: holds no states of random generators ({explain(error)})") from error
    return True


def _check_same_entries(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises ValueError: whatever else `load_state_dict` found would become attributes of the schedule."""
    if stored.keys() != wanted.keys():
        raise ValueError(f"the schedule has {', '.join(map(str, stored))}, not {', '.join(wanted)}")


def _on_host(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
