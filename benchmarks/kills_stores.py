"""Faults of an object store while something is written to it: `python -m benchmarks.kills --only stores`.

A recording tells which requests a write makes. Then the same is written once for each request and each fault of it, to
a real S3 server of this machine. Afterwards either the new content is there whole, or the write raised an error and the
old content is. PATIENCE is 2 s instead of minutes; the S3 client's own tries take their usual time (31 tries in 6 s
where it is refused, 3 s for each that stalls). Not tried: a delete that the store handles seconds after the client has
asked again, since nobody can see that it is still to come.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowException, fs

from benchmarks.kills_cases import Tally, TinyRun, damage, each, name_at, opens
from seqtrack import patience
from seqtrack.config import DataConfig, SyntheticConfig
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.packing import pack_shard, plan_shards
from seqtrack.data.storage import Root, open_root
from seqtrack.errors import InputError
from seqtrack.locations import child
from seqtrack.runs.checkpoint import StoredCheckpoint, whole_checkpoints, write_checkpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.transfer import send
from tests.object_stores import s3_bucket
from tests.store_faults import Fault, FaultPlan, How, Request

PATIENCE = 2.0
STALL = 8.0
"""Seconds until a stalled request is handled: the client has given it up and asked again."""
LATE = 20.0
"""Seconds until one is handled that nobody waits for any more: the write has been given up."""
TOGETHER = 24
OLD, NEW = 3, 6
"""Steps of the checkpoints before and after."""
LARGE = 11 << 20
"""Bytes that make a file of two parts; pyarrow's parts have 10 MiB."""
WRITES = ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject", "CopyObject")
ONCE: tuple[How, ...] = ("503", "500", "403", "404", "cut before", "cut after", "cut within", "stall", "error in 200")
FOR_EVER: tuple[How, ...] = ("503", "403", "404", "cut before", "cut after", "error in 200")
FALSE: tuple[How, ...] = ("lie", "short")


@dataclass(frozen=True)
class Writer:
    """Something that is written to a folder of a store."""

    name: str
    before: Callable[[RunFolder], None]
    """Writes the old content."""
    write: Callable[[RunFolder], None]
    """Writes the new content over it, with faults."""
    judge: Callable[[RunFolder, bool], str]
    """How it ended; whether the write raised no error is given."""
    most: int | None = 150
    """So many drawn cases are tried; None: all."""


def run_stores(folder: Path, draws: random.Random, tally: Tally) -> None:
    """Runs the cases of each writer."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # it tells of each request, and of cut ones at length
    logging.getLogger("seqtrack").setLevel(logging.ERROR)
    usual, patience.PATIENCE = patience.PATIENCE, PATIENCE
    plan = FaultPlan()
    try:
        with s3_bucket(plan=plan) as uri:
            for writer in writers(folder):
                run_writer(writer, uri, plan, draws, tally)
    finally:
        patience.PATIENCE = usual


def run_writer(writer: Writer, uri: str, plan: FaultPlan, draws: random.Random, tally: Tally) -> None:
    """Runs the cases of a writer."""
    cases = list(faults_of(recorded(writer, uri, plan)))
    draws.shuffle(cases)
    cases = sorted(cases[: writer.most], key=lambda case: case[1][0].how != "stall")  # what takes longest first

    def run(numbered: tuple[int, tuple[Fault, ...]]) -> str:
        number, faults = numbered
        at = RunFolder.at(child(uri, f"{writer.name}-{number:04d}"))
        return one_case(writer, at, plan, *(replace(one, key=f"^{re.escape(at.name)}/{one.key}") for one in faults))

    tally.add(
        f"stores, {writer.name}",
        each(run, ((name, (number, faults)) for number, (name, faults) in enumerate(cases)), TOGETHER),
    )


def recorded(writer: Writer, uri: str, plan: FaultPlan) -> list[Request]:
    """The requests that the write makes where nothing fails, with keys within the writer's folder."""
    at = RunFolder.at(child(uri, f"{writer.name}-recorded"))
    writer.before(at)
    asked = len(plan.requests)
    writer.write(at)
    of_it = [
        Request(one.operation, tuple(key.removeprefix(f"{at.name}/") for key in one.keys))
        for one in plan.requests[asked:]
        if any(key.startswith(f"{at.name}/") for key in one.keys)
    ]
    assert writer.judge(at, True) == "new", f"{writer.name}: is not written even where nothing fails"
    return of_it


def faults_of(requests: list[Request]) -> Iterator[tuple[str, tuple[Fault, ...]]]:
    """Name and faults of each case: each request fails once in each way, and from then on for ever."""
    seen: dict[tuple[str, str], int] = {}
    for request in requests:
        key = f"{re.escape(request.keys[0])}$"
        skip = seen[request.operation, key] = seen.get((request.operation, key), -1) + 1
        name = f"{request.operation} of {request.keys[0]}" + (f", the {skip + 1}." if skip else "")
        false = FALSE if request.operation in ("UploadPart", "PutObject") else FALSE[:1]
        for how in (*(how for how in ONCE if how != "stall" or not request.operation.startswith("Delete")), *false):
            yield f"{name}: {how}", (Fault(how, request.operation, key, skip, times=1, stall=STALL),)
        if skip == 0:  # what fails for ever does so from its first time
            false = ("lie",) if request.operation in WRITES else ()
            for how in (*FOR_EVER, *false):
                yield f"{name}: {how} for ever", (Fault(how, request.operation, key),)
            if request.operation in WRITES:
                late = Fault("stall", request.operation, key, times=1, stall=LATE)
                yield f"{name}: stall, then 403 for ever", (late, Fault("403", request.operation, key))


