"""Curves and numbers over the frames of many sequences at once.

A curve is a histogram of the errors of all frames over the thresholds, with a row for each sequence. So the 685,360
frames of LaSOT's test sequences need one search per curve, and no loop over sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rows = Sequence[int] | NDArray[np.int64] | None
"""Which sequences; None: all."""


@dataclass(frozen=True)
class Groups:
    """Which frames belong to which sequence, where all frames are in one array, one sequence after another."""

    lengths: NDArray[np.int64]
    """(S,)"""
    starts: NDArray[np.int64]
    """(S,) the first frame of each sequence."""
    owner: NDArray[np.int64]
    """(F,) the number of each frame's sequence."""

    @classmethod
    def of(cls, lengths: NDArray[np.int64]) -> Groups:
        return cls(lengths, np.cumsum(lengths) - lengths, np.repeat(np.arange(len(lengths)), lengths))

    def count(self, counted: Flags | None) -> Floats:
        """(S,) how many of the frames of each sequence count; None: all do."""
        return np.bincount(self.owner, counted, len(self.lengths)).astype(np.float64)


@dataclass(frozen=True)
class Curve:
    """The part of the frames that satisfies each threshold, by sequence."""

    thresholds: Floats
    """(T,)"""
    fractions: Floats
    """(S, T)"""
    weights: Floats
    """(S,) how much each sequence counts in the mean: 1, or its number of frames where frames are pooled."""

    def mean(self, rows: Rows = None) -> Floats:
        """(T,) in percent, over the sequences of `rows`. NaN if they have no frame that counts."""
        return _mean(100 * self.fractions, self.weights, rows)


@dataclass(frozen=True)
class Measure:
    """A number for each sequence, in percent."""

    values: Floats
    """(S,) NaN where no frame counts."""
    weights: Floats
    """(S,)"""

    def mean(self, rows: Rows = None) -> float:
        """The mean in percent over the sequences of `rows`. NaN if they have no frame that counts."""
        return float(_mean(self.values, self.weights, rows))


def success_curve(
    overlap: Floats, thresholds: Floats, groups: Groups, counted: Flags | None = None, at_least: bool = False
) -> Curve:
    """The part of the frames whose overlap is above each threshold, or `at_least` the threshold. NaN is a miss.

    `counted`: the frames that count, if not all do.
    """
    passed = np.searchsorted(thresholds, np.where(np.isnan(overlap), -np.inf, overlap), "right" if at_least else "left")
    beyond = _histogram(passed, len(thresholds), groups, counted)[:, :0:-1]
    return _curve(thresholds, np.cumsum(beyond, axis=1)[:, ::-1], groups, counted)


def precision_curve(errors: Floats, thresholds: Floats, groups: Groups, counted: Flags | None = None) -> Curve:
    """The part of the frames whose error is at most each threshold. NaN is a miss."""
    first = np.searchsorted(thresholds, errors, "left")
    within = _histogram(first, len(thresholds), groups, counted)[:, :-1]
    return _curve(thresholds, np.cumsum(within, axis=1), groups, counted)


def mean_by_sequence(values: NDArray[np.generic], groups: Groups, counted: Flags) -> Measure:
    """The mean in percent over the frames that count, weighted by their number."""
    weights = groups.count(counted)
    sums = np.bincount(groups.owner, np.where(counted, values, 0), len(groups.lengths))
    return Measure(100 * sums / np.where(weights > 0, weights, np.nan), weights)


def _histogram(bins: NDArray[np.int64], thresholds: int, groups: Groups, counted: Flags | None) -> Floats:
    """(S, T + 1) frames of each sequence in each bin."""
    size = (thresholds + 1) * len(groups.lengths)
    places = groups.owner * (thresholds + 1) + bins
    return np.bincount(places, counted, size).astype(np.float64).reshape(-1, thresholds + 1)


def _curve(thresholds: Floats, hits: Floats, groups: Groups, counted: Flags | None) -> Curve:
    frames = groups.count(counted)
    return Curve(thresholds, hits / np.maximum(frames, 1)[:, None], np.sign(frames))


def _mean(values: Floats, weights: Floats, rows: Rows) -> Floats:
    chosen = slice(None) if rows is None else np.asarray(rows, np.int64)
    values, weights = values[chosen], weights[chosen]
    if not weights.sum() > 0:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(np.average(values[weights > 0], axis=0, weights=weights[weights > 0]))
