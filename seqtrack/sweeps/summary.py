"""A sweep's results as files: a table, a page to read, figures to show, and the best configuration to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pyarrow import csv, parquet

from seqtrack.config import Config
from seqtrack.reports.pages import Table, save_figure, write_pages
from seqtrack.sweeps.plots import sweep_figures
from seqtrack.sweeps.results import SEED, Group, Trial, best_group, group_by_seed, trials_table
from seqtrack.sweeps.settings import Params, Sweep

EXPLANATION = (
    "Trials that differ only in SEED are one configuration: mean and standard deviation (of the sample) of the metric "
    "after the last epoch, over its n finished trials. The best is the one with the best mean among those with most "
    "finished trials."
)


def write_summary(config: Config, sweep: Sweep, trials: Sequence[Trial], folder: Path) -> str:
    """Writes every file into `folder`; returns the result in a sentence. `config`: the sweep's own."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = group_by_seed(trials, sweep.metric)
    trials = [trial for group in groups for trial in group.trials]  # in the order of their parameters
    table = trials_table(trials, sweep)
    csv.write_csv(table, folder / "trials.csv")
    parquet.write_table(table, folder / "trials.parquet")
    best = best_group(groups, sweep)
    if best is not None:
        (folder / "best_config.yaml").write_text(best_config(config, best).to_yaml(), encoding="utf-8")
    figures = sweep_figures(groups, sweep)
    captions = {name: f"{sweep.metric} against {name.removeprefix('against_')}: a point per trial." for name in figures}
    group_table = _group_table(groups, sweep)
    failed = [trial for trial in trials if trial.note.status == "failed"]
    facts = {
        "title": f"{config.RUN.NAME}: a sweep over {', '.join(sweep.parameters)}",
        "summary": _overview(config, sweep, trials),
        "verdict": verdict(best, sweep),
        "best": best,
        "notes": [f"{trial.name} failed: {trial.note.reason}" for trial in failed],
        "explanation": EXPLANATION,
        "group_table": group_table,
        "marked": [row for row, group in zip(group_table.rows, groups, strict=True) if group is best],
        "trial_table": _trial_table(trials, sweep),
        "captions": captions | {"curves": "Each trial over its epochs."},
        "images": {name: save_figure(figure, folder / name) for name, figure in figures.items()},
        "sweep": yaml.safe_dump(sweep.model_dump(mode="json", exclude_defaults=True), sort_keys=False),
        "settings": config.to_yaml(),
    }
    write_pages(folder, {"index.html": "sweep.html.jinja", "summary.md": "sweep.md.jinja"}, facts)
    return str(facts["verdict"])


def best_config(config: Config, best: Group) -> Config:
    """Settings that can be trained as they are: the best configuration, with its first seed."""
    params: Params = dict(best.params)
    if SEED in best.trials[0].params:
        params[SEED] = best.trials[0].params[SEED]
    return config.with_settings(params | {"RUN.NAME": None}, "best configuration")


def verdict(best: Group | None, sweep: Sweep) -> str:
    if best is None:
        return "No trial finished"
    what = ", ".join(f"{key} {_text(value)}" for key, value in best.params.items()) or "every setting as given"
    spread = f" ± {best.std:.4f}" if not math.isnan(best.std) else ""
    return f"Best: {what}, with {sweep.metric} {best.mean:.4f}{spread} (n = {len(best.values)})"


def _overview(config: Config, sweep: Sweep, trials: Sequence[Trial]) -> str:
    counts = {status: sum(trial.note.status == status for trial in trials) for status in _STATUSES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return (
        f"{len(trials)} trials ({said}) of {config.MODEL.ENCODER.TYPE}, {sweep.epochs(config)} epochs of "
        f"{config.steps_per_epoch:,} steps at most."
    )


_STATUSES = ("finished", "stopped early", "failed", "unfinished")


def _group_table(groups: Sequence[Group], sweep: Sweep) -> Table:
    keys = [key for key in sweep.parameters if key != SEED]
    rows = []
    for group in groups:
        others = len(group.trials) - len(group.values)
        values = [f"{value:.4f}" for value in (group.mean, group.std)] if group.values else ["", ""]
        rows.append(
            [
                *(_text(group.params[key]) for key in keys),
                *(value if value != "nan" else "" for value in values),
                str(len(group.values)),
                str(others or ""),
            ]
        )
    return Table([*keys, f"mean {sweep.metric}", "std", "n", "not finished"], rows)


def _trial_table(trials: Sequence[Trial], sweep: Sweep) -> Table:
    keys, shown = list(sweep.parameters), {"loss": "loss", "iou": "IoU"}
    if any("auc" in epoch for trial in trials for epoch in trial.history):
        shown["auc"] = "AUC"
    rows = []
    for trial in trials:
        last = trial.history[-1] if trial.history else {}
        rows.append(
            [
                *(_text(trial.params[key]) for key in keys),
                trial.note.status,
                str(len(trial.history)),
                *(f"{last[name]:.4f}" if name in last else "" for name in shown),
                f"{sum(epoch['seconds'] for epoch in trial.history):.0f}",
                f"trials/{trial.name}",
            ]
        )
    return Table([*keys, "ended", "epochs", *shown.values(), "seconds", "folder"], rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
