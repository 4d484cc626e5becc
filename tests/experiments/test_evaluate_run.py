"""A run's checkpoints on benchmarks: which are due, how they are measured, and what a fault costs."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from seqtrack.config import Config, ConfigError, parse_config
from seqtrack.errors import InputError
from seqtrack.experiments import evaluate_run
from seqtrack.experiments.benchmarks import open_for_run
from seqtrack.experiments.evaluate import Folder
from seqtrack.experiments.evaluate_run import RunEvaluation, due_checkpoints, forget_replaced
from seqtrack.experiments.evaluators import Plan
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation, read_evaluations
from seqtrack.runs.folder import RunFolder
from seqtrack.tracker import TrackerSettings
from seqtrack.tracker.load import load_trained
from tests.folders import run_at
from tests.settings import make_tiny_settings
from tests.training.loops import trained_run

ONE = Plan(workers=1, slots=1, device="cpu", precision="fp32", yields=True)
NAMES = [f"checkpoint_epoch_000{epoch}" for epoch in (1, 2)]


@pytest.fixture(scope="module")
def trained(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with the checkpoints of two epochs. Tests must not change it."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained, tmp_path / "tiny")
    return run_at(tmp_path / "tiny")


def config(lasot_root: Path, **values: Any) -> Config:
    settings = make_tiny_settings(lasot_root, Path("runs"))
    settings["EVAL"] = {"BENCHMARKS": {"mine": str(lasot_root)}, "SEQUENCES": 2} | values
    return parse_config(settings, "tiny")


def test_checkpoints_are_due_that_settings_ask_for_and_that_lack_a_number(run: RunFolder, lasot_root: Path) -> None:
    settings = config(lasot_root, EVERY_EPOCHS=1)
    benchmarks = open_for_run(settings)
    assert due_checkpoints(settings, run, benchmarks) == NAMES
    add_evaluation(run, CheckpointScores(NAMES[0], 6, "mine", "pytracking", 2, 4, {"auc": 1.0}))
    assert due_checkpoints(settings, run, benchmarks) == NAMES[1:]


def test_the_last_epoch_is_due_whatever_the_interval(run: RunFolder, lasot_root: Path) -> None:
    settings = config(lasot_root, EVERY_EPOCHS=5)
    assert due_checkpoints(settings, run, open_for_run(settings)) == NAMES[1:]


def test_so_many_sequences_are_spread_over_the_list(lasot_root: Path) -> None:
    (data,) = open_for_run(config(lasot_root, SEQUENCES=2))
    assert [one.name for one in data.sequences] == ["coin-1", "kite-2"]
    assert data.coverage == "2 of 4 sequences"
    (all_of_them,) = open_for_run(config(lasot_root, SEQUENCES=9))
    assert len(all_of_them.sequences) == 4
    (named,) = open_for_run(config(lasot_root, SEQUENCES=["kite-1"]))
    assert [one.name for one in named.sequences] == ["kite-1"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"SEQUENCES": ["kite-3"]}, "no sequence kite-3; did you mean kite-2?"),
        ({"BENCHMARKS": {"lasot": "/nowhere"}}, "LaSOT test: /nowhere: no such folder"),
    ],
)
def test_benchmarks_that_cannot_be_opened_are_named(lasot_root: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        open_for_run(config(lasot_root, **values))


def test_a_benchmark_whose_annotations_are_not_public_cannot_choose_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "test/GOT-10k_Test_000001"
    folder.mkdir(parents=True)
    (folder / "groundtruth.txt").write_text("1,2,3,4\n")
    for number in (1, 2):
        (folder / f"{number:08d}.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"EVAL\.BENCHMARKS got10k_test: its annotations are not public"):
        open_for_run(config(tmp_path, BENCHMARKS={"got10k_test": str(tmp_path)}, SEQUENCES=None))


def test_checkpoints_are_measured_while_the_training_goes_on(
    cluster: None, run: RunFolder, lasot_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, told = config(lasot_root), list[CheckpointScores]()
    evaluation = RunEvaluation(settings, run, open_for_run(settings), ONE, lambda: ONE, told.append)
    with caplog.at_level(logging.WARNING):
        evaluation.start()
        assert evaluation.finish()
        evaluation.close()
    assert told == read_evaluations(run)
    assert [(one.checkpoint, one.step, one.series) for one in told] == [
        (NAMES[0], 6, "mine_2of4/pytracking"),
        (NAMES[1], 12, "mine_2of4/pytracking"),
    ]
    assert f"Evaluation : epoch 2, mine, 2 of 4 sequences: AUC {told[1].measures['auc']:.2f}" in caplog.text
    page = (Path(run.path) / "evaluation/index.html").read_text()
    assert all(name in page for name in NAMES)


def test_a_checkpoint_that_cannot_be_measured_costs_no_other(
    cluster: None, run: RunFolder, lasot_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(run.path) / NAMES[0] / "model.safetensors").write_bytes(b"no weights")
    settings = config(lasot_root)
    evaluation = RunEvaluation(settings, run, open_for_run(settings), None, lambda: ONE)
    evaluation.start()
    assert not evaluation.finish()
    evaluation.close()
    assert f"{NAMES[0]} is not measured: " in caplog.text and evaluation.problem is not None
    assert [one.checkpoint for one in read_evaluations(run)] == NAMES[1:]


def test_an_evaluation_that_is_stopped_goes_on_later(cluster: None, run: RunFolder, lasot_root: Path) -> None:
    settings = config(lasot_root)
    stopped = RunEvaluation(settings, run, open_for_run(settings), None, lambda: ONE)
    stopped.start()
    assert not stopped.finish(lambda: True)
    stopped.close()
    assert len(read_evaluations(run)) < 2
    again = RunEvaluation(settings, run, open_for_run(settings), None, lambda: ONE)
    again.start()
    assert again.finish()
    again.close()
    assert [one.checkpoint for one in read_evaluations(run)] == NAMES


def test_a_folder_that_does_not_answer_is_looked_at_again(
    run: RunFolder, lasot_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(lasot_root)
    for number, name in enumerate(NAMES, start=1):
        add_evaluation(run, CheckpointScores(name, 6 * number, "mine", "pytracking", 2, 4, {"auc": 1.0}))
    evaluation, answers = RunEvaluation(settings, run, open_for_run(settings), None, lambda: ONE), [OSError("503")]
    due = evaluation.due

    def look() -> list[str]:
        if answers:
            raise answers.pop()
        return due()

    monkeypatch.setattr(evaluation, "due", look)
    monkeypatch.setattr(evaluate_run, "SECONDS_BETWEEN_LOOKS", 0.001)
    evaluation.start()
    assert evaluation.finish()
    assert caplog.text.count("503; it is tried again") == 1


@pytest.mark.parametrize("beside", [None, ONE])
def test_a_folder_that_never_answers_ends_the_evaluation_and_is_named(
    beside: Plan | None, run: RunFolder, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it did not answer while the training went on."""
    settings, looks = config(lasot_root), threading.Semaphore(0)
    evaluation = RunEvaluation(settings, run, open_for_run(settings), beside, lambda: ONE)

    def look(*_: object) -> list[str]:
        looks.release()
        raise OSError("503")

    monkeypatch.setattr(evaluate_run, "SECONDS_BETWEEN_LOOKS", 0.001)
    monkeypatch.setattr(evaluate_run, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(evaluate_run, "due_checkpoints", look)
    monkeypatch.setattr(evaluate_run, "take_idle_time_only", lambda: None)
    evaluation.start()
    for _ in range(2 * evaluate_run.MOST_TRIES if beside else 0):
        assert looks.acquire(timeout=60)
    assert not evaluation.finish()
    assert evaluation.problem == "503"


def test_results_of_other_weights_are_made_anew_in_a_runs_own_folder(run: RunFolder, lasot_root: Path) -> None:
    (data,) = open_for_run(config(lasot_root))
    first, second = (load_trained(f"{run.path}/{name}") for name in NAMES)
    folder = Folder(f"{run.path}/evaluation", "mine", data)
    settings = TrackerSettings.from_config(first.config)
    folder.claim(first, settings, ONE)
    (Path(folder.path) / "coin-1.txt").write_text("1 2 3 4\n")
    with pytest.raises(InputError, match="has results of another weights"):
        folder.claim(second, settings, ONE)
    assert folder.done() == {"coin-1"}
    folder.claim(second, settings, ONE, anew=True)
    assert folder.done() == frozenset()


def test_a_number_on_boxes_or_frames_that_were_replaced_is_due_again(run: RunFolder, tree: Path) -> None:
    settings = config(tree)
    (before,) = open_for_run(settings)
    for number, name in enumerate(NAMES, start=1):
        add_evaluation(run, CheckpointScores(name, 6 * number, "mine", "pytracking", 2, 4, {"auc": 1.0}, before.stamp))
    assert due_checkpoints(settings, run, [before]) == []
    shutil.copy(tree / "coin/coin-1/img/00000002.jpg", tree / "coin/coin-1/img/00000001.jpg")
    benchmarks = open_for_run(settings)
    assert due_checkpoints(settings, run, benchmarks) == NAMES
    forget_replaced(run, benchmarks)
    assert read_evaluations(run) == []
