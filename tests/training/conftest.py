"""What interrupted runs are compared with: a run that nothing happens to. Dropout and all augmentation are on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.settings import make_tiny_settings
from tests.training.runs import job, write_config


@pytest.fixture(scope="session")
def settings(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three epochs of 40 steps, with a checkpoint every 10 and the learning rate dropping after each epoch."""
    settings = make_tiny_settings(lasot_root, tmp_path_factory.mktemp("continuing") / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 158
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    settings["TRAIN"] |= {"EPOCH": 3, "CHECKPOINT_EVERY_STEPS": 10}
    return settings


@pytest.fixture(scope="session")
def config(settings: dict[str, Any]) -> str:
    folder = Path(settings["RUN"]["STORAGE_PATH"]).parent
    return write_config(settings, folder)


@pytest.fixture(scope="session")
def whole(cluster: None, config: str, settings: dict[str, Any]) -> Callable[[int], Path]:
    """The run that nothing happens to, by its number of workers."""

    def run(workers: int) -> Path:
        folder = Path(settings["RUN"]["STORAGE_PATH"], f"whole{workers}")
        if not folder.exists():
            assert job.main(["--config", config, f"RUN.WORKERS={workers}", f"RUN.NAME={folder.name}"]) == 0
        return folder

    return run
