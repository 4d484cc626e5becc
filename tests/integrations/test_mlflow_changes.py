"""What MLflow keeps for ever, told apart from what a run has now: settings, points, pictures, deleted runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from seqtrack.config import Config
from seqtrack.integrations import mlflow_store
from seqtrack.integrations.mirror_state import MIRROR_FILE, MirrorState, StartSettings
from seqtrack.integrations.mirror_thread import MirrorThread
from seqtrack.integrations.mlflow import REPLACED, Mirror
from seqtrack.integrations.mlflow_store import StoreError, find_experiment, make_client
from seqtrack.model.weights import META_FILE
from seqtrack.runs.checkpoint import SUMS_FILE
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation, forget_later
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import MetricsFile, read_metrics
from seqtrack.sums import checkpoint_name
from seqtrack.training.state import TrainState
from tests.integrations.servers import empty_store
from tests.training import loops

Tracked = Callable[..., tuple[Config, RunFolder]]


@pytest.fixture
def made(tracked: Tracked, tmp_path: Path) -> tuple[Config, RunFolder]:
    """A run with a store of its own."""
    return tracked(empty_store(tmp_path))


def begin(config: Config, run: RunFolder, step: int = 0) -> Mirror:
    """A start of the run that goes on from `step`."""
    mirror = Mirror(config, run)
    mirror.note.start({}, None, StartSettings(config.flat(), step))
    return mirror


def page(config: Config, run: RunFolder) -> Run:
    run_id = MirrorState.read(run).run_id
    assert run_id is not None
    return MlflowClient(config.MLFLOW.TRACKING_URI).get_run(run_id)


def points(config: Config, run: RunFolder, name: str) -> dict[int, list[float]]:
    """Step -> the values that MLflow has there, the earliest first."""
    found: dict[int, list[float]] = {}
    history = MlflowClient(config.MLFLOW.TRACKING_URI).get_metric_history(page(config, run).info.run_id, name)
    for point in sorted(history, key=lambda point: point.timestamp):
        found.setdefault(point.step, []).append(point.value)
    return found


def train(run: RunFolder, start: int, stop: int, loss: float, clock: int = 0) -> None:
    """Writes a record every second step, as a start does that goes on from the checkpoint of step `start`."""
    file = MetricsFile(run, start)
    for step in range(start + 1, stop + 1):
        if step % 2 == 0:
            record = {"step": step, "time": 1_700_000_000_000 + clock + step, "train/loss": loss, "perf/rate": loss}
            file.add(record | ({"epoch/loss": loss} if step % 6 == 0 else {}))
    file.flush()


CHANGES: dict[str, tuple[list[tuple[int, float]], str | None]] = {
    "once": ([(0, 0.001), (6, 0.002)], "0.002 since step 6 (before: 0.001)"),
    "goes on": ([(0, 0.001), (6, 0.002), (9, 0.002)], "0.002 since step 6 (before: 0.001)"),
    "twice": ([(0, 0.001), (6, 0.002), (12, 0.004)], "0.004 since step 12 (before: 0.002 since step 6, 0.001)"),
    "and back": ([(0, 0.001), (6, 0.002), (12, 0.001)], "0.001 since step 12 (before: 0.002 since step 6, 0.001)"),
    "killed, then another": ([(0, 0.001), (6, 0.002), (6, 0.003)], "0.003 since step 6 (before: 0.001)"),
    "killed, then back": ([(0, 0.001), (6, 0.002), (6, 0.001)], None),
    "before a checkpoint": ([(0, 0.001), (0, 0.002)], "0.002 since step 0 (before: 0.001)"),
}
"""Starts of a run, with their step and TRAIN.LR, and what the tag says at last."""


@pytest.mark.parametrize(
    ("which", "away"), [*((which, False) for which in CHANGES), ("twice", True), ("killed, then back", True)]
)
def test_a_setting_that_a_later_start_changed_has_a_tag_with_its_step(
    made: tuple[Config, RunFolder], which: str, away: bool
) -> None:
    """`away`: the store cannot be reached before the end."""
    (config, run), (starts, told) = made, CHANGES[which]
    for step, rate in starts:
        config = config.with_settings({"TRAIN.LR": rate, "RUN.WORKERS": 1 + (step > 0)})
        mirror = begin(config, run, step)
        if not away:
            mirror.sync()
    Mirror(config, run).sync()  # as `deliver` does, with what the folder says
    tags = page(config, run).data.tags
    assert tags.get("changed/TRAIN.LR") == told
    assert ("changed/RUN.WORKERS" in tags) == any(step > 0 for step, _ in starts)
    assert sum(key.startswith("changed/") for key in tags) == (told is not None) + ("changed/RUN.WORKERS" in tags)
    client = MlflowClient(config.MLFLOW.TRACKING_URI)
    settings = client.download_artifacts(page(config, run).info.run_id, "config.yaml")
    assert Path(settings).read_text() == config.to_yaml()


def test_a_folder_of_an_earlier_version_knows_the_settings_of_its_checkpoint(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    begin(config, run).sync()
    state = run.read_json(MIRROR_FILE) or {}
    run.write_json(MIRROR_FILE, {key: value for key, value in state.items() if key not in ("values", "changes")})
    name = checkpoint_name(0, 4)
    run.child(name).create()
    run.write(f"{name}/{SUMS_FILE}", "")
    run.write_json(f"{name}/{META_FILE}", {"step": 4, "config": config.model_dump(mode="json")})
    changed = config.with_settings({"TRAIN.EPOCH": 7})
    MirrorThread(changed, run, {}).close("KILLED", patience=0)
    Mirror(changed, run).sync()
    assert page(config, run).data.tags["changed/TRAIN.EPOCH"] == "7 since step 4 (before: 2)"


def test_a_change_that_only_mlflow_remembers_is_told_without_its_step(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    Mirror(config, run).sync()
    Mirror(config.with_settings({"TRAIN.LR": 0.5}), run).sync()
    assert page(config, run).data.tags["changed/TRAIN.LR"] == "0.5 (before: 0.001)"


@pytest.mark.parametrize(("at", "clock"), [(20, 1000), (13, 1000), (0, 1000), (20, -500_000), (0, -500_000)])
@pytest.mark.parametrize("alive", [True, False], ids=["worker killed", "job killed"])
def test_points_of_a_killed_start_are_replaced_by_later_ones(
    made: tuple[Config, RunFolder], clock: int, alive: bool, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_history(*_: Any) -> None:
        raise AssertionError("a whole history was fetched")

    monkeypatch.setattr(MlflowClient, "get_metric_history", no_history)
    config, run = made
    train(run, 0, 30, loss=3.819)
    mirror = begin(config, run)
    mirror.sync()
    train(run, at, 26, loss=3.79, clock=clock)
    mirror = mirror if alive else begin(config, run, at)
    mirror.sync()
    train(run, 26, 40, loss=3.5, clock=clock)
    mirror.sync()
    monkeypatch.undo()
    kept = at // 2 * 2
    for name in ("train/loss", "perf/rate", "epoch/loss"):
        expected = {int(one["step"]): one[name] for one in read_metrics(run) if name in one}
        found = points(config, run, name)
        assert {step: values[-1] for step, values in found.items()} == expected
        assert {step for step, values in found.items() if len(values) > 1} == {
            step for step in expected if kept < step <= 30
        }
    assert page(config, run).data.metrics["train/loss"] == 3.5
    told = f"steps {kept + 1} to 30 : of two points at a step, the later one is the run's"
    assert page(config, run).data.tags[REPLACED] == told


def test_points_that_nothing_replaced_yet_are_told_too_and_each_event_once(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    train(run, 0, 30, loss=3.0)
    begin(config, run).sync()
    train(run, 20, 20, loss=2.0)
    begin(config, run, 20).sync()
    assert page(config, run).data.tags[REPLACED].startswith("steps 21 to 30 : ")
    train(run, 20, 24, loss=2.0, clock=1000)
    begin(config, run, 20).sync()
    begin(config, run, 20).sync()
    assert page(config, run).data.tags[REPLACED].startswith("steps 21 to 30 : ")
    train(run, 12, 34, loss=1.0, clock=2000)
    begin(config, run, 12).sync()
    assert page(config, run).data.tags[REPLACED].startswith("steps 21 to 30, steps 13 to 30 : ")
    assert points(config, run, "train/loss")[24] == [3.0, 2.0, 1.0]


def test_numbers_of_a_checkpoint_that_is_trained_again_replace_the_old_ones(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    mirror = begin(config, run)
    scores = CheckpointScores("checkpoint_epoch_0002", 12, "lasot", "pytracking", 280, 280, {"auc": 10.5})
    for auc in (10.5, 20.25, 10.5):
        forget_later(run, 6)
        add_evaluation(run, replace(scores, measures={"auc": auc}))
        mirror.sync()
        mirror.sync()
    assert points(config, run, "lasot/pytracking/auc") == {12: [10.5, 20.25, 10.5]}
    assert page(config, run).data.metrics["lasot/pytracking/auc"] == 10.5


@pytest.mark.parametrize("alive", [True, False], ids=["worker killed", "job killed"])
def test_a_picture_of_an_epoch_that_is_trained_again_is_replaced(made: tuple[Config, RunFolder], alive: bool) -> None:
    config, run = made
    loops.train(config)
    mirror = begin(config, run)
    mirror.sync()
    client, run_id = MlflowClient(config.MLFLOW.TRACKING_URI), page(config, run).info.run_id

    def pictures() -> list[bytes]:
        folder = Path(client.download_artifacts(run_id, "snapshots"))
        return [path.read_bytes() for path in sorted(folder.iterdir())]

    before = pictures()
    last = Path(run.file(checkpoint_name(2, 0)))
    shutil.rmtree(last)
    start = loops.checkpoint_of(config, checkpoint_name(1, 0))
    loops.train(config, start, before=halve)
    mirror = mirror if alive else begin(config, run, 6)
    last.rename(last.with_name("unfinished"))
    mirror.sync()
    last.with_name("unfinished").rename(last)
    mirror.sync()
    after = pictures()
    assert len(before) == len(after) == 2
    assert after[0] == before[0] and after[1] != before[1]


def halve(state: TrainState) -> None:
    for parameter in state.model.parameters():
        parameter.data /= 2


def test_a_run_that_was_deleted_in_mlflow_gets_a_new_one_with_everything(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    train(run, 0, 10, loss=3.0)
    begin(config, run).sync()
    deleted = page(config, run).info.run_id
    MlflowClient(config.MLFLOW.TRACKING_URI).delete_run(deleted)
    train(run, 10, 20, loss=2.0)
    begin(config, run, 10).sync()
    assert page(config, run).info.run_id != deleted
    assert len(points(config, run, "train/loss")) == 10


def test_an_experiment_that_was_deleted_in_mlflow_is_named(made: tuple[Config, RunFolder]) -> None:
    config, _ = made
    client = make_client(config)
    number = find_experiment(client, config)
    client.delete_experiment(number)
    required = config.with_settings({"MLFLOW.REQUIRED": True})
    said = f"the experiment {config.MLFLOW.EXPERIMENT} was deleted there; `mlflow experiments restore --experiment-id"
    with pytest.raises(StoreError) as error:
        mlflow_store.check_store(required)
    assert f"{said} {number}` brings it back" in str(error.value) and str(error.value).count("MLflow at") == 1
