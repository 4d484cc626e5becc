"""Runs of the training loop alone whose checkpoints a store refuses: for a while, or for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seqtrack.locations import child
from seqtrack.runs.checkpoint import CheckpointError, StoredCheckpoint, open_checkpoint, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from tests.object_stores import s3_bucket
from tests.settings import make_tiny_settings
from tests.store_faults import Fault, FaultPlan, How
from tests.training.loops import named, train

LAST = "checkpoint_epoch_0002"


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[FaultPlan, str]]:
    """The plan of an S3 server, and storage there."""
    plan = FaultPlan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with s3_bucket(plan=plan) as uri:
            yield plan, child(uri, "runs")


@pytest.fixture(scope="module")
def undisturbed(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last weights of a run on a disk."""
    settings = make_tiny_settings(lasot_root, tmp_path_factory.mktemp("runs"))
    train(named(settings, "whole"))
    return (Path(settings["RUN"]["STORAGE_PATH"]) / "whole" / LAST / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("how", "operation", "file"),
    [
        ("403", "UploadPart", "model.safetensors"),
        ("lie", "CompleteMultipartUpload", "state.pt"),
    ],
)
def test_what_a_store_refuses_for_a_while_does_not_change_the_result_and_for_ever_leaves_the_checkpoint_before(
    how: How,
    operation: str,
    file: str,
    store: tuple[FaultPlan, str],
    undisturbed: bytes,
    tiny_settings: dict[str, Any],
    quick: None,
) -> None:
    plan, storage = store
    config = named(tiny_settings, f"{operation}-for-a-while", {"RUN.STORAGE_PATH": storage})
    with plan.failing(Fault(how, operation, f"{config.RUN.NAME}/{LAST}/{file}$", times=4)):
        train(config)
    run = RunFolder.of(config)
    with run.filesystem.open_input_stream(run.file(f"{LAST}/model.safetensors")) as stream:
        assert stream.read() == undisturbed
    open_checkpoint(StoredCheckpoint(run, LAST))

    config = named(tiny_settings, f"{operation}-for-ever", {"RUN.STORAGE_PATH": storage})
    refused = Fault(how, operation, f"{config.RUN.NAME}/{LAST}/{file}$")
    with plan.failing(refused), pytest.raises(CheckpointError, match=f"{LAST} cannot be written: "):
        train(config)
    run = RunFolder.of(config)
    assert whole_checkpoints(run) == ["checkpoint_epoch_0001"]
    open_checkpoint(StoredCheckpoint(run, "checkpoint_epoch_0001"))
