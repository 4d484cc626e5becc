"""The training loop: batches in, steps, log lines, checkpoints out.

It does not know Ray. The source of batches, the sink of checkpoints, the clock and the stop request are passed in as
`Surroundings`, so the loop runs in a test exactly as it runs on a cluster.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqtrack.config import Config
from seqtrack.data.batches import Batches, StreamPlan, check_batch
from seqtrack.model.weights import WeightsError, check_finite
from seqtrack.runs.checkpoint import Contents, tensors_of
from seqtrack.runs.log import MetricsFile
from seqtrack.sums import checkpoint_name
from seqtrack.training.coordination import Agreement
from seqtrack.training.copies import DeviceBatches
from seqtrack.training.meters import EpochMeter, log_line, sets_line, summary_line
from seqtrack.training.slots import find_difference
from seqtrack.training.state import TrainState, generator_states
from seqtrack.training.step import Backward, Objective, train_step

logger = logging.getLogger("seqtrack.training")
Told = TypeVar("Told")

MAX_BROKEN_SHARE = 0.01
SHOWN_PROBLEMS = 20
SECONDS_BETWEEN_QUESTIONS = 5.0
"""How often the loop asks whether a node is about to go. The answer takes a round trip through all workers."""


class HopelessError(RuntimeError):
    """Training cannot continue, and a retry would fail in the same way."""


class BrokenDataError(HopelessError):
    """Too many frames of an epoch cannot be read, or samples cannot be made at all."""


class DivergedError(HopelessError):
    """A loss, a gradient or a weight is not a finite number, or workers have different weights."""


class UnwritableError(HopelessError):
    """Checkpoints cannot be written, or may not be written by this run any more."""


@dataclass(frozen=True)
class Ended:
    """How the loop ended."""

    history: list[dict[str, float]]
    """Summary of each epoch."""
    step: int
    stopped: bool = False
    """Whether it ended before the last step because it was asked to stop."""
    error: HopelessError | None = None
    """Why training failed. The error is returned, not raised, because Ray Train restarts workers that raise."""


class CheckpointSink(Protocol):
    """Writes checkpoints in the background while training goes on, one at a time."""

    def wait(self) -> None:
        """Waits until the last checkpoint has been written, or cannot be."""

    def problem(self) -> str:
        """Why the last checkpoint could not be written, as far as that is known by now; empty if it could."""

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None:
        """Starts writing a checkpoint. Every rank calls it; only rank 0 passes contents."""


@dataclass
class Surroundings:
    """Everything that the loop of one rank is given from outside."""

    batches: Batches
    """This rank's batches from the state's step on."""
    sink: CheckpointSink
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of `meta.json`: data set, hardware, code revision."""
    metrics_file: MetricsFile | None = None
    """None on all ranks but 0."""
    stop_requested: Callable[[], bool] = lambda: False
    node_is_leaving: Callable[[], bool] = lambda: False
    """Whether a node of this run is about to be taken away; all ranks ask in the same step."""
    clock: Callable[[], float] = time.perf_counter
    """The time in seconds."""
    fetch_ahead: bool = False
    """Whether the next batch is fetched before the log line of an interval's last step. Worth it on a device that
    works on its own, because the line waits for the device."""
    reason_to_end: Callable[[], str] = lambda: ""
    """Why this run may write nothing more and has to end at once; empty if it may. Asked in each step."""


