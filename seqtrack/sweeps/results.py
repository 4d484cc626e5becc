"""What a sweep's trials left in its folder, as a table; and which configuration is best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import fs

from seqtrack.config import ConfigError
from seqtrack.data.open import Data
from seqtrack.data.stamp import NoStamp
from seqtrack.evaluation.benchmarks import BenchmarkData
from seqtrack.meta import META_FILE, MetaError, parse_meta
from seqtrack.runs.checkpoint import whole_checkpoints
from seqtrack.runs.compatibility import FRAMES
from seqtrack.runs.evaluations import auc_by_checkpoint, read_evaluations
from seqtrack.runs.folder import RunFileError, RunFolder, read_settings
from seqtrack.shown import shown
from seqtrack.sums import checkpoint_name
from seqtrack.sweeps.settings import Params, Sweep, parse_sweep

SWEEP_FILE = "sweep.json"
"""What the sweep was started with, in its folder."""
DATA_FILE = "sweep_data.json"
"""What its trials are trained and measured on, in its folder."""
TRIALS, TRIAL_FILE = "trials", "trial.json"
SEED = "SEED"

Status = Literal["finished", "stopped early", "failed", "unfinished"]


@dataclass(frozen=True)
class TrialNote:
    """`trial.json` in a trial's folder: what its checkpoints do not say."""

    params: Params
    status: Status = "unfinished"
    reason: str = ""
    """Why it failed."""
    hopeless: bool = False
    """Whether it would fail again, however often it is tried."""


@dataclass(frozen=True)
class Trial:
    """One trial as it is on disk."""

    name: str
    note: TrialNote
    history: Sequence[Mapping[str, float]]
    """Summary of each epoch that has a checkpoint, with its `auc` where that was measured."""
    checkpoint: str | None
    """The newest, by its name."""

    @property
    def params(self) -> Params:
        return self.note.params

    @property
    def finished(self) -> bool:
        return self.note.status == "finished"

    @property
    def ended(self) -> bool:
        """Nothing is left to do when the sweep goes on."""
        return self.note.status in ("finished", "stopped early") or self.note.hopeless


@dataclass(frozen=True)
class Group:
    """Trials that differ only in their seed."""

    params: Params
    """The trials' parameters without SEED."""
    trials: Sequence[Trial]
    values: Sequence[float]
    """The metric after the last epoch of each that finished."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation of the sample; NaN for fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def read_note(trial: RunFolder) -> TrialNote | None:
    """None if the trial was not begun. Raises RunFileError if its note is empty, cut off or something else."""
    return trial.read_as(TRIAL_FILE, TrialNote)


def write_note(trial: RunFolder, note: TrialNote) -> None:
    """Makes the trial's folder and replaces its note in one step. Raises OSError."""
    trial.create()
    trial.write_json(TRIAL_FILE, asdict(note))


def read_trial(trial: RunFolder, note: TrialNote) -> Trial:
    """A trial and its checkpoints, if it has any. Raises RunFileError if the newest one's `meta.json` is damaged."""
    names = whole_checkpoints(trial)
    history: list[dict[str, float]] = []
    if names:
        file = f"{names[-1]}/{META_FILE}"
        try:
            history = parse_meta(trial.read_text(file) or "")["history"]
        except MetaError as error:
            raise RunFileError(f"{trial.file(file)}: {error}") from error
    evaluations = read_evaluations(trial)
    config = read_settings(trial) if evaluations else None
    auc = auc_by_checkpoint(evaluations, next(iter(config.EVAL.BENCHMARKS), None) if config is not None else None)
    for epoch in history:
        if (name := checkpoint_name(int(epoch["epoch"]), 0)) in auc:
            epoch["auc"] = auc[name]
    return Trial(trial.name, note, history, names[-1] if names else None)


def read_trials(sweep: RunFolder) -> list[Trial]:
    """Every trial that was begun, by name. Raises RunFileError naming the file that is empty, cut off or damaged."""
    trials = sweep.child(TRIALS)
    infos = sweep.filesystem.get_file_info(fs.FileSelector(trials.path, allow_not_found=True))
    names = sorted(info.base_name for info in infos if info.type == fs.FileType.Directory)
    notes = [(trials.child(name), read_note(trials.child(name))) for name in names]
    return [read_trial(folder, note) for folder, note in notes if note is not None]


