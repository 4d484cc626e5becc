"""Measures what it costs a training to own its folder: the questions, the writes, and the thread that counts.

    python -m benchmarks.lease [--config configs/demo.yaml] [--steps 24] [--turns 6]

Stretches of steps as the training loop makes them, with a line of the log in each and as its owner, take turns with
stretches in a folder that nobody owns. Only the ratio matters. It ends with what claiming and releasing takes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.checkpoint import made_up_batch
from seqtrack import lease
from seqtrack.config import load_config
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import MetricsFile, RunLogHandler
from seqtrack.training.coordination import SECONDS_BETWEEN_CHECKS, OwnerCheck
from seqtrack.training.state import TrainState
from seqtrack.training.step import Objective, train_step

CLAIMS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what owning its folder costs a training.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--steps", type=int, default=12, help="of a stretch")
    parser.add_argument("--turns", type=int, default=6)
    options = parser.parse_args()
    config = load_config(options.config)
    device = torch.device("cpu")
    state, objective = TrainState.fresh(config, 0, device), Objective(config).to(device)
    batch = made_up_batch(config, config.TRAIN.BATCH_SIZE)
    with tempfile.TemporaryDirectory() as directory:
        run = RunFolder.at(f"{directory}/run")
        with run.owned() as owner:
            times: dict[str, list[float]] = {"nobody's": [], "owned": []}
            folders = {"nobody's": run, "owned": run.under(owner)}
            for turn in range(options.turns + 1):
                for kind, folder in folders.items():
                    check, log, metrics = OwnerCheck(folder), RunLogHandler(folder), MetricsFile(folder, 0)
                    began = time.perf_counter()
                    for _ in range(options.steps):
                        train_step(state.model, state.optimizer, batch, objective)
                        assert not check()
                    log.emit(logging.LogRecord("", logging.INFO, "", 0, "a line", None, None))
                    metrics.add({"step": 1, "time": 1})
                    if turn:  # the first warms up
                        times[kind].append((time.perf_counter() - began) / options.steps)
            without, owned = (statistics.median(times[kind]) for kind in times)
            question = timed(owner.proof.check)
            count = timed(lambda: owner.proof.write_count(1))
        claim = timed(lambda: claimed(Path(directory, "other")))
    print(f"median step {without * 1e3:.2f} ms in nobody's folder, {owned * 1e3:.2f} ms in its own: "
          f"{100 * (owned / without - 1):+.2f} %")  # fmt: skip
    share = question / SECONDS_BETWEEN_CHECKS + count / lease.RENEWAL
    print(
        f"asking a disk whether it owns the folder: {question * 1e6:.0f} µs, every {SECONDS_BETWEEN_CHECKS:g} s "
        f"and for each line; counting: {count * 1e6:.0f} µs every {lease.RENEWAL:g} s; together {100 * share:.3f} %"
    )
    print(f"claiming a folder and releasing it: {claim * 1e3:.1f} ms, once a start")


def claimed(place: Path) -> None:
    with RunFolder.at(str(place)).owned():
        pass


def timed(action: object) -> float:
    """Median seconds of a call."""
    assert callable(action)
    taken = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
