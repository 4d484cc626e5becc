"""The same gradient, bit for bit, on any number of workers (`TRAIN.SLOTS`).

A global batch is divided into a fixed number of slots. Each is computed alone, with the same shapes and kernels and its
own random numbers. Their gradients are added in one fixed binary tree: the lower part within each worker, the upper
part between workers. Nothing here knows about Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqtrack.training.state import TrainState, seed_generators
from seqtrack.training.step import Batch, Objective, backward


def tree_sum(values: Iterable[Tensor], rank: int = 0, world_size: int = 1, group: Any = None) -> Tensor:
    """Sums the values of all ranks in a fixed order, so that every rank gets the same bits.

    `values`: this rank's flat tensors; their number is a power of two and the same on each rank. Numbered across the
    ranks, in order of rank, they are added as ((0 + 1) + (2 + 3)) + …. The first of each pair is changed in place.
    """
    sums: list[Tensor] = []  # sums of ever smaller subtrees
    for number, value in enumerate(values, start=1):
        sums.append(value)
        while number % 2 == 0:
            right = sums.pop()
            sums[-1] += right
            number //= 2
    (total,) = sums
    _sum_between(total, 1, rank, world_size, group)
    return total


def _sum_between(part: Tensor, distance: int, rank: int, world_size: int, group: Any) -> None:
    """Adds the sums of workers that are `distance` apart, then twice as far, and so on, until `part` is the total.

    Each of two partners adds one half of the elements and receives the other half. a + b has the bits of b + a, so it
    does not matter who adds. Every element goes through the same tree, and no more is sent than by a ring all-reduce.
    """
    if distance == world_size:
        return
    halves = part.tensor_split(2)
    mine, other = halves if rank & distance == 0 else halves[::-1]
    partner, received = rank ^ distance, torch.empty_like(mine)
    _exchange(other, received, partner, group)
    mine += received
    _sum_between(mine, 2 * distance, rank, world_size, group)
    _exchange(mine, other, partner, group)


def _exchange(sent: Tensor, received: Tensor, partner: int, group: Any) -> None:
    operations = [dist.P2POp(dist.isend, sent, partner, group), dist.P2POp(dist.irecv, received, partner, group)]
    for request in dist.batch_isend_irecv(operations):
        request.wait()


class SlotGradients:
    """Replaces `backward` in a training step that uses slots."""

    def __init__(self, state: TrainState, slots: int, rank: int, world_size: int, group: Any = None) -> None:
        """`slots` is a multiple of `world_size`, and both are powers of two."""
        self._state, self._slots = state, slots
        self._rank, self._world_size, self._group = rank, world_size, group

    def __call__(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """Does what `backward` does, but its means are over the whole global batch, on every worker."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        slots = self._compute_slots(model, parameters, batch, objective)
        total = tree_sum(slots, self._rank, self._world_size, self._group)
        total /= self._slots  # exact: a power of two
        sizes = [parameter.numel() for parameter in parameters]
        *gradients, measured = total.split([*sizes, len(total) - sum(sizes)])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return measured

    def _compute_slots(
        self, model: nn.Module, parameters: list[nn.Parameter], batch: Batch, objective: Objective
    ) -> Iterator[Tensor]:
        """Gradients and what is measured of each of this worker's slots, one after another, as one flat tensor."""
        number = self._slots // self._world_size
        parts = zip(*(part.chunk(number) for part in batch), strict=True)
        for slot, part in enumerate(parts, start=self._rank * number):
            seed_generators(objective.config.SEED, 0, self._state.step, 1 + slot)
            model.zero_grad(set_to_none=True)
            measured = backward(model, Batch(*part), objective)
            yield torch.cat([*(_gradient(parameter).reshape(-1) for parameter in parameters), measured])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def checksum(model: nn.Module) -> int:
    """A checksum over the bits of all parameters."""
    hashes = torch.stack([torch.hash_tensor(parameter.detach()).view(torch.int64) for parameter in model.parameters()])
    places = torch.arange(1, 2 * len(hashes), 2, device=hashes.device)  # different odd factors reveal swapped tensors
    return int((hashes * places).sum())


def find_difference(model: nn.Module, world_size: int, group: Any = None) -> str:
    """Lists each rank's checksum if they differ; an empty string if they do not. A collective call."""
    device = next(model.parameters()).device
    mine = torch.tensor([checksum(model)], device=device)
    everyones = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(everyones, mine, group)
    sums = [int(one) for one in everyones]
    return ", ".join(f"rank {rank}: {one % 2**64:016x}" for rank, one in enumerate(sums)) if len(set(sums)) > 1 else ""
