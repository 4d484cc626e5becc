"""What the folder of an experiment of parts knows of its MLflow run, which holds the runs of its parts.

Imports no MLflow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pyarrow import fs

from seqtrack.integrations.mirror_state import MirrorState
from seqtrack.runs.folder import RunFolder

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows a run below another."""


@dataclass(frozen=True)
class ParentRun:
    """`mlflow_sweep.json` or `mlflow_reproduce.json` in the folder: one may have a sweep beside two phases."""

    run_id: str


def read_parent(folder: RunFolder, kind: str) -> str | None:
    """The id that an earlier start noted, or None. Raises RunFileError, OSError."""
    known = folder.read_as(_file(kind), ParentRun)
    return None if known is None else known.run_id


def write_parent(folder: RunFolder, kind: str, run_id: str) -> None:
    """Notes the id. Raises OSError."""
    folder.create()
    folder.write_json(_file(kind), asdict(ParentRun(run_id)))


def parents_of_parts(folder: RunFolder, kind: str) -> list[str]:
    """Ids of the runs that the parts in a folder say that they belong to. Raises RunFileError, OSError."""
    return sorted({state.tags[PARENT] for state in map(MirrorState.read, _parts(folder, kind)) if PARENT in state.tags})


def _parts(folder: RunFolder, kind: str) -> Iterator[RunFolder]:
    if kind == "reproduce":
        yield from (folder.child("phase1"), folder.child("phase2"))
        return
    trials = folder.child("trials")
    for info in folder.filesystem.get_file_info(fs.FileSelector(trials.path, allow_not_found=True)):
        if info.type == fs.FileType.Directory:
            yield trials.child(info.base_name)


def _file(kind: str) -> str:
    return f"mlflow_{kind}.json"
