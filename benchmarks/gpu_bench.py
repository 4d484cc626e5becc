"""What the checks of benchmarks/gpu.py share: the device, settings, made-up batches, clocks and peaks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_run import explained
from seqtrack.config import Config, load_config
from seqtrack.data.batches import HostBatch
from seqtrack.model.precision import set_precision
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, set_determinism

SHARES = {"b256": 16, "b384": 8, "l256": 8, "l384": 8}
"""Recipe -> samples per GPU and step, as published."""
COMPILED = ", compiled"
"""The ending of a way's name that sets TRAIN.COMPILE. The rest of the name is TRAIN.PRECISION."""
LEFT_OUT = "on a CPU only with --compile"
PEAK_SIDE = {"cuda": 8192, "cpu": 512}
"""Side of the matrices whose product measures the largest rate, by kind of device."""

Row = dict[str, Any]
"""A line of a check's table: column -> plain value. `ok` says whether what was checked holds, `error` what went wrong
in this line alone, `note` why something was left out."""


@dataclass(frozen=True)
class Bench:
    """Where and how large the checks are."""

    device: torch.device
    compiles: bool
    """Whether compiled ways are run."""

    @classmethod
    def here(cls, compiles: bool) -> Bench:
        """This machine's GPU. Without one, a core of its CPU, where compiled ways are run only if asked for, since each
        takes a minute."""
        gpu = torch.cuda.is_available()
        if not gpu:
            torch.set_num_threads(1)  # more of them wait for each other when the machine is busy
        return cls(torch.device("cuda" if gpu else "cpu"), gpu or compiles)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def recipe(self) -> str:
        """The recipe of the checks that need only one."""
        return "b256" if self.on_gpu else "demo"

    def share(self, recipe: str) -> int:
        """Samples of a step."""
        return SHARES.get(recipe, 8)

    def config(self, recipe: str, way: str = "fp32", **train: Any) -> Config:
        """The recipe's settings. `way`: TRAIN.PRECISION, with COMPILED behind it or not; `train`: more of TRAIN."""
        small = {} if recipe in SHARES else {"DATA.SEARCH.SIZE": 32, "DATA.TEMPLATE.SIZE": 32}
        settings = {
            **small,
            "TRAIN.BATCH_SIZE": self.share(recipe),
            "TRAIN.PRECISION": way.removesuffix(COMPILED),
            "TRAIN.COMPILE": way.endswith(COMPILED),
            **{f"TRAIN.{name}": value for name, value in train.items()},
        }
        return load_config(f"seqtrack_{recipe}" if recipe in SHARES else recipe).with_settings(settings)

    def ways(self, *ways: str) -> list[str]:
        """Those of these ways to compute that this device has: TF32 is a GPU's."""
        return [way for way in ways if self.on_gpu or not way.startswith("tf32")]

    def wait(self) -> None:
        """Waits until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Seconds of a call: on a GPU the median of three stretches, each of as many calls as fill half a second."""
        work()
        if not self.on_gpu:
            return self.stretch(work, 2)
        work()
        times = max(2, min(50, int(0.5 / self.stretch(work, 1))))
        return statistics.median(self.stretch(work, times) for _ in range(3))

    def stretch(self, work: Callable[[], object], times: int) -> float:
        """Seconds of a call: the mean of so many, between two waits for the device."""
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - began) / times

    def peak(self, precision: str) -> float:
        """FLOP/s of a product of two large square matrices of random numbers."""
        set_precision("fp32" if precision == "bf16" else precision, self.device)
        side, kind = PEAK_SIDE[self.device.type], torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side, device=self.device, dtype=kind) for _ in range(2))
        return 2 * side**3 / self.seconds_of(lambda: a @ b)

    def peak_gib(self, work: Callable[[], object]) -> float | None:
        """The most memory of the GPU, in GiB, that is in use at once during a call. None without a GPU."""
        if not self.on_gpu:
            work()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) / 2**30

    def start(self, config: Config) -> tuple[TrainState, Objective]:
        """What a worker has before its first step, with determinism and precision set as the settings say.

        Raises RuntimeError if the settings ask for compiled code and there is no compiler.
        """
        set_determinism(config.TRAIN.DETERMINISTIC)
        set_precision(config.TRAIN.PRECISION, self.device)
        state = TrainState.fresh(config, 0, self.device)
        if state.compiled != config.TRAIN.COMPILE:
            raise RuntimeError("torch has no compiler here; the log says why")
        state.model.train()
        return state, Objective(config).to(self.device)

    def batch(self, config: Config, size: int, step: int = 0) -> Batch:
        """A made-up batch on the device."""
        made = host_batch(config, size, step)
        return Batch(*(torch.from_numpy(getattr(made, name)).to(self.device) for name in Batch._fields))


def host_batch(config: Config, size: int, step: int) -> HostBatch:
    """A made-up batch of random pixels and boxes. Each step has its own, always the same."""
    random = np.random.default_rng(step)
    search, template, number = config.DATA.SEARCH.SIZE, config.DATA.TEMPLATE.SIZE, config.DATA.TEMPLATE.NUMBER
    return HostBatch(
        step,
        np.arange(step * size, (step + 1) * size),
        random.integers(0, 256, (size, number, template, template, 3), np.uint8),
        random.integers(0, 256, (size, search, search, 3), np.uint8),
        random.uniform(0, 0.5, (size, 4)).astype(np.float32),
        random.uniform(0.8, 1.2, (size, number + 1)).astype(np.float32),
        random.integers(0, len(config.DATA.TRAIN.DATASETS_NAME), size),
        (),
    )


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what `measure` adds to it. If that raises, with the error, so that other rows are measured still."""
    try:
        return row | measure()
    except torch.OutOfMemoryError:
        found = row | {"note": "does not fit into the memory"}
    except Exception as error:  # whatever it is, it must not hide the others
        found = row | explained(error)
    torch.cuda.empty_cache()  # outside of the handler, because the error holds on to tensors; does nothing on a CPU
    return found
