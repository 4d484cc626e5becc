from __future__ import annotations

from pathlib import Path

import pytest

from seqtrack.locations import absolute, child, parent


@pytest.mark.parametrize(
    ("location", "within"),
    [
        ("/data/runs", "/data/runs/mine"),
        ("s3://bucket/runs", "s3://bucket/runs/mine"),
        ("gs://bucket", "gs://bucket/mine"),
        ("s3://bucket/runs?scheme=http&endpoint_override=host:9000", "s3://bucket/runs/mine?scheme=http&endpoint_override=host:9000"),
    ],
)  # fmt: skip
def test_a_child_and_back(location: str, within: str) -> None:
    assert child(location, "mine") == within
    assert parent(within) == (location, "mine")


def test_a_slash_at_the_end_changes_nothing() -> None:
    assert child("/data/runs/", "mine") == "/data/runs/mine"
    assert child("s3://bucket/runs/?scheme=http", "mine") == "s3://bucket/runs/mine?scheme=http"


def test_only_paths_of_this_machine_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("s3://bucket/runs") == "s3://bucket/runs"
