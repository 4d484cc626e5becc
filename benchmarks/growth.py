"""Does a start, or a look at a run, grow with what the run has written before?

    python -m benchmarks.growth [--lines 2000000] [--checkpoints 2000] [--results 33600]

Writes a run's folder of that size under the temporary folder, with records as a training writes them. Each line below
is a process of its own: its seconds, and the memory that it took beyond that of the same process on a short file.

    start           a worker that goes on from the last checkpoint, 100 records before the end
    look            MLflow's mirror of a run whose points MLflow has but for the last 100
    console         the job's console, from the end of the log on
    all             what was done before: all records read, and written again
    checkpoints     finished checkpoints in a folder with many result files, listed once, and looked for again
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from seqtrack.runs.checkpoint import SUMS_FILE, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.growing import Tail
from seqtrack.runs.log import LOG_FILE, METRICS_FILE, MetricsFile, NewRecords, read_metrics
from seqtrack.sums import checkpoint_name

BEGAN = 1_700_000_000_000
NEW = 100
"""Records after the last checkpoint."""
SHORT = 200
Result = TypeVar("Result")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--checkpoints", type=int, default=2_000)
    parser.add_argument("--results", type=int, default=33_600)
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "FOLDER", "LINES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return 0
    with tempfile.TemporaryDirectory(prefix="growth-") as directory:
        for what in MEASURED:
            short, long = (apart(what, Path(directory, str(lines)), lines) for lines in (SHORT, arguments.lines))
            say(f"{what:12} {long[0]:8.2f} s, {long[1] - short[1]:7.1f} MiB more ({SHORT} lines: {short[0]:.2f} s)")
        many = RunFolder.at(str(Path(directory, "many")))
        write_checkpoints(Path(many.path), arguments.checkpoints, arguments.results)
        first, names = timed(lambda: whole_checkpoints(many))
        again, _ = timed(lambda: whole_checkpoints(many, names))
        found = f"{len(names):,} beside {arguments.results:,} other files"
        say(f"checkpoints  {first:8.3f} s, again {again:.3f} s: {found}")
    return 0


def apart(what: str, folder: Path, lines: int) -> tuple[float, float]:
    """Seconds and MiB of a measurement in a process of its own, on a folder that is written anew."""
    write_run(folder, lines)
    command = [sys.executable, "-m", "benchmarks.growth", "--measure", what, str(folder), str(lines)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(memory)


def measure(what: str, folder: str, lines: str) -> None:
    """Prints the seconds of a measurement, and the most memory that this process had, in MiB."""
    seconds, _ = timed(lambda: MEASURED[what](RunFolder.at(folder), int(lines)))
    say(f"{seconds} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}")


def start(run: RunFolder, lines: int) -> None:
    MetricsFile(run, lines - NEW)


def look(run: RunFolder, lines: int) -> None:
    new = sum(map(len, NewRecords(run, BEGAN + 1000 * (lines - NEW)).read()))
    assert new == NEW, new


def console(run: RunFolder, lines: int) -> None:
    tail = Tail(run, LOG_FILE, from_end=True)
    with open(run.file(LOG_FILE), "a", encoding="utf-8") as log:
        log.write("one line more\n")
    assert list(tail.read()) == [["one line more"]]


def everything(run: RunFolder, lines: int) -> None:
    kept = [record for record in read_metrics(run) if record["step"] <= lines - NEW]
    run.write(METRICS_FILE, "".join(json.dumps(record) + "\n" for record in kept))


MEASURED: dict[str, Callable[[RunFolder, int], None]] = {
    "start": start,
    "look": look,
    "console": console,
    "all": everything,
}


def write_run(folder: Path, lines: int) -> None:
    folder.mkdir(exist_ok=True)
    metrics = {f"train/{name}": 0.5123456789012345 for name in ("loss", "iou", "accuracy", "grad_norm")}
    metrics |= {f"train/lr_{name}": 0.0001 for name in ("decoder", "encoder")}
    metrics |= {f"perf/{name}": 0.5123456789012345 for name in ("samples_per_second", "data_wait_fraction")}
    rest = json.dumps(metrics)[1:]
    with (
        (folder / METRICS_FILE).open("w", encoding="utf-8") as file,
        (folder / LOG_FILE).open("w", encoding="utf-8") as log,
    ):
        for step in range(1, lines + 1):
            file.write(f'{{"step": {step}, "time": {BEGAN + 1000 * step}, {rest}\n')
            log.write(f"Epoch 1 : {step} / {lines} samples , Loss/total: 4.03463, IoU: 0.02901\n")


def write_checkpoints(run: Path, checkpoints: int, results: int) -> None:
    for epoch in range(1, checkpoints + 1):
        folder = run / checkpoint_name(epoch, 0)
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "state.pt", "rng_rank_0000.pt", "meta.json", SUMS_FILE):
            (folder / name).touch()
    for number in range(results):
        path = run / f"evaluation/tracks/{number % 120}/{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
