"""Batches without Ray: which samples belong to a step, how its batch is made, and how it is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from seqtrack.config import Config
from seqtrack.data.crops import empty_crops
from seqtrack.data.storage import DataError, StoreError
from seqtrack.data.triplets import TripletSource

BLOCK_SAMPLES = 64
"""Samples per block: enough to outweigh its fixed cost of about 20 ms, few enough for an early first batch."""
FEW_WORKERS = 8
"""With more workers, blocks grow in proportion: one coordinator deals out all blocks, some hundreds a second."""
BLOCK_BYTES = 96 * 2**20
"""Largest block."""
TASK_BLOCKS = 32
"""Most blocks that a task makes. Ray Data looks every tenth of a second which tasks are done, and their CPUs wait."""


class StreamError(RuntimeError):
    """The stream delivered a different step or different samples than the loop asked for."""


class HostBatch(NamedTuple):
    """One worker's share of one step, in host memory. B = BATCH_SIZE / world size. Its arrays may be read-only."""

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


class Batches(Protocol):
    """Batches one after another, such as a generator's."""

    def __next__(self) -> HostBatch: ...

    def close(self) -> None:
        """No more are wanted."""


@dataclass(frozen=True)
class StreamPlan:
    """How steps are grouped into blocks, and blocks into tasks. Pure arithmetic, the same on every rank."""

    batch_size: int
    world_size: int
    steps_per_block: int
    sample_bytes: int = 0
    """Size of a sample's crops."""

    @classmethod
    def from_config(cls, config: Config, world_size: int) -> StreamPlan:
        share = config.TRAIN.BATCH_SIZE // world_size
        search, template = config.DATA.SEARCH, config.DATA.TEMPLATE
        sample_bytes = 3 * (search.SIZE**2 + template.NUMBER * template.SIZE**2)
        samples = BLOCK_SAMPLES * max(world_size // FEW_WORKERS, 1)
        steps = min(samples // share, BLOCK_BYTES // (share * sample_bytes))
        return cls(config.TRAIN.BATCH_SIZE, world_size, max(steps, 1), sample_bytes)

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

    def tasks(self, start: int, stop: int, placement: Placement) -> list[range]:
        """The blocks of steps start … stop - 1, as runs of blocks that a task makes one after another.

        Blocks are delivered in order, so what later tasks make waits until the earlier ones are done. The first tasks
        are therefore short, and the first batches come early. So are the last ones, which end at about the same time.
        """
        block_bytes = self.steps_per_block * self.batch_size // self.world_size * self.sample_bytes
        fitting = placement.store_bytes // (placement.at_once * block_bytes) if block_bytes else TASK_BLOCKS
        blocks = range(self.num_blocks(start, stop))
        tasks: list[range] = []
        while blocks:
            rising, falling = 2 ** (len(tasks) // placement.at_once), len(blocks) // (2 * placement.at_once)
            count = max(min(TASK_BLOCKS, fitting, rising, falling), 1)
            tasks.append(blocks[:count])
            blocks = blocks[count:]
        return tasks


@dataclass(frozen=True)
class Placement:
    """Where the stream's tasks run."""

    cpus_per_task: float
    most_cpus: float | None
    """Most CPUs for all tasks together. None: all that are free."""
    labels: Mapping[str, str]
    """Ray labels of the nodes that are used first."""
    at_once: int = 1
    """How many tasks run at the same time, if the cluster is not busy otherwise."""
    store_bytes: int = 2**30
    """How much of Ray's object store the blocks of all tasks that run may take."""


class Block(NamedTuple):
    """S consecutive steps of one worker, whose samples share one array of each kind."""

    steps: NDArray[np.int64]
    """(S,)."""
    arrays: Mapping[str, NDArray[Any]]
    """The arrays of HostBatch by their names, each with the steps as its first axis: `numbers` is (S, B)."""
    problems: tuple[tuple[str, ...], ...]
    """Those of each step."""
    fault: str

    def batches(self) -> Iterator[HostBatch]:
        """The steps one by one. Their arrays are views."""
        for row, (step, problems) in enumerate(zip(self.steps.tolist(), self.problems, strict=True)):
            arrays = {name: array[row] for name, array in self.arrays.items()}
            yield HostBatch(step=step, problems=problems, fault=self.fault, **arrays)


def make_block(triplets: TripletSource, plan: StreamPlan, steps: Sequence[int], rank: int) -> Block:
    """This rank's samples of some consecutive steps. Raises StoreError; another fault of the data is the block's."""
    numbers = np.array([plan.sample_numbers(step, rank) for step in steps])
    settings, shape = triplets.settings, numbers.shape
    crops = empty_crops((numbers.size,), settings)
    boxes_xywh = np.zeros((*shape, 4), np.float32)
    brightness = np.zeros((*shape, settings.TEMPLATE.NUMBER + 1), np.float32)
    sets = np.zeros(shape, np.int64)
    problems: list[list[str]] = [[] for _ in steps]
    fault = ""
    try:
        made = triplets.samples(numbers.ravel().tolist(), crops)
        for place, (sample, met) in zip(np.ndindex(shape), made, strict=True):
            boxes_xywh[place], brightness[place], sets[place] = sample.box_xywh, sample.brightness, sample.set_number
            problems[place[0]] += met
    except StoreError:
        raise
    except DataError as error:
        fault = str(error)
        for array in crops:
            array[:] = 0
    template, search = (array.reshape(*shape, *array.shape[1:]) for array in crops)
    arrays = {
        "numbers": numbers,
        "template": template,
        "search": search,
        "boxes_xywh": boxes_xywh,
        "brightness": brightness,
        "sets": sets,
    }
    return Block(np.array(steps), arrays, tuple(map(tuple, problems)), fault)


def make_batches(triplets: TripletSource, plan: StreamPlan, steps: Sequence[int], rank: int) -> Iterator[HostBatch]:
    """This rank's batches of some consecutive steps, as `make_block` makes them."""
    return make_block(triplets, plan, steps, rank).batches()


def check_batch(batch: HostBatch, plan: StreamPlan, rank: int, step: int) -> None:
    """Raises StreamError unless the batch is exactly what this rank must train on in this step."""
    expected = plan.sample_numbers(step, rank)
    if batch.step != step or not np.array_equal(batch.numbers, expected):
        raise StreamError(
            f"rank {rank} wanted step {step}, samples {expected[0]} to {expected[-1]}, "
            f"but the stream delivered step {batch.step}, samples {batch.numbers[0]} to {batch.numbers[-1]}"
        )
