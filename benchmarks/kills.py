"""Whether trainings that are killed again and again end with the same bits as one that nothing happened to.

    python -m benchmarks.kills --count 100 [--seed 7] [--only kills,stores,power,doubles]

`stores`, `power` and `doubles` are faults of an object store, losses of power and two jobs that want one run: what was
reported as written must be there and whole (`kills_stores.py`, `kills_power.py`, `kills_doubles.py`). They run without
Ray, and first. At their end a line says how many cases were lost, damaged or silent.

`kills`: many small trainings of two workers, each killed several times by SIGKILL at random steps: a worker; the job's
process; a node of the cluster with all that runs on it; or the job and its whole cluster at once. Ray Train starts lost
workers again, and where the job itself was killed, the same command is given again. A training that reached its end is
compared with the reference: all checkpoints (weights, optimizer, random generators, every step's metrics) and
`metrics.jsonl`. The reference is trained by the training loop alone, in two processes without Ray. A kill that came
after the training's end is not counted and is tried again. Needs what tests need. It prints:

    Seed 7, in TEMPORARY_FOLDER/kills-3k2v9q0d
    reference: 240 steps by the training loop alone, after 9 s
    kill 1 of 100: job, at step 31 of 240, in run-1
    kill 2 of 100: cluster, at step 88 of 240, in run-1
    …
    run-1: 5 kills, the same bits, after 95 s
    …
    100 of 100 equal

Where a training differs or fails, or a case ends badly, everything is kept, a line says where, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from benchmarks.kills_cases import Tally
from benchmarks.kills_doubles import run_doubles
from benchmarks.kills_power import run_power
from benchmarks.kills_stores import run_stores
from seqtrack.config import Config, SyntheticConfig
from seqtrack.data.datasets.synthetic import write_synthetic
from tests.settings import make_tiny_settings
from tests.training.loops import named, train, train_together
from tests.training.runs import REPOSITORY, assert_same_bits, records, write_config

AT_HOME = ("cluster", "job", "worker", "cluster", "worker")
ON_NODES = ("node", "worker", "job", "node", "node")
"""What is killed in one training: in one that starts a cluster of its own, and in one on a cluster of several nodes."""
STEPS_PER_EPOCH, EPOCHS = 80, 3
STEPS = STEPS_PER_EPOCH * EPOCHS
BATCH = 4
LAST = f"checkpoint_epoch_{EPOCHS:04d}"
FAULTS = {"stores": run_stores, "power": run_power, "doubles": run_doubles}
KINDS = ("kills", *FAULTS)
PATIENCE = 600.0
"""Seconds without a line in the log after which a training counts as hanging."""


class RunFailedError(RuntimeError):
    """A training that hangs, or ended with an error."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill trainings, and compare them with one that was not killed.")
    parser.add_argument("--count", type=int, default=100, help="kills in all")
    parser.add_argument("--seed", type=int, help="of what is killed at which steps; unset: another one each time")
    parser.add_argument("--only", type=kinds, default=KINDS, metavar="KIND,…", help=f"of {', '.join(KINDS)}")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ |= dict.fromkeys(("TMPDIR", "RAY_TMPDIR"), str(folder))  # killed processes leave files behind
    print(f"Seed {seed}, in {folder}", flush=True)
    tally = Tally()
    for kind, run in FAULTS.items():
        if kind in options.only:
            run(folder, random.Random(seed), tally)
    well = not tally.bad
    if set(options.only) != {"kills"}:
        print(tally, flush=True)
    if "kills" in options.only:
        equal = kill_trainings(options.count, seed, folder)
        print(f"{equal} of {options.count} equal")
        well = well and equal == options.count
    if well:
        shutil.rmtree(folder)
        return 0
    print(f"Everything is kept in {folder}")
    return 1


def kinds(text: str) -> tuple[str, ...]:
    """The kinds that are named with commas between them. Raises ArgumentTypeError."""
    named = tuple(text.split(","))
    if unknown := set(named) - set(KINDS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(KINDS)}")
    return named


