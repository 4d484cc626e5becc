"""Estimates how many CPU cores the data pipeline needs for each GPU, so that no GPU waits.

    python -m benchmarks.scale [--tflops 125] [--root /data/lasot --split all]

It measures how long a sample takes on one core, and how much time Ray Data adds to a block. Without `--root`, samples
are made from made-up frames of 1280×720, packed with tiles. If there is a GPU, it
measures a training step; if not, it counts the step's operations, and `--tflops` says how many a GPU computes. From
these, a simulation of the pipeline finds the number of cores with which GPUs wait for less than a hundredth of the
time. It prints `coordinator` if no number is enough, because the one process that deals out the blocks is too slow.
"""

from __future__ import annotations

import argparse
import heapq
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray

from benchmarks.checkpoint import made_up_batch
from benchmarks.gpu_bench import SHARES
from benchmarks.gpu_speed import count_flops
from benchmarks.samples import pack_tiled
from seqtrack.config import Config, DataConfig, SyntheticConfig, load_config
from seqtrack.data.batches import StreamPlan
from seqtrack.data.crops import Sample
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.decoding import Image
from seqtrack.data.mixture import Mixture
from seqtrack.data.open import open_index
from seqtrack.data.storage import open_root
from seqtrack.data.stream import STREAM_BLOCKS, Placement, StreamSource, stream_batches
from seqtrack.data.triplets import TripletSource
from seqtrack.training.state import TrainState
from seqtrack.training.step import Batch, Objective, set_determinism, train_step

GPUS = (1, 8, 64)
WARM_UP, SAMPLES = 100, 1000
STORE_BYTES = 8 * 2**30
"""Object store of a GPU's share of a machine."""
MAY_WAIT = 0.01
MOST_CORES = 64
"""Most cores per GPU that are tried."""


class Costs(NamedTuple):
    """Times of one core, in seconds."""

    samples: NDArray[np.float64]
    """Time of each measured sample."""
    block: float
    """Time that Ray Data adds to each block."""
    coordinator: float
    """Time that Ray Data's coordinator, one for all workers, spends on each block."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Find how many CPU cores a GPU needs.")
    parser.add_argument("--tflops", type=float, default=125, help="that a GPU sustains in bf16 (an A100: 40 %% of 312)")
    parser.add_argument("--root", help="a data set to read; unset: made-up frames of 1280×720, packed with tiles")
    parser.add_argument("--split", default="all")
    options = parser.parse_args()
    configs = {
        name: load_config(
            f"configs/seqtrack_{name}.yaml",
            ["TRAIN.PRECISION=bf16", "DATA.TRAIN.DATASETS_NAME=[LASOT]", "DATA.TRAIN.DATASETS_RATIO=[1]"],
        )
        for name in SHARES
    }
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or f"{folder}/lasot"
        if not options.root:
            tree = Path(folder) / "tree"
            write_synthetic(tree, SyntheticConfig(SEQUENCES=4, FRAMES=60, HEIGHT=720, WIDTH=1280))
            pack_tiled(tree, Path(root))
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
        settings = {"DATA.ROOT": root, "DATA.SPLIT": options.split}
        costs = {size: measure_costs(configs[f"b{size}"].with_settings(settings)) for size in (256, 384)}
        ray.shutdown()
    for size, cost in costs.items():
        rate = 1 / cost.samples.mean()
        print(
            f"crops of {size}: {rate:.0f} samples/s a core, {1000 * cost.block:.0f} ms a block for Ray Data; "
            f"{1000 * cost.coordinator:.1f} ms a block for its coordinator"
        )
    how = "measured" if torch.cuda.is_available() else f"counted, at {options.tflops:g} TFLOP/s"
    print(f"\nA GPU's steps are {how}. Cores for each GPU, at a wait of less than {MAY_WAIT:.0%}:\n")
    print(
        "| recipe | TFLOP a sample | samples/s a GPU | "
        + " | ".join(f"{gpus} GPUs" for gpus in GPUS)
        + " | GPU hours |"
    )
    print("|---|---|---|" + "---|" * (len(GPUS) + 1))
    for name, config in configs.items():
        flops = count_flops(config)
        share = SHARES[name]
        step_seconds = measure_step(config, share) or share * flops / options.tflops / 1e12
        cores = [find_cores(config, share, gpus, costs[config.DATA.SEARCH.SIZE], step_seconds) for gpus in GPUS]
        samples = config.DATA.TRAIN.SAMPLE_PER_EPOCH * config.TRAIN.EPOCH
        hours = samples / share * step_seconds / 3600
        per_gpu = " | ".join(
            f"{number / gpus:.2g}" if number else "coordinator" for number, gpus in zip(cores, GPUS, strict=True)
        )
        print(f"| {name} | {flops / 1e12:.2f} | {share / step_seconds:.0f} | {per_gpu} | {hours:,.0f} |")


@dataclass(frozen=True)
class ReadySamples:
    """Replaces a TripletSource and takes little time."""

    made: Sample
    settings: DataConfig

    def samples(self, numbers: Sequence[int], into: tuple[Image, Image]) -> list[tuple[Sample, list[str]]]:
        into[0][:], into[1][:] = self.made.template, self.made.search
        return [(self.made, [])] * len(numbers)


def measure_costs(config: Config) -> Costs:
    root = open_root(str(config.DATA.ROOT))
    triplets = TripletSource.from_config(config, Mixture.of_lasot(open_index(config.DATA, root), root))
    seconds: list[float] = []
    for number in range(WARM_UP + SAMPLES):
        began = time.perf_counter()
        triplets.sample(number)
        seconds.append(time.perf_counter() - began)

    plan = StreamPlan.from_config(config.with_settings({"TRAIN.BATCH_SIZE": 8}), 1)
    block, _ = measure_stream(triplets, plan, Placement(1.0, 1.0, {}), blocks=60)
    # Samples of next to nothing. Copies of settings are not checked: no recipe has crops as small as these.
    search, template = (part.model_copy(update={"SIZE": 2}) for part in (config.DATA.SEARCH, config.DATA.TEMPLATE))
    empty = replace(triplets, settings=config.DATA.model_copy(update={"SEARCH": search, "TEMPLATE": template}))
    _, coordinator = measure_stream(empty, StreamPlan(1, 1, 1), Placement(0.25, 2.0, {}, 8), blocks=1000)
    return Costs(np.array(seconds[WARM_UP:]), block, coordinator)


def measure_stream(triplets: TripletSource, plan: StreamPlan, placement: Placement, blocks: int) -> tuple[float, float]:
    """Seconds for a block of ready samples, and CPU seconds that the coordinator spends on it."""
    ready = ReadySamples(triplets.sample(0)[0], triplets.settings)
    source = StreamSource(ray.put(None), lambda _: cast(TripletSource, ready), placement)
    steps = blocks * plan.steps_per_block
    arrivals: list[float] = []
    coordinator: list[float] = []
    for batch in stream_batches(source, plan, 0, 0, steps, most_steps=steps):
        if batch.step == steps // 5 or batch.step == steps - plan.steps_per_block:  # not the start, not the end
            arrivals.append(time.perf_counter())
            coordinator.append(coordinator_seconds())
    between = 0.8 * blocks - 1
    return (arrivals[1] - arrivals[0]) / between, (coordinator[1] - coordinator[0]) / between


def coordinator_seconds() -> float:
    """CPU time of the stream's coordinating process so far."""
    for process in psutil.process_iter(["cmdline", "cpu_times"]):
        if "SplitCoordinator" in " ".join(process.info["cmdline"] or []):
            return float(sum(process.info["cpu_times"][:2]))
    raise RuntimeError("no coordinator of a stream is running")


