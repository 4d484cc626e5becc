"""The loop that one Ray Train worker runs: batches in, steps, log lines, checkpoints out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor, nn

from seqtrack.config import Config
from seqtrack.data.stream import HostBatch, StreamPlan, StreamSource, check_batch, stream_batches
from seqtrack.training.checkpoint import (
    Contents,
    checkpoint_name,
    verify_checkpoint,
    write_checkpoint,
)
from seqtrack.training.meters import EpochMeter, log_line, summary_line
from seqtrack.training.optimization import Backward, Batch, backward, set_determinism, train_step
from seqtrack.training.runlog import LOG_FILE, METRICS_FILE, MetricsFile, RunLogHandler
from seqtrack.training.slots import SlotGradients, find_difference
from seqtrack.training.state import (
    TrainState,
    changed_since,
    check_allowed,
    generator_states,
    load_generators,
    seed_generators,
)

logger = logging.getLogger("seqtrack.training")

MAX_BROKEN_SHARE = 0.01
SHOWN_PROBLEMS = 20
SECONDS_BETWEEN_QUESTIONS = 5.0
"""Ray looks for nodes that are about to go as often; asking it takes a round trip through all workers."""


class HopelessError(RuntimeError):
    """Training cannot go on, and would not if it were tried again."""


class BrokenDataError(HopelessError):
    """Too many frames of an epoch cannot be read."""


class DivergedError(HopelessError):
    """A loss or gradient is not a finite number, or workers have different weights."""


@dataclass(frozen=True)
class Job:
    """What every worker is given."""

    config: Config
    stream: StreamSource
    dataset: dict[str, Any]
    """What the data are: sequences, frames, fingerprint of the index."""
    weights: ray.ObjectRef | None
    """What a run that starts anew replaces its random weights by, wholly or in part."""
    resume_from: Checkpoint | None
    """Where the run starts; after a failure it goes on from its own latest."""
    allow_changed: frozenset[str]
    """What may differ from the checkpoint: settings, packages, `dataset`."""
    stop: ray.actor.ActorHandle
    """The StopRequest."""
    mlflow_run_id: str | None
    code_revision: str
    """Of the repository that the job runs from."""


@dataclass(frozen=True)
class Ended:
    """How the loop ended."""

    history: list[dict[str, float]]
    """Summary of each epoch."""
    step: int
    stopped: bool = False
    """Before the last step, because the job was asked to stop."""
    error: HopelessError | None = None
    """Returned, not raised: what is raised is tried again."""


class StopRequest:
    """An actor through which the job tells the workers to write a checkpoint and end."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    async def request(self) -> None:
        self._requested.set()

    async def wait(self) -> None:
        await self._requested.wait()

    async def is_requested(self) -> bool:
        return self._requested.is_set()


def train_worker(settings: dict[str, Any]) -> Ended:
    """Trains to the end of the last epoch, or until the job is asked to stop. `settings["job"]` is the Job."""
    job: Job = settings["job"]
    context = ray.train.get_context()
    with _run_log(context):
        worker = _Worker(job, context.get_world_rank(), context.get_world_size())
        try:
            return worker.run()
        except HopelessError as error:
            logger.error("%s", error)
            return Ended(worker.state.history, worker.state.step, error=error)


class Agreement:
    """Lets all ranks act in the same step on what one of them noticed.

    A flag that is raised at one step is seen by everyone at the next, so nobody waits for the answer.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._asked: tuple[Any, Tensor] | None = None

    def exchange(self, *flags: bool) -> tuple[bool, ...]:
        if self._group is None:
            return flags
        answered, raised = self._asked, torch.tensor(flags, dtype=torch.uint8)
        self._asked = dist.all_reduce(raised, dist.ReduceOp.MAX, self._group, async_op=True), raised
        if answered is None:
            return (False,) * len(flags)
        answered[0].wait()
        return tuple(answered[1].bool().tolist())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on rank 0."""
        if self._group is None:
            return [value]
        values = [None] * self._world_size if dist.get_rank() == 0 else None
        dist.gather_object(value, values, group=self._group)
        return values or []


