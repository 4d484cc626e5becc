"""The tables of an evaluation's page: each number with its interval, under the name of its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seqtrack.evaluation.curves import Measure, Rows
from seqtrack.evaluation.protocols import MEASURES, protocol_named
from seqtrack.evaluation.summary import Evaluation, interval
from seqtrack.reports.pages import Table

UNKNOWN = "unknown"
ATTRIBUTES = {
    "ARC": "aspect ratio change",
    "BC": "background clutter",
    "CM": "camera motion",
    "DEF": "deformation",
    "FM": "fast motion",
    "FOC": "full occlusion",
    "IV": "illumination variation",
    "LR": "low resolution",
    "MB": "motion blur",
    "OV": "out of view",
    "POC": "partial occlusion",
    "ROT": "rotation",
    "SV": "scale variation",
    "VC": "viewpoint change",
}
"""What LaSOT's names of attributes mean."""


@dataclass(frozen=True)
class TrackerFacts:
    """What is known of how a tracker ran. Result files do not say it."""

    epoch: int | None = None
    """The epoch after which its weights were saved."""
    run: str = ""
    """The run that they are from: checkpoints of one run make one line over epochs."""
    device: str | None = None
    """Name of the device, such as `NVIDIA H100`."""
    precision: str | None = None
    """Name of the arithmetic, such as `bf16`."""
    batch: int | None = None
    """How many sequences shared a pass of the model while the times in its result files were taken."""
    throughput: float | None = None
    """Frames a second of all sequences together, from the first frame's reading to the last one's writing."""


class Cell(NamedTuple):
    """A number in percent."""

    text: str
    interval: str = ""
    best: bool = False
    """Whether it is the best of its column, or of its row where trackers are columns."""


class Row(NamedTuple):
    """A line of numbers."""

    name: str
    sequences: int
    cells: Sequence[Cell]


class NumberTable(NamedTuple):
    """A table of numbers by one protocol."""

    corner: str
    """What the rows are."""
    header: Sequence[str]
    rows: Sequence[Row]

    def plain(self, counted: bool) -> Table:
        """The table as text. `counted`: with the number of sequences of each row."""
        rows = [
            [
                row.name,
                *([str(row.sequences)] if counted else []),
                *(f"{c.text} {c.interval}".strip() for c in row.cells),
            ]
            for row in self.rows
        ]
        return Table([self.corner, *(["sequences"] if counted else []), *self.header], rows)


def main_measure(evaluation: Evaluation) -> str:
    """The measure that papers print first: a key of MEASURES."""
    return protocol_named(evaluation.scores.protocol).measures[0]


def best_first(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Evaluations sorted by their main measure; those without a number come last."""
    return sorted(evaluations, key=lambda one: -np.nan_to_num(one.scores.measures[main_measure(one)].mean(), nan=-1))


def number_table(group: Sequence[Evaluation]) -> NumberTable:
    """A row for each tracker, a column for each measure."""
    protocol = group[0].scores.protocol
    measures = protocol_named(protocol).measures
    columns = [_cells([one.scores.measures[name] for one in group]) for name in measures]
    rows = [
        Row(one.tracker, len(one.sequences), cells)
        for one, cells in zip(group, zip(*columns, strict=True), strict=True)
    ]
    return NumberTable("tracker", [f"{MEASURES[name]} ({protocol})" for name in measures], rows)


def group_table(group: Sequence[Evaluation], kind: str, groups: Mapping[str, Sequence[int]]) -> NumberTable:
    """A row for each class or attribute (name -> rows of its sequences), a column for each tracker."""
    measures = [one.scores.measures[main_measure(one)] for one in group]
    names = {name: f"{name} {ATTRIBUTES[name]}" for name in ATTRIBUTES} if kind == "attribute" else {}
    rows = [Row(names.get(name, name), len(rows), _cells(measures, rows)) for name, rows in groups.items()]
    return NumberTable(kind, [one.tracker for one in group], rows)


def _cells(measures: Sequence[Measure], rows: Rows = None) -> list[Cell]:
    """The same number of several trackers."""
    means = [measure.mean(rows) for measure in measures]
    largest = np.nanmax(means) if np.isfinite(means).any() else np.nan
    cells = []
    for measure, mean in zip(measures, means, strict=True):
        if np.isnan(mean):
            cells.append(Cell("–"))
            continue
        between = interval(measure, rows)
        shown = f"[{between[0]:.1f}, {between[1]:.1f}]" if between else ""
        cells.append(Cell(f"{mean:.2f}", shown, len(means) > 1 and mean == largest))
    return cells


def speed_table(evaluations: Sequence[Evaluation], facts: Mapping[str, TrackerFacts]) -> Table:
    """How fast each tracker was: the time of one frame apart from the frames a second of the whole evaluation."""
    rows = []
    for tracker in dict.fromkeys(one.tracker for one in evaluations):
        tracks = {
            (one.data.benchmark.name, sequence.name): track.seconds
            for one in evaluations
            if one.tracker == tracker
            for sequence, track in zip(one.sequences, one.tracks, strict=True)
        }
        known = [seconds[1:] for seconds in tracks.values() if seconds is not None]  # the first frame is given
        seconds = np.concatenate(known) if known else np.empty(0)
        fact = facts.get(tracker, TrackerFacts())
        latency = ["unknown: no times in its result files", "–"]
        if seconds.sum() > 0:
            part = "" if len(known) == len(tracks) else f" ({len(known)} of {len(tracks)} sequences)"
            middle, slow = np.percentile(1000 * seconds, (50, 95)).tolist()
            latency = [f"{middle:.3g} ms, 95 % within {slow:.3g} ms{part}", f"{len(seconds) / seconds.sum():.1f}"]
        rows.append(
            [
                tracker,
                *latency,
                UNKNOWN if fact.batch is None else str(fact.batch),
                UNKNOWN if fact.throughput is None else f"{fact.throughput:.1f}",
                fact.device or UNKNOWN,
                fact.precision or UNKNOWN,
            ]
        )
    header = ("time of one frame (median)", "frames/s at that pace", "sequences in one pass")
    return Table(["tracker", *header, "frames/s of the whole evaluation", "device", "precision"], rows)
