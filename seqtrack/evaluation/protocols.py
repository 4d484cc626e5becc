"""The published ways to score tracks, each exactly as its own code does it.

The same tracks get different numbers from different toolkits (UAV123: 66.1 from pytracking, 70.3 from the GOT-10k
toolkit), so a number means something only together with the name of its protocol. They differ in three things: how long
a box is (from x to x + w - 1, or to x + w), which frames count, and what a frame without a target is worth.

- `pytracking` (what papers print): analysis/extract_results.py of PyTracking.
- `lasot-toolkit`: calc_seq_err_robust.m and eval_tracker.m of the LaSOT toolkit.
- `got10k`: ExperimentGOT10k (AO, SR: all frames pooled) and ExperimentOTB (AUC, precision) of the GOT-10k toolkit.
- `trackingnet`: metrics.py of TrackingNet's server.

The frames of all sequences are scored as one array, and a curve is a histogram of its errors over the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqtrack.errors import InputError, did_you_mean

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rows = Sequence[int] | NDArray[np.int64] | None
"""Which sequences; None: all."""

MEASURES = {
    "auc": "AUC",
    "op50": "OP50",
    "op75": "OP75",
    "precision": "P",
    "normalized_precision": "P_norm",
    "ao": "AO",
    "sr50": "SR50",
    "sr75": "SR75",
    "average_overlap": "mean IoU",
}
"""Name of a measure -> how papers write it. `average_overlap` is over the frames that show the target."""


@dataclass(frozen=True)
class Truth:
    """What is annotated for a sequence of F frames."""

    boxes_xywh: Floats
    """(F, 4) in pixels. NaN: no target."""
    absent: Flags
    """(F,) whether the target is out of view or fully hidden."""
    cover: NDArray[np.int64] | None = None
    """(F,) GOT-10k's visible part of the target in eighths, 0 … 8."""
    resolution: tuple[int, int] | None = None
    """Width and height of the frames, if they are known."""


@dataclass(frozen=True)
class Curve:
    """The part of the frames that satisfies each threshold, by sequence."""

    thresholds: Floats
    """(T,)"""
    fractions: Floats
    """(S, T)"""
    weights: Floats
    """(S,) how much each sequence counts: 1, or its number of frames where frames are pooled."""

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
        """In percent, over the sequences of `rows`. NaN if they have no frame that counts."""
        return float(_mean(self.values, self.weights, rows))


@dataclass(frozen=True)
class Scores:
    """What a protocol says of a tracker on the sequences of a benchmark."""

    protocol: str
    frames: NDArray[np.int64]
    """(S,) length of each sequence."""
    measures: dict[str, Measure]
    """By name, a key of MEASURES: those that the protocol defines."""
    curves: dict[str, Curve]
    """`success`, `precision` and `normalized_precision` as far as the protocol has them. `pooled_success`: GOT-10k's
    success curve over all frames, whose mean is close to AO."""


@dataclass(frozen=True)
class _Frames:
    """The frames of all sequences, one sequence after another."""

    predicted: Floats
    truth: Floats
    absent: Flags
    owner: NDArray[np.int64]
    """(F,) the number of each frame's sequence."""
    starts: NDArray[np.int64]
    """(S,) the first frame of each sequence."""
    lengths: NDArray[np.int64]
    truths: Sequence[Truth]


@dataclass(frozen=True)
class Protocol:
    """A published way to score tracks."""

    name: str
    meaning: str
    """One line for people."""
    measures: tuple[str, ...]
    score: Callable[[_Frames, str], tuple[dict[str, Measure], dict[str, Curve]]]


