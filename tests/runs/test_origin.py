"""`--resume-from` of a run that has begun names where it began from, in any spelling, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack.config import Config
from seqtrack.experiments.prepare import prepare
from seqtrack.runs.checkpoint import CheckpointError, OpenedCheckpoint, StoredCheckpoint
from seqtrack.runs.folder import RunFolder, write_settings
from seqtrack.runs.origin import LOCATION_FILE, START, check_origin
from tests.checkpoints import save


def opened(run: RunFolder, name: str, began: str | None) -> OpenedCheckpoint:
    """The newest checkpoint of a run that began from the checkpoint at the path `began`."""
    meta = {"resumed_from": None if began is None else {"path": began, "step": 6}}
    return OpenedCheckpoint(StoredCheckpoint(run, name), meta, {})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.at(str(tmp_path / "runs/from-three"))


@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
@pytest.mark.parametrize(
    "asked",
    [
        "runs/mine/3",
        "runs/mine/checkpoint_epoch_0003",
        "./runs/../runs/mine//checkpoint_epoch_0003/",
        "{tmp}/runs/mine/3",
        "file://{tmp}/runs/mine/3",
        "link/mine/3",
        "runs/mine",
        "runs/mine/",
        "runs/mine/latest",
    ],
)
def test_the_same_place_goes_on_in_any_spelling(
    asked: str, gone: bool, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path / "runs")
    began = tmp_path / "runs/mine/checkpoint_epoch_0003"
    began.mkdir(parents=True)
    if gone:
        shutil.rmtree(began.parent)
    check_origin(asked.format(tmp=tmp_path), opened(run, "checkpoint_epoch_0005", str(began)), run)


@pytest.mark.parametrize("asked", ["runs/mine/2", "runs/other/3", "runs/mine/checkpoint_epoch_0003_step_000001", "x"])
def test_another_place_is_refused_by_name(
    asked: str, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = str(tmp_path / "runs/mine/checkpoint_epoch_0003")
    with pytest.raises(CheckpointError) as refusal:
        check_origin(asked, opened(run, "checkpoint_epoch_0005", began), run)
    assert str(refusal.value) == (
        f"--resume-from {asked}: {run.location} began from {began}, and goes on from its own checkpoint_epoch_0005. "
        f"Without --resume-from it goes on; another RUN.NAME starts from {asked}"
    )


@pytest.mark.parametrize("began", [None, "/elsewhere/checkpoint_epoch_0001"])
@pytest.mark.parametrize("asked", ["", "/", "/latest", "/5", "/checkpoint_epoch_0005"])
def test_a_runs_own_newest_checkpoint_is_where_it_goes_on(asked: str, began: str | None, run: RunFolder) -> None:
    check_origin(run.location + asked, opened(run, "checkpoint_epoch_0005", began), run)


@pytest.mark.parametrize("asked", ["/3", "/checkpoint_epoch_0004", "/checkpoint_epoch_0005_step_000001"])
def test_a_runs_own_older_checkpoint_is_refused(asked: str, run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match=r"has gone on to checkpoint_epoch_0005\. Without --resume-from it goes"):
        check_origin(run.location + asked, opened(run, "checkpoint_epoch_0005", None), run)


@pytest.mark.parametrize("origin", [None, "x", 5, {"path": 5}, {}])
def test_a_run_that_began_from_nothing_or_says_nothing_readable_refuses_another_place(
    origin: Any, run: RunFolder
) -> None:
    own = OpenedCheckpoint(StoredCheckpoint(run, "checkpoint_epoch_0005"), {"resumed_from": origin}, {})
    with pytest.raises(CheckpointError, match=r"began from "):
        check_origin("/somewhere/3", own, run)
    with pytest.raises(CheckpointError, match=r"began from "):
        check_origin("hf://me/repo/latest", own, run)


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ("s3://bucket/runs/mine/3", True),
        ("s3://bucket/runs/mine/checkpoint_epoch_0003?endpoint_override=host:9000", True),
        ("s3://key:secret@bucket/runs/mine", True),
        ("s3://bucket/runs/mine/2", False),
        ("s3://other/runs/mine/3", False),
        ("/bucket/runs/mine/3", False),
    ],
)
def test_places_in_a_store_are_compared(asked: str, same: bool) -> None:
    run = RunFolder(fs.LocalFileSystem(), "bucket/runs/longer", "s3://bucket/runs/longer")
    own = opened(run, "checkpoint_epoch_0005", "bucket/runs/mine/checkpoint_epoch_0003")
    if same:
        check_origin(asked, own, run)
    else:
        with pytest.raises(CheckpointError, match=r"began from bucket/runs/mine/checkpoint_epoch_0003"):
            check_origin(asked, own, run)


@pytest.mark.parametrize(
    ("known", "asked", "same"),
    [
        ("hf://me/repo/latest", "hf://me/repo/latest", True),  # it may have moved on since
        ("hf://me/repo/latest", "hf://me/repo", True),
        ("hf://me/repo", "hf://me/repo/checkpoints/checkpoint_epoch_0003", True),
        ("hf://me/repo", "hf://me/repo/3", True),
        ("hf://me/repo@v1/3", "hf://me/repo@v1/latest", True),
        ("hf://me/repo@v1/3", "hf://me/repo@v2/3", False),
        ("hf://me/repo/latest", "hf://me/repo/2", False),
        ("hf://me/repo/latest", "hf://me/other/latest", False),
        ("hf://me/repo/latest", "runs/mine/3", False),
        (None, "hf://me/repo/latest", True),  # earlier versions did not note the repository
        (None, "hf://me/repo/checkpoints/checkpoint_epoch_0003", True),
        (None, "hf://me/repo/checkpoints/checkpoint_epoch_0002", False),
    ],
)
def test_places_on_the_hub_are_compared_without_asking_it(
    known: str | None, asked: str, same: bool, run: RunFolder
) -> None:
    start = run.child(START)
    start.create()
    if known is not None:
        start.write(LOCATION_FILE, f"{known}\n")
    own = opened(run, "checkpoint_epoch_0005", f"{start.path}/checkpoint_epoch_0003")
    if same:
        check_origin(asked, own, run)
    else:
        with pytest.raises(CheckpointError, match=rf"began from {known or start.path}"):
            check_origin(asked, own, run)


def test_a_run_is_prepared_from_its_own_checkpoint_if_the_same_place_is_named(
    tiny_config: Config, tmp_path: Path
) -> None:
    save(tiny_config.with_settings({"RUN.NAME": "mine"}), tmp_path / "runs/mine", 6)
    location = str(tmp_path / "runs/mine/1")
    first = prepare(tiny_config, location, allow_changed=["dataset"])
    assert first.start is not None and not first.continued
    write_settings(first.config, first.run)
    save(tiny_config, tmp_path / "runs/tiny", 12, resumed_from={"path": first.start.path, "step": 6})
    shutil.rmtree(tmp_path / "runs/mine")
    again = prepare(tiny_config, location, allow_changed=["dataset"])
    assert again.continued and again.start is not None and again.start.stored.name == "checkpoint_epoch_0002"
    with pytest.raises(
        CheckpointError, match=r"--resume-from .*/mine/2: .*/tiny began from .*/mine/checkpoint_epoch_0"
    ):
        prepare(tiny_config, str(tmp_path / "runs/mine/2"), allow_changed=["dataset"])
