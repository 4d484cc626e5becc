"""The Hub's own client against a server that speaks the Hub's HTTP, and fails when told to."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from pyarrow import fs

from seqtrack.config import Config, parse_config
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.weights import read_weights
from seqtrack.tracking import hub
from seqtrack.tracking.hub import HubError, HubRepo, HubThread, fetch_checkpoint
from seqtrack.training.checkpoint import CheckpointError, Contents, checkpoint_name, write_checkpoint
from seqtrack.training.state import TrainState, generator_states
from tests.tracking.hub_server import READER, TOKEN, Fault, HubServer
from tests.training.runs import assert_same_bits, job, write_config

LOCAL = fs.LocalFileSystem()
REPO = "someone/seqtrack-tiny"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.uri)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    # Xet is another protocol, to another server; the client's own switch leaves it to HTTP.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "FIRST_PAUSE", 0.05)
    yield server
    server.stop()


@pytest.fixture
def run(tiny_settings: dict[str, Any], tmp_path: Path) -> tuple[Config, Path]:
    """A run's folder, still empty, whose checkpoints go to REPO."""
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    return parse_config(tiny_settings | {"HUB": {"REPO_ID": REPO}}, "tiny"), folder


def train(config: Config, folder: Path, epoch: int) -> None:
    """Writes the checkpoint after an epoch; IoU is best after the second."""
    torch.manual_seed(epoch)
    state = TrainState.fresh(config, epoch, torch.device("cpu"))
    with torch.no_grad():
        next(state.model.parameters()).add_(epoch)
    for number in range(1, epoch + 1):
        iou = 0.9 if number == 2 else 0.1 * number
        state.history.append({"epoch": number, "step": 6 * number, "loss": 4.0 / number, "iou": iou, "lr": 0.001})
    dataset = {"sequences": 4, "frames": 120, "classes": {"coin": {}, "kite": {}}, "fingerprint": "0123456789abcdef"}
    meta = state.meta(config, dataset=dataset, mlflow_run_id=None, resumed_from=None, code_revision="abc")
    contents = Contents(*state.snapshot(), [generator_states()], meta)
    write_checkpoint(contents, LOCAL, str(folder / checkpoint_name(epoch, 0)))


def upload(config: Config, folder: Path, epochs: int = 3, patience: float = 20.0) -> HubThread:
    """A training of so many epochs, with its uploads beside it, to the end."""
    notices: queue.Queue[str | None] = queue.Queue()
    thread = HubThread(config, LOCAL, str(folder), notices)
    thread.start()
    for epoch in range(1, epochs + 1):
        train(config, folder, epoch)
        notices.put(checkpoint_name(epoch, 0))
    thread.close(patience)
    return thread


def tree(server: HubServer) -> dict[str, bytes]:
    return server.repos[f"models/{REPO}"].commits[-1][2]


def assert_everything_is_there_once(server: HubServer, folder: Path) -> None:
    files = tree(server)
    on_disk = {
        f"checkpoints/{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("checkpoint_epoch*/*")
    }
    assert {path: files[path] for path in files if path.startswith("checkpoints/")} == on_disk
    assert set(server.uploads.values()) == {1}, "the content of a large file came more than once"
    assert "README.md" in files and "config.yaml" in files


def test_every_checkpoint_arrives_in_one_commit_each(server: HubServer, run: tuple[Config, Path]) -> None:
    config, folder = run
    upload(config, folder)
    assert_everything_is_there_once(server, folder)
    messages = [message for _, message, _ in server.repos[f"models/{REPO}"].commits]
    assert messages == ["initial commit", *(f"Checkpoint checkpoint_epoch_{epoch:04d}" for epoch in (1, 2, 3))]
    assert server.repos[f"models/{REPO}"].private


def test_what_is_there_is_not_sent_again(server: HubServer, run: tuple[Config, Path]) -> None:
    config, folder = run
    upload(config, folder)
    commits = len(server.repos[f"models/{REPO}"].commits)
    upload(config, folder, epochs=0)
    assert len(server.repos[f"models/{REPO}"].commits) == commits


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /lfs", 500, times=3),
        Fault("PUT /lfs", "drop", times=2),
        Fault("PUT /lfs", "stall", times=2, seconds=1.0),
        Fault("POST .*/commit/", 500, times=2),
        Fault("POST .*/commit/", "drop-after", times=1),
        Fault("POST .*/preupload/", 429, times=2),
        Fault("POST .*/paths-info/", 403, times=2),
        Fault("POST .*lfs/objects/batch", 401, times=2),
        Fault("GET /api/whoami", 500, times=2),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.kind}",
)
def test_every_checkpoint_arrives_whatever_the_server_does(
    server: HubServer, run: tuple[Config, Path], fault: Fault
) -> None:
    config, folder = run
    server.faults.append(Fault(fault.pattern, fault.kind, fault.times, fault.seconds))
    upload(config, folder, epochs=2)
    assert server.faults[0].times == 0, "the fault was never met"
    assert_everything_is_there_once(server, folder)
    messages = [message for _, message, _ in server.repos[f"models/{REPO}"].commits]
    assert len(messages) == len(set(messages)), "a checkpoint was committed twice"


