"""Measures how much deterministic kernels slow training steps on this machine's device.

    python benchmarks/determinism.py [--config configs/demo.yaml] [--batch 32] [--steps 40] [--turns 5]

Stretches of steps with TRAIN.DETERMINISTIC on and off take turns. Only the ratio matters.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.checkpoint import made_up_batch
from seqtrack.config import load_config
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, set_determinism, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the price of deterministic kernels.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--batch", type=int, help="samples a step; unset: the config's")
    parser.add_argument("--steps", type=int, default=40, help="steps of a stretch")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    config = load_config(options.config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = TrainState.fresh(config, 0, device)
    objective = Objective(config).to(device)
    batch = Batch(*(part.to(device) for part in made_up_batch(config, options.batch or config.TRAIN.BATCH_SIZE)))
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * options.turns):
        enabled = turn % 2 == 0
        set_determinism(enabled)
        for step in range(options.steps):
            began = time.perf_counter()
            train_step(state.model, state.optimizer, batch, objective).tolist()  # waits for the device
            if step > 1:
                times[enabled].append(time.perf_counter() - began)
    on, off = statistics.median(times[True]), statistics.median(times[False])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}: median step {on:.4f} s deterministic, {off:.4f} s not: {100 * (on / off - 1):+.1f} %")


if __name__ == "__main__":
    main()
