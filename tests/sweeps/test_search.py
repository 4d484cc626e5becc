"""A trial is a trial: no two have equal values, however they are drawn, and the end of the values is the end."""

from __future__ import annotations

from typing import Any

import pytest

from seqtrack.sweeps.plan import plan_work
from seqtrack.sweeps.results import Status, Trial, TrialNote
from seqtrack.sweeps.settings import Params, Sweep, trial_name, values_key
from seqtrack.sweeps.tuner import make_search

SPACES: dict[str, tuple[dict[str, Any], int]] = {
    "two values": ({"TRAIN.LR": {"choice": [0.1, 0.2]}}, 2),
    "values given twice": (
        {"TRAIN.LR": {"choice": [1, 1.0, 2, 2]}, "TRAIN.DETERMINISTIC": {"choice": [True, False]}},
        4,
    ),
    "numbers": ({"SEED": {"randint": [1, 7]}}, 7),
    "both": ({"SEED": {"randint": [1, 4]}, "TRAIN.LR": {"choice": [0.1, 0.2, 0.3]}}, 12),
    "lists": ({"DATA.MEAN": {"choice": [[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]}}, 2),
    "null": ({"TRAIN.GRAD_CLIP_NORM": {"choice": [None, 0, 1]}}, 3),
}
"""Parameters, and how many combinations they have."""


def sweep_of(kind: str, parameters: dict[str, Any], trials: int, **values: Any) -> Sweep:
    return Sweep.model_validate({"parameters": parameters, "trials": trials, "search": {"type": kind}, **values})


def suggested(sweep: Sweep, earlier: list[Trial], running: int = 3) -> list[Params]:
    """What Optuna suggests until there is nothing left, with `running` trials at a time."""
    search: Any = make_search(sweep, running, [], earlier)
    found: list[Params] = []
    while len(found) < 100 and (params := search.suggest(str(len(found)))) != "FINISHED":
        found.append(params)
        if (ended := len(found) - running) >= 0:
            search.on_trial_complete(str(ended), {"iou": 0.5, "training_iteration": 1})
    return found


def trial(params: Params, status: Status = "finished") -> Trial:
    return Trial(trial_name(params), TrialNote(params, status), [{"epoch": 1, "iou": 0.5}], None)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_every_combination_is_a_trial_once_and_then_the_sweep_is_finished(kind: str, space: str) -> None:
    parameters, size = SPACES[space]
    for asked in (size - 1, size, size + 5):
        sweep = sweep_of(kind, parameters, asked)
        work = plan_work(sweep, [])
        assert (work.trials, work.left) == (min(asked, size), min(asked, size))
        found = suggested(sweep, []) if kind == "optuna" else sweep.listed()
        found = found[: work.left]
        assert (
            len({values_key(params) for params in found}) == len({trial_name(params) for params in found}) == work.left
        )
        assert plan_work(sweep, [trial(params) for params in found]).left == 0


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_sweep_that_goes_on_trains_the_values_that_are_left(kind: str) -> None:
    parameters, _ = SPACES["both"]
    sweep = sweep_of(kind, parameters, 12)
    began = (suggested(sweep, []) if kind == "optuna" else sweep.listed())[:7]
    earlier = [trial(params) for params in began[:5]] + [trial(params, "unfinished") for params in began[5:]]
    work = plan_work(sweep, earlier)
    assert (work.trials, work.left) == (12, 7)
    found = suggested(sweep, earlier) if kind == "optuna" else list(work.listed)
    assert found[:2] == began[5:]
    names = {trial_name(params) for params in [*began[:5], *found]}
    assert len(names) == 12 and len(found) == 7


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_what_was_begun_is_ended_although_fewer_trials_are_asked_for_now(kind: str) -> None:
    parameters, _ = SPACES["both"]
    began = sweep_of("random", parameters, 4).listed()
    earlier = [trial(params) for params in began[:3]] + [trial(began[3], "unfinished")]
    work = plan_work(sweep_of(kind, parameters, 2), earlier)
    assert work.left == 1
    assert kind == "optuna" or work.listed == began[3:]


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_range_that_has_hardly_any_numbers_ends_too(kind: str) -> None:
    sweep = sweep_of(kind, {"TRAIN.LR": {"uniform": [1.0, 1.0000000000000002]}}, 5)
    found = suggested(sweep, []) if kind == "optuna" else sweep.listed()
    assert 1 <= len(found) <= 2


def test_a_folder_keeps_its_name_where_its_value_is_written_in_another_way_now() -> None:
    sweep = sweep_of("random", {"TRAIN.LR": {"grid": [1, 2]}}, 1)
    work = plan_work(sweep, [trial({"TRAIN.LR": 1.0}), trial({"TRAIN.LR": 2.0}, "unfinished")])
    assert [trial_name(params) for params in work.listed] == ["LR=2.0"]


def test_values_of_a_grid_that_are_equal_are_one_trial() -> None:
    sweep = sweep_of("random", {"TRAIN.LR": {"grid": [1, 1.0, 1]}, "SEED": {"grid": [2, 2]}}, 1)
    assert sweep.listed() == [{"TRAIN.LR": 1, "SEED": 2}]
    assert sweep.asked == 6