def test_a_hub_that_is_away_delays_nothing_and_gets_the_rest_later(
    server: HubServer, run: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = run
    server.faults.append(Fault("", 503, times=10_000))
    with caplog.at_level(logging.WARNING, "seqtrack"):
        gone = upload(config, folder, epochs=2, patience=0.3)
    assert "training goes on" in caplog.text
    assert "gave up; the same command again sends the rest" in caplog.text
    assert TOKEN not in caplog.text
    gone._thread.join(10)
    server.faults.clear()
    upload(config, folder, epochs=0)
    assert_everything_is_there_once(server, folder)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"no token \(HF_TOKEN, or `hf auth login`\)"),
        ("hf_wrong", "the Hub does not know the token"),
        (READER, "the token may not write there"),
    ],
)
def test_a_token_that_will_not_do_is_named_at_the_start(
    server: HubServer,
    run: tuple[Config, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str | None,
    message: str,
) -> None:
    config, folder = run
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "none"))
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=message) as caught:
        HubRepo(REPO).prepare(private=True)
    assert token is None or token not in str(caught.value)
    notices: queue.Queue[str | None] = queue.Queue()
    with pytest.raises(HubError, match=message):
        HubThread(config.with_settings({"HUB.REQUIRED": True}), LOCAL, str(folder), notices).start()
    with caplog.at_level(logging.WARNING, "seqtrack"):
        HubThread(config, LOCAL, str(folder), notices).start()
    assert "HUB.REQUIRED=true stops instead" in caplog.text


@pytest.mark.parametrize(
    ("choice", "sent", "main"), [("all", [1, 2, 3], 2), ("last", [3], 3), ("best", [2], 2)], ids=["all", "last", "best"]
)
def test_the_choice_of_checkpoints(
    server: HubServer, run: tuple[Config, Path], choice: str, sent: list[int], main: int
) -> None:
    config, folder = run
    upload(config.with_settings({"HUB.CHECKPOINTS": choice}), folder)
    files = tree(server)
    assert sorted({path.split("/")[1] for path in files if path.startswith("checkpoints/")}) == [
        checkpoint_name(epoch, 0) for epoch in sent
    ]
    assert files["model.safetensors"] == (folder / checkpoint_name(main, 0) / "model.safetensors").read_bytes()


def test_strangers_find_a_card_and_load_the_model(server: HubServer, run: tuple[Config, Path]) -> None:
    config, folder = run
    upload(config, folder)
    card = tree(server)["README.md"].decode()
    assert card.startswith("---\n") and "library_name: seqtrack" in card
    assert "| 2 | 2.0000 | 0.9000 | 0.001 |" in card
    assert f'SeqTrack.from_pretrained("{REPO}")' in card
    model = SeqTrack.from_pretrained(REPO)
    ours = read_weights(folder / "checkpoint_epoch_0002")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    local = SeqTrack.from_pretrained(str(folder / "checkpoint_epoch_0003"))
    assert not torch.equal(next(local.parameters()), next(model.parameters()))


@pytest.mark.parametrize(
    ("path", "epoch"), [("", 3), ("/checkpoints/checkpoint_epoch_0002", 2), ("/checkpoints/1", 1), ("/latest", 3)]
)
def test_a_checkpoint_comes_back_byte_for_byte(
    server: HubServer, run: tuple[Config, Path], path: str, epoch: int
) -> None:
    config, folder = run
    upload(config, folder)
    fetched = fetch_checkpoint(f"hf://{REPO}{path}")
    there = {file.name: file.read_bytes() for file in fetched.iterdir()}
    assert there == {file.name: file.read_bytes() for file in (folder / checkpoint_name(epoch, 0)).iterdir()}


def test_an_older_revision_has_the_checkpoints_of_then(server: HubServer, run: tuple[Config, Path]) -> None:
    config, folder = run
    upload(config, folder)
    then = server.repos[f"models/{REPO}"].commits[1][0]
    assert fetch_checkpoint(f"hf://{REPO}@{then}/latest").name == "checkpoint_epoch_0001"
    with pytest.raises(CheckpointError, match="no checkpoint_epoch_0003 there, but checkpoint_epoch_0001"):
        fetch_checkpoint(f"hf://{REPO}@{then}/checkpoints/checkpoint_epoch_0003")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://someone/nothing/latest", "no such repository, or the token may not read it"),
        ("hf://someone/empty/latest", "no finished checkpoint there"),
    ],
)
def test_what_is_not_on_the_hub_is_named(server: HubServer, location: str, message: str) -> None:
    server.add("someone/empty", {"README.md": b"# nothing\n"})
    with pytest.raises(CheckpointError, match=f"{location}: {message}"):
        fetch_checkpoint(location)


def test_a_training_sends_its_checkpoints_and_is_resumed_from_them(
    cluster: None,
    server: HubServer,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The resumed run has no Hub, and repeats the run that had one. Nothing that either left knows the token."""
    config = write_config(tiny_settings, tmp_path)
    server.faults = [Fault("PUT /lfs", 500, times=2), Fault("POST .*/commit/", "drop-after", times=1)]
    assert job.main(["--config", config, f"HUB.REPO_ID={REPO}", "RUN.NAME=whole"]) == 0
    assert_everything_is_there_once(server, tmp_path / "runs/whole")
    start = f"hf://{REPO}/checkpoints/checkpoint_epoch_0001"
    assert job.main(["--config", config, "--resume-from", start, "RUN.NAME=resumed"]) == 0
    assert_same_bits(tmp_path / "runs/resumed", tmp_path / "runs/whole", "checkpoint_epoch_0002")

    out, err = capfd.readouterr()
    assert "has 2 checkpoints of this run, compared file by file" in caplog.text
    assert TOKEN not in out + err + caplog.text
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    left = [path for folder in (tmp_path / "runs", session) for path in folder.rglob("*") if path.is_file()]
    assert len(left) > 50
    assert not [path for path in left if TOKEN.encode() in path.read_bytes()]
    assert not [process for process in psutil.process_iter(["cmdline"]) if TOKEN in str(process.info["cmdline"])]
    assert not [content for content in tree(server).values() if TOKEN.encode() in content]
