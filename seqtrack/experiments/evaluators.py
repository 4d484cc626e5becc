"""Workers that track a benchmark's sequences: Ray actors with a model each, which take from one queue."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from seqtrack.cluster.connect import join_cluster
from seqtrack.cluster.resources import Share, cluster_resources
from seqtrack.config import Config, ConfigError
from seqtrack.data.storage import Root
from seqtrack.errors import InputError
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.failures import explain
from seqtrack.model.precision import set_precision
from seqtrack.model.seqtrack import build_model
from seqtrack.tracker.lanes import Finished, Lanes
from seqtrack.tracker.load import TrainedModel
from seqtrack.tracker.settings import TrackerSettings
from seqtrack.tracker.tracker import BatchTracker

logger = logging.getLogger(__name__)

SECONDS = 1.0
"""How often a worker says how far it is."""
SLOTS = 8
"""Sequences that a GPU tracks side by side, by default."""
MOST_THREADS = 16
"""Threads of a worker that decode frames, at most: more than a GPU's model needs."""
MOST_LOSSES = 3
"""Workers that may be lost with the same sequence under way, or before they have begun."""


class EvaluationError(Exception):
    """Workers that are lost again and again. The message says with what."""


class Plan(NamedTuple):
    """How sequences are tracked."""

    workers: int
    slots: int
    """Sequences that a worker tracks side by side."""
    device: str
    """`cpu` or `cuda`."""
    precision: Literal["fp32", "bf16"]
    cpus: float = 1.0
    """CPUs of the cluster that each worker takes."""
    threads: int = 2
    """Frames that each worker decodes at the same time, ahead of its model."""
    gpus: float = 0.0
    """GPUs of the cluster that each worker takes; below 1 for a part of one."""
    yields: bool = False
    """Whether other processes of the machine go first, such as a training's."""

    @property
    def together(self) -> int:
        """Slots that one pass of the model computes: results are the same bits where this is the same."""
        return 1 if self.device == "cpu" else self.slots


def plan_workers(
    workers: int | None, batch: int | None, device: str | None, precision: Literal["fp32", "bf16"]
) -> Plan:
    """Joins the cluster and plans the workers: as many as it has GPUs, or CPUs. Raises ConfigError.

    Frames are decoded by the worker's share of the cluster's CPUs, which nothing else uses while models are on GPUs.
    """
    join_cluster()
    there = cluster_resources()
    device = device or ("cuda" if there["GPU"] >= 1 else "cpu")
    if device == "cuda" and there["GPU"] < (workers or 1):
        raise ConfigError(f"{workers or 1} GPUs asked for, and the cluster has {there['GPU']:g} (--device cpu)")
    number = workers or max(1, int(there["GPU" if device == "cuda" else "CPU"]))
    cpus = min(1.0, int(there["CPU"] / number * 1000) / 1000)
    threads = _threads(there["CPU"] / number)
    return Plan(
        number, batch or (1 if device == "cpu" else SLOTS), device, precision, cpus, threads, float(device == "cuda")
    )


def plan_within(share: Share, yields: bool) -> Plan:
    """Workers that take a share of the cluster: one for each GPU, or for each CPU."""
    device: Literal["cpu", "cuda"] = "cuda" if share.gpus > 0 else "cpu"
    number = max(1, int(share.gpus if device == "cuda" else share.cpus))
    gpus = min(1.0, share.gpus / number)
    cpus = min(1.0, int(share.cpus / number * 1000) / 1000)
    threads = _threads(share.cpus / number)
    return Plan(number, 1 if device == "cpu" else SLOTS, device, "fp32", cpus, threads, gpus, yields)


def _threads(cpus: float) -> int:
    """Threads that decode frames in a worker that has so many CPUs to itself."""
    return min(max(2, int(cpus)), MOST_THREADS)


