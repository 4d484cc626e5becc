"""One Ray Train worker: connects the training loop to Ray, and Ray to the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from ray.train.collective import broadcast_from_rank_zero
from torch import nn

from seqtrack.cluster.stop import StopWatch
from seqtrack.config import Config
from seqtrack.data.batches import StreamPlan
from seqtrack.data.stamp import FrameStamp
from seqtrack.data.stream import StreamSource, begin_batches
from seqtrack.failures import explain
from seqtrack.model.precision import set_precision
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, write_checkpoint
from seqtrack.runs.compatibility import FRAMES
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.history import await_metrics, note_first_checkpoint
from seqtrack.runs.log import MetricsFile, RunLogHandler
from seqtrack.training.coordination import OwnerCheck
from seqtrack.training.loop import Ended, HopelessError, Surroundings, TrainingLoop, UnwritableError
from seqtrack.training.slots import SlotGradients
from seqtrack.training.state import TrainState, restore
from seqtrack.training.step import Backward, backward, set_determinism

logger = logging.getLogger("seqtrack.training")


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
    frames: FrameStamp | None = None
    """The stamp of the frames, which checkpoints carry on."""


def train_worker(settings: dict[str, Any]) -> Ended:
    """Trains to the end of the last epoch, or until the job is asked to stop. `settings["job"]` refers to the Job."""
    job: Job = ray.get(settings["job"])
    config, context = job.config, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # All ranks end or none. Workers that are started again after a failure may find the folder taken.
    if lost := broadcast_from_rank_zero(job.run.lost() if rank == 0 else None):
        return Ended([], 0, error=UnwritableError(lost))
    with _run_log(job.run, rank):
        device = ray.train.torch.get_device()
        set_determinism(config.TRAIN.DETERMINISTIC)
        set_precision(config.TRAIN.PRECISION, device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        latest = ray.train.get_checkpoint()
        start = job.resume_from if latest is None else _stored(latest)
        plan = StreamPlan.from_config(config, world_size)
        begin = partial(begin_batches, job.stream, plan, rank, stop=config.total_steps)
        batches = begin(start=0) if start is None else None  # they are made while the model is built
        weights = ray.get(job.weights) if job.weights and not start else None
        state = TrainState.fresh(config, rank, device, weights)
        hardware, resumed_from = _hardware(device, state.compiled), None
        if start is not None:
            resumed_from = restore(
                state, start, config, job.dataset, job.allow_changed, rank, hardware, job.run, job.frames
            )
        if rank == 0 and start is not None and start.run.path == job.run.path:
            await_metrics(job.run, state.step)
        model, make_gradients = _prepare_model(config, state, rank, world_size)
        _announce(config, state, world_size, hardware)
        stop = StopWatch(job.stop) if rank == 0 else None
        surroundings = Surroundings(
            batches or begin(start=state.step),
            RaySink(job.run),
            {
                "resumed_from": resumed_from,
                "world_size": world_size,
                "hardware": hardware,
                "dataset": job.dataset,
                FRAMES: None if job.frames is None else job.frames.to_json(),
                "code_revision": job.code_revision,
                "mlflow_run_id": job.find_mlflow_run() if rank == 0 else None,
            },
            MetricsFile(job.run, state.step) if rank == 0 else None,
            stop.is_set if stop is not None else lambda: False,
            lambda: ray.train.get_preemption_info() is not None,
            fetch_ahead=device.type == "cuda",
            reason_to_end=OwnerCheck(job.run) if rank == 0 else lambda: "",
        )
        loop = TrainingLoop(config, state, model, make_gradients, rank, world_size, device, surroundings)
        try:
            return loop.run()
        except HopelessError as error:
            logger.error("%s", error)
            return Ended(state.history, state.step, error=error)
        finally:
            if stop is not None:
                stop.close()


class NotWritten(BaseException):
    """Ends Ray Train's upload of a checkpoint that could not be written, so that nothing is reported.

    Of an Exception Ray would make a failure of this worker, and try it all again from the checkpoint before. The loop
    ends the run instead: writing was tried again for minutes.
    """


class RaySink:
    """Writes checkpoints into the run's folder, in Ray Train's upload thread, and reports each finished one to Ray."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._writing: Future[str] | None = None
        """Done when the checkpoint that is being written is complete, or cannot be written: then it says why."""

    def wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def problem(self) -> str:
        return self._writing.result() if self._writing is not None and self._writing.done() else ""

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None:
        if contents is None:
            ray.train.report(dict(metrics), checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        stored = StoredCheckpoint(self._run, name)
        writing = self._writing = Future()

        def write(checkpoint: Checkpoint, _: str) -> Checkpoint:
            try:
                self._run.check_owner()
                write_checkpoint(contents, stored)
                note_first_checkpoint(stored)
                self._run.check_owner()  # what is reported makes Ray remove older ones
            except Exception as error:  # whatever it is, a checkpoint that is not there must not be reported
                writing.set_result(explain(error))
                raise NotWritten from error
            writing.set_result("")
            return checkpoint

        ray.train.report(
            dict(metrics),
            Checkpoint(stored.path, self._run.filesystem),
            name,
            CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # `write` puts it in its final place
            checkpoint_upload_fn=write,
        )


def _stored(checkpoint: Checkpoint) -> StoredCheckpoint:
    folder, _, name = checkpoint.path.rpartition("/")
    return StoredCheckpoint(RunFolder(checkpoint.filesystem, folder, folder), name)


def _prepare_model(config: Config, state: TrainState, rank: int, world_size: int) -> tuple[nn.Module, Backward]:
    """The model that a step calls, and the function that computes gradients, the same on all workers."""
    if config.TRAIN.SLOTS is None:
        # Its one buffer, a constant mask, need not be sent in each step.
        once = {"broadcast_buffers": False}
        return ray.train.torch.prepare_model(state.model, parallel_strategy_kwargs=once), backward
    return state.model, SlotGradients(state, config.TRAIN.SLOTS, rank, world_size)


def _announce(config: Config, state: TrainState, world_size: int, hardware: str) -> None:
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    logger.info(
        "Training %s on %d worker%s (%s), %s, deterministic: %s, %.1f M parameters",
        config.MODEL.ENCODER.TYPE,
        world_size,
        "" if world_size == 1 else "s",
        hardware,
        config.TRAIN.PRECISION,
        "yes" if config.TRAIN.DETERMINISTIC else "NO, runs will not repeat bit for bit",
        parameters / 1e6,
    )


def _hardware(device: torch.device, compiled: bool) -> str:
    """Name of the device and number of threads that a worker computes with, and whether the model is compiled."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}{', compiled' if compiled else ''}"


@contextmanager
def _run_log(run: RunFolder, rank: int) -> Iterator[None]:
    """Sends what this package logs on rank 0 to `<run>/train.log`."""
    package = logging.getLogger("seqtrack")
    handler: logging.Handler = RunLogHandler(run) if rank == 0 else logging.NullHandler()
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        handler.flush()
        package.removeHandler(handler)
