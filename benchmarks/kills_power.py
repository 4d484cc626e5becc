"""Losses of power while a disk is written to: `python -m benchmarks.kills --only power`.

Processes write checkpoints, small files, shards and weights to ext4 disks, which are files of this machine mounted by a
loop device. At random moments the writers are halted and what has reached the disks by then is copied. What a process
wrote and the system still holds in memory is not in the copy, as after a loss of power. Each copy is mounted, which
replays its journal, and must hold everything whole that had been reported as written.

The disks are mounted with `noauto_da_alloc`: by default ext4 writes out a file that replaces another even if nobody
asked for it, and other filesystems do not. A write that a disk itself would hold back or reorder is not tried.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.kills_cases import Tally, TinyRun, damage, each, name_at, opens
from seqtrack.config import DataConfig, SyntheticConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.packing import pack_shard, plan_shards
from seqtrack.data.storage import Root, open_root
from seqtrack.model.weights import WeightsError, read_weights, save_published, save_safetensors
from seqtrack.runs.checkpoint import StoredCheckpoint, whole_checkpoints, write_checkpoint
from seqtrack.runs.log import MetricsFile, read_metrics
from tests.folders import run_at

MEBIBYTES = 48
"""Size of a disk."""
COPIES = 10
"""Losses of power that a start of the writers meets, the last three of them after they have ended."""
LONGEST_PAUSE = 1.5
"""Seconds between two writes at most, and twice as many between two copies."""
OPTIONS = "loop,noauto_da_alloc"


class NoDiskError(RuntimeError):
    """This process may not mount a disk."""


@dataclass(frozen=True)
class Disk:
    """A mounted ext4."""

    image: Path
    place: Path
    """Where it is mounted."""

    def commit(self) -> None:
        """Makes the filesystem write its journal, as it does every 5 s by itself."""
        number = os.open(self.place / ".commit", os.O_CREAT | os.O_WRONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def copy(self, target: Path) -> None:
        """What a loss of power would leave now. Copied again if the system wrote meanwhile."""
        device = self.place.stat().st_dev
        statistics = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
        while True:
            before = statistics.read_text("ascii").split()
            if before[8] == "0":  # nothing is under way
                shutil.copyfile(self.image, target)
                if statistics.read_text("ascii").split()[4:9] == before[4:9]:
                    return
            time.sleep(0.01)


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Disk]:
    """Mounts a disk while the block runs. Raises NoDiskError."""
    place.mkdir()
    done = subprocess.run(["mount", "-o", OPTIONS, str(image), str(place)], capture_output=True, text=True)
    if done.returncode:
        place.rmdir()
        raise NoDiskError(done.stderr.strip() or "cannot mount")
    try:
        yield Disk(image, place)
    finally:
        for _ in range(50):  # a writer may be just ending
            if not subprocess.run(["umount", str(place)], capture_output=True).returncode:
                place.rmdir()
                break
            time.sleep(0.1)


@contextmanager
def new_disk(folder: Path, name: str) -> Iterator[Disk]:
    """An empty disk. Raises NoDiskError."""
    image = folder / f"{name}.ext4"
    with image.open("wb") as file:
        file.truncate(MEBIBYTES << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoDiskError(f"cannot make one ({error})") from error
    with mounted(image, folder / name) as disk:
        yield disk


def run_power(folder: Path, draws: random.Random, tally: Tally, count: int = 120) -> None:
    """Runs at least so many cases; none, and a line says so, where no disk can be mounted."""
    rounds = -(-count // (COPIES * len(KINDS)))
    try:
        for number in range(rounds):
            tally.add(f"power, start {number + 1} of {rounds}", lose_power(folder / f"power-{number}", draws))
    except NoDiskError as error:
        print(f"power: skipped, because no disk can be mounted here: {error}", flush=True)


def lose_power(folder: Path, draws: random.Random) -> Iterator[tuple[str, str]]:
    """Starts the writers, and yields what each copy of each disk was found to hold."""
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        disks = {kind: stack.enter_context(new_disk(folder, kind)) for kind in KINDS}
        command = [sys.executable, "-m", __spec__.name, str(folder), str(draws.random())]
        writer = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        stack.callback(_end, writer)
        log = folder / "reported"
        while not log.exists() and writer.poll() is None:
            time.sleep(0.05)
        for number in range(COPIES):
            time.sleep(draws.uniform(0, 2 * LONGEST_PAUSE))
            if number < COPIES - 3 and writer.poll() is None:
                writer.send_signal(signal.SIGSTOP)
            elif number < COPIES - 3:
                raise RuntimeError(f"the writers in {folder} ended by themselves")
            else:
                _end(writer)
            reported = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
            for kind, disk in disks.items():
                if draws.random() < 0.5:
                    disk.commit()
                disk.copy(folder / f"{kind}.copy")
            if writer.poll() is None:
                writer.send_signal(signal.SIGCONT)
            at = {kind: [one for name, one in reported if name == kind] for kind in KINDS}
            cases = ((f"{kind} in copy {number + 1}, {len(at[kind])} reported", kind) for kind in KINDS)
            yield from each(lambda kind, at=at: examine(folder, kind, at[kind]), cases, 1)  # type: ignore[misc]
    shutil.rmtree(folder)


def examine(folder: Path, kind: str, reported: list[int]) -> str:
    """How a copy of a disk ends. `reported`: the numbers of what had been written."""
    with mounted(folder / f"{kind}.copy", folder / f"{kind}-copied") as disk:
        ending = KINDS[kind][1](disk.place, reported)
    if ending != "whole":
        shutil.copyfile(folder / f"{kind}.copy", folder / f"{kind}-{len(reported)}.bad")
    return ending


def _end(writer: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        writer.send_signal(signal.SIGCONT)
        writer.kill()
    writer.wait()


Report = Callable[[int], None]


def write_checkpoints(place: Path, report: Report, draws: random.Random) -> None:
    """A run that keeps one checkpoint, with the records up to it."""
    run, older = run_at(place / "run"), None
    run.create()
    tiny, metrics = TinyRun(place), MetricsFile(run, 0)
    for step in range(1, 10**6):
        metrics.add({"step": step, "time": step})
        metrics.flush()
        name = name_at(step)
        write_checkpoint(tiny.contents(step), StoredCheckpoint(run, name))
        report(step)
        if older is not None:
            shutil.rmtree(run.file(older))  # as Ray does
        older = name
        time.sleep(draws.uniform(0, LONGEST_PAUSE))


def judge_checkpoints(place: Path, reported: list[int]) -> str:
    run = run_at(place / "run")
    if wrong := damage(run):
        return f"damaged: {wrong}"
    if not reported:
        return "whole"
    names = whole_checkpoints(run)
    steps = [step for step in (reported[-1], reported[-1] + 1) if name_at(step) in names[-1:]]
    if not steps:
        return f"lost: step {reported[-1]} was reported, and {names} are there"
    if wrong := opens(run, names[-1], steps[0]):
        return f"damaged: {wrong}"
    recorded = [record["step"] for record in read_metrics(run)]
    if recorded[: reported[-1]] != list(range(1, reported[-1] + 1)):
        return f"lost: step {reported[-1]} was reported, and metrics.jsonl has {recorded[-5:]}"
    return "whole"


SMALL = ("config.yaml", "mlflow.json", "notes/evaluation.jsonl")


def write_small_files(place: Path, report: Report, draws: random.Random) -> None:
    """Small files of a run, replaced again and again."""
    run = run_at(place)
    run.child("notes").create()
    for number in range(1, 10**6):
        for name in SMALL:
            run.write(name, f"{number}\n" * 500)
        report(number)
        time.sleep(draws.uniform(0, LONGEST_PAUSE))


def judge_small_files(place: Path, reported: list[int]) -> str:
    newest = reported[-1] if reported else 0
    for name in SMALL:
        text = run_at(place).read_text(name)
        if text is None and newest:
            return f"lost: {name} is not there, and was reported {newest} times"
        if text is not None and text not in (f"{number}\n" * 500 for number in (newest, newest + 1)):
            return f"damaged: {name} has {len(text)} letters, {text[:10]!r} …, after report {newest}"
    return "whole"


def write_shards(place: Path, report: Report, draws: random.Random) -> None:
    """Packed sets of one shard, each in a folder of its own."""
    write_synthetic(place / "tree", SyntheticConfig(SEQUENCES=2, FRAMES=20, HEIGHT=64, WIDTH=64))
    tree = open_root(str(place / "tree"))
    index = build_index(DataConfig(SPLIT="all"), tree)
    shard = next(iter(plan_shards(index)))
    for number in range(1, 10**6):
        run = run_at(place / f"packed-{number}")
        pack_shard(index, tree, Root(run.filesystem, run.path), shard, [0])
        report(number)
        time.sleep(draws.uniform(0, LONGEST_PAUSE))


def judge_shards(place: Path, reported: list[int]) -> str:
    there = {
        int(path.parents[1].name.removeprefix("packed-")): path for path in place.glob("packed-*/frames/*.parquet")
    }
    for number, path in there.items():
        try:
            pq.ParquetFile(path, page_checksum_verification=True).read()
        except (OSError, ValueError) as error:
            return f"damaged: shard {number}: {error}"
    missing = sorted(set(reported) - there.keys())
    return f"lost: shards {missing} of {len(reported)}" if missing else "whole"


def write_weights(place: Path, report: Report, draws: random.Random) -> None:
    """Weights that replace older ones of the same name, in both formats."""
    tiny = TinyRun(place)
    for number in range(1, 10**6):
        weights = tiny.contents(number, padding=4096).model
        save_published(weights, place / "weights.pth.tar")
        save_safetensors(weights, place / "weights.safetensors")
        report(number)
        time.sleep(draws.uniform(0, LONGEST_PAUSE))


def judge_weights(place: Path, reported: list[int]) -> str:
    newest = reported[-1] if reported else 0
    for name in ("weights.pth.tar", "weights.safetensors"):
        if not (place / name).exists():
            if newest:
                return f"lost: {name} is not there, and was reported {newest} times"
            continue
        try:
            found = int(read_weights(place / name)["padding"][0])
        except WeightsError as error:
            return f"damaged: {error}"
        if found not in (newest, newest + 1):
            return f"lost: {name} is of report {found}, not {newest}"
    return "whole"


KINDS: dict[str, tuple[Callable[[Path, Report, random.Random], None], Callable[[Path, list[int]], str]]] = {
    "checkpoints": (write_checkpoints, judge_checkpoints),
    "small-files": (write_small_files, judge_small_files),
    "shards": (write_shards, judge_shards),
    "weights": (write_weights, judge_weights),
}
"""What is written to a disk of its own, and how what it holds is judged."""


def write_all(folder: Path, seed: str) -> None:
    """The writers' process: a thread for each disk, which reports what it wrote in a file that is on none of them."""
    log = os.open(folder / "reported", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write(kind: str) -> None:
        try:
            KINDS[kind][0](
                folder / kind,
                lambda number: void(os.write(log, f"{json.dumps([kind, number])}\n".encode())),
                random.Random(f"{seed} {kind}"),
            )
        except BaseException:
            traceback.print_exc()
            os.kill(os.getpid(), signal.SIGKILL)

    threads = [threading.Thread(target=write, args=(kind,)) for kind in KINDS]
    for thread in threads:
        thread.start()
    for thread in threads:  # the interpreter's end would keep others from being started
        thread.join()


def void(_: object) -> None: ...


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), sys.argv[2])
