"""Batches without Ray: which samples belong to a step, how its batch is made, and how it is checked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import Config, DataConfig
from seqtrack.data.storage import DataError, StoreError
from seqtrack.data.triplets import TripletSource

BLOCK_SAMPLES = 64
"""Samples per block: enough to outweigh its fixed cost of about 20 ms, few enough for an early first batch."""
FEW_WORKERS = 8
"""With more workers, blocks grow in proportion: one coordinator deals out all blocks, about 100 a second."""
BLOCK_BYTES = 96 * 2**20
"""Largest block. Ray Data splits blocks of 128 MiB in two, which would upset the order."""


class StreamError(RuntimeError):
    """The stream delivered a different step or different samples than the loop asked for."""


class HostBatch(NamedTuple):
    """One worker's share of one step, in host memory. B = BATCH_SIZE / world size."""

    step: int
    numbers: NDArray[np.int64]
    """(B,) sample numbers over the whole run."""
    template: NDArray[np.uint8]
    """(B, T, h, w, 3)."""
    search: NDArray[np.uint8]
    """(B, H, W, 3)."""
    boxes_xywh: NDArray[np.float32]
    """(B, 4)."""
    brightness: NDArray[np.float32]
    """(B, T + 1)."""
    sets: NDArray[np.int64]
    """(B,) which of the training sets each sample is from."""
    problems: tuple[str, ...]
    """One line for each broken frame that was found."""
    fault: str = ""
    """Why there are no samples, if there are none: their data cannot be used, and will not be later. The arrays are
    zeros then. The loop ends the training on all workers at once, which an error in one task would not do."""


@dataclass(frozen=True)
class StreamPlan:
    """How steps are grouped into blocks. Pure arithmetic, the same on every rank."""

    batch_size: int
    world_size: int
    steps_per_block: int

    @classmethod
    def from_config(cls, config: Config, world_size: int) -> StreamPlan:
        share = config.TRAIN.BATCH_SIZE // world_size
        search, template = config.DATA.SEARCH, config.DATA.TEMPLATE
        sample_bytes = 3 * (search.SIZE**2 + template.NUMBER * template.SIZE**2)
        samples = BLOCK_SAMPLES * max(world_size // FEW_WORKERS, 1)
        steps = min(samples // share, BLOCK_BYTES // (share * sample_bytes))
        return cls(config.TRAIN.BATCH_SIZE, world_size, max(steps, 1))

    def sample_numbers(self, step: int, rank: int) -> NDArray[np.int64]:
        """(B,) numbers of a worker's samples in a step. Those of all ranks, in order, are the global batch."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + rank * share
        return np.arange(first, first + share)

    def num_blocks(self, start: int, stop: int) -> int:
        return -(-(stop - start) // self.steps_per_block) * self.world_size

    def block_steps(self, block: int, start: int, stop: int) -> tuple[range, int]:
        """The steps in a block, and the rank that they are for. The stream covers steps start … stop - 1."""
        group, rank = divmod(block, self.world_size)
        first = start + group * self.steps_per_block
        return range(first, min(first + self.steps_per_block, stop)), rank


@dataclass(frozen=True)
class Placement:
    """Where the stream's tasks run."""

    cpus_per_task: float
    most_cpus: float | None
    """Most CPUs for all tasks together. None: all that are free."""
    labels: Mapping[str, str]
    """Ray labels of the nodes that are used first."""


def make_batches(triplets: TripletSource, plan: StreamPlan, steps: Iterable[int], rank: int) -> list[HostBatch]:
    """This rank's batches of some steps. Raises StoreError; other faults of the data are put into the batches."""
    numbers_of = {step: plan.sample_numbers(step, rank) for step in steps}
    try:
        finished = iter(triplets.samples(np.concatenate(list(numbers_of.values())).tolist()))
    except StoreError:
        raise
    except DataError as error:
        return [_without_samples(triplets.settings, step, numbers, str(error)) for step, numbers in numbers_of.items()]
    batches = []
    for step, numbers in numbers_of.items():
        made = list(itertools.islice(finished, len(numbers)))
        samples = [sample for sample, _ in made]
        batches.append(
            HostBatch(
                step,
                numbers,
                np.stack([sample.template for sample in samples]),
                np.stack([sample.search for sample in samples]),
                np.stack([sample.box_xywh for sample in samples]),
                np.stack([sample.brightness for sample in samples]),
                np.array([sample.set_number for sample in samples], np.int64),
                tuple(problem for _, problems in made for problem in problems),
            )
        )
    return batches


def _without_samples(settings: DataConfig, step: int, numbers: NDArray[np.int64], fault: str) -> HostBatch:
    count, templates = len(numbers), settings.TEMPLATE.NUMBER
    return HostBatch(
        step,
        numbers,
        np.zeros((count, templates, settings.TEMPLATE.SIZE, settings.TEMPLATE.SIZE, 3), np.uint8),
        np.zeros((count, settings.SEARCH.SIZE, settings.SEARCH.SIZE, 3), np.uint8),
        np.zeros((count, 4), np.float32),
        np.zeros((count, templates + 1), np.float32),
        np.zeros(count, np.int64),
        (),
        fault,
    )


def check_batch(batch: HostBatch, plan: StreamPlan, rank: int, step: int) -> None:
    """Raises StreamError unless the batch is exactly what this rank must train on in this step."""
    expected = plan.sample_numbers(step, rank)
    if batch.step != step or not np.array_equal(batch.numbers, expected):
        raise StreamError(
            f"rank {rank} wanted step {step}, samples {expected[0]} to {expected[-1]}, "
            f"but the stream delivered step {batch.step}, samples {batch.numbers[0]} to {batch.numbers[-1]}"
        )
