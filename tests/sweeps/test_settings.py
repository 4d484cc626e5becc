from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.config import Config, ConfigError, load_config
from seqtrack.locations import check_name
from seqtrack.sweeps.settings import Sweep, load_sweep, trial_name

REPOSITORY = Path(__file__).parents[2]


def sweep_of(**values: Any) -> Sweep:
    return Sweep.model_validate(values)


def test_a_grid_is_every_combination_in_order() -> None:
    sweep = sweep_of(parameters={"TRAIN.LR": {"grid": [0.1, 0.01]}, "SEED": {"grid": [1, 2, 3]}})
    assert sweep.listed() == [{"TRAIN.LR": lr, "SEED": seed} for lr in (0.1, 0.01) for seed in (1, 2, 3)]


def test_each_draw_meets_every_combination_of_the_grids() -> None:
    sweep = sweep_of(
        parameters={
            "TRAIN.LR": {"loguniform": [1e-5, 1e-1]},
            "SEED": {"grid": [1, 2]},
            "TRAIN.EPOCH": {"randint": [1, 3]},
        },
        trials=50,
    )
    trials = sweep.listed()
    assert len(trials) == 100
    assert len({trial["TRAIN.LR"] for trial in trials}) == 50
    assert all(1e-5 <= trial["TRAIN.LR"] <= 1e-1 for trial in trials)
    assert sum(trial["TRAIN.LR"] < 1e-3 for trial in trials) in range(30, 71)  # evenly in the logarithm
    assert {trial["TRAIN.EPOCH"] for trial in trials} == {1, 2, 3}
    assert trials == sweep.listed()


