"""What sending checkpoints to the Hub costs the training beside it.

    python -m benchmarks.hub [--config configs/demo.yaml] [--epochs 3] [--turns 2]

Whole trainings with and without the Hub take turns, with a checkpoint every 25 steps and a local server that speaks the
Hub's HTTP in a process of its own. What counts is the ratio of their steps' median times.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection

from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import read_metrics
from tests.integrations.hub_server import TOKEN, HubServer


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what uploads to the Hub cost the steps beside them.")
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    environment = os.environ | {"HF_ENDPOINT": ours.recv(), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    rates: dict[bool, list[float]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * options.turns):
            with_hub = turn % 2 == 1
            command = [sys.executable, "ray_jobs/train.py", "--config", options.config, f"RUN.NAME=turn{turn}"]
            command += [f"RUN.STORAGE_PATH={folder}", f"TRAIN.EPOCH={options.epochs}"]
            command += ["TRAIN.CHECKPOINT_EVERY_STEPS=25"] + ([f"HUB.REPO_ID=me/turn{turn}"] if with_hub else [])
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            records = read_metrics(RunFolder.at(f"{folder}/turn{turn}"))
            rates[with_hub] += [1 / record["perf/step_seconds"] for record in records]
            print(f"turn {turn}, {'with' if with_hub else 'without'}: {len(records)} intervals", flush=True)
    for name, of in (("median", statistics.median), ("mean", statistics.mean)):
        without, beside = of(rates[False]), of(rates[True])
        change = 100 * (beside / without - 1)
        print(f"{name} rate: {without:.2f} steps/s without, {beside:.2f} steps/s with: {change:+.1f} %")
    ours.send("how many bytes?")
    print(f"the Hub got {ours.recv() / 2**20:.0f} MiB")


def serve(connection: Connection) -> None:
    server = HubServer()
    connection.send(server.uri)
    connection.recv()
    connection.send(sum(map(len, server.large.values())))


if __name__ == "__main__":
    main()