def check_same_sweep(sweep: Sweep, folder: RunFolder) -> None:
    """Raises ConfigError where the folder has a sweep over other values. More trials of the same are fine."""
    values = folder.read_json(SWEEP_FILE)
    if values is None:
        return
    earlier = parse_sweep(values, folder.file(SWEEP_FILE))
    same = ("parameters", "metric", "direction", "search", "scheduler", "stop")
    changed = [name for name in same if getattr(earlier, name) != getattr(sweep, name)]
    if changed:
        raise ConfigError(f"{folder.path} holds a sweep with other {', '.join(changed)}; another RUN.NAME keeps both")


def describe_data(data: Data, benchmarks: Sequence[BenchmarkData]) -> dict[str, Any]:
    """What a sweep's trials are trained and measured on, for DATA_FILE. `data`: with their stamp."""
    assert data.frames is not None
    return {
        "dataset": data.mixture.description,
        FRAMES: data.frames.to_json(),
        "benchmarks": {one.benchmark.name: one.stamp for one in benchmarks},
    }


def check_same_data(data: Data, benchmarks: Sequence[BenchmarkData], folder: RunFolder) -> str | None:
    """Raises ConfigError where a sweep's earlier trials had other data. `data`: with their stamp.

    Returns a line where that is not known of them, as of older sweeps.
    """
    assert data.frames is not None
    now, then, place = describe_data(data, benchmarks), folder.read_json(DATA_FILE), folder.file(DATA_FILE)
    if then is None:
        return f"Whether the data are those of the trials that {folder.path} has is not known"
    try:
        difference = data.frames.difference(then[FRAMES])
        changed = [name for name, stamp in now["benchmarks"].items() if then["benchmarks"].get(name, stamp) != stamp]
        same_sets = then["dataset"] == json.loads(json.dumps(now["dataset"]))
    except (NoStamp, KeyError, TypeError, AttributeError) as error:
        raise RunFileError(f"{place}: is no note of a sweep's data ({error})") from error
    faults = [] if same_sets else ["its trials had other sequences or annotations"]
    faults += [f"frames: {difference}"] if difference else []
    faults += [f"boxes or frames of {name} were replaced" for name in changed]
    if faults:
        raise ConfigError(
            f"{folder.path} holds a sweep on other data: {'; '.join(faults)}; another RUN.NAME keeps both (without "
            f"{DATA_FILE} this one goes on all the same)"
        )
    return None


def group_by_seed(trials: Sequence[Trial], metric: str) -> list[Group]:
    """Trials that differ only in SEED together, in the order of their parameters."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        rest = {key: value for key, value in trial.params.items() if key != SEED}
        groups.setdefault(json.dumps(rest), []).append(trial)
    found = [
        Group(
            json.loads(rest),
            sorted(members, key=lambda trial: trial.params.get(SEED, 0)),
            [trial.history[-1][metric] for trial in members if trial.finished and metric in trial.history[-1]],
        )
        for rest, members in groups.items()
    ]
    return sorted(found, key=lambda group: [_sortable(value) for value in group.params.values()])


def best_group(groups: Sequence[Group], sweep: Sweep) -> Group | None:
    """The best mean among those of which most trials finished, so that one lucky seed does not win."""
    sign = 1 if sweep.direction == "max" else -1
    candidates = [group for group in groups if group.values]
    return max(candidates, key=lambda group: (len(group.values), sign * group.mean), default=None)


def trials_table(trials: Sequence[Trial], sweep: Sweep) -> pa.Table:
    """One row a trial: parameters, how it ended, and the metrics of its last epoch."""
    best = max if sweep.direction == "max" else min
    rows = []
    for trial in trials:
        last = trial.history[-1] if trial.history else {}
        values = [epoch[sweep.metric] for epoch in trial.history if sweep.metric in epoch]
        rows.append(
            {
                "trial": trial.name,
                **trial.params,
                "status": trial.note.status,
                "reason": _text_cell(trial.note.reason),
                "epochs": len(trial.history),
                **{name: last.get(name) for name in ("loss", "iou", "accuracy", "grad_norm", "lr", "auc")},
                f"best_{sweep.metric}": best(values, default=None),
                "seconds": sum(epoch["seconds"] for epoch in trial.history),
                "checkpoint": f"{TRIALS}/{trial.name}/{trial.checkpoint}" if trial.checkpoint else None,
            }
        )
    return pa.Table.from_pylist(rows)


def _text_cell(text: str) -> str:
    """The text of others in one line, which no spreadsheet takes for a formula."""
    return f"'{shown(text)}" if text.startswith(("=", "+", "-", "@")) else shown(text)


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, json.dumps(value)
