"""Figures of the two-phase report, legible on a screen, on half a printed page, and for colour-blind readers.

Colours are Okabe and Ito's. Phase 1 is a broad light line and phase 2 a thin dark dashed one on top, so that both are
seen where they coincide, in grey print too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from seqtrack.reports.comparison import Comparison
from seqtrack.runs.record import METRICS, Phase
from seqtrack.shown import shown

BLUE, VERMILLION, GREEN = "#56B4E9", "#8C2D04", "#009E73"
STYLES: Sequence[dict[str, Any]] = (
    {"color": BLUE, "linewidth": 4.5, "solid_capstyle": "round"},
    {"color": VERMILLION, "linewidth": 1.3, "linestyle": (0, (4, 2))},
)
POINTS = 300
"""Approximate number of points of a curve. Each is the mean of several steps."""

SIZE = (6.4, 3.6)
LABELS = {
    "loss": "Training loss (cross-entropy)",
    "iou": "Training IoU",
    "grad_norm": "Gradient norm",
    "lr": "LR",
    "auc": "AUC in %",
}


def report_figures(phase1: Phase, phase2: Phase | None, comparison: Comparison | None) -> dict[str, Figure]:
    """Name of the file -> figure, for every figure of the report. Without phase 2, they show phase 1 alone."""
    phases = [phase for phase in (phase1, phase2) if phase is not None]
    figures = {
        "loss": _figure(lambda axes: _curves(axes, phases, "loss")),
        "iou": _figure(lambda axes: _curves(axes, phases, "iou")),
        "training": _training(phases),
    }
    if phase2 is not None and comparison is not None:
        figures["difference"] = _figure(lambda axes: _differences(axes, phase1, phase2, comparison))
    return figures | {"throughput": _throughput(phases)}


def _figure(draw: Callable[[Axes], None]) -> Figure:
    figure = Figure(SIZE, layout="constrained")
    draw(style_axes(figure.subplots()))
    return figure


def _training(phases: Sequence[Phase]) -> Figure:
    figure = Figure((SIZE[0], 5.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _curves(style_axes(upper), phases, "loss")
    _curves(style_axes(lower), phases, "iou")
    upper.set_xlabel("")
    lower.get_legend().remove()
    return figure


def _throughput(phases: Sequence[Phase]) -> Figure:
    figure = Figure((SIZE[0], 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    panels = ((upper, "samples_per_second", 1.0), (lower, "data_wait_fraction", 100.0))
    for axes, key, factor in panels:
        style_axes(axes)
        for phase, style, marker in zip(phases, STYLES, "os", strict=False):
            epochs = phase.epochs()
            values = [epoch[key] * factor for epoch in epochs]
            line = style | {"linewidth": min(style["linewidth"], 2.5)}
            axes.plot(
                [epoch["epoch"] for epoch in epochs], values, label=phase.name, marker=marker, markersize=4, **line
            )
        largest = axes.dataLim.ymax  # infinite if no epoch was finished
        axes.set_ylim(0, 1.1 * largest if 0 < largest < np.inf else 1)
    upper.set_ylabel("Samples / s")
    lower.set_ylabel("Waiting for data (%)")
    lower.set_xlabel("Epoch")
    _legend(upper)
    return figure


def _curves(axes: Axes, phases: Sequence[Phase], metric: str) -> None:
    for phase, style in zip(phases, STYLES, strict=False):
        axes.plot(*_binned(phase, phase.steps[:, METRICS.index(metric)]), label=phase.name, **style)
        if phase.first_step:
            axes.axvline(phase.first_step / phase.steps_per_epoch, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xlabel("Epoch")
    axes.set_ylabel(LABELS[metric])
    _legend(axes)


def _differences(axes: Axes, phase1: Phase, phase2: Phase, comparison: Comparison) -> None:
    axes.set_xlabel("Epoch")
    axes.set_ylabel("|phase 1 − phase 2|")
    first, last = comparison.first_step, comparison.last_step
    per_epoch = phase2.steps_per_epoch
    axes.set_xlim(first / per_epoch, max(last, first + 1) / per_epoch)
    distances = np.abs(phase1.steps[first:last] - phase2.steps[first:last])
    shown = [(metric, distances[:, METRICS.index(metric)]) for metric in ("loss", "iou")]
    if not any((distance > 0).any() for _, distance in shown):
        axes.set_yticks([])
        text = (
            f"Every difference is exactly 0\nin all of {last - first:,} steps" if last > first else "Nothing to compare"
        )
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12)
        return
    axes.set_yscale("log")
    for (metric, distance), style, marker in zip(shown, ((VERMILLION, "-"), (GREEN, "--")), "os", strict=True):
        seen = distance > 0
        steps = (first + 1 + np.flatnonzero(seen)) / per_epoch
        axes.plot(
            *(steps, distance[seen]), label=LABELS[metric], color=style[0], linestyle=style[1], linewidth=1,
            marker=marker if seen.sum() < 60 else "", markersize=3,
        )  # fmt: skip
    _legend(axes)


def _binned(phase: Phase, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(epochs, means) of the steps that the phase trained itself, in about POINTS bins.

    Bins divide an epoch evenly, or are whole epochs, so that phases that start at different epochs have the same bins.
    """
    per_epoch = phase.steps_per_epoch
    parts = [size for size in range(1, per_epoch + 1) if per_epoch % size == 0]
    size = next((size for size in parts if size * POINTS >= phase.total_steps), per_epoch)
    steps = np.arange(phase.first_step, len(values))
    starts = np.flatnonzero((steps % size == 0) | (steps == phase.first_step))
    if not len(starts):
        return np.empty(0), np.empty(0)
    counts = np.diff(np.append(starts, len(steps)))
    means = np.add.reduceat(values[phase.first_step :], starts) / counts
    return (steps[starts] + counts / 2) / per_epoch, means


def label(text: str) -> str:
    """Text for a figure, where it says just this: no formula, no second line, nothing that matplotlib leaves out."""
    plain = shown(text).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain  # matplotlib hides labels that begin with an underscore


def style_axes(axes: Axes) -> Axes:
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=10)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return axes


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=10)