def kill_trainings(count: int, seed: int, folder: Path) -> int:
    """How many of so many kills were in trainings that ended with the reference's bits."""
    settings = make_settings(folder)
    config, began = write_config(settings, folder), time.monotonic()
    reference = folder / "runs/reference"
    train_together(functools.partial(train_rank, named(settings, reference.name)), folder)
    print(f"reference: {STEPS} steps by the training loop alone, after {time.monotonic() - began:.0f} s", flush=True)

    draws, hands = random.Random(seed), deal(count)
    number = equal = done = 0
    while hands:
        hand, number, began, killed = hands.pop(0), number + 1, time.monotonic(), 0
        draws.shuffle(hand)
        with nodes() if "node" in hand else nullcontext() as cluster:
            training = Training(config, folder / f"runs/run-{number}", cluster, draws)
            try:
                for kind, step in training.endure(hand):
                    killed, done = killed + 1, done + 1
                    print(f"kill {done} of {count}: {kind}, at step {step} of {STEPS}, in run-{number}", flush=True)
                problem = difference(training.run, reference)
            except RunFailedError as error:
                problem = str(error)
            finally:
                training.close()
        if hand[killed:]:
            hands.append(hand[killed:])
        verdict = f"DIFFERS: {problem} ({training.run})" if problem else "the same bits"
        print(f"run-{number}: {killed} kills, {verdict}, after {time.monotonic() - began:.0f} s", flush=True)
        if not problem:
            equal += killed
            shutil.rmtree(training.run)
        elif not killed:
            break  # it would fail without end
    return equal


