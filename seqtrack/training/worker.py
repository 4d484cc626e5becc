"""The loop that one Ray Train worker runs: batches in, steps, log lines, checkpoints out."""

from __future__ import annotations

import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor

from seqtrack.config import Config
from seqtrack.data.stream import HostBatch, StreamPlan, StreamSource, check_batch, stream_batches
from seqtrack.training.meters import EpochMeter, log_line, summary_line
from seqtrack.training.optimization import Batch, set_determinism, train_step
from seqtrack.training.runlog import LOG_FILE, RunLogHandler
from seqtrack.training.state import TrainState, load_generators, read_meta, save_generators, write_meta

logger = logging.getLogger("seqtrack.training")

MAX_BROKEN_SHARE = 0.01
SHOWN_PROBLEMS = 20


class BrokenDataError(RuntimeError):
    """Too many frames of an epoch cannot be read."""


@dataclass(frozen=True)
class Job:
    """What every worker is given."""

    config: Config
    stream: StreamSource
    fingerprint: str
    """Of the frame index."""
    weights: ray.ObjectRef | None
    """What a run that starts anew replaces its random weights by, wholly or in part."""
    resume_from: ray.train.Checkpoint | None
    """Where a fresh run starts; a run that has checkpoints of its own goes on from its latest."""
    mlflow_run_id: str | None


def train_worker(settings: dict[str, Any]) -> list[dict[str, float]]:
    """Trains to the end of the last epoch. `settings["job"]` is the Job. Returns the summary of each epoch."""
    job: Job = settings["job"]
    context = ray.train.get_context()
    with _run_log(context):
        return _Worker(job, context.get_world_rank(), context.get_world_size()).run()


class _Worker:
    def __init__(self, job: Job, rank: int, world_size: int) -> None:
        self.job, self.config = job, job.config
        self.rank, self.world_size = rank, world_size
        self.plan = StreamPlan.from_config(job.config, world_size)
        self.device = ray.train.torch.get_device()
        set_determinism(job.config.TRAIN.DETERMINISTIC)
        checkpoint = ray.train.get_checkpoint() or job.resume_from
        weights = ray.get(job.weights) if job.weights and not checkpoint else None
        self.state = TrainState.fresh(job.config, rank, self.device, weights)
        self._restore(checkpoint)
        self.model = ray.train.torch.prepare_model(self.state.model)
        self.problems: list[str] = []  # this rank's broken frames since the last interval
        self.broken: list[str] = []  # every rank's in this epoch
        self.unread: list[Tensor] = []  # metrics of the last steps, still on the device
        self.intervals: list[dict[str, float]] = []  # since the last report
        self.interval_steps, self.interval_began = 0, 0.0

    def run(self) -> list[dict[str, float]]:
        config, state = self.config, self.state
        per_epoch = config.steps_per_epoch
        self._announce()
        self.model.train()
        batches = stream_batches(
            self.job.stream, self.plan, self.rank, state.step, config.total_steps, config.steps_per_epoch
        )
        clock = time.perf_counter()
        self.interval_began = state.meter.seconds
        while state.step < config.total_steps:
            waited = -time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter()
            check_batch(batch, self.plan, self.rank, state.step)
            self.problems.extend(batch.problems)
            self.unread.append(train_step(self.model, state.optimizer, self._to_device(batch), config))
            state.step += 1
            self.interval_steps += 1

            now = time.perf_counter()
            state.meter.seconds += now - clock
            state.meter.wait_seconds += waited
            clock = now
            epoch_ends = state.step % per_epoch == 0
            interval_ends = epoch_ends or self._passed_multiple(config.TRAIN.PRINT_INTERVAL)
            checkpoint_due = epoch_ends or _every(config.TRAIN.CHECKPOINT_EVERY_STEPS, state.step % per_epoch)
            if interval_ends or checkpoint_due:
                self._read_meters()
            if interval_ends:
                self._log_interval()
            if epoch_ends:
                self._end_epoch()
            if checkpoint_due:
                self._report(epoch_ends)
        return state.history

    def _restore(self, checkpoint: ray.train.Checkpoint | None) -> None:
        if checkpoint is None:
            return
        with checkpoint.as_directory() as directory:
            self.state.load(Path(directory))
            if not load_generators(Path(directory), self.rank):
                logger.warning("the checkpoint has no random generators for rank %d; it draws new ones", self.rank)
            logger.info(
                "Restored %s : step %d, epoch %d of %d",
                checkpoint.path,
                self.state.step,
                self.state.step // self.config.steps_per_epoch,
                self.config.TRAIN.EPOCH,
            )
            fingerprint = read_meta(Path(directory)).get("dataset_fingerprint")
            if fingerprint != self.job.fingerprint:
                logger.warning(
                    "the checkpoint was trained on other data: %s, not %s", fingerprint, self.job.fingerprint
                )

    def _announce(self) -> None:
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        logger.info(
            "Training %s on %d worker%s (%s, %d thread%s), %s, deterministic: %s, %.1f M parameters",
            self.config.MODEL.ENCODER.TYPE,
            self.world_size,
            "" if self.world_size == 1 else "s",
            torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device,
            torch.get_num_threads(),
            "" if torch.get_num_threads() == 1 else "s",
            self.config.TRAIN.PRECISION,
            "yes" if self.config.TRAIN.DETERMINISTIC else "NO, runs will not repeat bit for bit",
            parameters / 1e6,
        )

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
        for loss, iou, grad_norm in metrics.tolist():
            self.state.meter.add(loss, iou, grad_norm)
        self.unread.clear()
        if problems.item():
            self._handle_broken_frames()

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

    def _log_interval(self) -> None:
        state, config = self.state, self.config
        epoch_step = (state.step - 1) % config.steps_per_epoch + 1
        epoch_samples = config.DATA.TRAIN.SAMPLE_PER_EPOCH
        samples = min(epoch_step * config.TRAIN.BATCH_SIZE, epoch_samples)
        seconds = state.meter.seconds - self.interval_began
        interval_samples = self.interval_steps * config.TRAIN.BATCH_SIZE
        logger.info(log_line(self._epoch(), samples, epoch_samples, interval_samples, seconds, state.meter))
        self.intervals.append({"step": state.step, **state.meter.averages(config.TRAIN.BATCH_SIZE)})
        self.interval_steps, self.interval_began = 0, state.meter.seconds

    def _end_epoch(self) -> None:
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

    def _report(self, epoch_ended: bool) -> None:
        """Hands metrics and a checkpoint to Ray Train, which keeps it once every worker's part is stored."""
        state, config = self.state, self.config
        epoch, step = divmod(state.step, config.steps_per_epoch)
        name = f"checkpoint_epoch_{epoch:04d}" if epoch_ended else f"checkpoint_epoch_{epoch:04d}_step_{step:06d}"
        metrics: dict[str, Any] = {"step": state.step, "intervals": self.intervals}
        if epoch_ended:
            metrics["epoch_summary"] = state.history[-1]
        with tempfile.TemporaryDirectory() as directory:
            save_generators(Path(directory), self.rank)
            if self.rank == 0:
                state.save(Path(directory))
                write_meta(
                    Path(directory),
                    config,
                    state,
                    world_size=self.world_size,
                    dataset_fingerprint=self.job.fingerprint,
                    mlflow_run_id=self.job.mlflow_run_id,
                )
            ray.train.report(metrics, ray.train.Checkpoint(directory), checkpoint_dir_name=name)
        self.intervals = []
        for handler in logging.getLogger("seqtrack").handlers:
            handler.flush()

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
