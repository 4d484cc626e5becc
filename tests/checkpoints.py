"""Checkpoints of tests, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seqtrack.config import Config
from seqtrack.runs.checkpoint import Contents, write_checkpoint
from seqtrack.sums import checkpoint_name
from seqtrack.training.state import TrainState, generator_states
from tests.folders import stored_at

DATASET = {"sequences": 4, "frames": 120, "fingerprint": "0123456789abcdef"}


def make_meta(epochs: int = 1, steps: int = 6) -> dict[str, Any]:
    """What `meta.json` has at least, after so many epochs of so many steps."""
    history = [{"epoch": epoch, "step": steps * epoch} for epoch in range(1, epochs + 1)]
    return {
        "step": steps * epochs,
        "epoch": epochs,
        "steps_per_epoch": steps,
        "history": history,
        "dataset": DATASET,
        "mlflow_run_id": None,
        "versions": {},
        "config": {},
    }


def save(config: Config, run: Path, step: int, **facts: Any) -> Path:
    """A checkpoint of untrained weights in a run's folder. `facts`: further entries of its `meta.json`."""
    state = TrainState.fresh(config, 0, torch.device("cpu"))
    state.step = step
    for epoch in range(1, step // config.steps_per_epoch + 1):
        state.history.append({"epoch": epoch, "step": epoch * config.steps_per_epoch, "loss": 1.0, "iou": 0.5})
    path = run / checkpoint_name(*divmod(step, config.steps_per_epoch))
    meta = state.meta(config, **{"dataset": DATASET, "mlflow_run_id": "1234"} | facts)
    write_checkpoint(Contents(*state.snapshot(), [generator_states()], meta), stored_at(path))
    return path
