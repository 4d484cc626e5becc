from __future__ import annotations

import numpy as np
import torch

from seqtrack.config import Config
from seqtrack.reports.comparison import compare
from seqtrack.runs.evaluations import CheckpointScores
from tests.reports.phases import made_up_phase


def test_equal_phases_are_bitwise_equal_over_their_common_steps(tiny_config: Config) -> None:
    result = compare(made_up_phase(tiny_config), made_up_phase(tiny_config, "Phase 2", first_epoch=2))
    assert (result.first_step, result.last_step) == (20, 40)
    assert result.verdict == "bitwise equal"
    assert result.reproduced
    assert {one.metric: one.largest for one in result.steps} == dict.fromkeys(("loss", "iou", "grad_norm", "lr"), 0.0)


def test_the_first_differing_step_and_the_largest_difference_are_named(tiny_config: Config) -> None:
    phase2 = made_up_phase(tiny_config, "Phase 2", first_epoch=2)
    phase2.steps[25, 0] += 1e-9
    phase2.steps[30, 0] -= 0.5
    result = compare(made_up_phase(tiny_config), phase2)
    assert result.verdict == "different from step 26 on"
    assert not result.reproduced
    loss = result.steps[0]
    assert (loss.metric, round(loss.largest, 6), loss.at) == ("loss", 0.5, 31)


def test_steps_before_the_second_phase_do_not_count(tiny_config: Config) -> None:
    phase2 = made_up_phase(tiny_config, "Phase 2", first_epoch=2)
    phase2.steps[19] += 1
    assert compare(made_up_phase(tiny_config), phase2).verdict == "bitwise equal"


def test_a_tolerance_accepts_small_differences_and_says_how_large_they_are(tiny_config: Config) -> None:
    phase2 = made_up_phase(tiny_config, "Phase 2", first_epoch=2)
    phase2.steps[25, 1] += 1e-7
    result = compare(made_up_phase(tiny_config), phase2, tolerance=1e-6)
    assert result.verdict == "equal within 1e-07"
    assert result.reproduced
    assert not compare(made_up_phase(tiny_config), phase2, tolerance=1e-8).reproduced


def test_other_weights_are_a_difference_though_every_step_agrees(tiny_config: Config) -> None:
    phase2 = made_up_phase(tiny_config, "Phase 2", first_epoch=2, weights={"weight": torch.tensor([1, 1, 1.5])})
    result = compare(made_up_phase(tiny_config), phase2)
    assert result.weights == 0.5
    assert result.verdict == "different in its final weights"
    assert not result.reproduced


def test_nan_equals_only_nan(tiny_config: Config) -> None:
    phase1, phase2 = made_up_phase(tiny_config), made_up_phase(tiny_config, "Phase 2", first_epoch=2)
    phase1.steps[30, 2] = np.nan
    assert compare(phase1, phase2).verdict == "different from step 31 on"
    phase2.steps[30, 2] = np.nan
    assert compare(phase1, phase2).verdict == "bitwise equal"


def test_a_phase_that_ended_early_reproduces_nothing(tiny_config: Config) -> None:
    result = compare(made_up_phase(tiny_config), made_up_phase(tiny_config, "Phase 2", first_epoch=2, done=33))
    assert result.last_step == 33
    assert result.weights is None
    assert result.verdict == "bitwise equal, as far as it got: not finished"
    assert not result.reproduced


def test_phases_without_a_common_step_cannot_be_compared(tiny_config: Config) -> None:
    result = compare(made_up_phase(tiny_config, done=20), made_up_phase(tiny_config, "Phase 2", first_epoch=2, done=20))
    assert result.verdict == "nothing to compare"
    assert not result.reproduced


def test_the_same_checkpoint_of_both_phases_is_compared_on_each_benchmark(tiny_config: Config) -> None:
    def measured(step: int, auc: float) -> CheckpointScores:
        name = f"checkpoint_epoch_{step // 10:04d}"
        return CheckpointScores(name, step, "lasot", "pytracking", 280, 280, {"auc": auc})

    phase1 = made_up_phase(tiny_config, evaluations=[measured(20, 30.0), measured(30, 40.0), measured(40, 50.0)])
    phase2 = made_up_phase(
        tiny_config, "Phase 2", first_epoch=2, evaluations=[measured(20, 0.0), measured(30, 40.0), measured(40, 50.5)]
    )
    found = [(one.step, one.auc1, one.auc2, one.difference) for one in compare(phase1, phase2).tracking]
    assert found == [(30, 40.0, 40.0, 0.0), (40, 50.0, 50.5, 0.5)], "phase 2 did not train the second epoch"
