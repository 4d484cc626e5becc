"""The Ray Data pipeline: step numbers in, batches out, in order, on every worker.

A dataset's rows are steps of one worker; a block holds a few consecutive ones and is made by one task. Blocks alternate
between workers, and `streaming_split` deals them out in that order. Nothing of the stream is state: it starts at any
step, and every batch says which step and samples it is, so that the loop can refuse anything else.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataIterator, Datasource, ExecutionResources, ReadTask
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.train.collective import broadcast_from_rank_zero

from seqtrack.config import Config
from seqtrack.data.lasot import FrameIndex
from seqtrack.data.triplets import TripletSource

BLOCK_SAMPLES = 64
"""A block costs about 20 ms whatever it holds, so it holds several steps; more would delay the first batch."""
FEW_WORKERS = 8
"""With more, blocks grow in proportion: one coordinator deals them out to all workers, some 100 a second."""
BLOCK_BYTES = 96 * 2**20
"""Below the 128 MiB at which Ray Data would cut a block in two and so upset the order."""
LOOKAHEAD_BLOCKS = 16
"""The next epoch's stream takes seconds to start, so it is opened this many blocks before the epoch ends."""


class StreamError(RuntimeError):
    """The stream delivered another step or other samples than the loop asked for."""


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
    problems: tuple[str, ...]
    """One line for each broken frame that was met."""


@dataclass(frozen=True)
class StreamPlan:
    """How steps become blocks. Pure arithmetic, the same on every rank."""

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
        """(B,) the samples of a worker in a step; over the ranks they are the global batch, in order."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + rank * share
        return np.arange(first, first + share)

    def num_blocks(self, start: int, stop: int) -> int:
        return -(-(stop - start) // self.steps_per_block) * self.world_size

    def block_steps(self, block: int, start: int, stop: int) -> tuple[range, int]:
        """The steps of a block of the stream over steps start … stop - 1, and the rank that they are for."""
        group, rank = divmod(block, self.world_size)
        first = start + group * self.steps_per_block
        return range(first, min(first + self.steps_per_block, stop)), rank


@dataclass(frozen=True)
class Placement:
    """Where the stream's tasks run."""

    cpus_per_task: float
    most_cpus: float | None
    """Of all tasks that run at a time. None: whatever is free."""
    labels: Mapping[str, str]
    """Of the nodes that they run on first."""


@dataclass(frozen=True)
class StreamSource:
    """Where the stream's tasks find what they need."""

    index_ref: ray.ObjectRef[FrameIndex]
    """Shared by every run that trains on it, one copy per node."""
    make_triplets: Callable[[FrameIndex], TripletSource]
    placement: Placement

    @classmethod
    def of(cls, triplets: TripletSource, index_ref: ray.ObjectRef[FrameIndex], placement: Placement) -> StreamSource:
        """`index_ref` refers to the index of `triplets`."""
        rest = {field.name: getattr(triplets, field.name) for field in fields(triplets) if field.name != "index"}
        return cls(index_ref, partial(TripletSource, **rest), placement)