class TrainingLoop:
    """Trains from the state's step to the end of the last epoch, or until it is asked to stop."""

    def __init__(
        self,
        config: Config,
        state: TrainState,
        model: nn.Module,
        backward: Backward,
        rank: int,
        world_size: int,
        device: torch.device,
        surroundings: Surroundings,
    ) -> None:
        """`model`: the state's model, wrapped for data-parallel training if needed; `backward`: computes gradients that
        are the same on all ranks."""
        self.config, self.state, self.model, self.backward = config, state, model, backward
        self.rank, self.world_size, self.device = rank, world_size, device
        self.outside = surroundings
        self.plan = StreamPlan.from_config(config, world_size)
        self.batches = DeviceBatches(surroundings.batches, device, surroundings.clock)
        self.objective = Objective(config).to(device)
        self.agreement = Agreement(world_size)
        self.asked_at = surroundings.clock()
        self.preempted = False
        self.fault = ""  # why this rank has no samples
        self.problems: list[str] = []  # this rank's broken frames since the last interval
        self.broken: list[str] = []  # all ranks' broken frames in this epoch
        self.unread: list[Tensor] = []  # metrics of the last steps, still on the device
        self.interval_steps, self.interval_began = 0, state.meter.seconds

    def run(self) -> Ended:
        """Trains. Raises HopelessError or StreamError."""
        config, state, clock = self.config, self.state, self.outside.clock
        self.model.train()
        began, stopping = clock(), False
        while state.step < config.total_steps and not stopping:
            batch, on_device, waited = self.batches.next()
            check_batch(batch, self.plan, self.rank, state.step)
            self.problems.extend(batch.problems)
            self.fault = self.fault or batch.fault
            self.unread.append(train_step(self.model, state.optimizer, on_device, self.objective, self.backward))
            state.step += 1
            self.interval_steps += 1
            stopping, preempted = self._notice()

            now = clock()
            state.meter.seconds += now - began
            state.meter.wait_seconds += waited
            began = now
            step_of_epoch = state.step % config.steps_per_epoch
            epoch_ends = step_of_epoch == 0
            interval_ends = epoch_ends or self._passed_multiple(config.TRAIN.PRINT_INTERVAL)
            planned = epoch_ends or _every(config.TRAIN.CHECKPOINT_EVERY_STEPS, step_of_epoch)
            saves = planned or stopping or preempted
            if self.outside.fetch_ahead and interval_ends and not saves:
                self.batches.fetch_ahead()  # the device works meanwhile; reading the meters waits for it
            if interval_ends or saves:
                self._read_meters()
            if interval_ends:
                record = self._log_interval() | (self._end_epoch() if epoch_ends else {})
                if self.outside.metrics_file is not None:
                    self.outside.metrics_file.add(record)
            if saves:
                self._save_checkpoint()
        self.batches.close()
        self.outside.sink.wait()
        if problem := self._reason_to_end():
            raise UnwritableError(problem)
        return Ended(state.history, state.step, stopped=state.step < config.total_steps)

    def _notice(self) -> tuple[bool, bool]:
        """Whether to stop, and whether the loss of a node was just announced. The same on all ranks."""
        clock = self.outside.clock
        ask = self.rank == 0 and clock() - self.asked_at > SECONDS_BETWEEN_QUESTIONS
        if ask:
            self.asked_at = clock()
        stop, ask, ends = self.agreement.exchange(self.outside.stop_requested(), ask, bool(self._reason_to_end()))
        if ends:
            raise UnwritableError(self._reason_to_end() or "another worker cannot write")
        news = ask and self.outside.node_is_leaving() and not self.preempted
        if news:
            self.preempted = True
            logger.warning(
                "Preemption : a node of this run is about to go; writing a checkpoint at step %d", self.state.step
            )
        return stop, news

    def _reason_to_end(self) -> str:
        """Why this rank can write nothing more; empty if it can."""
        return self.outside.sink.problem() or self.outside.reason_to_end()

    def _passed_multiple(self, interval: int) -> bool:
        """Whether the number of the epoch's samples passed a multiple of `interval` in this step."""
        batch = self.config.TRAIN.BATCH_SIZE
        done = (self.state.step % self.config.steps_per_epoch) * batch
        return done // interval != (done - batch) // interval

    def _read_meters(self) -> None:
        """Copies the metrics of the last steps to the host, once for many steps, and averages them over all workers."""
        metrics = torch.stack(self.unread).double()
        found = torch.tensor([float(len(self.problems)), float(bool(self.fault))], device=self.device)
        if self.world_size > 1:
            dist.all_reduce(metrics)
            dist.all_reduce(found)
            metrics /= self.world_size
        problems, faults = found.tolist()
        if faults:  # before anything is written: the last steps were made of nothing
            raise BrokenDataError("; ".join(sorted(set(filter(None, self._everyones(self.fault))))))
        learning_rate = self.state.optimizer.param_groups[0]["lr"]
        first_step = self.state.step - len(self.unread) + 1
        sets = self.config.DATA.TRAIN.DATASETS_NAME
        for step, (loss, iou, *of_sets, grad_norm) in enumerate(metrics.tolist(), start=first_step):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise DivergedError(
                    f"step {step} : loss {loss:g}, gradient norm {grad_norm:g}, learning rate {learning_rate:g}; "
                    "the checkpoint before it is the last"
                )
            self.state.meter.add(loss, iou, grad_norm)
            if of_sets:
                self.state.meter.add_sets(sets, of_sets)
            self.state.metrics.append((loss, iou, grad_norm, learning_rate))
        self.unread.clear()
        self._compare_weights()
        if problems:
            self._handle_broken_frames()

    def _compare_weights(self) -> None:
        """Raises DivergedError if workers have different weights, so that a hardware fault reaches no checkpoint."""
        if self.world_size > 1 and (difference := find_difference(self.state.model, self.world_size)):
            raise DivergedError(
                f"step {self.state.step} : the workers' weights differ, which correct hardware does not do "
                f"({difference}); the checkpoint before it is the last"
            )

    def _check_numbers(self) -> None:
        """Raises DivergedError if the state has a number that is not finite. All ranks have the same, and find it."""
        step = f"step {self.state.step} : after its update, "
        try:
            check_finite(self.state.model.state_dict().items(), f"{step}the weights")
            check_finite(tensors_of(self.state.optimizer.state_dict()), f"{step}the optimizer's state")
        except WeightsError as error:
            raise DivergedError(f"{error}; the checkpoint before it is the last") from error

    def _handle_broken_frames(self) -> None:
        for problem in itertools.chain(*self._everyones(self.problems)):
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

    def _everyones(self, own: Told) -> list[Told]:
        """What all ranks tell each other."""
        told = [own] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(told, own)
        return told

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
        """Ends the epoch and prepares the next. Returns the record of the ended epoch for `metrics.jsonl`."""
        state, config = self.state, self.config
        summary = {
            "epoch": self._epoch(),
            "step": state.step,
            **state.meter.averages(config.TRAIN.BATCH_SIZE),
            "lr": state.optimizer.param_groups[0]["lr"],
            "seconds": state.meter.seconds,
            "broken_frames": state.meter.broken_frames,
            **state.meter.of_sets(config.TRAIN.BATCH_SIZE),
        }
        logger.info(summary_line(self._epoch(), config.TRAIN.EPOCH, summary, state.meter.seconds))
        if state.meter.sets:
            logger.info(sets_line(self._epoch(), state.meter.sets, summary))
        state.history.append(summary)
        state.scheduler.step()
        state.meter = EpochMeter()
        self.broken = []
        self.interval_began = 0.0
        return {f"epoch/{name}": value for name, value in summary.items() if name not in ("epoch", "step")}

    def _save_checkpoint(self) -> None:
        """Copies the state and starts writing it in the background.

        At most one checkpoint is written at a time: this waits for the one before.
        """
        self.outside.sink.wait()
        if problems := sorted({*self._everyones(self._reason_to_end())} - {""}):
            raise UnwritableError("; ".join(problems))
        self._check_numbers()
        state, config = self.state, self.config
        epoch, step = divmod(state.step, config.steps_per_epoch)
        metrics: dict[str, Any] = {"step": state.step} | (state.history[-1] if step == 0 else {})
        generators = self.agreement.gather(generator_states())
        contents = None
        if self.rank == 0:
            contents = Contents(*state.snapshot(), generators, state.meta(config, **self.outside.facts))
            # Flushed first: a restart from this checkpoint writes only later records, so earlier ones must be there.
            for file in (self.outside.metrics_file, *logging.getLogger("seqtrack").handlers):
                if file is not None:
                    file.flush()
        self.outside.sink.save(checkpoint_name(epoch, step), metrics, contents)

    def _epoch(self) -> int:
        """The epoch, from 1, that the last finished step belongs to."""
        return (self.state.step - 1) // self.config.steps_per_epoch + 1


def _every(interval: int | None, step: int) -> bool:
    return interval is not None and step % interval == 0
