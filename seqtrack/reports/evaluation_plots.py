"""Figures of an evaluation: curves of all trackers, attributes, and numbers over epochs.

Colours are those of Okabe and Ito that are seen on white. A tracker has the same one everywhere on the page, and where
there are more trackers than colours, lines are dashed or dotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from seqtrack.evaluation.protocols import MEASURES
from seqtrack.evaluation.summary import Evaluation, interval
from seqtrack.reports.evaluation_tables import TrackerFacts, main_measure
from seqtrack.reports.plots import label, style_axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E", "#8C2D04")
LINES = ("solid", "dashed", "dotted", "dashdot")
LONGEST_NAME = 28
"""Characters of a tracker's name in a legend."""


class Look(NamedTuple):
    """How a tracker is drawn."""

    colour: str
    line: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        red, green, blue = bytes.fromhex(self.colour[1:])
        return red, green, blue


class Panel(NamedTuple):
    """How a curve is drawn."""

    title: str
    threshold: str
    measure: str
    """The number that the legend has: a key of MEASURES."""


PANELS = {
    "success": Panel("Success", "IoU threshold", "auc"),
    "precision": Panel("Precision", "Centre error threshold (pixels)", "precision"),
    "normalized_precision": Panel(
        "Normalised precision", "Centre error threshold (target sizes)", "normalized_precision"
    ),
    "pooled_success": Panel("Success over all frames", "IoU threshold", "ao"),
}


def looks_of(trackers: Sequence[str]) -> dict[str, Look]:
    """Name of a tracker -> its look."""
    size = len(COLOURS)
    return {
        tracker: Look(COLOURS[number % size], LINES[number // size % len(LINES)])
        for number, tracker in enumerate(trackers)
    }


def curve_figure(group: Sequence[Evaluation], looks: Mapping[str, Look]) -> Figure:
    """A panel for each curve of the protocol; legends have the best tracker first."""
    names = [name for name in PANELS if name in group[0].scores.curves]
    figure = Figure((4.1 * len(names), 3.5 + 0.21 * len(group)), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        style_axes(axes)
        axes.xaxis.set_major_locator(AutoLocator())
        panel = PANELS[name]
        numbers = [one.scores.measures[panel.measure].mean() for one in group]
        for place in np.argsort([-np.nan_to_num(number, nan=-1) for number in numbers], kind="stable"):
            one, curve = group[place], group[place].scores.curves[name]
            look = looks[one.tracker]
            axes.plot(
                *(curve.thresholds, curve.mean()), color=look.colour, linestyle=look.line, linewidth=1.6,
                label=f"{numbers[place]:.1f}  {shortened(one.tracker)}",
            )  # fmt: skip
        axes.set(title=panel.title, xlabel=panel.threshold, ylabel="Frames (%)", ylim=(0, 100))
        axes.set_xlim(curve.thresholds[0], curve.thresholds[-1])
        axes.legend(
            *(), title=f"{MEASURES[panel.measure]} ({one.scores.protocol})", loc="upper center",
            bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=9, title_fontsize=9, alignment="left",
        )  # fmt: skip
    return figure


def attribute_figure(
    group: Sequence[Evaluation], groups: Mapping[str, Sequence[int]], looks: Mapping[str, Look]
) -> Figure:
    """Bars of the main measure for each attribute (name -> rows of its sequences), with intervals."""
    measure = main_measure(group[0])
    figure = Figure((12.3, 3.6 + 0.25 * ((len(group) + 3) // 4)), layout="constrained")
    axes = style_axes(figure.subplots())
    axes.grid(visible=False, axis="x")
    width = 0.84 / len(group)
    for number, one in enumerate(group):
        scored = one.scores.measures[measure]
        means = np.array([scored.mean(rows) for rows in groups.values()])
        between = np.array([interval(scored, rows) or (np.nan, np.nan) for rows in groups.values()])
        places = np.arange(len(groups)) + (number - (len(group) - 1) / 2) * width
        look = looks[one.tracker]
        axes.bar(
            *(places, means, 0.92 * width), color=look.colour, label=shortened(one.tracker),
            hatch=None if look.line == LINES[0] else "///", edgecolor="white", linewidth=0,
        )  # fmt: skip
        axes.vlines(places, between[:, 0], between[:, 1], color="0.35", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"{label(name)}\n{len(rows)}" for name, rows in groups.items()], fontsize=9)
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_ylabel(f"{MEASURES[measure]} ({group[0].scores.protocol}, %)")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def epoch_figure(group: Sequence[Evaluation], facts: Mapping[str, TrackerFacts]) -> Figure | None:
    """The main measure against the epoch, a line with its interval for each run. None for fewer than two epochs."""
    runs: dict[str, dict[int, Evaluation]] = {}
    for one in group:
        fact = facts.get(one.tracker)
        if fact is not None and fact.epoch is not None:
            runs.setdefault(fact.run, {})[fact.epoch] = one
    if not any(len(epochs) > 1 for epochs in runs.values()):
        return None
    measure = main_measure(group[0])
    figure = Figure((6.4, 3.6), layout="constrained")
    axes = style_axes(figure.subplots())
    for (run, found), look in zip(runs.items(), looks_of(list(runs)).values(), strict=True):
        epochs = sorted(found)
        scored = [found[epoch].scores.measures[measure] for epoch in epochs]
        between = np.array([interval(one) or (np.nan, np.nan) for one in scored])
        axes.fill_between(epochs, between[:, 0], between[:, 1], color=look.colour, alpha=0.15, linewidth=0)
        axes.plot(
            *(epochs, [one.mean() for one in scored]), color=look.colour, linestyle=look.line, marker="o",
            markersize=4, label=shortened(run),
        )  # fmt: skip
    axes.set_xlabel("Epoch")
    axes.set_ylabel(f"{MEASURES[measure]} ({group[0].scores.protocol}, %)")
    if any(runs):
        axes.legend(frameon=False, fontsize=10)
    return figure


def shortened(name: str) -> str:
    """A name for a legend: of a long one, the end, in which names of checkpoints differ."""
    return label(name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}")