class _Worker:
    def __init__(self, job: Job, rank: int, world_size: int) -> None:
        self.job, self.config = job, job.config
        self.rank, self.world_size = rank, world_size
        self.plan = StreamPlan.from_config(job.config, world_size)
        self.device = ray.train.torch.get_device()
        set_determinism(job.config.TRAIN.DETERMINISTIC)
        if job.config.threads is not None:
            torch.set_num_threads(job.config.threads)
        checkpoint = ray.train.get_checkpoint() or job.resume_from
        weights = ray.get(job.weights) if job.weights and not checkpoint else None
        self.resumed_from: dict[str, Any] | None = None
        """The checkpoint of another run that this one started from, and its step."""
        self.state = TrainState.fresh(job.config, rank, self.device, weights)
        self._restore(checkpoint)
        self.model, self.backward = self._prepare()
        self.agreement = Agreement(world_size)
        self.writing: Future[None] | None = None
        """The checkpoint that is being written beside the steps."""
        self.stop_requested = threading.Event()
        self.asked_at = time.monotonic()
        self.preempted = False
        self.problems: list[str] = []  # this rank's broken frames since the last interval
        self.broken: list[str] = []  # every rank's in this epoch
        self.unread: list[Tensor] = []  # metrics of the last steps, still on the device
        self.metrics_file = self._open_metrics_file() if rank == 0 else None
        self.interval_steps, self.interval_began = 0, 0.0

    def run(self) -> Ended:
        config, state = self.config, self.state
        per_epoch = config.steps_per_epoch
        self._announce()
        self.model.train()
        if self.rank == 0:
            threading.Thread(target=self._await_stop, name="await-stop", daemon=True).start()
        batches = stream_batches(
            self.job.stream, self.plan, self.rank, state.step, config.total_steps, config.steps_per_epoch
        )
        clock = time.perf_counter()
        self.interval_began = state.meter.seconds
        stopping = False
        while state.step < config.total_steps and not stopping:
            waited = -time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter()
            check_batch(batch, self.plan, self.rank, state.step)
            self.problems.extend(batch.problems)
            self.unread.append(train_step(self.model, state.optimizer, self._to_device(batch), config, self.backward))
            state.step += 1
            self.interval_steps += 1
            stopping, preempted = self._notice()

            now = time.perf_counter()
            state.meter.seconds += now - clock
            state.meter.wait_seconds += waited
            clock = now
            epoch_ends = state.step % per_epoch == 0
            interval_ends = epoch_ends or self._passed_multiple(config.TRAIN.PRINT_INTERVAL)
            planned = epoch_ends or _every(config.TRAIN.CHECKPOINT_EVERY_STEPS, state.step % per_epoch)
            if interval_ends or planned or stopping or preempted:
                self._read_meters()
            if interval_ends:
                record = self._log_interval() | (self._end_epoch() if epoch_ends else {})
                if self.metrics_file is not None:
                    self.metrics_file.add(record)
            if planned or stopping or preempted:
                self._checkpoint()
        batches.close()
        self._await_writing()
        return Ended(state.history, state.step, stopped=state.step < config.total_steps)

    def _prepare(self) -> tuple[nn.Module, Backward]:
        """What a step calls: it makes the gradients the same on all workers."""
        slots = self.config.TRAIN.SLOTS
        if slots is None:
            return ray.train.torch.prepare_model(self.state.model), backward
        return self.state.model, SlotGradients(self.state, slots, self.rank, self.world_size)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        with checkpoint.as_directory() as directory:
            meta = verify_checkpoint(Path(directory), checkpoint.path)
            changed = changed_since(meta, self.config, self.job.dataset)
            check_allowed(changed, self.job.allow_changed, checkpoint.path)
            self.state.load(Path(directory), new_schedule=any(key.startswith("TRAIN.") for key in changed))
            if self.config.TRAIN.SLOTS is None and not load_generators(Path(directory), self.rank):
                seed_generators(self.config.SEED, 1 + self.rank, self.state.step)
                logger.warning("the checkpoint has no random generators for rank %d; it draws new ones", self.rank)
        if meta["hardware"] != self._hardware():
            logger.warning(
                "The checkpoint was written on %s, this is %s: bits may differ", meta["hardware"], self._hardware()
            )
        own_folder = ray.train.get_context().get_storage().experiment_fs_path
        own = Path(checkpoint.path).parent == Path(own_folder)
        self.resumed_from = meta["resumed_from"] if own else {"path": checkpoint.path, "step": self.state.step}
        logger.info(
            "Restored %s : step %d, epoch %d of %d",
            checkpoint.path,
            self.state.step,
            self.state.step // self.config.steps_per_epoch,
            self.config.TRAIN.EPOCH,
        )

    def _await_stop(self) -> None:
        with suppress(ray.exceptions.RayError):  # the job is gone, and soon this process
            ray.get(self.job.stop.wait.remote())
            self.stop_requested.set()

    def _notice(self) -> tuple[bool, bool]:
        """Whether the job was asked to stop, and whether Ray has just announced that a node will go."""
        ask = self.rank == 0 and time.monotonic() - self.asked_at > SECONDS_BETWEEN_QUESTIONS
        if ask:
            self.asked_at = time.monotonic()
        stop, ask = self.agreement.exchange(self.stop_requested.is_set(), ask)
        info = ray.train.get_preemption_info() if ask else None
        news = info is not None and not self.preempted
        if news:
            self.preempted = True
            logger.warning(
                "Preemption : a node of this run is about to go; writing a checkpoint at step %d", self.state.step
            )
        return stop, news

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        logger.info(
            "Training %s on %d worker%s (%s), %s, deterministic: %s, %.1f M parameters",
            self.config.MODEL.ENCODER.TYPE,
            self.world_size,
            "" if self.world_size == 1 else "s",
            self._hardware(),
            self.config.TRAIN.PRECISION,
            "yes" if self.config.TRAIN.DETERMINISTIC else "NO, runs will not repeat bit for bit",
            parameters / 1e6,
        )

    def _hardware(self) -> str:
        """What a worker computes on."""
        threads = f"{torch.get_num_threads()} thread{'' if torch.get_num_threads() == 1 else 's'}"
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, {threads}"
        return f"{self.device}, {threads}"

    def _to_device(self, batch: HostBatch) -> Batch:
        def move(array: Any) -> Tensor:
            # A copy: arrays from the object store are read-only, and pinned memory makes the transfer asynchronous.
            tensor = torch.tensor(array)
            return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

        return Batch(move(batch.template), move(batch.search), move(batch.boxes_xywh), move(batch.brightness))

    def _passed_multiple(self, interval: int) -> bool:
        """Whether the number of the epoch's samples passed a multiple of `interval` in this step."""
        batch = self.config.TRAIN.BATCH_SIZE
        done = (self.state.step % self.config.steps_per_epoch) * batch
        return done // interval != (done - batch) // interval

    def _read_meters(self) -> None:
        """Brings the unread metrics to the host, once for many steps, as means over all workers."""
        metrics = torch.stack(self.unread).double()
        problems = torch.tensor([float(len(self.problems))], device=self.device)
        if self.world_size > 1:
            dist.all_reduce(metrics)
            dist.all_reduce(problems)
            metrics /= self.world_size
        learning_rate = self.state.optimizer.param_groups[0]["lr"]
        first_step = self.state.step - len(self.unread) + 1
        for step, (loss, iou, grad_norm) in enumerate(metrics.tolist(), start=first_step):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise DivergedError(
                    f"step {step} : loss {loss:g}, gradient norm {grad_norm:g}, learning rate {learning_rate:g}; "
                    "the checkpoint before it is the last"
                )
            self.state.meter.add(loss, iou, grad_norm)
            self.state.metrics.append((loss, iou, grad_norm, learning_rate))
        self.unread.clear()
        self._compare_weights()
        if problems.item():
            self._handle_broken_frames()

    def _compare_weights(self) -> None:
        """What a faulty memory or link has done to a worker must not reach a checkpoint."""
        if self.world_size > 1 and (difference := find_difference(self.state.model, self.world_size)):
            raise DivergedError(
                f"step {self.state.step} : the workers' weights differ, which correct hardware does not do "
                f"({difference}); the checkpoint before it is the last"
            )

    def _handle_broken_frames(self) -> None:
        everyones: list[list[str]] = [self.problems]
        if self.world_size > 1:
            everyones = [[] for _ in range(self.world_size)]
            dist.all_gather_object(everyones, self.problems)
        for problem in itertools.chain(*everyones):
            logger.warning("%s; the sample is drawn again", problem)
            self.broken.append(problem)
            self.state.meter.broken_frames += 1
        self.problems = []
        samples = self.config.DATA.TRAIN.SAMPLE_PER_EPOCH
        if self.state.meter.broken_frames > MAX_BROKEN_SHARE * samples:
            listed = Counter(self.broken).most_common(SHOWN_PROBLEMS)
            raise BrokenDataError(
                f"{self.state.meter.broken_frames} samples of this epoch met a broken frame, more than "
                f"{MAX_BROKEN_SHARE:.0%} of {samples}: "
                + "; ".join(f"{problem} ({times}×)" for problem, times in listed)
                + ("; …" if len(set(self.broken)) > SHOWN_PROBLEMS else "")
            )

    def _open_metrics_file(self) -> MetricsFile:
        storage = ray.train.get_context().get_storage()
        path = f"{storage.experiment_fs_path}/{METRICS_FILE}"
        return MetricsFile(storage.storage_filesystem, path, self.state.step)

    def _log_interval(self) -> dict[str, float]:
        """Writes the log line; returns the record for `metrics.jsonl`: averages since the epoch began, and rates."""
        state, config = self.state, self.config
        epoch_step = (state.step - 1) % config.steps_per_epoch + 1
        epoch_samples = config.DATA.TRAIN.SAMPLE_PER_EPOCH
        samples = min(epoch_step * config.TRAIN.BATCH_SIZE, epoch_samples)
        seconds = state.meter.seconds - self.interval_began
        interval_samples = self.interval_steps * config.TRAIN.BATCH_SIZE
        logger.info(log_line(self._epoch(), samples, epoch_samples, interval_samples, seconds, state.meter))
        averages = state.meter.averages(config.TRAIN.BATCH_SIZE)
        rates = [group["lr"] for group in state.optimizer.param_groups]  # of the encoder too, where it is trained
        record = {
            "step": state.step,
            "time": int(time.time() * 1000),
            **{f"train/{name}": averages[name] for name in ("loss", "iou", "accuracy", "grad_norm")},
            **dict(zip(("train/lr_decoder", "train/lr_encoder"), rates, strict=False)),
            **{f"perf/{name}": averages[name] for name in ("samples_per_second", "data_wait_fraction")},
            "perf/step_seconds": seconds / self.interval_steps,
        }
        if self.device.type == "cuda":
            record["perf/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.interval_steps, self.interval_began = 0, state.meter.seconds
        return record

    def _end_epoch(self) -> dict[str, float]:
        """Opens the next epoch; returns what `metrics.jsonl` says about the one that ended."""
        state, config = self.state, self.config
        summary = {
            "epoch": self._epoch(),
            "step": state.step,
            **state.meter.averages(config.TRAIN.BATCH_SIZE),
            "lr": state.optimizer.param_groups[0]["lr"],
            "seconds": state.meter.seconds,
            "broken_frames": state.meter.broken_frames,
        }
        logger.info(summary_line(self._epoch(), config.TRAIN.EPOCH, summary, state.meter.seconds))
        state.history.append(summary)
        state.scheduler.step()
        state.meter = EpochMeter()
        self.broken = []
        self.interval_began = 0.0
        return {f"epoch/{name}": value for name, value in summary.items() if name not in ("epoch", "step")}

    def _checkpoint(self) -> None:
        """Copies the state and has it written beside the next steps; only then does Ray Train hear of it.

        At most one is under way: where the one before is still being written, this waits.
        """
        self._await_writing()
        state, config = self.state, self.config
        epoch, step = divmod(state.step, config.steps_per_epoch)
        metrics: dict[str, Any] = {"step": state.step} | (state.history[-1] if step == 0 else {})
        generators = self.agreement.gather(generator_states())
        if self.rank != 0:
            ray.train.report(metrics, checkpoint_upload_mode=CheckpointUploadMode.ASYNC)
            return
        model, training = state.snapshot()
        meta = state.meta(
            config,
            resumed_from=self.resumed_from,
            world_size=self.world_size,
            hardware=self._hardware(),
            dataset=self.job.dataset,
            code_revision=self.job.code_revision,
            mlflow_run_id=self.job.mlflow_run_id,
        )
        contents = Contents(model, training, generators, meta)
        storage = ray.train.get_context().get_storage()
        name = checkpoint_name(epoch, step)
        checkpoint = Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)
        writing = self.writing = Future()

        def write(checkpoint: Checkpoint, _: str) -> Checkpoint:
            write_checkpoint(contents, checkpoint.filesystem, checkpoint.path)  # may be called again, by Ray's retries
            writing.set_result(None)
            return checkpoint

        # First, so that a checkpoint never knows more than the records: a restart from it writes only later ones.
        for file in (self.metrics_file, *logging.getLogger("seqtrack").handlers):
            if file is not None:
                file.flush()

        ray.train.report(
            metrics,
            checkpoint,
            name,
            CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=False,  # `write` leaves it where it belongs
            checkpoint_upload_fn=write,
        )

    def _await_writing(self) -> None:
        """Where the writing fails, Ray Train ends this worker with its error."""
        if self.writing is not None:
            self.writing.result()
            self.writing = None

    def _epoch(self) -> int:
        """The epoch, from 1, that the last finished step belongs to."""
        return (self.state.step - 1) // self.config.steps_per_epoch + 1


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0


@contextmanager
def _run_log(context: ray.train.TrainContext) -> Iterator[None]:
    """Sends what this package logs on rank 0 to `<run>/train.log`."""
    package = logging.getLogger("seqtrack")
    handler: logging.Handler = logging.NullHandler()
    if context.get_world_rank() == 0:
        storage = context.get_storage()
        handler = RunLogHandler(storage.storage_filesystem, f"{storage.experiment_fs_path}/{LOG_FILE}")
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        handler.flush()
        package.removeHandler(handler)
