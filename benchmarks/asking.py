"""Measures how much it slows training steps to ask whether to stop, and whether a node is about to go.

    python -m benchmarks.asking [--config configs/demo.yaml] [--steps 40] [--turns 6]

It runs on real Ray Train workers, one and then two. Stretches of steps that ask as the training loop does take turns
with stretches that do not, so that other load on the machine affects both. Only the ratio matters.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from benchmarks.checkpoint import made_up_batch
from seqtrack.cluster.connect import join_cluster
from seqtrack.config import load_config
from seqtrack.training.coordination import Agreement
from seqtrack.training.loop import SECONDS_BETWEEN_QUESTIONS
from seqtrack.training.state import TrainState
from seqtrack.training.step import Objective, train_step

QUESTIONS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the questions of the training loop cost its steps.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=40, help="of a stretch")
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    config = load_config(options.config)
    join_cluster()
    cpus = ray.cluster_resources()["CPU"]
    for workers in (1, 2):
        trainer = TorchTrainer(
            measure,
            train_loop_config=vars(options) | {"config": config},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus / 2 / workers}),
        )
        times = trainer.fit().return_value
        without, asking = (statistics.median(times[key]) for key in ("without", "asking"))
        question = statistics.median(times["questions"])
        print(
            f"{workers} worker(s): median step {without * 1e3:.2f} ms without, {asking * 1e3:.2f} ms asking "
            f"whether to stop: {100 * (asking / without - 1):+.1f} %"
        )
        print(
            f"    asking Ray whether a node will go: {question * 1e3:.1f} ms every {SECONDS_BETWEEN_QUESTIONS:g} s, "
            f"{100 * question / SECONDS_BETWEEN_QUESTIONS:.2f} %"
        )


def measure(options: dict[str, Any]) -> dict[str, list[float]]:
    """Runs on every worker."""
    config = options["config"]
    context = ray.train.get_context()
    state = TrainState.fresh(config, context.get_world_rank(), torch.device("cpu"))
    objective = Objective(config)
    model = ray.train.torch.prepare_model(state.model)
    batch = made_up_batch(config, config.TRAIN.BATCH_SIZE // context.get_world_size())
    agreement = Agreement(context.get_world_size())
    times: dict[str, list[float]] = {"without": [], "asking": [], "questions": []}
    for turn in range(2 * options["turns"]):
        kind = "asking" if turn % 2 else "without"
        for _ in range(options["steps"]):
            began = time.perf_counter()
            train_step(model, state.optimizer, batch, objective)
            if kind == "asking":
                agreement.exchange(False, False)
            times[kind].append(time.perf_counter() - began)
    for _ in range(QUESTIONS):
        began = time.perf_counter()
        ray.train.get_preemption_info()
        times["questions"].append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
