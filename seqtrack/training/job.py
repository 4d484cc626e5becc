"""What a worker is given, and how it begins: with the stream of batches, whose first one takes longest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from seqtrack.config import Config
from seqtrack.data.batches import HostBatch, StreamPlan
from seqtrack.data.stream import StreamSource, stream_batches
from seqtrack.runs.folder import RunFolder

if TYPE_CHECKING:
    from seqtrack.runs.checkpoint import StoredCheckpoint
    from seqtrack.training.loop import Ended


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
        """This worker's batches from a step on. The first one is made from now on, in another thread."""
        context, config = ray.train.get_context(), self.config
        plan = StreamPlan.from_config(config, context.get_world_size())
        rank = context.get_world_rank()
        return opened(stream_batches(self.stream, plan, rank, step, config.total_steps, config.steps_per_epoch))


def run_job(settings: dict[str, Any]) -> Ended:
    """The function that Ray Train runs on each worker: see `train_worker`. `settings["job"]` refers to the Job."""
    job: Job = ray.get(settings["job"])
    new = job.resume_from is None and ray.train.get_checkpoint() is None
    # The processes that make the first batch take seconds to start. Torch and timm are imported meanwhile.
    batches = job.open_stream(0) if new else None

    from seqtrack.training.worker import train_worker

    return train_worker(job, batches)


def opened(batches: Generator[HostBatch, None, None]) -> Generator[HostBatch, None, None]:
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