def score(protocol: str, benchmark: str, truths: Sequence[Truth], predictions: Sequence[Floats]) -> Scores:
    """Scores a track for each sequence, with as many boxes (xywh) as the sequence has frames.

    `benchmark`: its name, since `pytracking` treats frames without a target differently in LaSOT and UAV123. Raises
    InputError for an unknown protocol, ValueError if a track's length is wrong.
    """
    chosen = protocol_named(protocol)
    for number, (truth, boxes) in enumerate(zip(truths, predictions, strict=True)):
        if boxes.shape != truth.boxes_xywh.shape or len(truth.absent) != len(boxes) or not len(boxes):
            raise ValueError(f"track {number}: {boxes.shape} boxes for annotations of {truth.boxes_xywh.shape}")
    lengths = np.array([len(truth.absent) for truth in truths], np.int64)
    frames = _Frames(
        predicted=np.concatenate(predictions).astype(np.float64),
        truth=np.concatenate([truth.boxes_xywh for truth in truths]).astype(np.float64),
        absent=np.concatenate([truth.absent for truth in truths]).astype(bool),
        owner=np.repeat(np.arange(len(lengths)), lengths),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        truths=truths,
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # empty boxes: sorted out below
        measures, curves = chosen.score(frames, benchmark)
    return Scores(chosen.name, lengths, measures, curves)


def protocol_named(name: str) -> Protocol:
    """Raises InputError if there is none of this name."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name}: known are {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def _pytracking(frames: _Frames, benchmark: str) -> tuple[dict[str, Measure], dict[str, Curve]]:
    """A frame without a valid box misses in overlap. Its centre hits in UAV123, its normalised centre everywhere.

    Except in LaSOT where the target is absent: the published code was repaired there, and only there.
    """
    truth = frames.truth
    boxes = _repeated(frames, (frames.predicted[:, 2:] == 0).any(1) & ~np.isnan(truth).any(1))
    valid = (truth[:, 2:] > 0).all(1) & ~frames.absent
    centre_miss = -1.0 if benchmark == "uav123" else np.inf
    repaired = frames.absent if benchmark not in NORMALIZED_HITS else np.zeros(len(truth), bool)
    overlap = np.where(valid, _overlap(boxes, truth, 1.0), -1.0)
    centre, normalized = _centre_errors(boxes, truth)
    curves = {
        "success": _success(overlap, OVERLAPS, frames, frames.lengths),
        "precision": _precision(np.where(valid, centre, centre_miss), PIXELS, frames, frames.lengths),
        "normalized_precision": _precision(
            np.where(repaired, np.inf, np.where(valid, normalized, -1.0)), NORMALIZED, frames, frames.lengths
        ),
    }
    mean_overlap = _by_sequence(overlap, valid, frames)
    everywhere = np.where(mean_overlap.weights > 0, 1.0, 0.0)
    return _from_curves(curves) | {"average_overlap": Measure(mean_overlap.values, everywhere)}, curves


def _lasot_toolkit(frames: _Frames, benchmark: str) -> tuple[dict[str, Measure], dict[str, Curve]]:
    """Absent frames are dropped, but sequences keep their length: misses. The centre of other invalid frames hits."""
    truth = frames.truth
    boxes = _repeated(frames, ~(frames.predicted[:, 2:] > 0).all(1) & ~np.isnan(truth).any(1))
    valid, absent = (truth > 0).all(1), frames.absent
    overlap = np.where(valid & ~absent, _overlap(boxes, truth, 1.0), -1.0)
    errors = [np.where(absent, np.inf, np.where(valid, error, -1.0)) for error in _centre_errors(boxes, truth)]
    curves = {
        "success": _success(overlap, OVERLAPS, frames, frames.lengths),
        "precision": _precision(errors[0], PIXELS, frames, frames.lengths),
        "normalized_precision": _precision(errors[1], NORMALIZED, frames, frames.lengths),
    }
    measures = _from_curves(curves)
    return {name: measures[name] for name in ("auc", "precision", "normalized_precision")}, curves


def _got10k(frames: _Frames, benchmark: str) -> tuple[dict[str, Measure], dict[str, Curve]]:
    """AO and SR: frames pooled, first ones dropped, boxes clipped to the frame. AUC and precision: as for OTB.

    Frames whose annotation is NaN do not count at all. AO and SR leave out frames of cover 0 too; where there is no
    cover, those in which the target is absent.
    """
    truth = frames.truth
    annotated = ~np.isnan(truth).any(1)
    later = np.ones(len(truth), bool)
    later[frames.starts] = False
    covered = np.concatenate([~one.absent if one.cover is None else one.cover > 0 for one in frames.truths])
    pooled = annotated & later & covered
    bounds = np.array([one.resolution or (np.inf, np.inf) for one in frames.truths], np.float64)[frames.owner]
    clip = np.isfinite(bounds[:, :1])
    clipped = [np.where(clip, _clipped(boxes, bounds), boxes) for boxes in (frames.predicted, truth)]
    overlap = np.clip(_overlap(*clipped, 0.0, np.finfo(float).eps), 0, 1)
    boxes = _first_given(frames.predicted, frames)
    whole = np.clip(_overlap(boxes, truth, 0.0, np.finfo(float).eps), 0, 1)
    counted = np.bincount(frames.owner, annotated, len(frames.lengths))
    curves = {
        "success": _success(np.where(annotated, whole, -1.0), OVERLAPS, frames, counted),
        "precision": _precision(np.where(annotated, _centre_errors(boxes, truth)[0], np.inf), PIXELS, frames, counted),
        "pooled_success": _success(
            np.where(pooled, overlap, -1.0),
            FINE_OVERLAPS,
            frames,
            np.bincount(frames.owner, pooled, len(counted)),
            True,
        ),
    }
    measures = _from_curves(curves)
    return {
        "ao": _by_sequence(overlap, pooled, frames),
        "sr50": _by_sequence(overlap > 0.5, pooled, frames),
        "sr75": _by_sequence(overlap > 0.75, pooled, frames),
        "auc": measures["auc"],
        "precision": measures["precision"],
    }, curves


def _trackingnet(frames: _Frames, benchmark: str) -> tuple[dict[str, Measure], dict[str, Curve]]:
    """All is rounded to pixels, IoU is at least the threshold, and each number is the area under its curve."""
    truth = np.round(frames.truth)
    boxes = np.round(_first_given(frames.predicted, frames))
    between = truth[:, :2] + (truth[:, 2:] + 1) / 2 - (boxes[:, :2] + (boxes[:, 2:] + 1) / 2)
    overlap = _overlap(boxes, truth, 1.0)
    curves = {
        "success": _success(np.where(np.isnan(overlap), -1.0, overlap), COARSE, frames, frames.lengths, at_least=True),
        "precision": _precision(np.sqrt((between**2).sum(1)), 50 * COARSE, frames, frames.lengths),
        "normalized_precision": _precision(
            np.sqrt(((between / truth[:, 2:]) ** 2).sum(1)), np.linspace(0, 0.5, 21), frames, frames.lengths
        ),
    }
    areas = {
        name: Measure(100 * np.trapezoid(curve.fractions, COARSE, axis=1), curve.weights)
        for name, curve in curves.items()
    }
    return {"auc": areas.pop("success"), **areas}, curves


OVERLAPS = np.arange(0.0, 1.05, 0.05)
FINE_OVERLAPS = np.linspace(0, 1, 101)
COARSE = np.linspace(0, 1, 21)
PIXELS = np.arange(51.0)
NORMALIZED = np.arange(51.0) / 100
NORMALIZED_HITS = ("lasot_ext", "got10k_val", "otb100", "uav123", "nfs", "tnl2k", "trackingnet", "got10k_test")
"""Benchmarks in which `pytracking` counts frames without a target as hits of P_norm. Folders in LaSOT's layout are
scored as LaSOT."""

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "pytracking",
            "what papers print: mean over sequences; frames without a target are misses, except for P_norm outside of "
            "LaSOT and for UAV123's P and P_norm, where they are hits",
            ("auc", "op50", "op75", "precision", "normalized_precision", "average_overlap"),
            _pytracking,
        ),
        Protocol(
            "lasot-toolkit",
            "LaSOT's own: mean over sequences; frames without a target are misses",
            ("auc", "precision", "normalized_precision"),
            _lasot_toolkit,
        ),
        Protocol(
            "got10k",
            "AO and SR over the frames of all sequences, except the first ones and those that hide the target; AUC and "
            "P as mean over sequences, in which frames without a target count as any other",
            ("ao", "sr50", "sr75", "auc", "precision"),
            _got10k,
        ),
        Protocol(
            "trackingnet",
            "the server's: boxes in whole pixels; AUC, P and P_norm are areas under the curves (P up to 50 pixels)",
            ("auc", "precision", "normalized_precision"),
            _trackingnet,
        ),
    )
}


def _repeated(frames: _Frames, empty: Flags) -> Floats:
    """The predictions with each empty one replaced by the one before it, and the first by the annotation."""
    own = ~empty
    own[frames.starts] = True
    source = np.maximum.accumulate(np.where(own, np.arange(len(own)), 0))
    return _first_given(frames.predicted[source], frames)


def _first_given(boxes: Floats, frames: _Frames) -> Floats:
    boxes = boxes.copy()
    boxes[frames.starts] = frames.truth[frames.starts]
    return boxes


def _overlap(boxes1_xywh: Floats, boxes2_xywh: Floats, pixel: float, epsilon: float = 0.0) -> Floats:
    """(F,) IoU. `pixel`: 1 where a box ends with its last pixel, x + w - 1, else 0. NaN for two empty boxes."""
    start = np.maximum(boxes1_xywh[:, :2], boxes2_xywh[:, :2])
    ends = [boxes[:, :2] + boxes[:, 2:] - pixel for boxes in (boxes1_xywh, boxes2_xywh)]
    intersection = np.maximum(np.minimum(*ends) - start + pixel, 0).prod(1)
    union = boxes1_xywh[:, 2:].prod(1) + boxes2_xywh[:, 2:].prod(1) - intersection
    return np.asarray(intersection / (union + epsilon), np.float64)


def _centre_errors(boxes_xywh: Floats, truth_xywh: Floats) -> tuple[Floats, Floats]:
    """(F,) distance of the centres in pixels, and in units of the annotation's width and height."""
    centres = [boxes[:, :2] + 0.5 * (boxes[:, 2:] - 1) for boxes in (boxes_xywh, truth_xywh)]
    sides = truth_xywh[:, 2:]
    pixels = np.sqrt(((centres[0] - centres[1]) ** 2).sum(1))
    return pixels, np.sqrt(((centres[0] / sides - centres[1] / sides) ** 2).sum(1))


def _clipped(boxes_xywh: Floats, bounds: Floats) -> Floats:
    """As the GOT-10k toolkit does it: a corner that is moved does not change the width."""
    corner = np.clip(boxes_xywh[:, :2], 0, bounds)
    return np.concatenate((corner, np.clip(boxes_xywh[:, 2:], 0, bounds - corner)), axis=1)


def _success(
    overlap: Floats,
    thresholds: Floats,
    frames: _Frames,
    counted: NDArray[np.number],
    pooled: bool = False,
    at_least: bool = False,
) -> Curve:
    """Frames whose overlap is above each threshold (or `at_least` it). A frame that does not count has -1."""
    passed = np.searchsorted(thresholds, overlap, side="right" if at_least else "left")
    return _curve(
        thresholds, np.cumsum(_histogram(passed, thresholds, frames)[:, :0:-1], axis=1)[:, ::-1], counted, pooled
    )


def _precision(errors: Floats, thresholds: Floats, frames: _Frames, counted: NDArray[np.number]) -> Curve:
    """Frames whose error is at most each threshold. NaN is a miss."""
    first = np.searchsorted(thresholds, errors, side="left")
    return _curve(thresholds, np.cumsum(_histogram(first, thresholds, frames)[:, :-1], axis=1), counted, False)


def _histogram(bins: NDArray[np.int64], thresholds: Floats, frames: _Frames) -> NDArray[np.int64]:
    """(S, T + 1) frames of each sequence in each bin."""
    width = len(thresholds) + 1
    counts = np.bincount(frames.owner * width + bins, minlength=len(frames.lengths) * width)
    return counts.reshape(-1, width)


def _curve(thresholds: Floats, hits: NDArray[np.int64], counted: NDArray[np.number], pooled: bool) -> Curve:
    weights = counted.astype(np.float64)
    return Curve(thresholds, hits / np.maximum(weights, 1)[:, None], weights if pooled else np.sign(weights))


def _by_sequence(values: NDArray[np.generic], counted: Flags, frames: _Frames) -> Measure:
    """The mean in percent over the frames that count, weighted by their number."""
    weights = np.bincount(frames.owner, counted, len(frames.lengths))
    sums = np.bincount(frames.owner, np.where(counted, values, 0), len(frames.lengths))
    return Measure(100 * sums / np.where(weights > 0, weights, np.nan), weights)


def _from_curves(curves: dict[str, Curve]) -> dict[str, Measure]:
    """The numbers that are read off curves: 0.5 and 0.75 of IoU, 20 pixels, a fifth of the target's size."""

    def at(curve: Curve, place: int | slice) -> Measure:
        values = curve.fractions[:, place]
        values = values if values.ndim == 1 else values.mean(1)
        return Measure(np.where(curve.weights > 0, 100 * values, np.nan), curve.weights)

    places = {"auc": ("success", slice(None)), "op50": ("success", 10), "op75": ("success", 15)}
    places |= {"precision": ("precision", 20), "normalized_precision": ("normalized_precision", 20)}
    return {name: at(curves[curve], place) for name, (curve, place) in places.items() if curve in curves}


def _mean(values: Floats, weights: Floats, rows: Rows) -> Floats:
    chosen = slice(None) if rows is None else np.asarray(rows, np.int64)
    values, weights = values[chosen], weights[chosen]
    if not weights.sum() > 0:
        return np.full(values.shape[1:], np.nan)
    return np.asarray(np.average(values[weights > 0], axis=0, weights=weights[weights > 0]))
