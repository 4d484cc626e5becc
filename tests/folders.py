"""Folders of tests as runs and checkpoints."""

from __future__ import annotations

from pathlib import Path

from seqtrack.runs.checkpoint import StoredCheckpoint
from seqtrack.runs.folder import RunFolder


def run_at(path: Path) -> RunFolder:
    return RunFolder.at(str(path))


def stored_at(path: Path) -> StoredCheckpoint:
    return StoredCheckpoint(run_at(path.parent), path.name)
