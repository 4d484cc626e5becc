"""Facts about this process: the Ray job that started it, its code revision, and its package versions."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DEFAULT_STOP_SECONDS = 3
SUBMIT = ("ray", "job", "submit", "--working-dir", ".", "--")


@dataclass(frozen=True)
class Submission:
    """A job that was submitted with `ray job submit`."""

    name: str
    """The name that `ray job logs` and `ray job stop` take."""
    package: str | None
    """Ray's name for the folder uploaded with `--working-dir`, made from its content; None without such a folder. The
    job runs in a copy of it, which Ray removes afterwards."""
    stop_seconds: int
    """Seconds between `ray job stop` and the moment when Ray kills the job's process."""


def submission() -> Submission | None:
    """The Ray job of this process, or None if it was started by hand.

    Source: environment variables that Ray's job supervisor sets.
    """
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
    """The command that starts a program (`train`, `pack-lasot`) in the same way as this process was started.

    That is `seqtrack PROGRAM` or `python ray_jobs/PROGRAM.py`, within `ray job submit` if this is a Ray job.
    """
    started = Path(sys.argv[0])
    script = f"ray_jobs/{program.replace('-', '_')}.py"
    submitted = submission() is not None
    if started.name == "seqtrack":
        found = submitted or shutil.which("seqtrack") == str(started)
        start = ["seqtrack" if found else from_here(started), program]
    else:
        start = ["python" if submitted else from_here(Path(sys.executable)), script]
    return [*(SUBMIT if submitted else ()), *start, *arguments]


def from_here(path: Path) -> str:
    """The path relative to the current folder if it lies below it, else unchanged."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def code_revision() -> str:
    """The git commit of this package, with a + if files have changed since.

    If the package is in no git checkout: Ray's name for the folder that was uploaded with the job, or "unknown".
    """
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        # An environment may lie in a checkout of something else, which does not track what is installed there.
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        job = submission()
        return job.package if job is not None and job.package else "unknown"
    return commit + ("+" if status else "")


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of these packages."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
