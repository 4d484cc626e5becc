"""What a worker is given, and its batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from seqtrack.config import Config
from seqtrack.data.batches import BLOCK_SAMPLES, HostBatch, StreamPlan, make_batches
from seqtrack.data.stream import StreamSource, stream_batches
from seqtrack.runs.checkpoint import StoredCheckpoint
from seqtrack.runs.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """Everything that a worker is given."""

    config: Config
    run: RunFolder
    stream: StreamSource
    dataset: dict[str, Any]
    """Description of the data: sequences, frames, fingerprint of the index."""
    weights: ray.ObjectRef | None
    """Initial weights of a new run. Parameters that are missing keep their random values."""
    resume_from: StoredCheckpoint | None
    """Checkpoint that the run starts from. After a failure, it continues from its own latest one instead."""
    allow_changed: frozenset[str]
    """What may differ from the checkpoint: settings, packages, `dataset`."""
    stop: ray.actor.ActorHandle
    """The StopRequest actor."""
    find_mlflow_run: Callable[[], str | None]
    """Waits for the id of the MLflow run, which checkpoints name; None where MLflow does not answer soon."""
    code_revision: str
    """Revision of the code that the job runs."""

    def open_stream(self, step: int) -> Generator[HostBatch, None, None]:
        """This worker's batches from a step on, which other threads begin to make now.

        The processes of a stream take seconds to start. Meanwhile the worker makes the first batches itself.
        """
        context, config = ray.train.get_context(), self.config
        plan = StreamPlan.from_config(config, context.get_world_size())
        rank, stop = context.get_world_rank(), config.total_steps
        streamed = min(step + max(BLOCK_SAMPLES * plan.world_size // plan.batch_size, 1), stop)
        first = begun(make_here(self.stream, plan, rank, range(step, streamed)))
        if streamed == stop:
            return first
        return joined(first, begun(stream_batches(self.stream, plan, rank, streamed, stop)))


def make_here(
    source: StreamSource, plan: StreamPlan, rank: int, steps: Iterable[int]
) -> Generator[HostBatch, None, None]:
    """The batches of some steps, made in this process, as a task of the stream would make them."""
    triplets = source.make_triplets(ray.get(source.mixture_ref))
    for step in steps:
        yield from make_batches(triplets, plan, [step], rank)


def joined(*parts: Generator[HostBatch, None, None]) -> Generator[HostBatch, None, None]:
    for part in parts:
        yield from part


def begun(batches: Generator[HostBatch, None, None]) -> Generator[HostBatch, None, None]:
    """The same batches. The first one is made in another thread from now on, rather than when it is asked for."""
    first: Future[HostBatch] = Future()

    def make_first() -> None:
        try:
            first.set_result(next(batches))
        except BaseException as error:  # raised where the batch is asked for
            first.set_exception(error)

    threading.Thread(target=make_first, name="first-batch", daemon=True).start()

    def from_first() -> Generator[HostBatch, None, None]:
        yield first.result()
        yield from batches

    return from_first()
