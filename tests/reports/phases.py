"""Makes up phases from numbers, for tests of comparisons and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seqtrack.config import Config
from seqtrack.runs.record import Phase, PhaseCheckpoint

STEPS_PER_EPOCH = 10


def made_up_phase(
    config: Config,
    name: str = "Phase 1",
    epochs: int = 4,
    first_epoch: int = 0,
    done: int | None = None,
    **changes: Any,
) -> Phase:
    """A phase of `epochs` epochs that began at `first_epoch` and ended after `done` steps (None: all of them)."""
    total = epochs * STEPS_PER_EPOCH
    done = total if done is None else done
    position = np.arange(total) / total
    steps = np.stack([4 - 2 * position, 0.6 * position, 3 + np.sin(9 * position), np.full(total, 1e-3)], axis=1)[:done]
    history = [
        {
            "epoch": epoch + 1,
            "step": (epoch + 1) * STEPS_PER_EPOCH,
            "loss": float(steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH, 0].mean()),
            "iou": float(steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH, 1].mean()),
            "accuracy": float(100 * steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH, 1].mean()),
            "grad_norm": 3.0,
            "lr": 1e-3,
            "seconds": 12.5,
            "samples_per_second": 150.0 + epoch % 3,
            "data_wait_fraction": 0.01,
        }
        for epoch in range(done // STEPS_PER_EPOCH)
    ]
    meta = {
        "config": config.with_settings({"TRAIN.EPOCH": epochs}).model_dump(mode="json"),
        "steps_per_epoch": STEPS_PER_EPOCH,
        "dataset": {
            "sequences": 4,
            "frames": 120,
            "classes": {"coin": {"sequences": 2, "frames": 60}, "kite": {"sequences": 2, "frames": 60}},
            "fingerprint": "0123456789abcdef",
        },
        "versions": {"python": "3.11", "torch": "2.14.1"},
        "hardware": "cpu, 1 thread",
        "world_size": 1,
        "code_revision": "abc<1>",
    }
    values: dict[str, Any] = {
        "name": name,
        "folder": f"/runs/{name}",
        "first_step": first_epoch * STEPS_PER_EPOCH,
        "total_steps": total,
        "steps": steps,
        "history": history,
        "meta": meta,
        "weights": {"weight": torch.ones(3)},
        "checkpoints": [PhaseCheckpoint("checkpoint_epoch_0001", STEPS_PER_EPOCH, 3 * 2**20, "f" * 64)],
        "source": "/runs/phase1/checkpoint_epoch_0002" if first_epoch else None,
    }
    return Phase(**(values | changes))
