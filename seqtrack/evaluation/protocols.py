"""The published ways to score tracks, each exactly as its own code does it.

The same tracks get different numbers from different toolkits (UAV123: 66.1 from pytracking, 70.3 from the GOT-10k
toolkit), so a number means something only together with the name of its protocol. They differ in three things: how long
a box is (from x to x + w - 1, or to x + w), which frames count, and what a frame without a target is worth.

- `pytracking` (what papers print): analysis/extract_results.py of PyTracking.
- `lasot-toolkit`: calc_seq_err_robust.m and eval_tracker.m of the LaSOT toolkit.
- `got10k`: ExperimentGOT10k (AO, SR: all frames pooled) and ExperimentOTB (AUC, precision) of the GOT-10k toolkit.
- `trackingnet`: metrics.py of TrackingNet's server.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seqtrack.errors import InputError, did_you_mean
from seqtrack.evaluation.curves import (
    Curve,
    Flags,
    Floats,
    Groups,
    Measure,
    mean_by_sequence,
    precision_curve,
    success_curve,
)

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
class Scores:
    """What a protocol says of a tracker on the sequences of a benchmark."""

    protocol: str
    frames: NDArray[np.int64]
    """(S,) length of each sequence."""
    measures: dict[str, Measure]
    """The measures that the protocol defines, by name, which is a key of MEASURES."""
    curves: dict[str, Curve]
    """`success`, `precision` and `normalized_precision` as far as the protocol has them. `pooled_success`: GOT-10k's
    success curve over all frames, whose mean is close to AO."""


@dataclass(frozen=True)
class _Frames:
    """The frames of all sequences, one sequence after another."""

    predicted: Floats
    truth: Floats
    absent: Flags
    groups: Groups
    truths: Sequence[Truth]


Verdict = tuple[dict[str, Measure], dict[str, Curve]]


@dataclass(frozen=True)
class Protocol:
    """A published way to score tracks."""

    name: str
    meaning: str
    """What the protocol is, in one line for people."""
    measures: tuple[str, ...]
    """What it defines: keys of MEASURES, the one that papers print first."""
    score: Callable[[_Frames, str], Verdict]
    """The function that scores the frames of a benchmark, which is given by its name."""


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
        groups=Groups.of(lengths),
        truths=truths,
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # empty boxes: sorted out below
        measures, curves = chosen.score(frames, benchmark)
    return Scores(chosen.name, lengths, {name: measures[name] for name in chosen.measures}, curves)


def protocol_named(name: str) -> Protocol:
    """Raises InputError if there is none of this name."""
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name}: known are {', '.join(PROTOCOLS)}{did_you_mean(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def caveat(protocol: str, benchmark: str, truths: Sequence[Truth]) -> str | None:
    """What a reader of the numbers should know about frames without a target; None if there is nothing."""
    hits = {"uav123": "P and P_norm"}.get(benchmark, "P_norm" if benchmark in NORMALIZED_HITS else None)
    without = sum(int((one.absent | ~(one.boxes_xywh[:, 2:] > 0).all(1)).sum()) for one in truths)
    if protocol != "pytracking" or hits is None or not without:
        return None
    return f"pytracking counts the {without:,} frames of {benchmark} without a target as hits of {hits}"


def _pytracking(frames: _Frames, benchmark: str) -> Verdict:
    """A frame without a valid box misses in overlap. Its centre hits in UAV123, its normalised centre everywhere.

    Except in LaSOT where the target is absent: the published code was repaired there, and only there.
    """
    truth, groups = frames.truth, frames.groups
    boxes = _repeated(frames, (frames.predicted[:, 2:] == 0).any(1) & _annotated(truth))
    valid = (truth[:, 2:] > 0).all(1) & ~frames.absent
    overlap = np.where(valid, _overlap(boxes, truth), -1.0)
    centre, normalized = _centre_errors(boxes, truth)
    normalized = np.where(valid, normalized, -1.0)
    if benchmark not in NORMALIZED_HITS:
        normalized = np.where(frames.absent, np.inf, normalized)
    curves = {
        "success": success_curve(overlap, OVERLAPS, groups),
        "precision": precision_curve(
            np.where(valid, centre, -1.0 if benchmark == "uav123" else np.inf), PIXELS, groups
        ),
        "normalized_precision": precision_curve(normalized, NORMALIZED, groups),
    }
    mean = mean_by_sequence(overlap, groups, valid)
    return _from_curves(curves) | {"average_overlap": Measure(mean.values, np.sign(mean.weights))}, curves


def _lasot_toolkit(frames: _Frames, benchmark: str) -> Verdict:
    """Absent frames are dropped, but sequences keep their length: misses. The centre of other invalid frames hits."""
    truth, groups, absent = frames.truth, frames.groups, frames.absent
    boxes = _repeated(frames, (frames.predicted[:, 2:] <= 0).any(1) & _annotated(truth))
    valid = (truth > 0).all(1)
    centre, normalized = (
        np.where(absent, np.inf, np.where(valid, error, -1.0)) for error in _centre_errors(boxes, truth)
    )
    curves = {
        "success": success_curve(np.where(valid & ~absent, _overlap(boxes, truth), -1.0), OVERLAPS, groups),
        "precision": precision_curve(centre, PIXELS, groups),
        "normalized_precision": precision_curve(normalized, NORMALIZED, groups),
    }
    return _from_curves(curves), curves


def _got10k(frames: _Frames, benchmark: str) -> Verdict:
    """AO and SR: frames pooled, first ones dropped, boxes clipped to the frame. AUC and precision: as for OTB.

    Frames whose annotation is NaN do not count at all. AO and SR leave out frames of cover 0 too; where there is no
    cover, those in which the target is absent.
    """
    truth, groups = frames.truth, frames.groups
    annotated = _annotated(truth)
    boxes = _first_given(frames.predicted, frames)
    centre, _ = _centre_errors(boxes, truth)
    curves = {
        "success": success_curve(_overlap(boxes, truth, pixel=0), OVERLAPS, groups, annotated),
        "precision": precision_curve(centre, PIXELS, groups, annotated),
    }
    bounds = np.array([one.resolution or (np.inf, np.inf) for one in frames.truths], np.float64)[groups.owner]
    overlap = _overlap(_clipped(frames.predicted, bounds), _clipped(truth, bounds), pixel=0)
    pooled = annotated & np.concatenate([~one.absent if one.cover is None else one.cover > 0 for one in frames.truths])
    pooled[groups.starts] = False
    by_sequence = success_curve(overlap, FINE_OVERLAPS, groups, pooled)
    of_frames = {
        "ao": mean_by_sequence(overlap, groups, pooled),
        "sr50": mean_by_sequence(overlap > 0.5, groups, pooled),
        "sr75": mean_by_sequence(overlap > 0.75, groups, pooled),
    }
    pooled_success = replace(by_sequence, weights=groups.count(pooled))
    return of_frames | _from_curves(curves), curves | {"pooled_success": pooled_success}


def _trackingnet(frames: _Frames, benchmark: str) -> Verdict:
    """All is rounded to pixels, IoU is at least the threshold, and each number is the area under its curve."""
    truth, groups = np.round(frames.truth), frames.groups
    boxes = np.round(_first_given(frames.predicted, frames))
    between = truth[:, :2] + (truth[:, 2:] + 1) / 2 - (boxes[:, :2] + (boxes[:, 2:] + 1) / 2)
    normalized = np.sqrt(((between / truth[:, 2:]) ** 2).sum(1))
    curves = {
        "success": success_curve(_overlap(boxes, truth), COARSE, groups, at_least=True),
        "precision": precision_curve(np.sqrt((between**2).sum(1)), np.linspace(0, 50, 21), groups),
        "normalized_precision": precision_curve(normalized, np.linspace(0, 0.5, 21), groups),
    }
    areas = {
        name: Measure(np.asarray(100 * np.trapezoid(curve.fractions, COARSE, axis=1)), curve.weights)
        for name, curve in curves.items()
    }
    return {"auc": areas.pop("success"), **areas}, curves


OVERLAPS = np.arange(0.0, 1.05, 0.05)
FINE_OVERLAPS = np.linspace(0, 1, 101)
COARSE = np.linspace(0, 1, 21)
EPSILON = np.finfo(np.float64).eps
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
    own[frames.groups.starts] = True
    source = np.maximum.accumulate(np.where(own, np.arange(len(own)), 0))
    return _first_given(frames.predicted[source], frames)


def _annotated(truth_xywh: Floats) -> Flags:
    return np.asarray(np.isfinite(truth_xywh).all(1))


def _first_given(boxes: Floats, frames: _Frames) -> Floats:
    boxes = boxes.copy()
    boxes[frames.groups.starts] = frames.truth[frames.groups.starts]
    return boxes


def _overlap(boxes1_xywh: Floats, boxes2_xywh: Floats, pixel: int = 1) -> Floats:
    """(F,) IoU. `pixel`: 1 where a box ends with its last pixel, x + w - 1, else 0. NaN for two empty boxes."""
    start = np.maximum(boxes1_xywh[:, :2], boxes2_xywh[:, :2])
    ends = [boxes[:, :2] + boxes[:, 2:] - pixel for boxes in (boxes1_xywh, boxes2_xywh)]
    intersection = np.maximum(np.minimum(*ends) - start + pixel, 0).prod(1)
    union = boxes1_xywh[:, 2:].prod(1) + boxes2_xywh[:, 2:].prod(1) - intersection
    return np.asarray(intersection / union if pixel else np.clip(intersection / (union + EPSILON), 0, 1), np.float64)


def _centre_errors(boxes_xywh: Floats, truth_xywh: Floats) -> tuple[Floats, Floats]:
    """(F,) distance of the centres in pixels, and in units of the annotation's width and height."""
    centres = [boxes[:, :2] + 0.5 * (boxes[:, 2:] - 1) for boxes in (boxes_xywh, truth_xywh)]
    sides = truth_xywh[:, 2:]
    pixels = np.sqrt(((centres[0] - centres[1]) ** 2).sum(1))
    return pixels, np.sqrt(((centres[0] / sides - centres[1] / sides) ** 2).sum(1))


def _clipped(boxes_xywh: Floats, bounds: Floats) -> Floats:
    """The boxes cut to the frame as the GOT-10k toolkit does it: a corner that is moved does not change the width.

    `bounds`: infinite for none.
    """
    low = np.where(np.isfinite(bounds), 0, -np.inf)
    corner = np.clip(boxes_xywh[:, :2], low, bounds)
    return np.concatenate((corner, np.clip(boxes_xywh[:, 2:], low, bounds - corner)), axis=1)


def _from_curves(curves: dict[str, Curve]) -> dict[str, Measure]:
    """The numbers that are read off curves: IoU 0.5 and 0.75, 20 pixels, a fifth of the target's size."""
    success, precision, normalized = (curves.get(name) for name in ("success", "precision", "normalized_precision"))
    columns = {"auc": (success, slice(None)), "op50": (success, slice(10, 11)), "op75": (success, slice(15, 16))}
    columns |= {"precision": (precision, slice(20, 21)), "normalized_precision": (normalized, slice(20, 21))}
    return {
        name: Measure(np.where(curve.weights > 0, 100 * curve.fractions[:, part].mean(1), np.nan), curve.weights)
        for name, (curve, part) in columns.items()
        if curve is not None
    }
