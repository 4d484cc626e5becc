"""A Hub, and runs whose checkpoints go there: made once, and put into folders as a training does it."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from seqtrack.config import Config, parse_config
from seqtrack.runs.checkpoint import Contents, write_checkpoint
from seqtrack.sums import checkpoint_name
from seqtrack.training.state import TrainState, generator_states
from tests.folders import stored_at
from tests.integrations.hub_server import TOKEN, HubServer
from tests.settings import make_tiny_settings

REPO = "someone/seqtrack-tiny"


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """An empty Hub, which the client uses."""
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.uri)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    # Xet is another protocol, to another server; the client's own switch leaves it to HTTP.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    try:
        yield server
    finally:
        server.stop()


def tiny() -> Config:
    return parse_config(make_tiny_settings(Path("lasot"), Path("runs")) | {"HUB": {"REPO_ID": REPO}}, "tiny")


@functools.cache
def written() -> tempfile.TemporaryDirectory[str]:
    """A folder with the checkpoints after three epochs; IoU is best after the second."""
    folder, config = tempfile.TemporaryDirectory(), tiny()
    dataset = {"sequences": 4, "frames": 120, "classes": {"coin": {}, "kite": {}}, "fingerprint": "0123456789abcdef"}
    for epoch in (1, 2, 3):
        torch.manual_seed(epoch)
        state = TrainState.fresh(config, epoch, torch.device("cpu"))
        with torch.no_grad():
            next(state.model.parameters()).add_(epoch)
        for number in range(1, epoch + 1):
            iou = 0.9 if number == 2 else 0.1 * number
            state.history.append({"epoch": number, "step": 6 * number, "loss": 4.0 / number, "iou": iou, "lr": 0.001})
        meta = state.meta(config, dataset=dataset, mlflow_run_id=None, resumed_from=None, code_revision="abc")
        contents = Contents(*state.snapshot(), [generator_states()], meta)
        write_checkpoint(contents, stored_at(Path(folder.name, checkpoint_name(epoch, 0))))
    return folder


def train(folder: Path, epoch: int) -> None:
    """Puts the checkpoint after an epoch into a run's folder, whole at once, as a training does."""
    name = checkpoint_name(epoch, 0)
    partial = folder / f".{name}.partial"
    shutil.copytree(Path(written().name, name), partial)
    partial.rename(folder / name)
