"""Two jobs that want one run: `python -m benchmarks.kills --only doubles`.

Two processes start within 0 to 10 s, own the run's folder as `seqtrack train` does, and write records and checkpoints
as the training loop does, on a disk and in an S3 store. One of them must be refused with a line that names the other,
or come after it. Every record must be there once, and every checkpoint whole. In further cases the second start takes
over, the first is killed, and the two are on different machines as far as they can see; there TTL is 6 s, not a minute.
`tests/training/test_doubles.py` does the same with `seqtrack train` on real Ray clusters.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kills_cases import Tally, TinyRun, damage, each, name_at, opens
from seqtrack import claims, lease
from seqtrack.errors import InputError, LeaseLostError
from seqtrack.lease import OwnedError
from seqtrack.locations import child
from seqtrack.runs.checkpoint import (
    StoredCheckpoint,
    newest_checkpoint,
    open_checkpoint,
    whole_checkpoints,
    write_checkpoint,
)
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import MetricsFile, read_metrics
from tests.object_stores import s3_bucket

STEPS, EVERY = 24, 4
"""Steps of a training, and between two checkpoints."""
LONGEST = 10.0
"""Seconds between the two starts at most."""
TOGETHER = 6
KINDS = ("two", "two elsewhere", "two", "take over", "take over elsewhere", "killed", "killed elsewhere")
ENDINGS = {0: "trained", 1: "lost the folder", 2: "refused", -9: "killed"}


@dataclass(frozen=True)
class Pair:
    """Two starts of a run."""

    kind: str
    """One of KINDS. `elsewhere`: each process takes itself for one of another machine."""
    place: RunFolder
    delay: float
    """Seconds between the starts."""
    step_seconds: float


def run_doubles(folder: Path, draws: random.Random, tally: Tally, count: int = 60) -> None:
    """Runs so many cases, half of them on a disk and half in a store."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    multiprocessing.set_forkserver_preload([__name__])
    (folder / "doubles").mkdir()
    with s3_bucket() as uri:
        for where, location in (("disk", str(folder / "doubles")), ("S3", uri)):
            cases = list(pairs(location, draws, count // 2))
            run = functools.partial(one_pair, folder)
            tally.add(f"doubles, {where}", each(run, ((shown(pair), pair) for pair in cases), TOGETHER))


def pairs(location: str, draws: random.Random, count: int) -> Iterator[Pair]:
    for number in range(count):
        at = RunFolder.at(child(location, f"run-{number}"))
        kind = KINDS[number % len(KINDS)]
        close = draws.random() < 0.4  # what is within a second is the hardest
        yield Pair(kind, at, draws.uniform(0, 0.5 if close else LONGEST), draws.uniform(0.02, 0.3))


def shown(pair: Pair) -> str:
    return f"{pair.kind}, {pair.place.location.partition('?')[0]}, {pair.delay:.2f} s apart"


def one_pair(folder: Path, pair: Pair) -> str:
    """Starts both and judges what they left."""
    context = multiprocessing.get_context("forkserver")
    notes = [folder / f"{abs(hash((pair.place.location, number)))}.note" for number in range(2)]
    jobs = []
    for number, note in enumerate(notes):
        take_over = number == 1 and pair.kind.startswith("take over")
        machine = f"machine {number}" if "elsewhere" in pair.kind else ""
        arguments = (folder, pair.place.location, number, take_over, machine, pair.step_seconds, note)
        jobs.append(context.Process(target=work, args=arguments))
    jobs[0].start()
    time.sleep(pair.delay)
    if pair.kind.startswith("killed"):
        jobs[0].kill()
        jobs[0].join()  # it lives on for a moment, in a write that is under way
    jobs[1].start()
    for job in jobs:
        job.join(180)
        if job.is_alive():
            job.kill()
            return "lost: a job hangs"
    texts = [note.read_text("utf-8") if note.exists() else "" for note in notes]
    return judge(pair, [job.exitcode or 0 for job in jobs], texts, jobs[0].pid or 0, jobs[1].pid or 0)


def judge(pair: Pair, codes: list[int], notes: list[str], first: int, second: int) -> str:
    """How a pair ended."""
    ended = " and ".join(ENDINGS.get(code, f"exit code {code}") for code in codes)
    told = f"{ended} ({'; '.join(filter(None, notes))})"
    if set(codes) - ENDINGS.keys():
        return f"damaged: {told}"
    if 0 not in codes:
        return f"lost: nobody reached the end: {told}"
    if wrong := damage(pair.place):
        return f"damaged: {wrong}: {told}"
    names = whole_checkpoints(pair.place)
    if names != [name_at(STEPS)] or opens(pair.place, names[-1], STEPS):
        return f"lost: {names} are there: {told}"
    records = read_metrics(pair.place)
    if [record["step"] for record in records] != list(range(1, STEPS + 1)):
        return f"silent: records of steps {[record['step'] for record in records]}: {told}"
    writers = [int(record["writer"]) for record in records]
    if 2 in codes and (len({*writers}) > 1 or str((first, second)[codes.index(0)]) not in notes[codes.index(2)]):
        return f"silent: steps by {writers}: {told}"
    if 2 not in codes and writers != sorted(writers):
        return f"silent: steps by {writers}: {told}"
    left = [info.base_name for info in files(pair.place) if info.base_name.startswith(claims.PREFIX)]
    return f"damaged: {left} stay: {told}" if left else f"one owner, {ended}"


def files(run: RunFolder) -> list[Any]:
    from pyarrow import fs

    return list(run.filesystem.get_file_info(fs.FileSelector(run.path)))


def work(
    folder: Path, location: str, number: int, take_over: bool, machine: str, step_seconds: float, note: Path
) -> None:
    """A job: exit code 0 if it trained to the end, 1 if it lost the folder, 2 if it was refused."""
    if machine:
        claims.this_machine = lambda: f"{machine} {os.getpid()}"
        lease.TTL, lease.RENEWAL, lease.QUIET = 6.0, 1.0, 3.0
    logging.disable(logging.WARNING)
    try:
        place = RunFolder.at(location)
        with place.owned(take_over) as owned:
            train(TinyRun(folder), place.under(owned), number, step_seconds)
    except OwnedError as error:
        note.write_text(str(error), "utf-8")
        raise SystemExit(2) from None
    except (LeaseLostError, InputError, OSError) as error:
        note.write_text(f"{type(error).__name__}: {error}", "utf-8")
        raise SystemExit(1) from None


def train(tiny: TinyRun, run: RunFolder, writer: int, step_seconds: float) -> None:
    """Writes what the loop writes: a record for each step, and a checkpoint of which only the newest is kept."""
    newest = newest_checkpoint(run)
    begin = int(open_checkpoint(newest).meta["step"]) if newest is not None else 0
    metrics = MetricsFile(run, begin)
    for step in range(begin + 1, STEPS + 1):
        time.sleep(step_seconds)
        metrics.add({"step": step, "time": int(time.time() * 1000), "writer": writer})
        if step % EVERY == 0:
            run.check_owner()
            metrics.flush()
            write_checkpoint(tiny.contents(step), StoredCheckpoint(run, name_at(step)))
            run.check_owner()
            for older in whole_checkpoints(run)[:-1]:  # as Ray does
                with suppress(FileNotFoundError):
                    run.filesystem.delete_dir(run.file(older))
