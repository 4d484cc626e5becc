"""What a sweep's trials say together: the best by its mean, and files to read, show and run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pyarrow import csv, parquet

from seqtrack.config import Config, load_config
from seqtrack.shown import shown
from seqtrack.sweeps.plan import plan_trials
from seqtrack.sweeps.results import Status, Trial, TrialNote, best_group, group_by_seed
from seqtrack.sweeps.settings import Sweep, trial_name
from seqtrack.sweeps.summary import write_summary

SWEEP = Sweep.model_validate({"parameters": {"TRAIN.LR": {"grid": [0.001, 0.1]}, "SEED": {"grid": [1, 2, 3]}}})


def trial(lr: float, seed: int, iou: float, status: Status = "finished", epochs: int = 2, reason: str = "") -> Trial:
    params = {"TRAIN.LR": lr, "SEED": seed}
    history = [
        {"epoch": epoch, "step": 6 * epoch, "loss": 1 / epoch, "iou": iou * epoch / 2, "accuracy": 0.0}
        | {"grad_norm": 1.0, "lr": lr, "seconds": 3.0}
        for epoch in range(1, epochs + 1)
    ]
    checkpoint = f"checkpoint_epoch_{epochs:04d}" if epochs else None
    return Trial(trial_name(params), TrialNote(params, status, reason), history, checkpoint)


LUCKY = [trial(0.1, 1, 0.9), trial(0.1, 2, 0.1), trial(0.1, 3, 0.2)]
STEADY = [trial(0.001, 1, 0.5), trial(0.001, 2, 0.6), trial(0.001, 3, 0.7)]


def test_the_best_mean_wins_not_the_luckiest_seed() -> None:
    groups = group_by_seed([*LUCKY, *STEADY], "iou")
    assert [group.params for group in groups] == [{"TRAIN.LR": 0.001}, {"TRAIN.LR": 0.1}]
    assert groups[0].mean == pytest.approx(0.6)
    assert groups[0].std == pytest.approx(0.1)
    assert best_group(groups, SWEEP) is groups[0]
    assert best_group(groups, SWEEP.model_copy(update={"metric": "iou", "mode": "min"})) is groups[1]


def test_one_survivor_does_not_beat_three_that_finished() -> None:
    stopped = [trial(0.1, 1, 0.9), *(trial(0.1, seed, 0.1, "stopped early", epochs=1) for seed in (2, 3))]
    groups = group_by_seed([*stopped, *STEADY], "iou")
    assert groups[1].values == [0.9]
    assert math.isnan(groups[1].std)
    assert best_group(groups, SWEEP) is groups[0]


def test_the_files_say_the_same_and_the_best_configuration_runs(tiny_config: Config, tmp_path: Path) -> None:
    failed = [trial(0.1, 2, 0.0, "failed", 0, "step 7 : loss nan, gradient norm nan, learning rate 0.1")]
    trials = [LUCKY[0], *failed, trial(0.1, 3, 0.2, "stopped early", epochs=1), *STEADY]
    assert write_summary(tiny_config, SWEEP, trials, tmp_path).startswith(
        "Best: TRAIN.LR 0.001, with iou 0.6000 ± 0.1000"
    )
    table = parquet.read_table(tmp_path / "trials.parquet")
    assert table.num_rows == 6
    assert [row["TRAIN.LR"] for row in table.to_pylist()] == [0.001] * 3 + [0.1] * 3
    assert csv.read_csv(tmp_path / "trials.csv").column_names == table.column_names
    assert [row["status"] for row in table.to_pylist()] == [*["finished"] * 4, "failed", "stopped early"]
    for name in ("index.html", "summary.md"):
        text = (tmp_path / name).read_text()
        for fact in (
            "Best: TRAIN.LR 0.001",
            "0.6000",
            "6 trials (4 finished, 1 stopped early, 1 failed)",
            "step 7 : loss nan",
        ):
            assert fact in text
    assert 'src="http' not in (tmp_path / "index.html").read_text()
    for name in ("against_LR", "curves"):
        for suffix in (".png", ".svg"):
            assert (tmp_path / f"{name}{suffix}").stat().st_size > 1000
    best = load_config(tmp_path / "best_config.yaml")
    assert best == tiny_config.with_settings({"TRAIN.LR": 0.001, "SEED": 1, "RUN.NAME": None})


@pytest.mark.parametrize(
    ("parameters", "trials"),
    [
        ({"SEED": {"grid": [1]}}, [trial(0.1, 1, 0.5)]),
        ({"TRAIN.LR": {"uniform": [0, 1]}, "SEED": {"grid": [1]}}, [trial(n / 20, 1, 0.5) for n in range(1, 20)]),
        ({"TRAIN.LR": {"grid": [0.1]}, "SEED": {"grid": [1]}}, [trial(0.1, 1, 0.5, "failed", epochs=0)]),
    ],
    ids=["seeds only", "many values", "nothing finished"],
)
def test_figures_of_unusual_sweeps(
    tiny_config: Config, tmp_path: Path, parameters: dict[str, Any], trials: list[Trial]
) -> None:
    result = write_summary(tiny_config, Sweep.model_validate({"parameters": parameters}), trials, tmp_path)
    assert result.startswith("Best") == any(trial.finished for trial in trials)
    assert (tmp_path / "best_config.yaml").exists() == any(trial.finished for trial in trials)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("cluster", "settings", "values", "held", "running", "cpus"),
    [
        ({"CPU": 2, "GPU": 0, "nodes": 1}, {}, {}, 2, 2, 0.5),
        ({"CPU": 1, "GPU": 0, "nodes": 1}, {}, {}, 1, 1, 0.5),
        ({"CPU": 16, "GPU": 0, "nodes": 1}, {}, {"concurrency": 2}, 16, 2, 1.0),
        ({"CPU": 16, "GPU": 0, "nodes": 1}, {}, {"resources": {"cpus_per_worker": 3}, "workers": 2}, 2, 2, 3.0),
        ({"CPU": 64, "GPU": 8, "nodes": 1}, {}, {"workers": 2}, 4, 4, 1.0),
        ({"CPU": 64, "GPU": 8, "nodes": 1}, {"RUN.WORKERS": 4, "RUN.MIN_WORKERS": 1}, {}, 2, 2, 1.0),
    ],
)
def test_the_cluster_holds_what_it_can(
    cluster: dict[str, float], settings: dict[str, Any], values: dict[str, Any], held: int, running: int, cpus: float
) -> None:
    sweep = Sweep.model_validate({"parameters": {"SEED": {"grid": [1]}}} | values)
    plan = plan_trials(Config().with_settings({"TRAIN.BATCH_SIZE": 48} | settings), sweep, cluster)
    assert (plan.held, plan.concurrency, plan.resources.cpus_per_worker) == (held, running, cpus)
    assert plan.config.RUN.MIN_WORKERS is None


def test_the_reason_of_a_failure_is_a_cell_of_one_line_that_is_no_formula(tiny_config: Config, tmp_path: Path) -> None:
    reasons = ['=HYPERLINK("http://x","a")', 'a\n\x1b[31m, "b"', "猫"]
    trials = [trial(0.1, seed, 0.0, "failed", 0, reason) for seed, reason in enumerate(reasons)]
    write_summary(tiny_config, SWEEP, trials, tmp_path)
    assert csv.read_csv(tmp_path / "trials.csv")["reason"].to_pylist() == [
        '\'=HYPERLINK("http://x","a")',
        r'a\n\x1b[31m, "b"',
        "猫",
    ]
    assert all(shown(line) == line for line in (tmp_path / "summary.md").read_text().split("\n"))
