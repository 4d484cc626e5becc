"""Reads what a run left in its folder: every step, every epoch, the newest weights, all checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyarrow import fs
from torch import Tensor

from seqtrack.meta import META_FILE
from seqtrack.model.weights import Weights, read_weights
from seqtrack.runs.checkpoint import StoredCheckpoint, load_plain, whole_checkpoints
from seqtrack.runs.evaluations import CheckpointScores, read_evaluations
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import MODEL_FILE, STATE_FILE, SUMS_FILE, CheckpointError, read_meta

METRICS = ("loss", "iou", "grad_norm", "lr")
"""Columns of a phase's `steps`."""
EPOCH_METRICS = ("loss", "iou", "accuracy", "grad_norm", "lr")


class PhaseCheckpoint(NamedTuple):
    """One checkpoint of a phase."""

    name: str
    step: int
    size: int
    """Total size of its files in bytes."""
    sha256: str
    """SHA-256 of `model.safetensors`."""


@dataclass(frozen=True)
class Phase:
    """Results of one phase of a two-phase experiment."""

    name: str
    folder: str
    first_step: int
    """Number of steps that were trained before, by the run that this phase resumed."""
    total_steps: int
    """Number of steps that were planned."""
    steps: NDArray[np.float64]
    """(steps done, 4) METRICS of every step since the experiment began."""
    history: Sequence[dict[str, float]]
    """Summary of each finished epoch, since the experiment began."""
    meta: dict[str, Any]
    """`meta.json` of its newest checkpoint: settings, data set, versions, hardware."""
    weights: Weights
    """Weights of its newest checkpoint."""
    checkpoints: Sequence[PhaseCheckpoint] = ()
    evaluations: Sequence[CheckpointScores] = ()
    """What its checkpoints were measured at."""
    source: str | None = None
    """Path of the checkpoint that it started from, or None."""
    error: str | None = None
    """Why it ended early, or None."""

    @property
    def finished(self) -> bool:
        return len(self.steps) >= self.total_steps

    @property
    def steps_per_epoch(self) -> int:
        return int(self.meta["steps_per_epoch"])

    def epochs(self) -> list[dict[str, float]]:
        """Summaries of the epochs that this phase trained itself."""
        return [epoch for epoch in self.history if epoch["step"] > self.first_step]


def read_phase(name: str, run: RunFolder, total_steps: int, error: str | None = None) -> Phase | None:
    """Reads a phase from its run's folder. None if there is no finished checkpoint.

    Raises CheckpointError, and RunFileError for a damaged `evaluation.jsonl`.
    """
    names = whole_checkpoints(run)
    if not names:
        return None
    newest = StoredCheckpoint(run, names[-1])
    with newest.verified() as (directory, meta):
        steps = load_plain(directory / STATE_FILE, f"{newest.path}/{STATE_FILE}").get("metrics")
        if not isinstance(steps, Tensor) or steps.dim() != 2 or steps.shape[1] != len(METRICS):
            raise CheckpointError(f"{newest.path}/{STATE_FILE}: has no table of {', '.join(METRICS)}")
        weights = read_weights(directory, newest.path)
    source = meta.get("resumed_from") or {"path": None, "step": 0}
    return Phase(
        name=name,
        folder=run.path,
        first_step=source["step"],
        total_steps=total_steps,
        steps=steps.numpy(),
        history=meta["history"],
        meta=meta,
        weights=weights,
        checkpoints=[_describe(StoredCheckpoint(run, checkpoint)) for checkpoint in names],
        evaluations=read_evaluations(run),
        source=source.get("path"),
        error=error,
    )


def _describe(stored: StoredCheckpoint) -> PhaseCheckpoint:
    run = stored.run
    files = run.filesystem.get_file_info(fs.FileSelector(stored.path))
    lines = [line.partition("  ") for line in (run.read_text(f"{stored.name}/{SUMS_FILE}") or "").splitlines()]
    sums = {name: digest for digest, _, name in lines}
    if MODEL_FILE not in sums:
        raise CheckpointError(f"{stored.path}/{SUMS_FILE} is damaged: it does not list {MODEL_FILE}")
    meta = read_meta(run.read_text(f"{stored.name}/{META_FILE}") or "", stored.path)
    return PhaseCheckpoint(stored.name, meta["step"], sum(info.size or 0 for info in files), sums[MODEL_FILE])
