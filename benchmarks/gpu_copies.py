"""The check of benchmarks/gpu.py on the real training loop: are copies to the device hidden behind its work?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_bench import Bench, Row, attempt, host_batch
from seqtrack.config import Config
from seqtrack.data.batches import HostBatch
from seqtrack.runs.checkpoint import Contents
from seqtrack.training.loop import Surroundings, TrainingLoop
from seqtrack.training.step import backward, train_step

WARM_UP, TIMED, PROFILED = 8, 20, 5
"""Steps of the loop, in this order: without a measurement, with the clock, with the profiler."""
BETWEEN_LINES = 10
"""Steps between log lines. Reading the meters for one waits for the device. Two lines are timed, one is profiled."""
WAITS = ("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
"""Events with which the host waits for the device. The profiler itself adds one cudaDeviceSynchronize at its end."""
Span = tuple[float, float]


class NoCheckpoints:
    """The loop's sink: keeps nothing."""

    def wait(self) -> None: ...

    def problem(self) -> str:
        return ""

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None: ...


class Watch:
    """Hands out ready batches, and measures the loop between them: the time of a step, and a profile."""

    def __init__(self, bench: Bench, config: Config) -> None:
        self._bench = bench
        self._began, self._ended = (WARM_UP, WARM_UP + TIMED) if bench.on_gpu else (1, 3)
        self.steps = self._ended + PROFILED + 2 if bench.on_gpu else self._ended + 1
        self._made = [host_batch(config, config.TRAIN.BATCH_SIZE, step) for step in range(self.steps)]
        self.seconds = 0.0
        """Of a step of the loop."""
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) if bench.on_gpu else None

    def batches(self) -> Generator[HostBatch, None, None]:
        began = 0.0
        for made in self._made:
            if made.step == self._began:
                self._bench.wait()
                began = time.perf_counter()
            elif made.step == self._ended:
                self._bench.wait()
                self.seconds = (time.perf_counter() - began) / (self._ended - self._began)
                if self.profile:
                    self.profile.start()
            elif made.step == self._ended + PROFILED and self.profile:
                self.profile.stop()
            yield made


def copies(bench: Bench) -> Iterator[Row]:
    """The real loop on ready batches in host memory: its step against one whose batch is on the device already."""
    for precision in ("bf16", "fp32"):
        yield attempt({"precision": precision}, partial(_measure, bench, precision))


def _measure(bench: Bench, precision: str) -> Row:
    size = bench.share(bench.recipe)
    config = bench.config(bench.recipe, precision, EPOCH=1)
    watch = Watch(bench, config)
    config = config.with_settings(
        {"DATA.TRAIN.SAMPLE_PER_EPOCH": size * watch.steps, "TRAIN.PRINT_INTERVAL": size * BETWEEN_LINES}
    )
    state, objective = bench.start(config)
    surroundings = Surroundings(watch.batches(), NoCheckpoints(), fetch_ahead=bench.on_gpu)
    TrainingLoop(config, state, state.model, backward, 0, 1, bench.device, surroundings).run()
    batch = bench.batch(config, size)
    ready = bench.seconds_of(lambda: train_step(state.model, state.optimizer, batch, objective))
    row: Row = {
        "ms a step of the loop": 1000 * watch.seconds,
        "ms a step on the device": 1000 * ready,
        "times as long": watch.seconds / ready,
    }
    if watch.profile is None:
        return row | {"note": "idle share and synchronisations are a GPU's"}
    return row | read_events(watch.profile.events() or ())


def read_events(events: Iterable[Any]) -> Row:
    """What the profiler's events of PROFILED steps say about the device. Raises RuntimeError if there is no kernel."""
    kernels: list[Span] = []
    to_device: list[Span] = []
    names: Counter[str] = Counter()
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if event.is_user_annotation:  # a name for a stretch of the device's work, gaps included
            continue
        if event.device_type == DeviceType.CUDA:
            if "Memcpy HtoD" in event.name:
                to_device.append(span)
                names[event.name] += 1
            elif "Memcpy" not in event.name and "Memset" not in event.name:
                kernels.append(span)
        elif event.name in WAITS:
            names[event.name] += 1
    if not kernels:
        raise RuntimeError("the profiler saw no kernels")
    busy = merge(kernels)
    copied = length(to_device)
    return {
        "idle share of the device": 1 - length(busy) / (busy[-1][1] - busy[0][0]),
        "ms of copies a step": copied / 1000 / PROFILED,
        "hidden share of copies": common_length(merge(to_device), busy) / copied if copied else None,
        f"in {PROFILED} steps": ", ".join(f"{count}× {name}" for name, count in sorted(names.items())),
    }


def merge(spans: Iterable[Span]) -> list[Span]:
    """Spans of time that do not overlap, in order, which cover the same."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def length(spans: Iterable[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def common_length(some: list[Span], others: list[Span]) -> float:
    """How long both are running. Each is merged."""
    return length(some) + length(others) - length(merge([*some, *others]))
