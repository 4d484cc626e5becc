"""A run whose folder another job has taken ends, on all ranks, and writes nothing more."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seqtrack import claims
from seqtrack.claims import PREFIX
from seqtrack.config import Config
from seqtrack.lease import Lease
from seqtrack.runs.checkpoint import CheckpointError
from seqtrack.runs.folder import RunFolder, own_run, write_settings
from seqtrack.runs.log import MetricsFile, append_to_log
from seqtrack.training import coordination
from seqtrack.training.loop import UnwritableError
from tests.settings import make_tiny_settings
from tests.training.loops import named, train, train_together


def contents(folder: str) -> dict[str, bytes]:
    """Every file below a folder that is not a claim's."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith(PREFIX))
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that is gone is not waited for."""
    monkeypatch.setattr(claims, "LOOKS", ())


def losing(lease: Lease, step: int, then: Callable[[], None] = lambda: None) -> Callable[[], bool]:
    """What the loop asks in each step; in one of them, another job takes the folder."""
    steps = itertools.count(1)

    def ask() -> bool:
        if next(steps) == step:
            lease.proof.remove()
            then()
        return False

    return ask


@pytest.mark.parametrize(
    ("pause", "error"), [(0.0, UnwritableError), (1e9, CheckpointError)], ids=["asked", "not asked yet"]
)
@pytest.mark.parametrize("step", [3, 8])
def test_a_run_that_lost_its_folder_writes_nothing_more(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, pause: float, error: type[Exception], step: int
) -> None:
    monkeypatch.setattr(coordination, "SECONDS_BETWEEN_CHECKS", pause)
    seen: dict[str, bytes] = {}
    folder = RunFolder.of(tiny_config).path
    with own_run(tiny_config) as lease:
        ask = losing(lease, step, lambda: seen.update(contents(folder)))
        with pytest.raises(error, match=r"this job's claim .* is gone"):
            train(tiny_config, lease=lease, stop_requested=ask)
        assert contents(folder) == seen


def lose(rank: int, world_size: int, settings: dict[str, Any]) -> None:
    config = named(settings, "lost")
    with own_run(config) if rank == 0 else contextlib.nullcontext() as lease:
        ask = losing(lease, 4) if lease is not None else lambda: False
        with pytest.raises(UnwritableError, match="another worker cannot write" if rank else "claim"):
            train(config, None, rank, world_size, lease=lease, stop_requested=ask)


def test_all_ranks_end_together(lasot_root: Path, tmp_path: Path) -> None:
    train_together(partial(lose, settings=make_tiny_settings(lasot_root, tmp_path)), tmp_path)


def test_what_others_of_the_job_write_is_not_written_either(tiny_config: Config) -> None:
    with own_run(tiny_config) as lease:
        run = RunFolder.of(tiny_config).under(lease)
        write_settings(tiny_config, run)
        metrics = MetricsFile(run, 0)
        lease.proof.remove()
        seen = contents(run.path)
        append_to_log(run, ["Worker 0 failed"])
        metrics.add({"step": 1, "time": 1})
        metrics.flush()
        for write in (partial(run.write, "x", "y"), partial(run.child("trials").write_json, "trial.json", {})):
            with pytest.raises(OSError, match="is gone"):
                write()
        assert contents(run.path) == seen
