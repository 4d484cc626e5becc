"""A run whose folder says that it had checkpoints, and shows none, does not start over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from seqtrack import files, locations
from seqtrack.config import SETTINGS_FILE, Config, ConfigError
from seqtrack.experiments.prepare import prepare
from seqtrack.locations import child
from seqtrack.runs import history
from seqtrack.runs.checkpoint import CheckpointError, StoredCheckpoint, newest_checkpoint
from seqtrack.runs.evaluations import EVALUATIONS_FILE
from seqtrack.runs.folder import RunFolder, own_run, write_settings
from seqtrack.runs.history import FIRST_FILE, RAYS_LIST, await_metrics, note_first_checkpoint, own_checkpoint
from seqtrack.runs.log import LOG_FILE, METRICS_FILE, MetricsFile, append_to_log
from tests.checkpoints import save
from tests.object_stores import s3_bucket


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short."""
    monkeypatch.setattr(history, "LOOKS", (0.0, 0.0, 0.0))


@pytest.fixture
def run(tiny_config: Config) -> RunFolder:
    """A run that was started and has no checkpoint."""
    run = RunFolder.of(tiny_config)
    write_settings(tiny_config, run)
    return run


def rays_list(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


def records(*epoch_ends: int, last: int) -> str:
    """A `metrics.jsonl` of `last` records, of which some end an epoch."""
    ends = {step: {"epoch/loss": 1.0} for step in epoch_ends}
    return "".join(json.dumps({"step": step, **ends.get(step, {})}) + "\n" for step in range(1, last + 1))


HAD = {
    "noted": {FIRST_FILE: '{"name": "checkpoint_epoch_0001"}'},
    "note cut off": {FIRST_FILE: ""},
    "listed by Ray": {RAYS_LIST: rays_list("checkpoint_epoch_0001")},
    "Ray's list cut off": {RAYS_LIST: '{"checkpoint_res'},
    "measured": {EVALUATIONS_FILE: "{}\n"},
    "three epochs": {METRICS_FILE: records(6, 12, last=14)},
}
HAD_NOT: dict[str, dict[str, str]] = {
    "nothing": {},
    "killed in the first epoch": {METRICS_FILE: records(last=5)},
    "killed before the first checkpoint was whole": {METRICS_FILE: records(6, last=8)},
    "killed before the second began": {METRICS_FILE: records(6, 12, last=12)},
}


@pytest.mark.parametrize("files", HAD.values(), ids=HAD.keys())
def test_a_run_that_had_checkpoints_does_not_start_over(
    run: RunFolder, tiny_config: Config, files: dict[str, str]
) -> None:
    for name, text in files.items():
        run.write(name, text)
    with pytest.raises(CheckpointError) as refusal:
        prepare(tiny_config)
    said = str(refusal.value)
    assert said.startswith(f"{run.location}: had checkpoints ({next(iter(files))}") and "mounted" in said
    assert said.endswith("Another RUN.NAME, or removing the folder, starts over")
    for name, text in files.items():
        assert run.read_text(name) == text


@pytest.mark.parametrize("files", HAD_NOT.values(), ids=HAD_NOT.keys())
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_at_step_0(
    run: RunFolder, tiny_config: Config, files: dict[str, str]
) -> None:
    for name, text in files.items():
        run.write(name, text)
    assert prepare(tiny_config).start is None


def test_the_first_checkpoint_is_noted_once(run: RunFolder) -> None:
    note_first_checkpoint(StoredCheckpoint(run, "checkpoint_epoch_0001"))
    note_first_checkpoint(StoredCheckpoint(run, "checkpoint_epoch_0002"))
    assert run.read_json(FIRST_FILE) == {"name": "checkpoint_epoch_0001"}


class Faulty:
    """Answers a few times in another way, then as before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> None:
        self._answers: Iterator[Any] = iter(answers)
        monkeypatch.setattr(history, "newest_checkpoint", self)

    def __call__(self, run: RunFolder) -> StoredCheckpoint | None:
        answer = next(self._answers, newest_checkpoint)
        if isinstance(answer, OSError):
            raise answer
        found: StoredCheckpoint | None = answer(run)
        return found


def empty(run: RunFolder) -> None:
    return None


def old(run: RunFolder) -> StoredCheckpoint:
    return StoredCheckpoint(run, "checkpoint_epoch_0001")


@pytest.mark.parametrize(
    "answers",
    [[empty], [empty, empty], [OSError("timed out")], [OSError("timed out"), empty], [old], [old] * 9, [empty] * 9],
    ids=["empty", "twice", "fails", "both", "old", "stays old", "stays empty"],
)
def test_a_list_that_lacks_checkpoints_for_a_while_changes_nothing(
    run: RunFolder, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, answers: list[Callable[..., Any]]
) -> None:
    for step in (6, 12):
        save(tiny_config, Path(run.path), step)
    run.write(RAYS_LIST, rays_list("checkpoint_epoch_0001", "checkpoint_epoch_0002"))
    Faulty(monkeypatch, answers)
    assert own_checkpoint(run) == StoredCheckpoint(run, "checkpoint_epoch_0002")


def test_a_checkpoint_that_was_removed_by_hand_is_not_waited_for(run: RunFolder, tiny_config: Config) -> None:
    save(tiny_config, Path(run.path), 6)
    run.write(RAYS_LIST, rays_list("checkpoint_epoch_0001", "checkpoint_epoch_0002"))
    assert own_checkpoint(run) == StoredCheckpoint(run, "checkpoint_epoch_0001")


def test_a_folder_that_cannot_be_listed_is_named(
    run: RunFolder, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    Faulty(monkeypatch, [OSError("timed out")] * 9)
    with pytest.raises(CheckpointError, match=rf"^{run.location}: cannot be read \(timed out\)$"):
        prepare(tiny_config)
    assert isinstance(run.filesystem, fs.LocalFileSystem)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run in an object store, whose server says of the next file that it is asked for that it is not there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_bucket() as location:
        run = RunFolder.at(child(location, "run"))
        for name in (LOG_FILE, METRICS_FILE, SETTINGS_FILE):
            run.write(name, records(last=3))
        answers, is_file = iter([False]), files.is_file
        monkeypatch.setattr(files, "is_file", lambda *place: next(answers, None) is None and is_file(*place))
        yield run


def test_one_404_does_not_replace_the_log(stored: RunFolder) -> None:
    append_to_log(stored, ["second line"])
    assert stored.read_text(LOG_FILE) == records(last=3) + "second line\n"


def test_one_404_does_not_empty_the_records(stored: RunFolder) -> None:
    file = MetricsFile(stored, 3)
    file.add({"step": 4, "time": 1})
    file.flush()
    assert (stored.read_text(METRICS_FILE) or "").startswith(records(last=3))


def test_one_404_does_not_hide_the_settings(stored: RunFolder) -> None:
    assert stored.read_text(SETTINGS_FILE) == records(last=3)


def test_records_that_do_not_show_yet_are_waited_for(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(METRICS_FILE, records(last=3))
    answers, has = iter([False, False]), RunFolder.has
    monkeypatch.setattr(RunFolder, "has", lambda *asked: next(answers, None) is None and has(*asked))
    await_metrics(run, 3)
    assert next(answers, None) is None
    MetricsFile(run, 3)
    assert run.read_text(METRICS_FILE) == records(last=3)


def test_records_that_are_lost_are_said_to_be(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    await_metrics(run, 0)
    assert not caplog.records
    await_metrics(run, 12)
    assert "metrics.jsonl: is not there; the records of the first 12 steps are lost" in caplog.text


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ("server:/runs {folder} nfs defaults 0 0", True),
        ("server:/runs {folder} nfs noauto,ro 0 0", False),
        ("# server:/runs {folder} nfs defaults 0 0", False),
        ("server:/runs {folder}-2 nfs defaults 0 0", False),
        ("/dev/sda1 / ext4 defaults 0 1", False),  # it is mounted
        ("/dev/sda2 none swap sw 0 0", False),
        ("rubbish", False),
    ],
)
def test_storage_that_is_not_mounted_is_not_written_to(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, refused: bool
) -> None:
    folder = tmp_path / "with space"
    (tmp_path / "fstab").write_text(line.format(folder=str(folder).replace(" ", "\\040")))
    monkeypatch.setattr(locations, "FSTAB", str(tmp_path / "fstab"))
    config = tiny_config.with_settings({"RUN.STORAGE_PATH": str(folder / "runs")})
    if refused:
        with pytest.raises(ConfigError, match=rf"^RUN\.STORAGE_PATH {folder}/runs: {folder} is not mounted, and "):
            own_run(config)
    else:
        with own_run(config):
            pass
    assert not folder.exists()
