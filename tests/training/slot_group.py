"""Computes in eight processes, without Ray, what tests of slots compare. A group of n of them acts as n workers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.checkpoint import made_up_batch
from seqtrack.config import Config, parse_config
from seqtrack.training.slots import SlotGradients, find_difference, tree_sum
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, backward, set_determinism, train_step

SLOTS = 8
VARIANTS: dict[str, dict[str, Any]] = {
    "dropout": {},
    "bf16": {"TRAIN.PRECISION": "bf16"},
    "activation-checkpointing": {"MODEL.ENCODER.USE_CHECKPOINT": True},
    "frozen-encoder": {"TRAIN.FREEZE_ENCODER": True},
    "clipped": {"TRAIN.GRAD_CLIP_NORM": 0.01},
}


def slot_values(slot: int) -> Tensor:
    """(1001,) values whose sum has other bits in any other order. Their number is odd, so halves are uneven."""
    generator = torch.Generator().manual_seed(slot)
    return torch.randn(1001, generator=generator) * 10.0 ** torch.randint(-4, 5, (1001,), generator=generator)


def run(rank: int, settings: dict[str, Any], folder: str) -> None:
    """Writes `<folder>/<rank>.pt`: name -> result of this rank. Names of a group of n workers begin with `n `."""
    torch.set_num_threads(1)
    set_determinism(True)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", SLOTS), rank=rank, world_size=SLOTS)
    config = parse_config(settings, "tiny")
    results: dict[str, Any] = {}
    groups = {workers: dist.new_group(list(range(workers))) for workers in (1, 2, 4, 8)}
    groups = {workers: group for workers, group in groups.items() if rank < workers}
    for workers, group in groups.items():
        here = SLOTS // workers
        mine = [slot_values(slot) for slot in range(rank * here, (rank + 1) * here)]
        results[f"{workers} sum"] = tree_sum(mine, rank, workers, group)
        for name, changes in VARIANTS.items() if workers < SLOTS else ():
            results[f"{workers} {name}"] = train(config.with_settings(changes), rank, workers, group)
    if rank < 2:
        pair = groups[2]
        results |= compare_with_ddp(config.with_settings(WITHOUT_DROPOUT), rank, pair)
        results |= compare_weights(config, rank, pair)
    torch.save(results, Path(folder, f"{rank}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def share(batch: Batch, rank: int, workers: int) -> Batch:
    return Batch(*(part.chunk(workers)[rank] for part in batch))


def train(config: Config, rank: int, workers: int, group: Any) -> tuple[list[list[float]], str]:
    """Loss, IoU and gradient norm of each of five steps, and the digest of model and optimizer after them."""
    state = TrainState.fresh(config, rank, torch.device("cpu"))
    state.model.train()
    gradients = SlotGradients(state, SLOTS, rank, workers, group)
    metrics = []
    for _ in range(5):
        batch = share(made_up_batch(config, 2 * SLOTS), rank, workers)
        metrics.append(train_step(state.model, state.optimizer, batch, Objective(config), gradients).tolist())
        state.step += 1
    digest = hashlib.sha256()
    for tensor in state.model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    for moments in state.optimizer.state_dict()["state"].values():
        digest.update(moments["exp_avg_sq"].numpy().tobytes())
    return metrics, digest.hexdigest()


WITHOUT_DROPOUT = {"MODEL.DECODER.DROPOUT": 0.0, "MODEL.ENCODER.DROP_PATH": 0.0}


def compare_with_ddp(config: Config, rank: int, group: Any) -> dict[str, list[float]]:
    """The losses of 100 steps of two workers, with slots and with DistributedDataParallel; means over the workers."""
    losses: dict[str, list[float]] = {}
    for name in ("slots", "ddp"):
        state = TrainState.fresh(config, rank, torch.device("cpu"))
        state.model.train()
        model: nn.Module = state.model if name == "slots" else DistributedDataParallel(state.model, process_group=group)
        gradients = SlotGradients(state, SLOTS, rank, 2, group) if name == "slots" else backward
        losses[name] = []
        for step in range(100):
            batch = made_up_batch(config, 2 * SLOTS)
            batch = batch._replace(boxes_xywh=batch.boxes_xywh.roll(step, 0))
            measured = train_step(model, state.optimizer, share(batch, rank, 2), Objective(config), gradients)
            dist.all_reduce(measured, group=group)
            losses[name].append(measured[0].item() / 2)
            state.step += 1
    return losses


def compare_weights(config: Config, rank: int, group: Any) -> dict[str, str]:
    """Answers of `find_difference` for equal weights, and after one bit of one worker's weights was flipped."""
    model = TrainState.fresh(config, rank, torch.device("cpu")).model
    said = {"equal": find_difference(model, 2, group)}
    if rank == 1:
        parameter = list(model.parameters())[3]
        parameter.detach().view(torch.int32).view(-1)[-1] ^= 1
    return said | {"one bit": find_difference(model, 2, group)}
