"""Compares phase 1 and phase 2, which trained the same steps twice, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from seqtrack.runs.record import EPOCH_METRICS, METRICS, Phase


class Difference(NamedTuple):
    """The largest absolute difference of one metric, and where it occurs."""

    metric: str
    largest: float
    at: int
    """Step or epoch, from 1."""


class Tracking(NamedTuple):
    """The AUC of both phases' checkpoints after the same step, on one benchmark by one protocol, in percent."""

    series: str
    """Benchmark and protocol, such as `lasot/pytracking`."""
    step: int
    auc1: float
    auc2: float

    @property
    def difference(self) -> float:
        return abs(self.auc2 - self.auc1)


@dataclass(frozen=True)
class Comparison:
    """How phase 2 differs from the same steps of phase 1."""

    first_step: int
    last_step: int
    """Steps first_step + 1 … last_step were trained by both."""
    steps: list[Difference]
    epochs: list[Difference]
    first_different_step: int | None
    """Counted from 1. None if every metric of every common step has the same bits."""
    weights: float | None
    """The largest absolute difference of the newest weights; None if the phases ended at different steps."""
    tracking: list[Tracking]
    """The checkpoints that were measured in both phases."""
    tolerance: float
    complete: bool
    """Whether both phases reached their end."""

    @property
    def largest(self) -> float:
        return max([difference.largest for difference in self.steps] + [self.weights or 0.0], default=0.0)

    @property
    def bitwise_equal(self) -> bool:
        return self.first_different_step is None and not self.weights

    @property
    def reproduced(self) -> bool:
        """Whether everything was compared and nothing differs by more than the tolerance."""
        return self.complete and self.last_step > self.first_step and self.largest <= self.tolerance

    @property
    def verdict(self) -> str:
        """The result in a few words."""
        if self.last_step <= self.first_step:
            return "nothing to compare"
        if self.bitwise_equal:
            result = "bitwise equal"
        elif self.largest <= self.tolerance:
            result = f"equal within {self.largest:.2g}"
        elif self.first_different_step is not None:
            result = f"different from step {self.first_different_step} on"
        else:
            result = "different in its final weights"
        return result if self.complete else f"{result}, as far as it got: not finished"


def compare(phase1: Phase, phase2: Phase, tolerance: float = 0.0) -> Comparison:
    """Compares every step and epoch that both trained, and their final weights."""
    first, last = phase2.first_step, min(len(phase1.steps), len(phase2.steps))
    ours, theirs = phase2.steps[first:last], phase1.steps[first:last]
    # NaN is unequal even to itself, but two phases agree where both have it.
    equal = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    different = np.flatnonzero(~equal.all(axis=1))
    distances = np.where(equal, 0.0, np.nan_to_num(np.abs(ours - theirs), nan=np.inf))
    return Comparison(
        first_step=first,
        last_step=max(last, first),
        steps=_largest(METRICS, distances, first),
        epochs=_compare_epochs(phase1, phase2),
        first_different_step=first + int(different[0]) + 1 if len(different) else None,
        weights=_weights_apart(phase1, phase2),
        tracking=_compare_tracking(phase1, phase2),
        tolerance=tolerance,
        complete=phase1.finished and phase2.finished,
    )


def _compare_tracking(phase1: Phase, phase2: Phase) -> list[Tracking]:
    first = {one.key: one for one in phase1.evaluations}
    return [
        Tracking(one.series, one.step, first[one.key].measures["auc"], one.measures["auc"])
        for one in phase2.evaluations
        if one.key in first and one.step > phase2.first_step
    ]


def _compare_epochs(phase1: Phase, phase2: Phase) -> list[Difference]:
    theirs = {int(epoch["epoch"]): epoch for epoch in phase1.history}
    common = [epoch for epoch in phase2.epochs() if int(epoch["epoch"]) in theirs]
    rows = [[abs(epoch[metric] - theirs[int(epoch["epoch"])][metric]) for metric in EPOCH_METRICS] for epoch in common]
    first = int(common[0]["epoch"]) - 1 if common else 0
    return _largest(EPOCH_METRICS, np.array(rows, np.float64).reshape(-1, len(EPOCH_METRICS)), first)


def _largest(names: Sequence[str], distances: NDArray[np.float64], first: int) -> list[Difference]:
    if len(distances) == 0:
        return []
    rows = distances.argmax(axis=0)
    return [
        Difference(name, float(distances[row, column]), first + int(row) + 1)
        for column, (name, row) in enumerate(zip(names, rows, strict=True))
    ]


def _weights_apart(phase1: Phase, phase2: Phase) -> float | None:
    if len(phase1.steps) != len(phase2.steps) or phase1.weights.keys() != phase2.weights.keys():
        return None
    return max(
        (0.0 if torch.equal(tensor, other) else (tensor.double() - other.double()).abs().max().item())
        for tensor, other in ((tensor, phase2.weights[name]) for name, tensor in phase1.weights.items())
    )
