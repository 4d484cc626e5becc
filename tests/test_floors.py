"""Who may import what: the plan of the house, kept by a test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seqtrack"
FILES = sorted(PACKAGE.rglob("*.py"))
RAY_FILES = ("data/stream.py", "training/worker.py", "training/trainer.py", "tracking/", "sweeps/")
FLOORS = [
    "submission",
    "locations",
    "config",
    "boxes",
    "tokens",
    "model",
    "data",
    "training",
    "reports",
    "tracking",
    "sweeps",
]
"""From the ground up. Files of one floor may import each other."""
ROOF = "training/trainer.py"
"""Ties a training together; only sweeps, which are many, are above it."""


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_only_the_upper_floors_know_ray_and_the_trackers(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imported_modules(path)}
    if not name(path).startswith(RAY_FILES):
        assert "ray" not in roots
    if not name(path).startswith("tracking/") and name(path) != "model/weights.py":
        assert not roots & {"mlflow", "huggingface_hub"}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_imports_only_from_its_own_floor_and_below(path: Path) -> None:
    floor = name(path).removesuffix(".py").partition("/")[0]
    if floor == "__init__" or name(path) == ROOF:
        return
    allowed = FLOORS[: FLOORS.index(floor) + 1]
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == "seqtrack" and len(parts) > 1:
            assert parts[1] in allowed, f"{name(path)} imports {module}"
            if floor != "sweeps":
                assert not module.startswith("seqtrack.training.trainer"), f"{name(path)} imports the roof"
