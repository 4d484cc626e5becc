"""What a run's folder knows of its MLflow run. Imports no MLflow: workers and a sweep's trials read it, too."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from pyarrow import ArrowException

from seqtrack.runs.folder import RunFolder

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

MIRROR_FILE = "mlflow.json"
SECONDS_TO_OPEN = 20.0
"""A worker waits this long for the run's id, which its checkpoints then name."""


@dataclass
class MirrorState:
    """`mlflow.json` in the run's folder."""

    run_id: str | None = None
    """None until a server was reached."""
    opened: bool = False
    """Whether a server was reached since the run's last start: then `run_id` is that of a run that is there."""
    status: Status = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    """What the run's page has as parameters beside the settings."""
    values: dict[str, str] = field(default_factory=dict)
    """Settings and `params` as the last start of the run had them."""
    changes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """Those that a later start changed: step and value of each change, after the value that the run began with."""

    @classmethod
    def read(cls, run: RunFolder) -> MirrorState:
        """The run's state; a new one if the folder has none. Raises RunFileError for a file that is something else."""
        return run.read_as(MIRROR_FILE, cls) or cls()


class StartSettings(NamedTuple):
    """The settings that a start of a run has, and those that it had before."""

    settings: Mapping[str, Any]
    """Dotted key -> value."""
    step: int = 0
    """Steps that earlier starts have trained, so the one after which the settings hold."""
    before: Mapping[str, Any] = {}
    """Those of the checkpoint that it goes on from, for a run that began before `mlflow.json` had them."""


class MirrorNote:
    """Keeps `mlflow.json`: the training's thread notes start and end, the mirror's own thread the run's id."""

    def __init__(self, run: RunFolder) -> None:
        """Raises RunFileError if the folder's `mlflow.json` is empty or cut off."""
        self._run, self.state = run, MirrorState.read(run)
        self._writing = threading.Lock()

    def start(
        self, tags: dict[str, str], params: Mapping[str, Any] | None = None, settings: StartSettings | None = None
    ) -> None:
        """Notes that the run is on, with tags for its page, beside those of earlier starts.

        `params`: what the page has as parameters beside the settings. `settings`: those of this start.
        """
        self.state.status, self.state.tags, self.state.opened = "RUNNING", self.state.tags | tags, False
        self.state.params |= params or {}
        if settings is not None:
            self._note_changes(settings)
        self.write()

    def _note_changes(self, start: StartSettings) -> None:
        """What earlier starts changed at this step or later is forgotten: the steps are trained anew."""
        before = self.state.values or {key: str(value) for key, value in start.before.items()}
        now = {key: str(value) for key, value in (self.state.params | dict(start.settings)).items()}
        for key, value in now.items():
            first, *later = self.state.changes.get(key) or [(0, before.get(key, value))]
            kept = [first, *(change for change in later if change[0] < start.step)]
            if kept[-1][1] != value:
                kept.append((start.step, value))
            self.state.changes[key] = kept
        self.state.changes = {key: changes for key, changes in self.state.changes.items() if len(changes) > 1}
        self.state.values = now

    def end(self, status: Status) -> None:
        self.state.status = status
        self.write()

    def open(self, run_id: str) -> None:
        """Notes the id of the MLflow run, once it is there."""
        if not self.state.opened or self.state.run_id != run_id:
            self.state.run_id, self.state.opened = run_id, True
            self.write()

    def write(self) -> None:
        with self._writing:
            self._run.write_json(MIRROR_FILE, asdict(self.state))


def shown_changes(changes: Mapping[str, Sequence[tuple[int, str]]]) -> dict[str, str]:
    """What the run's page says of settings that changed: `0.0002 since step 480 (before: 0.0001)`."""
    shown = {}
    for key, values in changes.items():
        if len(values) > 1:
            told = [f"{value} since step {step}" for step, value in values[1:]][::-1]
            shown[key] = f"{told[0]} (before: {', '.join([*told[1:], values[0][1]])})"
    return shown


def await_mlflow_run(run: RunFolder, patience: float = SECONDS_TO_OPEN) -> str | None:
    """The id of the MLflow run of a run that is on; if MLflow does not answer within `patience` seconds, the id that
    an earlier start noted, or None.

    The job's process opens it and notes it in the run's folder. A folder that cannot be read now does not end the
    training that waits. Workers that start again wait again.
    """
    deadline, state = time.monotonic() + patience, MirrorState()
    while True:
        with suppress(OSError, ArrowException):  # the next look may succeed
            state = MirrorState.read(run)
        if state.opened or time.monotonic() >= deadline:
            return state.run_id
        time.sleep(0.2)
