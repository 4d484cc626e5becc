"""Measures how much training steps slow down while a checkpoint is written in the background, and what safety costs.

    python benchmarks/checkpoint.py [--config configs/demo.yaml] [--every 50] [--turns 4] [--batch 32] [--folder .]

Stretches of EVERY steps that begin with a checkpoint (the state is copied, then written by a thread) take turns with
stretches without, so that other load on the machine affects both. Only the ratio matters. The published B256 state
needs `--config configs/seqtrack_b256.yaml --batch 1 --every 12`, and some minutes on a CPU.

Then checkpoints and records are written in turns with and without `fsync`, with nothing beside, and the claim on the
folder is renewed and checked. What that takes is shown as a share of an epoch, as if training waited for all of it.
FOLDER is on the disk that is measured; by default it is that of temporary files.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch

from seqtrack.config import Config, load_config
from seqtrack.lease import RENEWAL
from seqtrack.runs.checkpoint import Contents, StoredCheckpoint, write_checkpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import MetricsFile
from seqtrack.sums import checkpoint_name
from seqtrack.training.coordination import SECONDS_BETWEEN_CHECKS
from seqtrack.training.state import TrainState, generator_states
from seqtrack.training.step import Batch, Objective, train_step

SYNC_TURNS = 10
CHECKS_OF_A_CHECKPOINT = 4
"""How often writing a checkpoint asks whose the folder is."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what checkpoints cost the steps beside them.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--batch", type=int, help="samples a step; unset: the config's")
    parser.add_argument("--folder", help="where a folder is made for the checkpoints; unset: that of temporary files")
    options = parser.parse_args()
    config = load_config(options.config)
    state = TrainState.fresh(config, 0, torch.device("cpu"))
    objective = Objective(config)
    batch = made_up_batch(config, options.batch or config.TRAIN.BATCH_SIZE)
    train_step(state.model, state.optimizer, batch, objective)  # the optimizer's state is made in the first step

    times: dict[bool, list[float]] = {True: [], False: []}
    copies, writes = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for turn in range(2 * options.turns):
            writing = turn % 2 == 0
            thread = None
            for step in range(options.every):
                began = time.perf_counter()
                train_step(state.model, state.optimizer, batch, objective)
                if writing and step == 0:
                    copied = time.perf_counter()
                    contents = Contents(*state.snapshot(), [generator_states()], state.meta(config))
                    copies.append(time.perf_counter() - copied)

                    def write(contents: Contents = contents, name: str = checkpoint_name(turn, 0)) -> None:
                        wrote = time.perf_counter()
                        write_checkpoint(contents, StoredCheckpoint(RunFolder.at(folder), name))
                        writes.append(time.perf_counter() - wrote)

                    thread = threading.Thread(target=write)
                    thread.start()
                times[writing].append(time.perf_counter() - began)
            if thread is not None:
                thread.join()
        size = sum(path.stat().st_size for path in (Path(folder) / checkpoint_name(0, 0)).iterdir())
    print(f"{config.MODEL.ENCODER.TYPE}: {size / 2**20:.0f} MiB a checkpoint, every {options.every} steps")
    copy, write_time = statistics.median(copies), statistics.median(writes)
    print(f"copying takes {copy:.3f} s, writing beside the steps {write_time:.2f} s")
    for name, of in (("median", statistics.median), ("mean", statistics.mean)):
        without, beside = of(times[False]), of(times[True])
        print(f"{name} step: {without:.4f} s without, {beside:.4f} s with: {100 * (beside / without - 1):+.1f} %")
    epoch = statistics.median(times[False]) * config.steps_per_epoch
    contents = Contents(*state.snapshot(), [generator_states()], state.meta(config))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print(f"an epoch has {config.steps_per_epoch} steps: {epoch:.1f} s")
        show_sync(contents, RunFolder.at(folder), epoch)
        show_lease(RunFolder.at(folder), epoch)


def show_sync(contents: Contents, run: RunFolder, epoch: float) -> None:
    """What `fsync` adds to a checkpoint and to the records before it. `epoch`: seconds."""
    metrics = MetricsFile(run, 0)
    times: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * SYNC_TURNS):
        syncing = turn % 2 == 0
        with nullcontext() if syncing else patch.object(os, "fsync"):
            began = time.perf_counter()
            metrics.add({"step": turn, "time": turn})
            metrics.flush()
            write_checkpoint(contents, StoredCheckpoint(run, checkpoint_name(turn, 0)))
            times[syncing].append(time.perf_counter() - began)
        os.sync()  # what was not synced is not left for the next turn
    with_, without = (statistics.median(times[syncing]) for syncing in (True, False))
    print(f"fsync: a checkpoint and its records take {with_:.3f} s with, {without:.3f} s without: ", end="")
    print(f"{100 * (with_ - without) / epoch:+.2f} % of an epoch")


def show_lease(run: RunFolder, epoch: float) -> None:
    """What the claim on a run's folder takes in an epoch of so many seconds."""
    with run.owned() as lease:
        renewal = seconds_of(lambda: lease.proof.write_count(1))
        check = seconds_of(lease.proof.lost)
    whole = renewal * epoch / RENEWAL + check * (epoch / SECONDS_BETWEEN_CHECKS + CHECKS_OF_A_CHECKPOINT)
    print(f"lease: renewing takes {1000 * renewal:.2f} ms, asking {1000 * check:.3f} ms: ", end="")
    print(f"{100 * whole / epoch:+.3f} % of an epoch")


def seconds_of(action: Callable[[], object]) -> float:
    """The median of many calls."""
    times = []
    for _ in range(200):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def made_up_batch(config: Config, size: int) -> Batch:
    search, template, number = config.DATA.SEARCH.SIZE, config.DATA.TEMPLATE.SIZE, config.DATA.TEMPLATE.NUMBER
    generator = torch.Generator().manual_seed(0)

    def images(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    return Batch(
        images(size, number, template, template, 3),
        images(size, search, search, 3),
        torch.rand(size, 4, generator=generator) * 0.5,
        torch.ones(size, number + 1),
        torch.zeros(size, dtype=torch.int64),
    )


if __name__ == "__main__":
    main()
