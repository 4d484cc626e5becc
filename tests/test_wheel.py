"""The wheel: everything that the package needs is in it, and it works without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.training.runs import REPOSITORY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since building leaves files behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("seqtrack", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(target), "."],
        cwd=source,
        check=True,
    )
    (path,) = target.glob("seqtrack-*.whl")
    return path


def test_every_file_of_the_package_and_every_recipe_is_in_the_wheel(wheel: Path) -> None:
    files = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "seqtrack").rglob("*") if path.is_file()}
    expected = {str(file) for file in files if "__pycache__" not in file.parts}
    recipes = REPOSITORY / "configs"
    expected |= {f"seqtrack/recipes/{path.relative_to(recipes)}" for path in recipes.rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"seqtrack/py.typed", "seqtrack/recipes/demo.yaml", "seqtrack/recipes/sweeps/smoke.yaml"} <= names


def test_the_wheel_has_the_command_and_its_recipes_wherever_it_is_called(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "empty"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert "seqtrack = seqtrack.cli:main" in next(site.glob("*.dist-info/entry_points.txt")).read_text()
    program = "import sys, seqtrack.cli; print(seqtrack.__file__); sys.exit(seqtrack.cli.main())"
    answer = subprocess.run(
        [sys.executable, "-c", program, "train", "--config", "seqtrack_b256"],
        cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.stdout.startswith(str(site))
    assert "DATA.ROOTS.COCO17, DATA.ROOTS.TRACKINGNET are not set" in answer.stderr
