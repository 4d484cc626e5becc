"""Measures the time from a command to the end of its first training step, against that of the shortest TorchTrainer.

    python -m benchmarks.startup [--rounds 5] [--before FOLDER]

The shortest TorchTrainer is the one of Ray's documentation: one worker, a tiny model, one step. It and `seqtrack train`
(the demo) take turns, in processes of their own: on a Ray cluster that runs already, and where each starts its own.
`--before` names another checkout of this project, which takes turns too. The first round is not counted: it draws the
data set and makes MLflow's database. Only the ratios matter. No other Ray may run on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seqtrack.cluster.connect import why_no_cluster

SHORTEST = """
import sys, time
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model

def train(settings):
    model = prepare_model(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = model(torch.ones(4, 8)).square().mean()
    loss.backward()
    optimizer.step()
    with open(settings["file"], "w") as file:
        file.write(f"{time.time()}")

TorchTrainer(train, train_loop_config={"file": sys.argv[1]}, scaling_config=ScalingConfig(num_workers=1)).fit()
"""
PORT = 6399
SECONDS_TO_SETTLE = 10.0
"""A head's dashboard and agents go on starting after it answers."""
OURS = "import sys; from seqtrack.cli import main; sys.exit(main())"
# More samples than a worker makes itself, so that the stream starts, too.
SETTINGS = ["TRAIN.EPOCH=1", "TRAIN.BATCH_SIZE=32", "TRAIN.PRINT_INTERVAL=32", "DATA.TRAIN.SAMPLE_PER_EPOCH=320"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the time to the first step.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path, help="another checkout of this project, to compare with")
    options = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else `ray start` makes a token that programs do not look for
    checkouts = {"seqtrack train": Path.cwd()} | ({"before": options.before.absolute()} if options.before else {})
    with tempfile.TemporaryDirectory() as folder:
        for warm in (True, False):
            with cluster(warm) as address:
                rounds = [measure_round(Path(folder), checkouts, address) for _ in range(options.rounds + 1)][1:]
            print("On a cluster that runs already:" if warm else "With a cluster of its own:")
            shortest = statistics.median(times["TorchTrainer"] for times in rounds)
            for name in rounds[0]:
                times = [one[name] for one in rounds]
                middle = statistics.median(times)
                listed = ", ".join(f"{seconds:.1f}" for seconds in times)
                print(
                    f"  {name:<14} {middle:5.1f} s to the first step, {middle / shortest:.2f} × ({listed})", flush=True
                )


def measure_round(folder: Path, checkouts: dict[str, Path], address: str) -> dict[str, float]:
    """Seconds to the first step, by name, of one start of each."""
    stamp = folder / "first_step"
    began = start([SHORTEST, str(stamp)], Path.cwd(), address)
    seconds = {"TorchTrainer": float(stamp.read_text()) - began}
    for name, checkout in checkouts.items():
        run = f"run-{time.time_ns()}"
        places = [f"RUN.STORAGE_PATH={folder}/runs", f"DATA.SYNTHETIC.PATH={folder}/data", f"RUN.NAME={run}"]
        began = start([OURS, "train", "--config", "demo", *SETTINGS, *places], checkout, address)
        first, *_ = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        seconds[name] = json.loads(first)["time"] / 1000 - began
    return seconds


def start(program: list[str], checkout: Path, address: str) -> float:
    """Runs Python code with arguments in a checkout, to its end. Returns when it began."""
    environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(checkout)}
    began = time.time()
    subprocess.run(
        [sys.executable, "-c", *program], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    return began


@contextmanager
def cluster(warm: bool) -> Iterator[str]:
    """The RAY_ADDRESS to use: of a cluster that runs during the `with` block, or `local`."""
    ray = str(Path(sys.executable).with_name("ray"))
    if not warm:
        yield "local"
        return
    address = f"127.0.0.1:{PORT}"
    head = subprocess.Popen([ray, "start", "--head", f"--port={PORT}", "--block"], stdout=subprocess.DEVNULL)
    while why_no_cluster("127.0.0.1", PORT) is not None:
        time.sleep(1)
    time.sleep(SECONDS_TO_SETTLE)
    try:
        yield address
    finally:
        head.terminate()
        head.wait()


if __name__ == "__main__":
    main()
