"""`benchmarks.kills` finds a product that loses what a store, a loss of power or a second job takes from it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from benchmarks import kills, kills_doubles, kills_power
from benchmarks.kills_cases import Tally, TinyRun, name_at
from benchmarks.kills_doubles import Pair
from benchmarks.kills_stores import NEW, Writer, checkpoint_writer, faults_of, one_case, recorded
from seqtrack.locations import child
from seqtrack.runs.checkpoint import StoredCheckpoint, write_checkpoint
from seqtrack.runs.folder import RunFolder
from tests.folders import run_at
from tests.object_stores import s3_bucket
from tests.store_faults import Fault, FaultPlan, Request

Bucket = tuple[str, FaultPlan]


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    plan = FaultPlan()
    with s3_bucket(plan=plan) as uri:
        yield uri, plan


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return checkpoint_writer("checkpoint", TinyRun(tmp_path_factory.mktemp("tiny")))


def copying(writer: Writer, folder: Path) -> Writer:
    """The same checkpoint, written by pyarrow's `copy_files`, which drops what a stream's close raises."""
    write_checkpoint_at(folder, NEW)

    def write(run: RunFolder) -> None:
        for path in sorted((folder / name_at(NEW)).iterdir(), key=lambda path: path.name == "SHA256SUMS"):
            fs.copy_files(str(path), run.file(f"{name_at(NEW)}/{path.name}"), fs.LocalFileSystem(), run.filesystem)

    return replace(writer, write=write)


def write_checkpoint_at(folder: Path, step: int) -> None:
    write_checkpoint(TinyRun(folder).contents(step), StoredCheckpoint(run_at(folder), name_at(step)))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("403", "UploadPart", "SHA256SUMS"), "silent"),
        (Fault("lie", "CompleteMultipartUpload", "state.pt"), "damaged"),
    ],
    ids=lambda value: f"{value.how}-{value.key}" if isinstance(value, Fault) else "",
)
def test_a_writer_that_drops_a_stores_errors_is_found_and_ours_keeps_the_older_checkpoint(
    fault: Fault, told: str, bucket: Bucket, written: Writer, quick: None, tmp_path: Path
) -> None:
    uri, plan = bucket
    at = RunFolder.at(child(uri, f"{fault.how}-{fault.key}"))
    case = replace(fault, key=f"^{at.name}/.*{fault.key}")
    assert one_case(copying(written, tmp_path), at, plan, case).split(":")[0] == told
    assert one_case(written, at, plan, replace(case)) == "old"


def test_each_request_of_each_file_fails_in_each_way(bucket: Bucket, written: Writer) -> None:
    requests = recorded(written, *bucket)
    cases = dict(faults_of(requests))
    names = {"model.safetensors", "state.pt", "rng_rank_0000.pt", "meta.json", "SHA256SUMS"}
    for name in names:
        for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"):
            for how in ("503", "cut before", "cut after", "stall", "error in 200", "503 for ever", "lie for ever"):
                assert f"{operation} of {name_at(NEW)}/{name}: {how}" in cases
    assert {"ListObjectsV2", "HeadObject", "GetObject"} <= {request.operation for request in requests}


def request(method: str, path: str, query: str = "", **more: Any) -> Request:
    return Request.of({"REQUEST_METHOD": method, "PATH_INFO": f"/bucket{path}", "QUERY_STRING": query, **more}, b"")


def test_requests_are_told_apart() -> None:
    assert request("POST", "/a/b", "uploads") == ("CreateMultipartUpload", ("a/b",))
    assert request("PUT", "/a/b", "partNumber=1&uploadId=x") == ("UploadPart", ("a/b",))
    assert request("POST", "/a/b", "uploadId=x") == ("CompleteMultipartUpload", ("a/b",))
    assert request("PUT", "/a/b") == ("PutObject", ("a/b",))
    assert request("PUT", "/a/b", HTTP_X_AMZ_COPY_SOURCE="bucket/c") == ("CopyObject", ("a/b",))
    assert request("HEAD", "/a/b") == ("HeadObject", ("a/b",))
    assert request("GET", "", "list-type=2&prefix=a%2F") == ("ListObjectsV2", ("a/",))


@pytest.mark.parametrize("kind", sorted(kills_power.KINDS))
def test_what_is_not_synced_is_found_after_a_loss_of_power(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, judge = kills_power.KINDS[kind]

    class WrittenError(Exception):
        pass

    def once(place: Path, write: Callable[..., None]) -> None:
        def report(number: int) -> None:
            raise WrittenError

        with pytest.raises(WrittenError):
            write(place, report, random.Random(1))

    try:
        with kills_power.new_disk(tmp_path, kind) as disk:
            once(disk.place, write)
            disk.copy(tmp_path / "synced.ext4")
        with kills_power.new_disk(tmp_path, f"{kind}-unsynced") as disk:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda number: None)
                once(disk.place, write)
            disk.commit()
            disk.copy(tmp_path / "unsynced.ext4")
    except kills_power.NoDiskError as error:
        pytest.skip(f"needs to mount a small disk: {error}")
    with kills_power.mounted(tmp_path / "synced.ext4", tmp_path / "synced") as disk:
        assert judge(disk.place, [1]) == "whole"
    with kills_power.mounted(tmp_path / "unsynced.ext4", tmp_path / "unsynced") as disk:
        assert judge(disk.place, [1]).split(":")[0] in ("lost", "damaged")


RECORDS = [{"step": step, "time": step, "writer": 0} for step in range(1, kills_doubles.STEPS + 1)]
TOLD = ["", "the folder belongs to another job, process 100"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_checkpoint_at(folder, kills_doubles.STEPS)
    return folder


@pytest.mark.parametrize(
    ("records", "codes", "notes", "ending"),
    [
        (RECORDS, [0, 2], TOLD, "one owner, trained and refused"),
        (RECORDS, [0, 2], ["", "another job"], "silent: steps by"),
        (RECORDS + RECORDS[-1:], [0, 0], ["", ""], "silent: records of steps"),
        ([*RECORDS[:-1], {**RECORDS[-1], "writer": 1}], [0, 2], TOLD, "silent: steps by"),
        ([{**RECORDS[0], "writer": 1}, *RECORDS[1:]], [0, 0], ["", ""], "silent: steps by"),
        (RECORDS[:-1], [0, 1], ["", "LeaseLostError"], "silent: records of steps"),
        (RECORDS, [2, 2], ["", ""], "lost: nobody"),
        (RECORDS, [0, -11], ["", ""], "damaged: trained and exit code -11"),
    ],
)
def test_two_jobs_that_wrote_are_found(
    trained: Path, records: list[Any], codes: list[int], notes: list[str], ending: str
) -> None:
    (trained / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    pair = Pair("two", run_at(trained), 0.0, 0.0)
    assert kills_doubles.judge(pair, codes, notes, 100, 200).startswith(ending)


def test_cases_are_counted_and_bad_ones_end_the_program_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    endings = {"stores": ["new", "old (503)", "lost: a"], "doubles": ["one owner, trained and refused"]}

    def run(kind: str) -> Callable[..., None]:
        return lambda folder, draws, tally: tally.add(kind, ((f"case {one}", one) for one in endings[kind]))

    monkeypatch.setattr(kills, "FAULTS", {kind: run(kind) for kind in endings})
    monkeypatch.setattr(kills.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr("sys.argv", ["kills", "--only", "stores,doubles"])
    assert kills.main() == 1
    printed = capsys.readouterr().out
    assert "stores: case lost: a: lost: a\n" in printed
    assert "4 cases: 1 lost, 0 damaged, 0 silent\n" in printed
    assert f"Everything is kept in {tmp_path}" in printed
    endings["stores"].pop()
    assert kills.main() == 0


def test_a_tally_takes_any_ending() -> None:
    tally = Tally()
    tally.add("group", iter([("a", "silent: x"), ("b", "one owner, trained"), ("c", "damaged")]))
    assert (str(tally), tally.bad) == ("3 cases: 0 lost, 1 damaged, 1 silent", 2)