def take_idle_time_only() -> None:
    """Gives this thread, and those that it starts, only the CPU time that nothing else asks for.

    On Linux by the policy that is made for it: another process that wakes up is put on such a thread's CPU as if that
    were idle, while beside a thread of low priority (`nice`) it may wait.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # some sandboxes refuse it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


class Progress(NamedTuple):
    """What happened since the last one."""

    frames: int
    finished: list[Finished]


class Evaluator:
    """One worker. A CPU's takes one thread, so that bits do not depend on how many workers share a machine."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lanes: Lanes | None = None
        set_precision(plan.precision, torch.device(plan.device))
        if plan.device == "cpu":
            torch.set_num_threads(1)
        if plan.yields:
            take_idle_time_only()

    def load(self, config: str, weights: dict[str, torch.Tensor], settings: TrackerSettings, root: Root) -> None:
        """Takes a model, and the root of the sequences to come."""
        settings_of_model = Config.model_validate_json(config)
        model = build_model(settings_of_model)
        model.load_state_dict(weights)
        if self._lanes is not None:
            self._lanes.close()
        tracker = BatchTracker(model, settings, self._plan.slots, self._plan.device, self._plan.precision)
        self._lanes = Lanes(tracker, root, self._plan.threads, settings_of_model.DATA.MAX_PIXELS)

    def advance(self, new: Sequence[BenchmarkSequence]) -> Progress:
        """Takes new sequences and tracks for a second, or until one has ended."""
        assert self._lanes is not None
        for sequence in new:
            self._lanes.begin(sequence)
        frames, finished, until = 0, list[Finished](), time.monotonic() + SECONDS
        while not finished and self._lanes.free < self._plan.slots and time.monotonic() < until:
            frames += self._plan.slots - self._lanes.free
            finished = self._lanes.step()
        return Progress(frames, finished)


class Evaluators:
    """The workers of an evaluation. A lost one is started again, and its sequences are tracked anew."""

    def __init__(self, plan: Plan, kind: type[Evaluator] = Evaluator) -> None:
        """`kind`: what each worker is."""
        self.plan = plan
        # Not in the placement group of a sweep's trial, which has room for nothing else.
        self._actor_type = ray.remote(kind).options(
            num_cpus=plan.cpus, num_gpus=plan.gpus, scheduling_strategy="DEFAULT"
        )
        self._workers = [self._actor_type.remote(plan) for _ in range(plan.workers)]
        self._losses: Counter[str] = Counter()

    def track(
        self, trained: TrainedModel, settings: TrackerSettings, root: Root, sequences: Sequence[BenchmarkSequence]
    ) -> Iterator[Progress]:
        """Tracks sequences, the longest first. Raises InputError for a frame that cannot be read, EvaluationError."""
        weights = {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()}
        load = (trained.config.model_dump_json(), ray.put(weights), settings, root)
        waiting = deque(sorted(sequences, key=lambda one: -len(one)))
        under_way: list[dict[str, BenchmarkSequence]] = [{} for _ in self._workers]
        frames = [0] * len(self._workers)  # of the sequences under way
        calls: dict[Any, int] = {worker.load.remote(*load): number for number, worker in enumerate(self._workers)}
        idle: set[int] = set()
        while waiting or any(under_way):
            (call,), _ = ray.wait(list(calls), num_returns=1)
            number = calls.pop(call)
            try:
                progress = ray.get(call)
            except RayActorError as error:
                self._count_loss(under_way[number], error)
                yield Progress(-frames[number], [])
                waiting.extendleft(under_way[number].values())
                under_way[number], frames[number] = {}, 0
                self._workers[number] = self._actor_type.remote(self.plan)
                calls[self._workers[number].load.remote(*load)] = number
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, InputError) else error from None
            else:
                idle.add(number)
                if progress is not None:
                    done = [under_way[number].pop(one.name) for one in progress.finished]
                    frames[number] += progress.frames - sum(map(len, done))
                    yield progress
            for number in sorted(idle):
                new = [waiting.popleft() for _ in range(min(len(waiting), self.plan.slots - len(under_way[number])))]
                under_way[number] |= {one.name: one for one in new}
                if under_way[number]:
                    calls[self._workers[number].advance.remote(new)] = number
                    idle.remove(number)

    def _count_loss(self, under_way: dict[str, BenchmarkSequence], error: RayActorError) -> None:
        names = list(under_way) or ["no sequence"]
        self._losses.update(names)
        lost = "a worker was lost with %s under way; it is started again: %s"
        logger.warning(lost, ", ".join(names), explain(error))
        often = [name for name in names if self._losses[name] >= MOST_LOSSES]
        if often:
            message = f"{MOST_LOSSES} workers were lost with {often[0]} under way, the last one: {explain(error)}"
            raise EvaluationError(message) from error

    def ask(self, question: str) -> list[Any]:
        """References to what a method of each worker answers."""
        return [getattr(worker, question).remote() for worker in self._workers]

    def close(self) -> None:
        for worker in self._workers:
            ray.kill(worker)
