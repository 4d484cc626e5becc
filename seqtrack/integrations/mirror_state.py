"""What a run's folder knows of its MLflow run. Imports no MLflow: a sweep's trials read it, too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from seqtrack.runs.folder import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

MIRROR_FILE = "mlflow.json"
SECONDS_TO_OPEN = 20.0
"""A start waits this long for the run's id, which its checkpoints then name."""


@dataclass
class MirrorState:
    """`mlflow.json` in the run's folder."""

    run_id: str | None = None
    """None until a server was reached."""
    status: Status = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    """What the run's page has as parameters beside the settings."""

    @classmethod
    def read(cls, run: RunFolder) -> MirrorState:
        """The run's state; a new one if the folder has none. Raises RunFileError for a file that is something else."""
        return run.read_as(MIRROR_FILE, cls) or cls()
