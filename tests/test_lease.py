"""A folder has one owner at a time, on a disk and in an object store."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pyarrow import fs

from seqtrack import claims, lease
from seqtrack.claims import ALIVE, CLAIM, Claim, Proof, this_machine
from seqtrack.errors import InputError, LeaseLostError
from seqtrack.lease import OwnedError, owned
from seqtrack.locations import child, filesystem_at
from tests.claimants import claim_all, own
from tests.object_stores import s3_bucket

ROUNDS = 3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_bucket() as location:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")  # moto takes the writes of anonymous clients for something else
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield location


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: str) -> str:
    """The location of a folder that is not there yet."""
    return str(tmp_path / "run") if request.param == "disk" else child(bucket, uuid.uuid4().hex)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr(claims, "TRIES", (0.01, 0.01, 0.01))
    monkeypatch.setattr(claims, "LOOKS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(lease, "TRIES", (0.01, 0.01, 0.01))
    for name, seconds in (("TTL", 0.6), ("RENEWAL", 0.05), ("LOOK", 0.05), ("QUIET", 0.3)):
        monkeypatch.setattr(lease, name, seconds)


def files_in(location: str) -> set[str]:
    filesystem, path = filesystem_at(location)
    infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {info.base_name for info in infos if info.type == fs.FileType.File}


def leave_claim(location: str, claim: Claim | str, token: str = "0" * 32) -> Proof:
    """What a job that ended without a word leaves behind."""
    proof = Proof(*filesystem_at(location), location, token)
    proof.filesystem.create_dir(proof.folder, recursive=True)
    proof.write_count(1)
    if isinstance(claim, Claim):
        proof.write(claim)
    else:
        with proof.filesystem.open_output_stream(f"{proof.folder}/.owner-{token}{CLAIM}") as file:
            file.write(claim.encode())
    return proof


def elsewhere(owns: bool = True) -> Claim:
    """The claim of a job on another machine."""
    return Claim("seqtrack train", "node-7", "node-7 boot pid:[1]", 17, 4711, "2026-01-01 10:00:00 UTC", owns)


def test_of_eight_processes_that_claim_at_once_one_owns(folder: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.claimants"])
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=claim_all, args=(folder, ROUNDS, barrier, results)) for _ in range(8)]
    for process in processes:
        process.start()
    counted = Counter(results.get(timeout=100) for _ in range(8 * ROUNDS))
    for process in processes:
        process.join()
    assert counted == {(number, end): many for number in range(ROUNDS) for end, many in (("owned", 1), ("refused", 7))}
    assert not any(files_in(child(folder, f"run-{number}")) for number in range(ROUNDS))


def test_a_second_start_is_refused_and_told_whose_the_folder_is(folder: str) -> None:
    with own(folder), pytest.raises(OwnedError) as refusal, own(folder):
        pass
    said = str(refusal.value)
    assert said.startswith(f"{folder}: belongs to another job: ") and f"process {os.getpid()}, since 20" in said
    assert "--take-over takes the folder from it" in said


def test_a_released_folder_is_as_it_was(folder: str) -> None:
    with own(folder):
        assert len(files_in(folder)) == 2
    assert files_in(folder) == set()
    with own(folder):
        pass


def test_a_disk_keeps_no_empty_folder_of_a_job_that_wrote_nothing(tmp_path: Path) -> None:
    with own(str(tmp_path / "runs/mine")):
        pass
    assert list(tmp_path.iterdir()) == []


OWN_FOR_EVER = """
import sys, time
from seqtrack.lease import owned
from seqtrack.locations import filesystem_at
with owned(*filesystem_at(sys.argv[1]), sys.argv[1]):
    print("owned", flush=True)
    time.sleep(60)
"""


def test_a_killed_owner_of_this_machine_has_lost_the_folder_at_once(tmp_path: Path) -> None:
    location = str(tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", OWN_FOR_EVER, location], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "owned\n"
    with pytest.raises(OwnedError, match=f"process {process.pid}, "), own(location):
        pass
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
    began = time.monotonic()
    with own(location):
        assert time.monotonic() - began < lease.RENEWAL  # nothing was waited for
        assert len(files_in(location)) == 2
    process.communicate()


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "claim",
    [
        elsewhere(),
        elsewhere(owns=False),
        replace(elsewhere(), machine=this_machine().replace("pid:", "pid:9"), pid=os.getpid()),  # another container
        replace(elsewhere(), machine=""),
        "",
        "{",
        "[]",
        '{"job": "x"}',
        json.dumps(asdict(elsewhere()) | {"pid": "17"}),
    ],
    ids=["owner", "asks", "container", "unknown", "empty", "cut-off", "list", "lacks", "type"],
)
class TestAClaimOfWhichOnlyTheCountIsSeen:
    """Another machine's process cannot be seen, so it is watched whether it counts on."""

    def test_one_that_is_silent_lapses(self, tmp_path: Path, claim: Claim | str) -> None:
        proof = leave_claim(str(tmp_path), claim)
        began = time.monotonic()
        with own(str(tmp_path)):
            assert time.monotonic() - began > lease.TTL
            assert not proof.holds() and len(files_in(str(tmp_path))) == 2

    def test_one_that_counts_on_keeps_the_folder(self, tmp_path: Path, claim: Claim | str) -> None:
        ended, proof = threading.Event(), leave_claim(str(tmp_path), claim)
        counting = threading.Thread(target=count_until, args=(proof, ended))
        counting.start()
        try:
            said = r"(belongs to|is just being claimed by) another job: "
            with pytest.raises(OwnedError, match=said), own(str(tmp_path)):
                pass
        finally:
            ended.set()
            counting.join()
        assert proof.holds()


