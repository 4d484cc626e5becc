from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from seqtrack.environment import code_revision


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_revision_is_that_of_this_package_and_not_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "environment.py"
    here.touch()
    monkeypatch.setattr("seqtrack.environment.__file__", str(here))
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "--message", "something else")
    assert code_revision() == "unknown"
    git(tmp_path, "add", here.name)
    git(tmp_path, "commit", "--message", "this package")
    assert code_revision() == git(tmp_path, "rev-parse", "HEAD")
    here.write_text("changed")
    assert code_revision() == git(tmp_path, "rev-parse", "HEAD") + "+"
