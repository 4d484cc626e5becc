"""Checkpoints of tests, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from seqtrack.config import Config
from seqtrack.runs.checkpoint import Contents, checkpoint_name, write_checkpoint
from seqtrack.training.state import TrainState, generator_states
from tests.folders import stored_at

DATASET = {"sequences": 4, "frames": 120, "fingerprint": "0123456789abcdef"}


def save(config: Config, run: Path, step: int, **meta: Any) -> Path:
    """A checkpoint of untrained weights in a run's folder. `meta`: other entries of its `meta.json`."""
    state = TrainState.fresh(config, 0, torch.device("cpu"))
    state.step = step
    path = run / checkpoint_name(*divmod(step, config.steps_per_epoch))
    entries = state.meta(config, **{"dataset": DATASET, "mlflow_run_id": "1234"} | meta)
    write_checkpoint(Contents(*state.snapshot(), [generator_states()], entries), stored_at(path))
    return path
