"""What a process knows of the Ray job that it is: given to a cluster by `ray job submit`, perhaps from far away."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_STOP_SECONDS = 3


@dataclass(frozen=True)
class Submission:
    """A job that was submitted to a cluster."""

    name: str
    """What `ray job logs` and `ray job stop` call it."""
    package: str | None
    """The folder that travelled with it (`--working-dir`), by its content. The job's current folder is a copy of it
    that Ray removes afterwards."""
    stop_seconds: int
    """So long after `ray job stop` the job's process is killed."""


def submission() -> Submission | None:
    """This process's job; None where it was started by hand. Source: Ray's job supervisor, which sets the variables."""
    text = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if text is None:
        return None
    job = json.loads(text)
    package = (job.get("runtime_env") or {}).get("working_dir")
    return Submission(
        job["metadata"]["job_submission_id"],
        Path(package).stem if package else None,
        int(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", DEFAULT_STOP_SECONDS)),
    )


def command(program: str, arguments: Sequence[str]) -> list[str]:
    """The command that starts a program of `ray_jobs/` in the way that this process was started."""
    if submission() is not None:
        return ["ray", "job", "submit", "--working-dir", ".", "--", "python", program, *arguments]
    python = Path(sys.executable)
    shown = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
    return [shown, program, *arguments]