def one_case(writer: Writer, at: RunFolder, plan: FaultPlan, *faults: Fault) -> str:
    """Writes with faults and judges what is there, when the last late request has been handled."""
    writer.before(at)
    error = None
    with plan.failing(*faults):
        try:
            writer.write(at)
        except (OSError, ArrowException, InputError) as caught:
            error = caught
        while any(fault.pending for fault in faults):
            time.sleep(0.1)
    ending = writer.judge(at, error is None)
    with suppress(OSError):
        at.filesystem.delete_dir(at.path)
    return f"{ending} ({error})" if error and ending not in ("old", "new") else ending


def writers(folder: Path) -> list[Writer]:
    """Everything that is written to stores."""
    tiny = TinyRun(folder)
    return [
        replace(checkpoint_writer("checkpoint", tiny), most=None),
        checkpoint_writer("large-checkpoint", tiny, LARGE),
        rewriter(tiny),
        small_file_writer(),
        folder_writer(folder),
        shard_writer(folder),
    ]


def checkpoint_writer(name: str, tiny: TinyRun, padding: int = 0) -> Writer:
    """A newer checkpoint after an older one, of which only one is kept. `padding`: as in `TinyRun.contents`."""
    older, written, before, contents = name_at(OLD), name_at(NEW), tiny.contents(OLD), tiny.contents(NEW, padding)

    def judge(run: RunFolder, reported: bool) -> str:
        if wrong := damage(run):
            return f"damaged: {wrong}"
        if not reported:
            # Without a report, Ray keeps the older one.
            return f"lost: {wrong}" if (wrong := opens(run, older, OLD)) else "old"
        if whole_checkpoints(run)[-1:] != [written]:
            return f"silent: {written} was reported, and {whole_checkpoints(run)} are there"
        run.filesystem.delete_dir(run.file(older))  # Ray does that now
        return f"lost: {wrong}" if (wrong := opens(run, written, NEW)) else "new"

    return Writer(
        name,
        lambda run: write_checkpoint(before, StoredCheckpoint(run, older)),
        lambda run: write_checkpoint(contents, StoredCheckpoint(run, written)),
        judge,
    )


def rewriter(tiny: TinyRun) -> Writer:
    """A checkpoint over one of its name that was whole but not yet reported, after an older one."""
    writer = checkpoint_writer("rewritten", tiny)

    def before(run: RunFolder) -> None:
        writer.before(run)
        writer.write(run)

    return replace(writer, before=before)


def small_file_writer() -> Writer:
    """A small file over an older one, as settings, notes and logs are written."""
    contents = {False: "NAME: old\n" * 40, True: "NAME: new\n" * 50}

    def judge(run: RunFolder, reported: bool) -> str:
        found = run.read_text("config.yaml")
        if found not in contents.values():
            return f"damaged: {len(found or '')} letters"
        return "silent: the old one is there" if reported and found != contents[True] else "new" if reported else "old"

    return Writer(
        "small-file",
        lambda run: run.write("config.yaml", contents[False]),
        lambda run: run.write("config.yaml", contents[True]),
        judge,
    )


def folder_writer(folder: Path) -> Writer:
    """A folder of several files, as reports and starts kept from the Hub are written."""
    source = folder / "report"
    (source / "figures").mkdir(parents=True)
    for number, path in enumerate(("index.html", "figures/iou.svg", "figures/empty.txt")):
        (source / path).write_bytes(b"x" * 700 * (2 - number))

    def judge(run: RunFolder, reported: bool) -> str:
        infos = run.filesystem.get_file_info(fs.FileSelector(run.path, recursive=True, allow_not_found=True))
        found = {info.path.removeprefix(f"{run.path}/"): info.size for info in infos if info.is_file}
        wanted = {path.relative_to(source).as_posix(): path.stat().st_size for path in source.rglob("*.*")}
        if not reported:
            return "old"  # nothing was there, and nobody was told that something is
        return "new" if found == wanted else f"silent: {found} are there"

    def write(run: RunFolder) -> None:
        send(source, run.filesystem, run.path)

    return Writer("folder", lambda run: None, write, judge)


def shard_writer(folder: Path) -> Writer:
    """A shard of a packed data set."""
    write_synthetic(folder / "tree", SyntheticConfig(SEQUENCES=2, FRAMES=20, HEIGHT=64, WIDTH=64))
    tree = open_root(str(folder / "tree"))
    index = build_index(DataConfig(SPLIT="all"), tree)
    shard = next(iter(plan_shards(index)))

    def judge(run: RunFolder, reported: bool) -> str:
        there = run.has(shard)
        if there:
            with run.filesystem.open_input_file(run.file(shard)) as file:
                pq.ParquetFile(file, page_checksum_verification=True).read()
        return "new" if there and reported else "silent: no shard" if reported else "old"

    def write(run: RunFolder) -> None:
        pack_shard(index, tree, Root(run.filesystem, run.path), shard, [0])

    return Writer("shard", lambda run: None, write, judge)