@pytest.mark.usefixtures("soon")
def test_a_claim_in_a_store_lapses_too(bucket: str) -> None:
    location = child(bucket, "silent")
    proof = leave_claim(location, elsewhere())
    with own(location):
        assert not proof.holds() and len(files_in(location)) == 2


def count_until(proof: Proof, ended: threading.Event) -> None:
    for number in itertools.count(2):
        if ended.wait(0.03):
            return
        proof.write_count(number)


@pytest.mark.usefixtures("soon")
def test_what_is_waited_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leave_claim(str(tmp_path), elsewhere())
    with own(str(tmp_path)):
        pass
    (said,) = [record.getMessage() for record in caplog.records]
    assert "waiting to see whether it is in use" in said
    assert said.endswith("seqtrack train on node-7, process 17, since 2026-01-01 10:00:00 UTC")


@pytest.mark.usefixtures("soon")
def test_the_number_of_a_process_that_ended_may_be_anothers_now(tmp_path: Path) -> None:
    mine = Claim.of_this_process()
    leave_claim(str(tmp_path), replace(mine, started=mine.started - 1, owns=True))
    with own(str(tmp_path)):
        pass


@pytest.mark.usefixtures("soon")
def test_a_folder_that_is_taken_over_is_lost_by_its_owner_which_is_waited_for(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "TTL", 60)
    monkeypatch.setattr(lease, "QUIET", 60)
    held, told, ended = threading.Event(), threading.Event(), threading.Event()
    reasons: list[str | None] = []

    def hold() -> None:
        with own(folder) as mine:
            mine.when_lost(told.set)
            held.set()
            assert told.wait(60) and mine.lost.is_set()
            reasons.append(mine.proof.lost())
            with pytest.raises(LeaseLostError):
                mine.proof.check()
            ended.set()

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    with own(folder, take_over=True) as second:
        assert ended.is_set()  # the first may write until it has noticed, so it was waited for
        holder.join()
        assert second.proof.holds() and not second.lost.is_set() and len(files_in(folder)) == 2
    (reason,) = reasons
    assert reason is not None and reason.startswith(f"{folder}: was taken over by ")


@pytest.mark.usefixtures("soon")
def test_an_owner_without_its_claim_has_lost_the_folder(folder: str) -> None:
    with own(folder) as mine:
        mine.proof.remove()
        reason = mine.proof.lost()
    assert reason is not None and "claim (.owner-" in reason


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("error", [OSError("timed out"), ConnectionResetError(), PermissionError()])
def test_a_folder_that_cannot_be_asked_takes_nothing_away(
    folder: str, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise error

    with own(folder) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(claims, "_is_there", fail)
            patch.setattr(Proof, "write_count", fail)
            time.sleep(3 * lease.RENEWAL)
            assert mine.proof.holds()
        assert not mine.lost.is_set() and mine.proof.holds()


@pytest.mark.usefixtures("soon")
def test_one_answer_that_the_claim_is_gone_is_not_believed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = iter([False, False]), claims._is_there

    with own(folder) as mine:
        monkeypatch.setattr(claims, "_is_there", lambda *place: next(answers, None) is None and asked(*place))
        assert mine.proof.holds()


@pytest.mark.usefixtures("soon")
def test_a_list_of_before_is_not_believed(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale list has neither the owner's claim nor the own one, which was written just now."""
    with own(folder):
        listed, stale = Proof._listed, iter([set[str]()] * 2)
        monkeypatch.setattr(Proof, "_listed", lambda proof, ending: next(stale, None) or listed(proof, ending))
        with pytest.raises(OwnedError), own(folder):
            pass


def test_a_claim_is_proved_in_another_process(folder: str) -> None:
    with own(folder) as mine:
        sent: Proof = pickle.loads(pickle.dumps(mine.proof))
        assert sent.holds()


@pytest.mark.parametrize("ending", [CLAIM, ALIVE])
def test_names_do_not_begin_like_a_runs_files(folder: str, ending: str) -> None:
    with own(folder):
        assert any(name.startswith(".owner-") and name.endswith(ending) for name in files_in(folder))


def test_a_folder_that_cannot_be_written_is_named() -> None:
    with (
        pytest.raises(InputError, match=r"^RUN\.STORAGE_PATH /dev/null/x: cannot be written"),
        owned(fs.LocalFileSystem(), "/dev/null/x/mine", "/dev/null/x/mine", setting="RUN.STORAGE_PATH /dev/null/x"),
    ):
        pass


def test_a_command_is_kept_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/seqtrack", "train", "MLFLOW.TRACKING_URI=https://me:secret@host"])
    assert Claim.of_this_process().job == "seqtrack train MLFLOW.TRACKING_URI=https://host"