def measure_step(config: Config, share: int) -> float | None:
    """Seconds of a step on this machine's GPU, or None if it has none."""
    if not torch.cuda.is_available():
        return None
    set_determinism(config.TRAIN.DETERMINISTIC)
    device = torch.device("cuda")
    state = TrainState.fresh(config, 0, device)
    objective = Objective(config).to(device)
    batch = Batch(*(part.to(device) for part in made_up_batch(config, share)))
    times = []
    for _ in range(30):
        began = time.perf_counter()
        train_step(state.model, state.optimizer, batch, objective).tolist()
        times.append(time.perf_counter() - began)
    return statistics.median(times[10:])


def find_cores(config: Config, share: int, gpus: int, costs: Costs, step_seconds: float) -> int | None:
    """The smallest number of cores for all GPUs together with which they wait for less than MAY_WAIT.

    None if no number is enough, because the coordinator cannot keep up.
    """
    plan = StreamPlan.from_config(config.with_settings({"TRAIN.BATCH_SIZE": share * gpus}), gpus)
    low, high = 0, 1
    while high < MOST_CORES * gpus and waited(plan, share, costs, step_seconds, high) > MAY_WAIT:
        low, high = high, 2 * high
    if high >= MOST_CORES * gpus:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if waited(plan, share, costs, step_seconds, middle) > MAY_WAIT:
            low = middle
        else:
            high = middle
    return high


def waited(plan: StreamPlan, share: int, costs: Costs, step_seconds: float, cores: int) -> float:
    """Fraction of the time that GPUs wait in a whole stream without its first tenth, in which tasks are shorter.

    Tasks begin in order, each on whichever core is free, and make their blocks one after another. No task begins before
    what it makes has room beside the blocks that wait to be used: Ray Data uses half of the object store. The
    coordinator hands on the blocks in order. All workers step together, so a step begins when the last of them has its
    block.
    """
    random = np.random.default_rng(0)
    store, ranks = STORE_BYTES * plan.world_size, plan.world_size
    tasks = plan.tasks(0, STREAM_BLOCKS * plan.steps_per_block, Placement(1.0, None, {}, cores, store // 4))
    block_samples = plan.steps_per_block * share
    seconds = [costs.block + random.choice(costs.samples, (ranks, block_samples)).sum(1) for _ in range(STREAM_BLOCKS)]
    groups_ahead = store // 2 // (block_samples * plan.sample_bytes * ranks)
    free = [0.0] * cores
    begins: list[float] = []  # when training on each group of blocks (one per worker) begins
    done = coordinator = ready = 0.0
    waits: list[float] = []
    for task in tasks:
        behind = task[0] // ranks - groups_ahead
        end = max(heapq.heappop(free), begins[behind] if behind >= 0 else 0.0)
        for block in task:
            end += seconds[block // ranks][block % ranks]
            coordinator = max(end, coordinator) + costs.coordinator
            ready = max(ready, coordinator)
            if block % ranks == ranks - 1:
                begins.append(max(done, ready))
                waits.append(max(ready - done, 0.0))
                done = begins[-1] + plan.steps_per_block * step_seconds
        heapq.heappush(free, end)
    first = STREAM_BLOCKS // 10
    return sum(waits[first:]) / (done - begins[first] + waits[first])


if __name__ == "__main__":
    main()
