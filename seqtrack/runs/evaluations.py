"""The numbers of a run's checkpoints on benchmarks: `evaluation.jsonl` in its folder, a line for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqtrack.runs.folder import RunFileError, RunFolder

EVALUATIONS_FILE = "evaluation.jsonl"


@dataclass(frozen=True)
class CheckpointScores:
    """What a protocol says of a checkpoint on a benchmark."""

    checkpoint: str
    """Name of the checkpoint."""
    step: int
    """Training steps after which the checkpoint was written."""
    benchmark: str
    protocol: str
    sequences: int
    of: int | None
    """Number of sequences of the whole benchmark, if it is known."""
    measures: Mapping[str, float]
    """The protocol's numbers in percent, such as `auc`."""
    data: str | None = None
    """The stamp of the benchmark's boxes and frames (`BenchmarkData.stamp`). Lines of earlier versions have none."""

    @property
    def series(self) -> str:
        """The curve that the numbers belong to: `lasot/pytracking`; `lasot_20of280/pytracking` for a part."""
        part = "" if self.of in (None, self.sequences) else f"_{self.sequences}of{self.of}"
        return f"{self.benchmark}{part}/{self.protocol}"

    @property
    def key(self) -> tuple[str, str]:
        """What a run has only one line of."""
        return self.checkpoint, self.series

    def to_json(self) -> str:
        values = {name: getattr(self, name) for name in _KNOWN}
        return json.dumps(values | ({} if self.data is None else {DATA: self.data}) | dict(self.measures))

    def is_of(self, data: str) -> bool:
        """Whether it was measured on these boxes and frames, or that is not known."""
        return self.data in (None, data)


DATA = "data"
_KNOWN: dict[str, Any] = {
    "checkpoint": str,
    "step": int,
    "benchmark": str,
    "protocol": str,
    "sequences": int,
    "of": int | None,
}


def read_evaluations(run: RunFolder) -> list[CheckpointScores]:
    """All lines, in the order of their steps. Raises RunFileError naming the line that is none; OSError."""
    lines = (run.read_text(EVALUATIONS_FILE) or "").splitlines()
    where = run.file(EVALUATIONS_FILE)
    found = [_parse(line, f"{where}, line {number}") for number, line in enumerate(lines, start=1)]
    return sorted(found, key=lambda one: one.step)


def add_evaluation(run: RunFolder, scores: CheckpointScores) -> None:
    """Adds a line; it replaces that of the same checkpoint and series. Raises RunFileError, OSError."""
    kept = [one for one in read_evaluations(run) if one.key != scores.key]
    run.write(EVALUATIONS_FILE, "".join(f"{one.to_json()}\n" for one in [*kept, scores]))


def forget_later(run: RunFolder, step: int) -> None:
    """Removes the lines of checkpoints after a step, which a run that goes on from there writes anew.

    Raises RunFileError, OSError.
    """
    known = read_evaluations(run)
    kept = [one for one in known if one.step <= step]
    if len(kept) < len(known):
        run.write(EVALUATIONS_FILE, "".join(f"{one.to_json()}\n" for one in kept))


def forget_changed(run: RunFolder, stamps: Mapping[str, str]) -> int:
    """Removes the lines that were measured on other boxes or frames than there are now. Returns how many.

    `stamps`: those of today, by series. Raises RunFileError, OSError.
    """
    known = read_evaluations(run)
    kept = [one for one in known if one.series not in stamps or one.is_of(stamps[one.series])]
    if len(kept) < len(known):
        run.write(EVALUATIONS_FILE, "".join(f"{one.to_json()}\n" for one in kept))
    return len(known) - len(kept)


def auc_by_checkpoint(evaluations: Sequence[CheckpointScores], benchmark: str | None = None) -> dict[str, float]:
    """Name of a checkpoint -> AUC in percent on a benchmark, all of one series.

    That is the series of the newest checkpoint; if several series have it, the longest of them. `benchmark`: None for
    the one that was measured first.
    """
    series: dict[str, list[CheckpointScores]] = {}
    for one in evaluations:
        if one.benchmark == (benchmark or evaluations[0].benchmark) and "auc" in one.measures:
            series.setdefault(one.series, []).append(one)
    chosen = max(series.values(), key=lambda found: (found[-1].step, len(found)), default=[])
    return {one.checkpoint: one.measures["auc"] for one in chosen}


def _parse(line: str, where: str) -> CheckpointScores:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(
        name in values and isinstance(values[name], kind) for name, kind in _KNOWN.items()
    ):
        raise RunFileError(f"{where}: is no evaluation of a checkpoint: {line[:60]!r}")
    data = values.pop(DATA, None)
    measures = {name: value for name, value in values.items() if name not in _KNOWN}
    if not isinstance(data, str | None):
        raise RunFileError(f"{where}: has a stamp of the data that is no text: {line[:60]!r}")
    if not all(type(value) in (int, float) for value in measures.values()):
        raise RunFileError(f"{where}: has a measure that is no number: {line[:60]!r}")
    return CheckpointScores(**{name: values[name] for name in _KNOWN}, measures=measures, data=data)
