"""The numbers of a run's checkpoints: a line each, which is replaced and never doubled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seqtrack.runs.evaluations import (
    CheckpointScores,
    add_evaluation,
    auc_by_checkpoint,
    forget_changed,
    forget_later,
    read_evaluations,
)
from seqtrack.runs.folder import RunFileError
from tests.folders import run_at

FIRST = CheckpointScores("checkpoint_epoch_0001", 6, "lasot", "pytracking", 280, 280, {"auc": 10.5, "op50": 3.0})
SECOND = replace(FIRST, checkpoint="checkpoint_epoch_0002", step=12, measures={"auc": 20.0})


def test_what_is_added_is_read_in_the_order_of_steps(tmp_path: Path) -> None:
    for one in (SECOND, FIRST):
        add_evaluation(run_at(tmp_path), one)
    assert read_evaluations(run_at(tmp_path)) == [FIRST, SECOND]


def test_a_checkpoint_that_is_measured_again_has_one_line(tmp_path: Path) -> None:
    again = replace(FIRST, measures={"auc": 11.0})
    for one in (FIRST, SECOND, again):
        add_evaluation(run_at(tmp_path), one)
    assert read_evaluations(run_at(tmp_path)) == [again, SECOND]


def test_a_part_of_a_benchmark_is_a_series_of_its_own(tmp_path: Path) -> None:
    part = replace(FIRST, sequences=20)
    for one in (FIRST, part):
        add_evaluation(run_at(tmp_path), one)
    assert [one.series for one in read_evaluations(run_at(tmp_path))] == [
        "lasot/pytracking",
        "lasot_20of280/pytracking",
    ]


def test_checkpoints_are_compared_within_one_series() -> None:
    part = replace(FIRST, sequences=20, measures={"auc": 90.0})
    other = replace(SECOND, benchmark="tnl2k", measures={"auc": 99.0})
    assert auc_by_checkpoint([FIRST, SECOND, part, other]) == {
        "checkpoint_epoch_0001": 10.5,
        "checkpoint_epoch_0002": 20.0,
    }
    assert auc_by_checkpoint([FIRST, other], "tnl2k") == {"checkpoint_epoch_0002": 99.0}
    assert auc_by_checkpoint([]) == {}


def test_the_series_that_goes_on_is_compared() -> None:
    """EVAL.SEQUENCES was changed after the first two epochs."""
    later = replace(SECOND, checkpoint="checkpoint_epoch_0003", step=18, sequences=20, measures={"auc": 5.0})
    assert auc_by_checkpoint([FIRST, SECOND, later]) == {"checkpoint_epoch_0003": 5.0}


def test_a_run_that_goes_on_from_an_earlier_step_forgets_what_came_after(tmp_path: Path) -> None:
    for one in (FIRST, SECOND):
        add_evaluation(run_at(tmp_path), one)
    forget_later(run_at(tmp_path), 12)
    assert read_evaluations(run_at(tmp_path)) == [FIRST, SECOND]
    forget_later(run_at(tmp_path), 11)
    assert read_evaluations(run_at(tmp_path)) == [FIRST]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"checkpoint": "che', "line 2: is no evaluation of a checkpoint"),
        ("[]", "line 2: is no evaluation of a checkpoint"),
        ('{"checkpoint": "a", "step": "6"}', "line 2: is no evaluation of a checkpoint"),
        (FIRST.to_json().replace("10.5", '"much"'), "line 2: has a measure that is no number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "evaluation.jsonl").write_text(f"{SECOND.to_json()}\n{line}\n")
    with pytest.raises(RunFileError, match=f"evaluation.jsonl, {message}"):
        read_evaluations(run_at(tmp_path))


def test_numbers_on_boxes_or_frames_that_were_replaced_are_forgotten(tmp_path: Path) -> None:
    """Those of earlier versions do not say on which they were measured, and are kept."""
    run = run_at(tmp_path)
    same, other = replace(FIRST, data="aaaa"), replace(SECOND, data="bbbb")
    old = replace(SECOND, checkpoint="checkpoint_epoch_0007", step=42)
    elsewhere = replace(other, benchmark="mine")
    for one in (same, other, old, elsewhere):
        add_evaluation(run, one)
    assert forget_changed(run, {FIRST.series: "aaaa"}) == 1
    assert read_evaluations(run) == [same, elsewhere, old]
    assert forget_changed(run, {FIRST.series: "aaaa"}) == 0