def test_the_draws_stay_the_same_from_version_to_version() -> None:
    """A sweep that is given again finds its trials by their values. These numbers are Ray Tune's own draws."""
    kinds = {
        "TRAIN.LR": {"loguniform": [1e-5, 1e-1]},
        "TRAIN.WEIGHT_DECAY": {"uniform": [0, 0.1]},
        "TRAIN.EPOCH": {"randint": [1, 9]},
        "TRAIN.ENCODER_MULTIPLIER": {"choice": [0.1, 1.0, 2]},
        "DATA.MEAN": {"choice": [[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]},
        "TRAIN.DETERMINISTIC": {"choice": [True, False]},
    }
    drawn = sweep_of(parameters=kinds, trials=3, search={"seed": 7}).listed()
    assert [list(trial.values()) for trial in drawn] == [
        [2.019450244810227e-05, 0.07799187922401146, 4, 0.1, [0.1, 0.2, 0.3], True],
        [0.00011362747503788341, 0.008674342983999194, 9, 2, [0.5, 0.5, 0.5], True],
        [0.01640424112822734, 0.03809411331485384, 8, 2, [0.5, 0.5, 0.5], False],
    ]
    shipped = load_sweep(REPOSITORY / "configs/sweeps/lr_asha.yaml").listed()
    assert shipped[:2] == [
        {"TRAIN.LR": 0.0013291125735654782, "TRAIN.ENCODER_MULTIPLIER": 1.0},
        {"TRAIN.LR": 0.010231009795241266, "TRAIN.ENCODER_MULTIPLIER": 1.0},
    ]
    assert shipped[-1] == {"TRAIN.LR": 0.00038180874757520245, "TRAIN.ENCODER_MULTIPLIER": 1.0}


def test_a_sweeps_file_is_read_without_ray() -> None:
    """Importing Ray takes seconds, in which a mistyped key could have been named."""
    code = "import seqtrack.sweeps.settings, sys; print({'ray', 'torch', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_another_seed_draws_other_trials() -> None:
    drawn = [
        sweep_of(parameters={"TRAIN.LR": {"uniform": [0.1, 0.2]}}, search={"seed": seed}).listed() for seed in (0, 1)
    ]
    assert drawn[0] != drawn[1]


def test_more_trials_begin_with_the_same_ones() -> None:
    """So a sweep can be given again with more."""
    parameters = {"TRAIN.LR": {"uniform": [0.1, 0.2]}, "TRAIN.EPOCH": {"randint": [1, 9]}, "SEED": {"grid": [1, 2]}}
    few, many = (sweep_of(parameters=parameters, trials=trials).listed() for trials in (2, 5))
    assert many[: len(few)] == few


def test_what_is_drawn_twice_is_trained_once() -> None:
    sweep = sweep_of(parameters={"TRAIN.OPTIMIZER": {"choice": ["ADAMW"]}}, trials=5)
    assert sweep.listed() == [{"TRAIN.OPTIMIZER": "ADAMW"}]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_sweeps_fit_the_demo(path: Path) -> None:
    config = load_config(REPOSITORY / "configs/demo.yaml")
    sweep = load_sweep(path)
    sweep.check(config, str(path))
    for params in sweep.listed():
        config.with_settings(params)


def test_lr_seed_is_five_learning_rates_with_three_seeds() -> None:
    trials = load_sweep(REPOSITORY / "configs/sweeps/lr_seed.yaml").listed()
    assert len(trials) == 15
    assert {len({trial[key] for trial in trials}) for key in ("TRAIN.LR", "SEED")} == {5, 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"parameters": {"TRAIN.LRR": {"grid": [1.0]}}},
            "parameters.TRAIN.LRR: unknown setting; did you mean TRAIN.LR?",
        ),
        ({"parameters": {"RUN.NAME": {"grid": ["a"]}}}, "parameters.RUN.NAME: is the same for all trials of a sweep"),
        ({"parameters": {"DATA.ROOT": {"grid": ["a"]}}}, "parameters.DATA.ROOT: is the same for all trials"),
        (
            {"parameters": {"DATA.TRAIN.DATASETS_RATIO": {"grid": [[1]]}}},
            "parameters.DATA.TRAIN.DATASETS_RATIO: is the same for all trials",
        ),
        ({"parameters": {"TRAIN.LR": {"grid": [0.1, "fast"]}}}, "parameters.TRAIN.LR: TRAIN.LR: "),
        ({"parameters": {"TRAIN.LR": {"uniform": [-1, 1]}}}, "parameters.TRAIN.LR: TRAIN.LR: Input should be greater"),
        (
            {"parameters": {"TRAIN.EPOCH": {"uniform": [1.5, 3]}}},
            "parameters.TRAIN.EPOCH: TRAIN.EPOCH: Input should be a",
        ),
        ({"parameters": {"TRAIN.LR": {"grid": [1.0], "choice": [1.0]}}}, "needs exactly one of grid, choice, uniform"),
        ({"parameters": {"TRAIN.LR": {}}}, "parameters.TRAIN.LR: needs exactly one of grid"),
        ({"parameters": {"TRAIN.LR": {"grid": []}}}, "parameters.TRAIN.LR.grid: List should have at least 1 item"),
        ({"parameters": {"TRAIN.LR": {"loguniform": [0.1, 0.01]}}}, "low 0.1 is not below high 0.01"),
        ({"parameters": {"TRAIN.LR": {"gird": [1.0]}}}, "parameters.TRAIN.LR.gird: unknown; grid, choice, uniform, "),
        ({"parameters": {}}, "parameters: Dictionary should have at least 1 item"),
        ({"parameters": {"SEED": {"grid": [1]}}, "trails": 3}, "trails: unknown; parameters, metric, mode, trials, "),
        ({"parameters": {"SEED": {"grid": [1]}}, "trials": 3}, "trials 3: every parameter is a grid, nothing is drawn"),
        ({"parameters": {"SEED": {"grid": [1]}}, "search": {"type": "optuna"}}, "`choice` instead of `grid`"),
        ({"parameters": {"SEED": {"grid": [1]}}, "metric": "map"}, "metric: Input should be 'loss', 'iou'"),
        ({"parameters": {"SEED": {"grid": [1]}}, "stop": {"iuo": 1}}, "stop.iuo.[key]: Input should be"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError) as error:
        load_sweep(path).check(Config(), str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({}, {}, r"sweep\.yaml: metric auc needs EVAL\.BENCHMARKS"),
        (
            {"scheduler": {"type": "asha"}},
            {"EVAL.BENCHMARKS": {"lasot": "/data/lasot"}},
            r"sweep\.yaml: scheduler asha with metric auc needs EVAL\.RESOURCES",
        ),
    ],
)
def test_trials_cannot_be_compared_by_what_is_not_measured(
    values: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    sweep = sweep_of(parameters={"SEED": {"grid": [1]}}, metric="auc", **values)
    with pytest.raises(ConfigError, match=message):
        sweep.check(Config().with_settings(settings), "sweep.yaml")


def test_uploads_belong_to_one_training() -> None:
    sweep = sweep_of(parameters={"SEED": {"grid": [1]}})
    with pytest.raises(ConfigError, match=r"HUB\.REPO_ID: trials are not uploaded"):
        sweep.check(Config().with_settings({"HUB.REPO_ID": "me/mine"}), "sweep.yaml")


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"TRAIN.LR": 0.001, "SEED": 2}, "LR=0.001,SEED=2"),
        ({"DATA.SEARCH.SIZE": 64, "DATA.TEMPLATE.SIZE": 32}, "DATA.SEARCH.SIZE=64,DATA.TEMPLATE.SIZE=32"),
        ({"DATA.SEQ_FORMAT": "xywh", "TRAIN.DETERMINISTIC": True}, "SEQ_FORMAT=xywh,DETERMINISTIC=true"),
        ({"DATA.MEAN": [0.5, 0.5, 0.5]}, "MEAN=_0.5,_0.5,_0.5_"),
    ],
)
def test_a_trial_is_called_by_its_values(params: dict[str, Any], name: str) -> None:
    assert trial_name(params) == name


def test_a_trial_with_long_values_has_a_name_that_a_folder_can_have() -> None:
    names = {trial_name({"MODEL.WEIGHTS": "x" * 300 + end}) for end in ("", "a", "b")}
    assert len(names) == 3
    for name in names:
        check_name(name)


@pytest.mark.parametrize("values", [["a/b", "a_b"], [None, "null"], ["a b", "c", "a_b"]])
def test_values_that_would_share_a_folder_are_refused(values: list[str | None]) -> None:
    sweep = sweep_of(parameters={"MODEL.WEIGHTS": {"grid": values}})
    with pytest.raises(ConfigError, match=r"s\.yaml: parameters\.MODEL\.WEIGHTS: .* would share the folder WEIGHTS="):
        sweep.check(Config(), "s.yaml")


def test_metrics_that_fall_are_better_when_less() -> None:
    grid = {"SEED": {"grid": [1]}}
    assert [sweep_of(parameters=grid, metric=metric).direction for metric in ("iou", "loss")] == ["max", "min"]
    sweep = sweep_of(parameters=grid, stop={"loss": 0.5, "iou": 0.9})
    assert [sweep.is_enough({"loss": loss, "iou": iou}) for loss, iou in ((0.6, 0.1), (0.5, 0.1), (0.6, 0.9))] == [
        False,
        True,
        True,
    ]
