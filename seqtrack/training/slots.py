"""The same gradient, bit for bit, on any number of workers (`TRAIN.SLOTS`).

A global batch is a fixed number of slots, each computed alone: same shapes, same kernels, its own random numbers. Their
gradients are added in one fixed binary tree, the lower part of it within a worker and the upper part between workers.
Nothing here knows about Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqtrack.config import Config
from seqtrack.training.optimization import Batch, backward
from seqtrack.training.state import TrainState, seed_generators


def tree_sum(values: Iterable[Tensor], rank: int = 0, world_size: int = 1, group: Any = None) -> Tensor:
    """The sum over the values of all ranks, in order of rank, of a number that is a power of two; the same on each.

    `values`: a power of two of flat tensors, as many on each rank; the first of a pair is changed in place. They are
    added as ((0 + 1) + (2 + 3)) + …, whichever rank has them.
    """
    sums: list[Tensor] = []  # of ever smaller parts of the tree
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
    """Adds the sums of workers that are `distance` apart, then twice as far, …; `part` becomes the whole sum.

    Of two partners, each adds one half and gets the other: a + b has the bits of b + a, so who adds does not matter.
    Each element goes through the same tree, and no more is sent than a ring would send.
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
    """Stands for `backward` in a training step."""

    def __init__(self, state: TrainState, slots: int, rank: int, world_size: int, group: Any = None) -> None:
        """`slots` is a multiple of `world_size`, and both are powers of two."""
        self._state, self._slots = state, slots
        self._rank, self._world_size, self._group = rank, world_size, group

    def __call__(self, model: nn.Module, batch: Batch, config: Config) -> Tensor:
        """As `backward`, but gradients, loss and IoU are the means over the whole global batch, on every worker."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        slots = self._compute_slots(model, parameters, batch, config)
        total = tree_sum(slots, self._rank, self._world_size, self._group)
        total /= self._slots  # exact: a power of two
        *gradients, measured = total.split([*(parameter.numel() for parameter in parameters), 2])
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return measured

    def _compute_slots(
        self, model: nn.Module, parameters: list[nn.Parameter], batch: Batch, config: Config
    ) -> Iterator[Tensor]:
        """Gradients, loss and IoU of each of this worker's slots, one after another, as one flat tensor."""
        number = self._slots // self._world_size
        parts = zip(*(part.chunk(number) for part in batch), strict=True)
        for slot, part in enumerate(parts, start=self._rank * number):
            seed_generators(config.SEED, 0, self._state.step, 1 + slot)
            model.zero_grad(set_to_none=True)
            measured = backward(model, Batch(*part), config)
            yield torch.cat([*(_gradient(parameter).reshape(-1) for parameter in parameters), measured])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def checksum(model: nn.Module) -> int:
    """Of the bits of all parameters."""
    hashes = torch.stack([torch.hash_tensor(parameter.detach()).view(torch.int64) for parameter in model.parameters()])
    places = torch.arange(1, 2 * len(hashes), 2, device=hashes.device)  # odd, so that exchanged tensors are noticed
    return int((hashes * places).sum())


def find_difference(model: nn.Module, world_size: int, group: Any = None) -> str:
    """Each rank's checksum, if they differ; else nothing. A collective call."""
    device = next(model.parameters()).device
    mine = torch.tensor([checksum(model)], device=device)
    everyones = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(everyones, mine, group)
    sums = [int(one) for one in everyones]
    return ", ".join(f"rank {rank}: {one % 2**64:016x}" for rank, one in enumerate(sums)) if len(set(sums)) > 1 else ""
