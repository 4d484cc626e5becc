"""Figures of a sweep: the metric against each parameter with a point per trial, and learning curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from seqtrack.reports.plots import BLUE, LABELS, SIZE, VERMILLION, label, style_axes
from seqtrack.sweeps.results import SEED, Group, Trial
from seqtrack.sweeps.settings import Sweep

LOG_FROM = 10
"""Values that span such a factor are shown on a logarithmic axis."""


def sweep_figures(groups: Sequence[Group], sweep: Sweep) -> dict[str, Figure]:
    """Figures by their files' names: `against_LR` for each parameter but the seed, and `curves`."""
    keys = [key for key in sweep.parameters if key != SEED]
    figures = {f"against_{key.rpartition('.')[2]}": _against(groups, key, sweep) for key in keys}
    return figures | {"curves": _curves(groups, (keys or [SEED])[0], sweep)}


def _against(groups: Sequence[Group], key: str, sweep: Sweep) -> Figure:
    """A point per trial, and mean ± standard deviation of those that differ only in their seed."""
    figure = Figure(SIZE, layout="constrained")
    axes = style_axes(figure.subplots())
    values = [group.params[key] for group in groups]
    positions = _positions(axes, values)
    for position, group in zip(positions, groups, strict=True):
        for trial in group.trials:
            if trial.history and sweep.metric in trial.history[-1]:
                axes.plot(position, trial.history[-1][sweep.metric], **_marker(trial))
        if len(group.values) > 1:
            axes.errorbar(
                position, group.mean, group.std, fmt="_", color=VERMILLION, markersize=16, capsize=5, linewidth=1.6
            )
    axes.set_xlabel(key)
    axes.set_ylabel(f"{LABELS.get(sweep.metric, sweep.metric)}, last epoch")
    _legend(axes, groups)
    return figure


def _curves(groups: Sequence[Group], key: str, sweep: Sweep) -> Figure:
    """The metric over the epochs, a line per trial, coloured by a parameter."""
    figure = Figure(SIZE, layout="constrained")
    axes = style_axes(figure.subplots())
    trials = [trial for group in groups for trial in group.trials if _measured(trial, sweep)]
    values = [trial.params[key] for trial in trials]
    shades = _shades(values)
    seen = set()
    for trial, value, shade in zip(trials, values, shades, strict=True):
        history = _measured(trial, sweep)
        epochs = [epoch["epoch"] for epoch in history]
        name = None if json.dumps(value) in seen else _text(value)
        seen.add(json.dumps(value))
        axes.plot(epochs, [epoch[sweep.metric] for epoch in history], color=shade, label=name, linewidth=1.5,
                  marker="o" if len(epochs) == 1 else "", markersize=4)  # fmt: skip
        if not trial.finished:
            axes.plot(epochs[-1], history[-1][sweep.metric], marker="x", color=shade, markersize=7, mew=1.8)
    axes.set_xlabel("Epoch (× ended early)" if any(not trial.finished for trial in trials) else "Epoch")
    axes.set_ylabel(LABELS.get(sweep.metric, sweep.metric))
    if _norm(values) is not None and len(seen) > 12:
        figure.colorbar(ScalarMappable(_norm(values), "viridis"), ax=axes, label=key)
    elif seen:
        axes.legend(frameon=False, fontsize=9, title=key.rpartition(".")[2])
    return figure


def _measured(trial: Trial, sweep: Sweep) -> list[Mapping[str, float]]:
    """The epochs of which the metric is known."""
    return [epoch for epoch in trial.history if sweep.metric in epoch]


def _norm(values: Sequence[Any]) -> Normalize | None:
    """Maps the values to 0 … 1. None if they are not numbers, or all the same."""
    if not _numeric(values) or len(set(values)) < 2:
        return None
    # Not to the end of the colours, which is pale on white.
    low, high = min(values), max(values)
    return LogNorm(low, high * (high / low) ** 0.1) if _spans(values) else Normalize(low, high + 0.1 * (high - low))


def _shades(values: Sequence[Any]) -> list[Any]:
    """A colour for each value; equal values have the same."""
    norm = _norm(values)
    if norm is not None:
        return [colormaps["viridis"](float(norm(value))) for value in values]
    names = sorted({json.dumps(value) for value in values})
    return [colormaps["viridis"](0.9 * names.index(json.dumps(value)) / len(names)) for value in values]


def _positions(axes: Axes, values: Sequence[Any]) -> Sequence[float]:
    """Where values are on the x axis: numbers as themselves, others one after the other."""
    if _numeric(values):
        if _spans(values):
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(AutoLocator())
        if len(set(values)) <= 8:
            axes.set_xticks(sorted(set(values)), [_text(value) for value in sorted(set(values))], minor=False)
            axes.minorticks_off()
        return [float(value) for value in values]
    names = sorted({json.dumps(value) for value in values})
    axes.set_xticks(range(len(names)), [_text(json.loads(name)) for name in names])
    return [float(names.index(json.dumps(value))) for value in values]


def _marker(trial: Trial) -> dict[str, Any]:
    if trial.finished:
        return {"marker": "o", "color": BLUE, "markersize": 6, "linestyle": ""}
    return {"marker": "x", "color": "0.5", "markersize": 6, "linestyle": ""}


def _legend(axes: Axes, groups: Sequence[Group]) -> None:
    trials = [trial for group in groups for trial in group.trials]
    handles: list[Any] = axes.plot([], [], "o", color=BLUE, label="a trial")
    if any(not trial.finished and trial.history for trial in trials):
        handles += axes.plot([], [], "x", color="0.5", label="ended early")
    if any(len(group.values) > 1 for group in groups):
        style: dict[str, Any] = {"fmt": "_", "color": VERMILLION, "capsize": 5, "label": "mean ± std"}
        handles.append(axes.errorbar([np.nan], [np.nan], [1.0], **style))
    axes.legend(handles=handles, frameon=False, fontsize=10)


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _spans(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else label(str(value))
