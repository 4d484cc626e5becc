"""What tests of the servers beside a training share: short pauses, and runs that MLflow is to show."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from seqtrack.config import SETTINGS_FILE, Config
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import LOG_FILE
from tests.integrations.hub_server import HubServer


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtrack.integrations.background.SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr("seqtrack.integrations.background.LONGEST_PAUSE", 0.5)


@pytest.fixture
def tracked(tiny_config: Config, tmp_path: Path) -> Callable[..., tuple[Config, RunFolder]]:
    """A run's folder without checkpoints, whose MLflow store is at `uri`."""

    def make(uri: str, **settings: Any) -> tuple[Config, RunFolder]:
        config = tiny_config.with_settings({"MLFLOW.TRACKING_URI": uri, "MLFLOW.EXPERIMENT": tmp_path.name, **settings})
        run = RunFolder.of(config)
        run.create()
        run.write(SETTINGS_FILE, config.to_yaml())
        run.write(LOG_FILE, "Epoch 1\n")
        return config, run

    return make


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI, with a password, is that of a server that is away."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:canary@127.0.0.1:{free.getsockname()[1]}")


@pytest.fixture
def dataset_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server of the Hub, without repositories, that answers without a token."""
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.uri)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.stop()
