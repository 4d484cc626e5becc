"""What tests share: one Ray cluster, a tiny data set, settings small enough for a test, and the golden numbers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from seqtrack import patience
from seqtrack.cluster.connect import forget_dead_cluster
from seqtrack.config import Config, SyntheticConfig, parse_config
from seqtrack.data import packing, shards
from seqtrack.data.datasets.cache import VARIABLE
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.datasets.synthetic_sets import KINDS, write_synthetic_set
from tests.settings import make_mixture_settings, make_tiny_settings

GOLDEN = Path(__file__).parent / "golden"
START_RAY = ("cluster", "deploy", "experiments", "sweeps", "training")
"""Folders whose tests start Ray, in this process or in others."""
START_RAY_TOO = (
    "data/test_stream.py",
    "integrations/test_hub.py",
    "integrations/test_mlflow.py",
    "runs/test_object_stores.py",
)
"""Files of other folders that do."""
WITHOUT_RAY = (
    *(f"cluster/test_{name}.py" for name in ("resources", "restarts", "secrets")),
    *(f"deploy/test_{name}.py" for name in ("aws", "cluster_files", "kuberay")),
    "experiments/test_prepare.py",
    *(f"sweeps/test_{name}.py" for name in ("resuming", "search", "settings")),
    *(f"training/test_{name}.py" for name in ("copies", "loop", "meters", "mixture", "ownership", "state", "step")),
)
"""Files of these folders that do not. They are run beside those that do."""


def starts_ray(path: str) -> bool:
    """Whether tests of a file start Ray. `path`: from the repository's root, with slashes."""
    path = path.removeprefix("tests/")
    may = path.startswith((*(f"{folder}/" for folder in START_RAY), *START_RAY_TOO))
    return may and not path.startswith(WITHOUT_RAY)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests that start Ray first, because `pytest -n 2` runs them all in one of its two processes.

    Raises UsageError if a file must be added to those above.
    """
    items.sort(key=lambda item: not starts_ray(item.nodeid))
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()) and not starts_ray(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} uses the fixture `cluster`: add its file to START_RAY_TOO")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Divides the tests between processes by file, but all that start Ray stay together.

    Where two clusters run on a machine, Ray's own cleaning up can take one for the other.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if starts_ray(nodeid) else nodeid.split("::")[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A real Ray cluster of four (logical) CPUs on this machine, shared by all tests."""
    forget_dead_cluster()
    ray.init("local", num_cpus=4, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def keys_of_stores() -> None:
    """Keys for the tests' own S3 server, before the first process is started that hands its environment on."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Indexes are kept in a folder of the tests' own."""
    os.environ[VARIABLE] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def synthetic_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of each layout beside LaSOT's, in folders of the names GOT10K, COCO17 and TRACKINGNET.

    Tests must not change it.
    """
    folder = tmp_path_factory.mktemp("sets")
    for kind in KINDS:
        write_synthetic_set(kind, folder / kind, SyntheticConfig(SEQUENCES=4, FRAMES=24, HEIGHT=96, WIDTH=128))
    return folder


@pytest.fixture(scope="session")
def lasot_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LaSOT tree of four short sequences: coin-1, coin-2, kite-1, kite-2. Tests must not change it."""
    root = tmp_path_factory.mktemp("lasot") / "tree"
    write_synthetic(root, SyntheticConfig(SEQUENCES=4, FRAMES=30, HEIGHT=96, WIDTH=128))
    return root


@pytest.fixture
def tiny_settings(lasot_root: Path, tmp_path: Path) -> dict[str, Any]:
    return make_tiny_settings(lasot_root, tmp_path / "runs")


@pytest.fixture
def tiny_config(tiny_settings: dict[str, Any]) -> Config:
    return parse_config(tiny_settings, "tiny")


@pytest.fixture
def mixture_config(lasot_root: Path, synthetic_sets: Path, tmp_path: Path) -> Config:
    return parse_config(make_mixture_settings(lasot_root, synthetic_sets, tmp_path / "runs"), "mixture")


@pytest.fixture
def tree(lasot_root: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may change."""
    return shutil.copytree(lasot_root, tmp_path / "tree")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes what is tried again for minutes give up after some tries, with pauses that take no time."""
    monkeypatch.setattr(patience, "time", HurriedTime())


class HurriedTime:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shards so small that each sequence has its own, with several row groups."""
    monkeypatch.setattr(packing, "FRAMES_PER_SHARD", 20)
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 20_000)


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """Reads numbers that the published implementation computed."""
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def agrees() -> Iterator[Callable[[str, str, Any, Any, float], None]]:
    """Compares with a golden file's numbers: `agrees(file, what, ours, published, tolerance)`.

    The deviation is relative to the largest published value. `pytest -s` shows the largest of each file at the end.
    """
    largest: dict[str, tuple[float, str]] = {}

    def compare(file: str, what: str, ours: Any, published: Any, tolerance: float) -> None:
        ours, published = (np.asarray(torch.as_tensor(values).detach(), np.float64) for values in (ours, published))
        deviation = float(np.abs(ours - published).max() / max(np.abs(published).max(), 1e-4))
        largest[file] = max(largest.get(file, (0.0, what)), (deviation, what))
        assert deviation <= tolerance, f"{what} deviates by {deviation:.2e}"

    yield compare
    for file, (deviation, what) in largest.items():
        print(f"\n{file}: largest relative deviation {deviation:.1e} ({what})", end="")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos and annotations, which are not part of the repository."""
    folder = Path(os.environ.get("SEQTRACK_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "lasot_annotations").is_dir():
        pytest.skip(f"no real annotations at {folder} (SEQTRACK_SHARED names another place)")
    return folder
