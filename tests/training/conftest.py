"""Uninterrupted runs that others are compared with. Dropout and all augmentation are on."""

from __future__ import annotations

import contextlib
import functools
import io
from pathlib import Path
from typing import Any

import pytest

from tests.settings import make_tiny_settings
from tests.training import pair
from tests.training.loops import checkpoint_of, named, train, train_together
from tests.training.runs import job, write_config


@pytest.fixture(scope="session")
def settings(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two epochs of 40 steps, with a checkpoint every 10 and the learning rate dropping after each epoch."""
    settings = make_tiny_settings(lasot_root, tmp_path_factory.mktemp("continuing") / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 158
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    settings["TRAIN"] |= {"EPOCH": 2, "CHECKPOINT_EVERY_STEPS": 10}
    return settings


@pytest.fixture(scope="session")
def config(settings: dict[str, Any]) -> str:
    folder = Path(settings["RUN"]["STORAGE_PATH"]).parent
    return write_config(settings, folder)


@pytest.fixture(scope="session")
def looped(settings: dict[str, Any]) -> Path:
    """The run on one worker, by the training loop alone."""
    train(named(settings, "looped"))
    return Path(settings["RUN"]["STORAGE_PATH"], "looped")


@pytest.fixture(scope="session")
def together(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the runs of two workers (`pair.py`), and of one: `plain-1` and `plain-2-to-1`."""
    train(named(settings, "plain-1", pair.PLAIN))
    train_together(functools.partial(pair.run, settings=settings), tmp_path_factory.mktemp("pair"))
    plain = named(settings, "plain-2", pair.PLAIN)
    train(named(settings, "plain-2-to-1", pair.PLAIN), checkpoint_of(plain, pair.STARTS[0]))
    return Path(settings["RUN"]["STORAGE_PATH"])


@pytest.fixture(scope="session")
def whole(cluster: None, config: str, settings: dict[str, Any]) -> Path:
    """The run on one worker of a cluster. What it printed is beside its folder, in `whole.console`."""
    folder = Path(settings["RUN"]["STORAGE_PATH"], "whole")
    console = io.StringIO()
    with contextlib.redirect_stdout(console):
        assert job.main(["--config", config, f"RUN.NAME={folder.name}"]) == 0
    folder.with_suffix(".console").write_text(console.getvalue())
    return folder
