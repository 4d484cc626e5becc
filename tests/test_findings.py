"""Scripts of findings have the form that CONTRIBUTING.md describes. They are not run here: they install packages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "findings").glob("*"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_finding_says_what_was_guessed_and_seen_and_needs_nothing_of_this_project(script: Path) -> None:
    text = script.read_text()
    head = re.match(r"#!/usr/bin/env bash\n((?:#.*\n)+)set -euo pipefail\n", text)
    assert script.suffix == ".sh" and head is not None
    assert "Guessed: " in head[1] and re.search(r"Seen \(\S+ \d", head[1])
    assert "seqtrack" not in text
    installed = re.findall(r"pip install (.+)", text.replace("\\\n", " "))
    names = [word for line in installed for word in line.split() if not word.startswith("-")]
    assert names and all("==" in name for name in names), "each package has its version"
    subprocess.run(["bash", "-n", script], check=True)
