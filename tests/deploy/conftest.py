"""What tests of the cluster files share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest


class Recorder(NamedTuple):
    environment: dict[str, str]
    """A folder in which `ray` writes the arguments of its last call into a file."""
    calls: Path
    programs: Path
    """The folder that `ray` lies in, and whatever a test puts beside it."""


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    """A home and a `ray` that does nothing but note what it is asked for."""
    programs, calls = tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    write_program(programs / "ray", f'echo "$@" > {calls}.new && mv {calls}.new {calls}')
    return Recorder(os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path)}, calls, programs)


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
