"""What is said of trackers on a benchmark: numbers with intervals, by sequence, class and attribute.

Each number stands beside the name of its protocol, in `results.parquet` (a row per sequence) as in `summary.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from seqtrack.data.storage import first_of
from seqtrack.errors import InputError
from seqtrack.evaluation.benchmarks import BenchmarkData, coverage
from seqtrack.evaluation.curves import Floats, Measure, Rows
from seqtrack.evaluation.protocols import MEASURES, Scores, caveat, protocol_named, score
from seqtrack.evaluation.results import Results, Track, frames_per_second
from seqtrack.evaluation.sequences import BenchmarkSequence
from seqtrack.files import write_atomically

FORMAT = 1
TABLE, SUMMARY = "results.parquet", "summary.json"
RESAMPLES, SEED = 2_000, 0
"""How often the bootstrap draws sequences anew, and the seed of its draws."""
LEVEL = 0.95


@dataclass(frozen=True)
class Evaluation:
    """One tracker's results on a benchmark, scored by one protocol."""

    tracker: str
    data: BenchmarkData
    sequences: tuple[BenchmarkSequence, ...]
    """Those that were scored."""
    tracks: tuple[Track, ...]
    """One for each of them."""
    scores: Scores
    missing: dict[str, str]
    """Name of a sequence of the benchmark that was not scored -> why."""
    integers: bool
    """Whether the result files have whole pixels."""
    notes: tuple[str, ...]
    """What the user should know, a line each."""

    @property
    def coverage(self) -> str:
        """`278 of 280 sequences`."""
        return coverage(len(self.sequences), self.size)

    @property
    def size(self) -> int | None:
        """Number of sequences of the whole benchmark, if it is known."""
        return self.data.size if self.data.size or not self.missing else len(self.data.sequences)

    @property
    def frames_per_second(self) -> float | None:
        return frames_per_second(self.tracks)

    @property
    def classes(self) -> dict[str, list[int]]:
        """Name of a class -> rows of its sequences."""
        return self._groups(lambda one: (one.object_class,) if one.object_class else ())

    @property
    def attributes(self) -> dict[str, list[int]]:
        """Name of an attribute -> rows of the sequences that have it."""
        return self._groups(lambda one: one.attributes)

    def _groups(self, of: Callable[[BenchmarkSequence], Sequence[str]]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = {}
        for row, one in enumerate(self.sequences):
            for name in of(one):
                groups.setdefault(name, []).append(row)
        return dict(sorted(groups.items()))


def evaluate(data: BenchmarkData, results: Mapping[str, Results], protocol: str | None = None) -> list[Evaluation]:
    """Scores any number of trackers (by name) on the sequences that all of them have results of.

    `protocol`: None for the benchmark's own. Raises InputError if there is no such sequence, or if the benchmark's
    annotations are not public.
    """
    title = data.benchmark.title
    if withheld := [one.name for one in data.sequences if one.withheld]:
        raise InputError(
            f"{title}: the annotations of {len(withheld)} sequences are not public ({first_of(withheld)}); its server "
            "scores a zip of the results"
        )
    common = tuple(one for one in data.sequences if all(one.name in found.tracks for found in results.values()))
    if not common or not results:
        raise InputError(f"{title}: no sequence has results of all of {', '.join(results) or 'no tracker'}")
    shared = {one.name for one in common}
    chosen = protocol_named(protocol or data.benchmark.protocol)
    truths = [one.truth for one in common]
    known = caveat(chosen.name, data.benchmark.name, truths)
    evaluations = []
    for tracker, found in results.items():
        tracks = tuple(found.tracks[one.name] for one in common)
        without = set(found.missing)
        left = [one.name for one in data.sequences if one.name not in shared and one.name not in without]
        notes = [*found.notes]
        if without:
            notes.append(f"{tracker}: {len(without)} sequences have no results, {first_of(found.missing)}")
        if left:
            notes.append(f"{tracker}: {len(left)} sequences are left out that others lack, {first_of(left)}")
        notes += [known] if known else []
        missing = (
            data.missing | dict.fromkeys(found.missing, "no results") | dict.fromkeys(left, "no results of others")
        )
        scores = score(chosen.name, data.benchmark.name, truths, [track.boxes_xywh for track in tracks])
        evaluations.append(Evaluation(tracker, data, common, tracks, scores, missing, found.integers, tuple(notes)))
    return evaluations


def interval(measure: Measure, rows: Rows = None) -> tuple[float, float] | None:
    """Between what the mean lies in 95 % of the cases, if other sequences of the same kind had been chosen, in percent.

    A percentile bootstrap over sequences; the same numbers give the same interval. None for fewer than two sequences.
    """
    chosen = slice(None) if rows is None else np.asarray(rows, np.int64)
    values, weights = measure.values[chosen], measure.weights[chosen]
    counts = weights > 0
    if counts.sum() < 2:
        return None
    draws = _draws(int(counts.sum()))
    means = (draws @ (values[counts] * weights[counts])) / (draws @ weights[counts])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


@cache
def _draws(sequences: int) -> Floats:
    """(RESAMPLES, S) how often each sequence is drawn."""
    rng = np.random.default_rng(SEED)
    return rng.multinomial(sequences, np.full(sequences, 1 / sequences), RESAMPLES).astype(np.float64)


def by_sequence(evaluations: Sequence[Evaluation]) -> pa.Table:
    """A row for each tracker and sequence. Measures that the protocol does not define are null."""
    rows = []
    for one in evaluations:
        for row, (sequence, track) in enumerate(zip(one.sequences, one.tracks, strict=True)):
            measures = {name: float(measure.values[row]) for name, measure in one.scores.measures.items()}
            curves = {name: (100 * curve.fractions[row]).tolist() for name, curve in one.scores.curves.items()}
            rows.append(
                {
                    "tracker": one.tracker,
                    "benchmark": one.data.benchmark.name,
                    "protocol": one.scores.protocol,
                    "sequence": sequence.name,
                    "class": sequence.object_class,
                    "attributes": list(sequence.attributes),
                    "frames": int(one.scores.frames[row]),
                    "frames_per_second": frames_per_second([track]),
                    **{name: None if math.isnan(value) else value for name, value in measures.items()},
                    **{f"{name}_curve": curve for name, curve in curves.items()},
                }
            )
    return pa.Table.from_pylist(rows, _SCHEMA)


_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("tracker", "benchmark", "protocol", "sequence", "class")]
    + [("attributes", pa.list_(pa.string())), ("frames", pa.int64()), ("frames_per_second", pa.float64())]
    + [(name, pa.float64()) for name in MEASURES]
    + [
        (f"{name}_curve", pa.list_(pa.float64()))
        for name in ("success", "precision", "normalized_precision", "pooled_success")
    ]
)


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """What `summary.json` holds. Numbers are in percent."""
    return {
        "format": FORMAT,
        "interval": {
            "level": LEVEL,
            "method": "percentile bootstrap over sequences",
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "evaluations": [_summarise_one(one) for one in evaluations],
    }


def _summarise_one(one: Evaluation) -> dict[str, Any]:
    scores = one.scores
    groups = {"classes": one.classes, "attributes": one.attributes}
    return {
        "tracker": one.tracker,
        "benchmark": one.data.benchmark.name,
        "title": one.data.benchmark.title,
        "protocol": scores.protocol,
        "sequences": len(one.sequences),
        "of": one.size,
        "missing": one.missing,
        "frames": int(scores.frames.sum()),
        "frames_per_second": one.frames_per_second,
        "integers": one.integers,
        "notes": list(one.notes),
        "measures": _numbers(scores, None),
        "curves": {
            name: {
                "protocol": scores.protocol,
                "thresholds": curve.thresholds.tolist(),
                "percent": curve.mean().tolist() if curve.weights.any() else None,
            }
            for name, curve in scores.curves.items()
        },
        **{
            kind: {name: {"sequences": len(rows), **_numbers(scores, rows)} for name, rows in found.items()}
            for kind, found in groups.items()
        },
    }


def _numbers(scores: Scores, rows: Rows) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, measure in scores.measures.items():
        value, between = measure.mean(rows), interval(measure, rows)
        numbers[name] = {
            "protocol": scores.protocol,
            "value": None if math.isnan(value) else value,
            "low": between[0] if between else None,
            "high": between[1] if between else None,
        }
    return numbers


def write_summary(filesystem: fs.FileSystem, folder: str, evaluations: Sequence[Evaluation]) -> None:
    """Writes `results.parquet` and `summary.json` into a folder, each in one step. Raises OSError."""
    filesystem.create_dir(folder, recursive=True)
    buffer = pa.BufferOutputStream()
    pq.write_table(by_sequence(evaluations), buffer)
    write_atomically(filesystem, f"{folder}/{TABLE}", buffer.getvalue().to_pybytes())
    write_atomically(filesystem, f"{folder}/{SUMMARY}", json.dumps(summarise(evaluations), indent=1, allow_nan=False))


def table_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """A table for people: benchmarks one below the other, a line for each tracker, best ones first."""
    lines: list[str] = []
    kinds = dict.fromkeys((one.data.benchmark.title, one.coverage, one.scores.protocol) for one in evaluations)
    for title, covered, protocol in kinds:
        names = list(protocol_named(protocol).measures)
        group = [
            one
            for one in evaluations
            if (one.data.benchmark.title, one.coverage, one.scores.protocol) == (title, covered, protocol)
        ]
        group.sort(key=lambda one: -one.scores.measures[names[0]].mean())
        width = max(len(one.tracker) for one in group)
        lines.append(f"{title}, {covered}, protocol {protocol} (in percent; [95 % interval of the mean])")
        for one in group:
            cells = [_cell(name, one.scores.measures[name]) for name in names]
            lines.append(f"  {one.tracker:<{width}}  " + "  ".join(cells))
    return lines


def _cell(name: str, measure: Measure) -> str:
    between = interval(measure)
    shown = f" [{between[0]:.1f}, {between[1]:.1f}]" if between else ""
    return f"{MEASURES[name]} {measure.mean():.2f}{shown}"
