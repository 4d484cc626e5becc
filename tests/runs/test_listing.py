"""Which checkpoints a run has: found on any store, without listing what else is in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from seqtrack.locations import child
from seqtrack.runs.checkpoint import SUMS_FILE, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import checkpoint_name
from tests.object_stores import gcs_bucket, s3_bucket


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the S3 server is asked."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return []


@pytest.fixture
def store(requests: list[str]) -> Iterator[RunFolder]:
    """A run's folder in S3."""
    with s3_bucket(requests=requests) as uri:
        yield RunFolder.at(child(uri, "run"))


def put(run: RunFolder, *names: str) -> None:
    """Writes files as a copying tool does: without entries for folders where a store needs none."""
    for name in names:
        if run.local:
            run.filesystem.create_dir(str(Path(run.file(name)).parent), recursive=True)
        run.write(name, b"some bytes")


@pytest.mark.parametrize("kind", ["disk", "s3", "gcs"])
def test_finished_checkpoints_are_found_in_order_on_any_store(kind: str, requests: list[str], tmp_path: Path) -> None:
    buckets: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "disk": lambda: nullcontext(str(tmp_path)),
        "s3": s3_bucket,
        "gcs": gcs_bucket,
    }
    names = [checkpoint_name(2, 0), checkpoint_name(2, 60), checkpoint_name(2, 500), checkpoint_name(10, 0)]
    with buckets[kind]() as uri:
        run = RunFolder.at(child(uri, "run"))
        assert whole_checkpoints(run) == []
        put(run, *(f"{name}/{SUMS_FILE}" for name in reversed(names)))
        put(run, "checkpoint_epoch_0011/meta.json", f"start/checkpoint_epoch_0001/{SUMS_FILE}", "checkpoint_manager")
        put(run, f"{names[0]}/deep/{SUMS_FILE}", f"checkpoint_epoch_0012/deep/{SUMS_FILE}", "metrics.jsonl")
        assert whole_checkpoints(run) == names
        assert whole_checkpoints(run, known=names[:2]) == names
        run.filesystem.delete_file(run.file(f"{names[-1]}/{SUMS_FILE}"))  # it is being written again
        assert whole_checkpoints(run, known=names) == names[:-1]
        # TRAIN.KEEP_CHECKPOINTS. In Google's store a folder without an entry of its own cannot be removed as one.
        remove = run.filesystem.delete_dir_contents if kind == "gcs" else run.filesystem.delete_dir
        remove(run.file(names[0]))
        assert whole_checkpoints(run, known=names) == names[1:-1]


def test_what_else_is_in_the_folder_is_not_listed(store: RunFolder, requests: list[str]) -> None:
    names = [checkpoint_name(epoch, 0) for epoch in range(1, 6)]
    put(store, *(f"{name}/{SUMS_FILE}" for name in names))
    put(store, *(f"evaluation/lasot/{name}/{number}.txt" for name in names for number in range(4)))
    requests.clear()
    assert whole_checkpoints(store) == names
    assert len(requests) == 6 and not any("evaluation" in request for request in requests)
    requests.clear()
    assert whole_checkpoints(store, known=names) == names
    assert [request.split()[0] for request in requests] == ["GET", "HEAD"]