class _ShardExchange:
    """Hands every rank its iterator of a stream.

    Ray Train's own broadcast would keep each stream's coordinating process alive to the end of the run: it pickles
    what it is given outside of Ray's reference counting.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], asyncio.Future[DataIterator]] = {}

    async def put(self, start: int, shards: list[DataIterator]) -> None:
        for rank, shard in enumerate(shards):
            self._slot(start, rank).set_result(shard)

    async def take(self, start: int, rank: int) -> DataIterator:
        shard = await self._slot(start, rank)
        del self._slots[start, rank]
        return shard

    def _slot(self, start: int, rank: int) -> asyncio.Future[DataIterator]:
        return self._slots.setdefault((start, rank), asyncio.get_running_loop().create_future())


def stream_batches(
    source: StreamSource, plan: StreamPlan, rank: int, start: int, stop: int, steps_per_epoch: int
) -> Generator[HostBatch, None, None]:
    """This worker's batches of steps start … stop - 1. Every rank must iterate in step with the others.

    Each epoch is a stream of its own (a plan costs by its length), opened before the one before it ends.
    """
    exchange = _open_exchange(rank) if plan.world_size > 1 else None
    with ThreadPoolExecutor(1, thread_name_prefix="open-stream") as opener:

        def open_epoch(first: int) -> tuple[int, Future[Iterator[HostBatch]]]:
            last = min((first // steps_per_epoch + 1) * steps_per_epoch, stop)
            shard = _open_shard(source, plan, rank, first, last, exchange)
            return last, opener.submit(_start, shard)

        opened = open_epoch(start) if start < stop else None
        while opened is not None:
            epoch_stop, batches = opened
            opened = None
            for batch in batches.result():
                left = epoch_stop - batch.step
                if opened is None and epoch_stop < stop and left <= LOOKAHEAD_BLOCKS * plan.steps_per_block:
                    opened = open_epoch(epoch_stop)
                yield batch


def check_batch(batch: HostBatch, plan: StreamPlan, rank: int, step: int) -> None:
    """Raises StreamError unless the batch is exactly what this rank must train on in this step."""
    expected = plan.sample_numbers(step, rank)
    if batch.step != step or not np.array_equal(batch.numbers, expected):
        raise StreamError(
            f"rank {rank} wanted step {step}, samples {expected[0]} to {expected[-1]}, "
            f"but the stream delivered step {batch.step}, samples {batch.numbers[0]} to {batch.numbers[-1]}"
        )


def _open_exchange(rank: int) -> ray.actor.ActorHandle:
    """A collective call: rank 0 starts the exchange, which lives as long as rank 0 does."""
    name = f"seqtrack-shards-{uuid.uuid4()}" if rank == 0 else None
    exchange = ray.remote(_ShardExchange).options(name=name, num_cpus=0).remote() if rank == 0 else None
    name = broadcast_from_rank_zero(name)
    return exchange or ray.get_actor(name)


def _open_shard(
    source: StreamSource,
    plan: StreamPlan,
    rank: int,
    start: int,
    stop: int,
    exchange: ray.actor.ActorHandle | None,
) -> DataIterator:
    """Rank 0 builds the dataset of steps start … stop - 1; every rank gets its iterator."""
    if rank == 0:
        placement = source.placement
        steps = StepsDatasource(source, plan, start, stop)
        dataset = ray.data.read_datasource(
            steps,
            override_num_blocks=steps.num_blocks,
            num_cpus=placement.cpus_per_task,
            label_selector=dict(placement.labels),
            fallback_strategy=[{"label_selector": {}}],  # anywhere, where no such node has room
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        if placement.most_cpus is not None:
            dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(cpu=placement.most_cpus)
        shards = dataset.streaming_split(plan.world_size, equal=False)
        if exchange is None:
            return shards[0]
        ray.get(exchange.put.remote(start, shards))
    assert exchange is not None
    return ray.get(exchange.take.remote(start, rank))


def _start(shard: DataIterator) -> Iterator[HostBatch]:
    """Starts the stream's execution and waits for its first block."""
    blocks = iter(shard.iter_batches(batch_size=None, prefetch_batches=1))
    first = next(blocks)

    def batches() -> Iterator[HostBatch]:
        yield from _split_block(first)
        for block in blocks:
            yield from _split_block(block)

    return batches()


class StepsDatasource(Datasource):
    """The steps start … stop - 1 as Ray Data reads them: a task for each block, none of which reads another's."""

    def __init__(self, source: StreamSource, plan: StreamPlan, start: int, stop: int) -> None:
        self._make_block = partial(_make_block, ray.put(source), plan, start, stop)
        self.num_blocks = plan.num_blocks(start, stop)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(self._make_block, block), unknown) for block in range(self.num_blocks)]

    def estimate_inmemory_data_size(self) -> int | None:
        return None


def _make_block(
    source_ref: ray.ObjectRef[StreamSource], plan: StreamPlan, start: int, stop: int, block: int
) -> list[Block]:
    """The task: one block number -> the finished steps of that block."""
    source = ray.get(source_ref)
    triplets = source.make_triplets(ray.get(source.index_ref))
    steps, rank = plan.block_steps(block, start, stop)
    rows: dict[str, list[Any]] = {field: [] for field in HostBatch._fields}
    numbers_of = [plan.sample_numbers(step, rank) for step in steps]
    finished = iter(triplets.samples(np.concatenate(numbers_of).tolist()))
    for step, numbers in zip(steps, numbers_of, strict=True):
        made = list(itertools.islice(finished, len(numbers)))
        samples = [sample for sample, _ in made]
        rows["step"].append(step)
        rows["numbers"].append(numbers)
        rows["template"].append(np.stack([sample.template for sample in samples]))
        rows["search"].append(np.stack([sample.search for sample in samples]))
        rows["boxes_xywh"].append(np.stack([sample.box_xywh for sample in samples]))
        rows["brightness"].append(np.stack([sample.brightness for sample in samples]))
        rows["problems"].append("\n".join(problem for _, problems in made for problem in problems))
    return [BlockAccessor.batch_to_block({field: np.stack(values) for field, values in rows.items()})]


def _split_block(block: dict[str, NDArray[Any]]) -> Iterator[HostBatch]:
    for row in range(len(block["step"])):
        values = {field: block[field][row] for field in HostBatch._fields}
        values["step"] = int(values["step"])
        values["problems"] = tuple(str(values["problems"]).splitlines())
        yield HostBatch(**values)
