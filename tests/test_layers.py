"""Who may import what: the layers of docs/design.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "seqtrack"
FILES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
LAYERS = [
    {
        *("__init__", "errors", "failures", "environment", "interruption", "locations", "patience", "files"),
        *("transfer", "shown", "claims", "lease", "meta", "sums", "hub_files", "address", "boxes", "tokens"),
    },
    {"config"},
    {"model", "data"},
    {"runs", "cluster", "evaluation"},
    {"training", "reports", "tracker"},
    {"integrations"},
    {"experiments"},
    {"sweeps"},
    {"commands"},
    {"cli"},
]
"""The layers from the ground up. A file may import from its own room and from the layers below; rooms of one layer know
nothing of each other, except on the ground."""
WITH_RAY = (
    "data/stream",
    "cluster/",
    "training/worker",
    "training/trainer",
    "experiments/",
    "sweeps/",
    "commands/",
)
WITH_MLFLOW_AND_HUB = ("integrations/", "commands/", "hub_files")
WITH_ONNX = ("tracker/export",)
WITH_TRAX = ("tracker/vot",)
LAZY = {("model/seqtrack", "model/weights")}
"""`SeqTrack.from_pretrained` imports, when it is called, what builds on its module."""


def room(name: str) -> str:
    return name.partition("/")[0]


def layer(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room(name) in rooms)


def imported_modules(name: str) -> Iterator[str]:
    """Dotted names of all that a file imports, at its top or inside of functions."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{name} has a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(name: str) -> set[str]:
    """The files of this package that a file imports."""
    found = set()
    for module in imported_modules(name):
        if module.startswith("seqtrack."):
            path = module.removeprefix("seqtrack.").replace(".", "/")
            found |= {candidate for candidate in (path, f"{path}/__init__") if candidate in FILES}
    return {other for other in found if (name, other) not in LAZY}


@pytest.mark.parametrize("name", FILES)
def test_only_some_rooms_know_ray_mlflow_the_hub_onnx_and_trax(name: str) -> None:
    roots = {module.partition(".")[0] for module in imported_modules(name)}
    if not name.startswith(WITH_RAY):
        assert "ray" not in roots
    if not name.startswith(WITH_MLFLOW_AND_HUB):
        assert not roots & {"mlflow", "huggingface_hub"}
    if name not in WITH_ONNX:
        assert not roots & {"onnx", "onnxruntime", "onnxscript"}
    if name not in WITH_TRAX:
        assert "trax" not in roots


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_its_own_room_and_the_layers_below(name: str) -> None:
    for other in imported_files(name):
        on_the_ground = layer(name) == layer(other) == 0
        allowed = layer(other) < layer(name) or room(other) == room(name) or on_the_ground
        assert allowed, f"{name} imports {other}"


def test_imports_go_round_in_no_circle() -> None:
    try:
        TopologicalSorter({name: imported_files(name) - {name} for name in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_longer_than_350_lines(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 350