def make_settings(folder: Path) -> dict[str, Any]:
    """Settings with dropout, all augmentation, a checkpoint every 10 steps and another learning rate in each epoch."""
    write_synthetic(folder / "lasot", SyntheticConfig(SEQUENCES=4, FRAMES=30, HEIGHT=96, WIDTH=128))
    settings = make_tiny_settings(folder / "lasot", folder / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = STEPS_PER_EPOCH * BATCH - 2
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    settings["TRAIN"] |= {"BATCH_SIZE": BATCH, "EPOCH": EPOCHS, "CHECKPOINT_EVERY_STEPS": 10}
    settings["RUN"] |= {"WORKERS": 2, "CPUS_PER_WORKER": 0.5, "MAX_FAILURES": -1}
    return settings


def train_rank(config: Config, rank: int, world_size: int) -> None:
    train(config, None, rank, world_size)


def deal(count: int) -> list[list[str]]:
    """What is killed in each training; so many kills in all."""
    hands = []
    while count > 0:
        share = min(count, len(AT_HOME) + len(ON_NODES))
        hands += [list(AT_HOME[: share - share // 2]), list(ON_NODES[: share // 2])]
        count -= share
    return [hand for hand in hands if hand]


@contextmanager
def nodes() -> Iterator[Cluster]:
    """A cluster of two nodes, beside the one that the job and its controller run on."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2)
        yield cluster
    finally:
        cluster.shutdown()


class Training:
    """A training that is killed, and started again until it reaches its end."""

    def __init__(self, config: str, run: Path, cluster: Cluster | None, draws: random.Random) -> None:
        """`run`: its folder. `cluster`: where it trains; None: it starts one itself."""
        self.run, self._cluster, self._draws = run, cluster, draws
        self._command = [sys.executable, "ray_jobs/train.py", "--config", config, f"RUN.NAME={run.name}"]
        self._environment = os.environ | {"RAY_ADDRESS": cluster.address if cluster else "local"}
        self._orphans: list[psutil.Process] = []
        """What killed jobs had started. It ends by itself, a moment later."""
        self._start()

    def endure(self, hand: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Kills one after the other, at steps that are drawn, and goes on to the end.

        Yields what was killed and at which step, for each kill that came before the end. Raises RunFailedError.
        """
        steps = sorted(self._draws.sample(range(STEPS - 10), len(hand)))  # what is later often comes too late
        starts = 0
        for kind, step in zip(hand, steps, strict=True):
            if not self._reaches(starts, step):
                return
            starts = position(self._log())[0]
            if self._kill(kind):
                yield kind, position(self._log())[1]
        while self._reaches(starts, STEPS + 1):
            pass

    def close(self) -> None:
        """Ends what is left of it."""
        if self._job.poll() is None:
            end(family(self._job.pid))
            self._job.wait()
        end(self._orphans)

    def _start(self) -> None:
        with self.run.with_suffix(".console").open("a") as console:
            self._job = subprocess.Popen(
                self._command, cwd=REPOSITORY, env=self._environment, stdout=console, stderr=subprocess.STDOUT
            )

    def _log(self) -> str:
        log = self.run / "train.log"
        return log.read_text("utf-8") if log.exists() else ""

    def _reaches(self, starts: int, step: int) -> bool:
        """Waits until the workers' start after the first `starts` has reached a step. False: the run ended before."""
        size, since = 0, time.monotonic()
        while self._job.poll() is None:
            log = self._log()
            now = position(log)
            if now[0] > starts and now[1] >= step:
                return True
            if len(log) > size:
                size, since = len(log), time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise RunFailedError(f"no line in the log for {PATIENCE:.0f} s, after step {now[1]} of start {now[0]}")
            time.sleep(0.02)
        if self._job.returncode:
            raise RunFailedError(f"ended with exit code {self._job.returncode}, see {self.run}.console")
        return False

    def _kill(self, kind: str) -> bool:
        """Kills, and replaces what the training cannot replace itself. False: there was nothing left to interrupt."""
        job, nodes = family(self._job.pid), self._nodes()
        busy = {pid: workers for pid in (self._job.pid, *nodes) if (workers := training_workers(pid))}
        pid = self._draws.choice([*busy]) if busy else None
        victims = {
            "worker": [self._draws.choice(busy[pid])] if pid else [],
            "node": family(pid) if pid else [],
            "job": job[:1],
            "cluster": job,
        }[kind]
        end(victims)
        in_time = bool(victims) and not (self.run / LAST).exists()
        if kind in ("job", "cluster"):
            self._orphans += job[1:]
            self._job.wait()
            self._start()
        elif kind == "node" and pid and self._cluster is not None:
            self._cluster.remove_node(nodes[pid], allow_graceful=False)
            self._cluster.add_node(num_cpus=2, wait=False)
        return in_time

    def _nodes(self) -> dict[int, Any]:
        """The cluster's nodes for workers and data, by their raylets' process ids."""
        nodes = self._cluster.worker_nodes if self._cluster else ()
        return {node.all_processes["raylet"][0].process.pid: node for node in nodes}


def position(log: str) -> tuple[int, int]:
    """How often workers were started, and the step that the last start has reached."""
    parts = re.split(r"^(?:Restored .* : step (\d+), .*\n)?Training .*", log, flags=re.MULTILINE)
    if len(parts) == 1:
        return 0, 0
    restored, lines = parts[-2:]
    logged = re.findall(rf"^Epoch (\d+) : (\d+) / {STEPS_PER_EPOCH * BATCH - 2} ", lines, re.MULTILINE)
    if not logged:
        return len(parts) // 2, int(restored or 0)
    epoch, samples = map(int, logged[-1])
    return len(parts) // 2, (epoch - 1) * STEPS_PER_EPOCH + -(-samples // BATCH)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, which are still there."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [one for one in (process, *process.children(recursive=True)) if is_alive(one)]
    return []


def training_workers(pid: int) -> list[psutil.Process]:
    """The training workers among the processes that this one started."""
    return [one for one in family(pid) if is_training_worker(one)]


def is_training_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):  # it has just ended
        return "".join(process.cmdline()[:1]).startswith("ray::RayTrainWorker")
    return False


def end(processes: Sequence[psutil.Process]) -> None:
    """Ends them by SIGKILL, all at once."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    while any(map(is_alive, processes)):
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def difference(run: Path, reference: Path) -> str | None:
    """What differs in two runs besides times; None if nothing does."""
    try:
        names = [sorted(path.name for path in folder.glob("checkpoint_epoch*")) for folder in (run, reference)]
        assert names[0] == names[1], f"{names[0]}, not {names[1]}"
        for checkpoint in names[0]:
            assert_same_bits(reference, run, checkpoint)
        assert records(run) == records(reference)
    except Exception as error:  # what cannot be read differs too
        return f"{type(error).__name__} {error} in: {traceback.extract_tb(error.__traceback__)[-1].line}"
    return None


if __name__ == "__main__":
    sys.exit(main())
