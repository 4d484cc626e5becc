"""What a sweep's trials left in its folder, as a table; and which configuration is best."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pyarrow import fs

from seqtrack.sweeps.settings import Params, Sweep
from seqtrack.training.checkpoint import META_FILE, whole_checkpoints
from seqtrack.training.runlog import read_text

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
    """It would fail again."""


@dataclass(frozen=True)
class Trial:
    """One trial as it is on disk."""

    name: str
    note: TrialNote
    history: Sequence[Mapping[str, float]]
    """Summary of each epoch that has a checkpoint."""
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
    """Without SEED."""
    trials: Sequence[Trial]
    values: Sequence[float]
    """The metric after the last epoch of each that finished."""

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def std(self) -> float:
        """Of the sample; NaN for fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


def read_note(filesystem: fs.FileSystem, folder: str) -> TrialNote | None:
    text = read_text(filesystem, f"{folder}/{TRIAL_FILE}")
    return TrialNote(**json.loads(text)) if text else None


def write_note(filesystem: fs.FileSystem, folder: str, note: TrialNote) -> None:
    filesystem.create_dir(folder, recursive=True)
    with filesystem.open_output_stream(f"{folder}/{TRIAL_FILE}") as file:
        file.write((json.dumps(asdict(note), indent=1) + "\n").encode())


def read_trial(filesystem: fs.FileSystem, folder: str, note: TrialNote) -> Trial:
    """A trial whose checkpoints, if any, are in `folder`."""
    names = whole_checkpoints(filesystem, folder)
    meta = json.loads(read_text(filesystem, f"{folder}/{names[-1]}/{META_FILE}")) if names else {"history": []}
    return Trial(folder.rpartition("/")[2], note, meta["history"], names[-1] if names else None)


def read_trials(filesystem: fs.FileSystem, sweep_folder: str) -> list[Trial]:
    """Every trial that was begun, by name."""
    infos = filesystem.get_file_info(fs.FileSelector(f"{sweep_folder}/{TRIALS}", allow_not_found=True))
    folders = sorted(info.path for info in infos if info.type == fs.FileType.Directory)
    notes = [(folder, read_note(filesystem, folder)) for folder in folders]
    return [read_trial(filesystem, folder, note) for folder, note in notes if note is not None]


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
            [trial.history[-1][metric] for trial in members if trial.finished],
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
        rows.append(
            {
                "trial": trial.name,
                **trial.params,
                "status": trial.note.status,
                "reason": trial.note.reason,
                "epochs": len(trial.history),
                **{name: last.get(name) for name in ("loss", "iou", "accuracy", "grad_norm", "lr")},
                f"best_{sweep.metric}": best((epoch[sweep.metric] for epoch in trial.history), default=None),
                "seconds": sum(epoch["seconds"] for epoch in trial.history),
                "checkpoint": f"{TRIALS}/{trial.name}/{trial.checkpoint}" if trial.checkpoint else None,
            }
        )
    return pa.Table.from_pylist(rows)


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, json.dumps(value)
