"""The Ray Data pipeline: step numbers in, batches out, in order, on every worker.

A block holds a few consecutive steps of one worker. Blocks alternate between workers, and `streaming_split` deals them
out in that order. A task makes several blocks, one after another, and each is on its way as soon as it is made. The
stream has no state: it can start at any step. Every batch carries the numbers of its step and samples, so that the loop
can refuse any other.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any

import ray
import ray.data
from numpy.typing import NDArray
from ray.data import DataIterator, Datasource, ExecutionResources, ReadTask
from ray.data.block import Block as DataBlock
from ray.data.block import BlockAccessor, BlockMetadata
from ray.train.collective import broadcast_from_rank_zero

from seqtrack.data.batches import (
    BLOCK_SAMPLES,
    Block,
    HostBatch,
    Placement,
    StreamPlan,
    make_batches,
    make_block,
)
from seqtrack.data.mixture import Mixture
from seqtrack.data.triplets import TripletSource

STREAM_BLOCKS = 1024
"""Blocks of each worker in a stream. Planning one costs more the longer it is, and a run has many streams."""
LOOKAHEAD_BLOCKS = 64
"""The next stream takes seconds to start, so it is opened this many blocks before the last one ends."""


@dataclass(frozen=True)
class StreamSource:
    """What the tasks of a stream need to make samples."""

    mixture_ref: ray.ObjectRef[Mixture]
    """The training sets with their indexes, shared by all runs that train on them; one copy per node."""
    make_triplets: Callable[[Mixture], TripletSource]
    placement: Placement

    @classmethod
    def of(cls, triplets: TripletSource, mixture_ref: ray.ObjectRef[Mixture], placement: Placement) -> StreamSource:
        """Makes a source from `triplets`, whose mixture `mixture_ref` refers to."""
        rest = {field.name: getattr(triplets, field.name) for field in fields(triplets) if field.name != "mixture"}
        return cls(mixture_ref, partial(TripletSource, **rest), placement)

    def open(self) -> TripletSource:
        """What makes the samples, in this process."""
        return self.make_triplets(ray.get(self.mixture_ref))


class _ShardExchange:
    """An actor that hands every rank its iterator of a stream.

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


def begin_batches(source: StreamSource, plan: StreamPlan, rank: int, start: int, stop: int) -> BegunBatches:
    """This worker's batches of steps start … stop - 1.

    The processes of a stream take seconds to start. Meanwhile this process makes the first batches itself.
    """
    streamed = min(start + max(BLOCK_SAMPLES * plan.world_size // plan.batch_size, 1), stop)
    here = _make_here(source, plan, rank, range(start, streamed))
    return BegunBatches(here, stream_batches(source, plan, rank, streamed, stop))


def _make_here(
    source: StreamSource, plan: StreamPlan, rank: int, steps: Iterable[int]
) -> Generator[HostBatch, None, None]:
    triplets = source.open()
    for step in steps:
        yield from make_batches(triplets, plan, [step], rank)


class BegunBatches:
    """The batches of several parts, one part after another. From now on, threads make the first batch of each part."""

    def __init__(self, *parts: Generator[HostBatch, None, None]) -> None:
        self._parts = [(part, _make_first(part)) for part in parts]
        self._first = True

    def __next__(self) -> HostBatch:
        while self._parts:
            part, first = self._parts[0]
            try:
                if self._first:
                    self._first = False
                    return first.result()
                return next(part)
            except StopIteration:
                del self._parts[0]
                self._first = True
        raise StopIteration

    def close(self) -> None:
        """Ends all parts; one whose first batch is being made ends after that."""
        for part, first in self._parts:
            first.add_done_callback(lambda _, part=part: part.close())  # type: ignore[misc]


def _make_first(batches: Generator[HostBatch, None, None]) -> Future[HostBatch]:
    first: Future[HostBatch] = Future()

    def make() -> None:
        try:
            first.set_result(next(batches))
        except BaseException as error:  # raised where the batch is asked for
            first.set_exception(error)

    threading.Thread(target=make, name="first-batch", daemon=True).start()
    return first


def stream_batches(
    source: StreamSource, plan: StreamPlan, rank: int, start: int, stop: int, most_steps: int | None = None
) -> Generator[HostBatch, None, None]:
    """This worker's batches of steps start … stop - 1. Every rank must iterate in step with the others.

    They come from one stream after another, of `most_steps` steps each. The next one is opened before the last ends.
    """
    most_steps = most_steps or STREAM_BLOCKS * plan.steps_per_block
    exchange = _open_exchange(rank) if plan.world_size > 1 else None
    with ThreadPoolExecutor(1, thread_name_prefix="open-stream") as opener:

        def open_stream(first: int) -> tuple[int, Future[Iterator[HostBatch]]]:
            last = min(first + most_steps, stop)
            shard = _open_shard(source, plan, rank, first, last, exchange)
            return last, opener.submit(_start, shard)

        opened = open_stream(start) if start < stop else None
        while opened is not None:
            ends, batches = opened
            opened = None
            for batch in batches.result():
                if opened is None and ends < stop and ends - batch.step <= LOOKAHEAD_BLOCKS * plan.steps_per_block:
                    opened = open_stream(ends)
                yield batch


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
            override_num_blocks=len(steps.tasks),
            num_cpus=placement.cpus_per_task,
            label_selector=dict(placement.labels),
            fallback_strategy=[{"label_selector": {}}],  # any node, if none with these labels has room
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        dataset.context.target_max_block_size = (
            1  # a block, which is one row, is neither joined to the next nor divided
        )
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
        yield from _from_row(first).batches()
        for block in blocks:
            yield from _from_row(block).batches()

    return batches()


class StepsDatasource(Datasource):
    """The steps start … stop - 1 as a Ray Data source, with independent tasks."""

    def __init__(self, source: StreamSource, plan: StreamPlan, start: int, stop: int) -> None:
        self._make_blocks = partial(_make_blocks, ray.put(source), plan, start, stop)
        self.tasks = plan.tasks(start, stop, source.placement)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(partial(self._make_blocks, blocks), unknown) for blocks in self.tasks]

    def estimate_inmemory_data_size(self) -> int | None:
        return None


def _make_blocks(
    source_ref: ray.ObjectRef[StreamSource], plan: StreamPlan, start: int, stop: int, blocks: range
) -> Iterator[DataBlock]:
    """The read task: makes some blocks, one after another."""
    triplets = _open_source(source_ref)
    for block in blocks:
        yield _to_row(make_block(triplets, plan, *plan.block_steps(block, start, stop)))


@lru_cache(maxsize=1)
def _open_source(source_ref: ray.ObjectRef[StreamSource]) -> TripletSource:
    """The source of a stream, opened once in each process for all its tasks."""
    return ray.get(source_ref).open()


def _to_row(block: Block) -> DataBlock:
    """A table of one row, so that Ray Data cannot divide it."""
    columns = {"steps": block.steps, **block.arrays}
    texts = json.dumps([block.problems, block.fault])
    return BlockAccessor.batch_to_block({name: array[None] for name, array in columns.items()} | {"texts": [texts]})


def _from_row(row: dict[str, NDArray[Any]]) -> Block:
    arrays = {name: column[0] for name, column in row.items()}
    problems, fault = json.loads(arrays.pop("texts"))
    return Block(arrays.pop("steps"), arrays, tuple(map(tuple, problems)), fault)
