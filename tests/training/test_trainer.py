"""Between a prepared run and Ray Train: Ray's own list of checkpoints, and messages about failures."""

from __future__ import annotations

import json
from pathlib import Path

from seqtrack.config import Config
from seqtrack.runs.checkpoint import newest_checkpoint
from seqtrack.training.trainer import forget_wrong_list
from tests.checkpoints import save
from tests.folders import run_at


def snapshot(run: Path, *names: str) -> Path:
    """Ray Train's own list of a run's checkpoints."""
    path = run / "checkpoint_manager_snapshot.json"
    path.write_text(json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]}))
    return path


def test_a_run_goes_on_from_its_newest_finished_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    assert newest_checkpoint(run_at(tmp_path)) is None
    first, second, third = (save(tiny_config, tmp_path, step) for step in (4, 6, 8))
    (third / "SHA256SUMS").unlink()
    listed = snapshot(tmp_path, first.name, second.name)
    forget_wrong_list(run_at(tmp_path))
    newest = newest_checkpoint(run_at(tmp_path))
    assert newest is not None and newest.path == str(second)
    assert listed.exists()


def test_rays_list_is_set_aside_where_it_cannot_be_right(tiny_config: Config, tmp_path: Path) -> None:
    first, second = (save(tiny_config, tmp_path, step) for step in (4, 6))
    for names in ([first.name], ["checkpoint_epoch_0000", second.name], []):
        listed = snapshot(tmp_path, *names)
        forget_wrong_list(run_at(tmp_path))
        assert not listed.exists()
    listed.write_text('{"checkpoint_results": [{"chec')
    forget_wrong_list(run_at(tmp_path))
    assert not listed.exists()
