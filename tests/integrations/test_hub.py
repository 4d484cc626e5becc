"""The Hub's own client against a server that speaks the Hub's HTTP, and fails when told to."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from huggingface_hub import ModelCard
from pyarrow import fs

from seqtrack import address
from seqtrack.config import Config
from seqtrack.experiments.train import run_training
from seqtrack.hub_files import HubError
from seqtrack.integrations import hub
from seqtrack.integrations.hub import HubRepo, HubThread
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.weights import read_weights
from seqtrack.runs import checkpoint
from seqtrack.runs.checkpoint import find_checkpoint, whole_checkpoints
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation
from seqtrack.runs.folder import RunFolder
from seqtrack.sums import CheckpointError, checkpoint_name, verify_checkpoint
from seqtrack.tracker.load import load_trained
from tests.folders import run_at
from tests.integrations.hub_runs import REPO, hub_server, tiny, train
from tests.integrations.hub_server import READER, TOKEN, Fault, HubServer
from tests.integrations.servers import empty_store, wait_until
from tests.training import loops
from tests.training.runs import assert_same_bits


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> tuple[HubServer, Path]:
    """A Hub, which has stopped, with three checkpoints, and the folder that they are from."""
    folder = tmp_path_factory.mktemp("sent") / "tiny"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as monkeypatch, hub_server(monkeypatch, folder / "cache") as server:
        upload(tiny(), folder)
    return server, folder


@pytest.fixture
def filled(server: HubServer, sent: tuple[HubServer, Path]) -> Path:
    """`server` has three checkpoints. Returns the folder that they are from."""
    server.repos, server.large = copy.deepcopy(sent[0].repos), dict(sent[0].large)
    return sent[1]


@pytest.fixture
def run(tmp_path: Path) -> tuple[Config, Path]:
    """A run's folder, still empty, whose checkpoints go to REPO."""
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    return tiny(), folder


def upload(config: Config, folder: Path, epochs: int = 3, patience: float = 60.0) -> HubThread:
    """A training of so many epochs, with its uploads beside it, to the end."""
    thread = HubThread(config, run_at(folder))
    thread.start()
    for epoch in range(1, epochs + 1):
        train(folder, epoch)
    thread.close(patience)
    return thread


def commits(server: HubServer) -> list[str]:
    """The messages."""
    return [message for _, message, _ in server.repos[f"models/{REPO}"].commits]


def wait_for_commit(server: HubServer, epoch: int) -> None:
    wait_until(lambda: commits(server)[-1] == f"Checkpoint {checkpoint_name(epoch, 0)}")


def tree(server: HubServer, repo: str = REPO) -> dict[str, bytes]:
    return server.repos[f"models/{repo}"].commits[-1][2]


def assert_everything_is_there_once(server: HubServer, folder: Path, repo: str = REPO) -> None:
    files = tree(server, repo)
    on_disk = {
        f"checkpoints/{path.parent.name}/{path.name}": path.read_bytes() for path in folder.glob("checkpoint_epoch*/*")
    }
    assert {path: files[path] for path in files if path.startswith("checkpoints/")} == on_disk
    assert set(server.uploads.values()) == {1}, "the content of a large file came more than once"
    assert "README.md" in files and "config.yaml" in files


def test_every_checkpoint_arrives_beside_the_training_in_one_commit_each(
    server: HubServer, run: tuple[Config, Path]
) -> None:
    config, folder = run
    thread = HubThread(config, run_at(folder))
    thread.start()
    for epoch in (1, 2, 3):
        train(folder, epoch)
        wait_for_commit(server, epoch)
    thread.close(60)
    assert_everything_is_there_once(server, folder)
    assert commits(server) == ["initial commit", *(f"Checkpoint checkpoint_epoch_{epoch:04d}" for epoch in (1, 2, 3))]
    assert server.repos[f"models/{REPO}"].private


def test_what_is_there_is_not_sent_again(server: HubServer, run: tuple[Config, Path]) -> None:
    config, folder = run
    upload(config, folder)
    before = commits(server)
    upload(config, folder, epochs=0)
    assert commits(server) == before


def test_a_look_neither_downloads_nor_reads_what_was_sent_before(
    server: HubServer, run: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's folder is an object store to the uploads: its files have to be copied before they are read."""
    config, folder = run
    downloads: list[str] = []
    verified: list[str] = []
    looks: list[RunFolder] = []
    fetch, verify = address.fetch, verify_checkpoint

    def fetch_and_note(filesystem: fs.FileSystem, source: str, target: Path) -> None:
        downloads.append(Path(source).name)
        fetch(filesystem, source, target)

    def verify_local(directory: Path, shown: str) -> dict[str, Any]:
        verified.append(Path(shown).name)
        return verify(directory, shown)

    def list_checkpoints(run: RunFolder, known: Collection[str] = ()) -> list[str]:
        looks.append(run)
        return whole_checkpoints(run, known)

    monkeypatch.setattr(address, "fetch", fetch_and_note)
    monkeypatch.setattr(hub, "whole_checkpoints", list_checkpoints)
    monkeypatch.setattr(checkpoint, "verify_checkpoint", verify_local)
    store = RunFolder(fs.SubTreeFileSystem(str(folder.parent), fs.LocalFileSystem()), folder.name, str(folder))
    thread = HubThread(config, store)
    thread.start()
    for epoch in (1, 2, 3):
        train(folder, epoch)
        wait_for_commit(server, epoch)
        looks.clear()
        wait_until(lambda: len(looks) > 3)
    once = [checkpoint_name(epoch, 0) for epoch in (1, 2, 3)]
    assert downloads == once and verified == once
    thread.close(60)
    assert_everything_is_there_once(server, folder)


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
    assert len(commits(server)) == len(set(commits(server))), "a checkpoint was committed twice"


def test_a_hub_that_is_away_delays_nothing_and_gets_the_rest_later(
    server: HubServer, run: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = run
    server.faults.append(Fault("", 503, times=10_000))
    with caplog.at_level(logging.WARNING, "seqtrack"):
        upload(config, folder, epochs=2, patience=0.3)
    assert "training goes on" in caplog.text
    assert "gave up; the same command again sends the rest" in caplog.text
    assert TOKEN not in caplog.text
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
    with pytest.raises(HubError, match=message):
        HubThread(config.with_settings({"HUB.REQUIRED": True}), run_at(folder)).start()
    with caplog.at_level(logging.WARNING, "seqtrack"):
        thread = HubThread(config, run_at(folder))
        thread.start()
        thread.close(patience=0.2)
    assert caplog.text.count("training goes on, and it is tried again (HUB.REQUIRED=true stops instead)") == 1


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


def test_the_best_in_tracking_can_be_the_repositorys_own(server: HubServer, run: tuple[Config, Path]) -> None:
    """The card says how well each checkpoint tracks, and where the Hub's page looks for numbers, the best one."""
    config, folder = run
    for epoch, auc in ((1, 61.25), (2, 40.0), (3, 50.0)):
        name = checkpoint_name(epoch, 0)
        add_evaluation(run_at(folder), CheckpointScores(name, 6 * epoch, "lasot", "pytracking", 280, 280, {"auc": auc}))
    upload(config.with_settings({"EVAL.BENCHMARKS": {"lasot": "/data/lasot"}, "HUB.BEST_BY": "auc"}), folder)
    files = tree(server)
    best = folder / checkpoint_name(1, 0) / "model.safetensors"
    assert files["model.safetensors"] == best.read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert "| checkpoint_epoch_0002 | 40.00 |" in card.text
    (result,) = card.data.get("eval_results")
    assert (result.dataset_type, result.dataset_name) == ("lasot", "LaSOT test (280 of 280 sequences)")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("auc", "AUC (protocol pytracking)", 61.25)


def test_strangers_find_a_card_and_load_the_model(server: HubServer, filled: Path) -> None:
    card = tree(server)["README.md"].decode()
    assert card.startswith("---\n") and "library_name: seqtrack" in card
    assert "| 2 | 2.0000 | 0.9000 | 0.001 |" in card
    assert f'SeqTrack.from_pretrained("{REPO}")' in card
    assert f"seqtrack train --resume-from hf://{REPO}/checkpoints/checkpoint_epoch_0003" in card
    model = SeqTrack.from_pretrained(REPO)
    ours = read_weights(filled / "checkpoint_epoch_0002")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    local = SeqTrack.from_pretrained(str(filled / "checkpoint_epoch_0003"))
    assert not torch.equal(next(local.parameters()), next(model.parameters()))


@pytest.mark.parametrize(("path", "epoch"), [("", 2), ("/checkpoints/checkpoint_epoch_0003", 3)])
def test_a_tracker_takes_the_repositorys_own_weights_or_a_checkpoints(
    server: HubServer, filled: Path, path: str, epoch: int
) -> None:
    trained = load_trained(f"hf://{REPO}{path}")
    ours = read_weights(filled / checkpoint_name(epoch, 0))
    assert all(torch.equal(tensor, ours[name]) for name, tensor in trained.model.state_dict().items())


@pytest.mark.parametrize("place", ["hf://me/nothing", f"hf://{REPO}/checkpoints/checkpoint_epoch_0009"])
def test_a_model_that_is_not_on_the_hub_is_named(server: HubServer, filled: Path, place: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(place.removeprefix("hf://").split("/checkpoints")[0])):
        load_trained(place)


@pytest.mark.parametrize(
    ("path", "epoch"), [("", 3), ("/checkpoints/checkpoint_epoch_0002", 2), ("/checkpoints/1", 1), ("/latest", 3)]
)
def test_a_checkpoint_comes_back_byte_for_byte(server: HubServer, filled: Path, path: str, epoch: int) -> None:
    fetched = Path(find_checkpoint(f"hf://{REPO}{path}").path)
    there = {file.name: file.read_bytes() for file in fetched.iterdir()}
    assert there == {file.name: file.read_bytes() for file in (filled / checkpoint_name(epoch, 0)).iterdir()}


def test_an_older_revision_has_the_checkpoints_of_then(server: HubServer, filled: Path) -> None:
    then = server.repos[f"models/{REPO}"].commits[1][0]
    assert find_checkpoint(f"hf://{REPO}@{then}/latest").name == "checkpoint_epoch_0001"
    with pytest.raises(CheckpointError, match="no checkpoint_epoch_0003 there, but checkpoint_epoch_0001"):
        find_checkpoint(f"hf://{REPO}@{then}/checkpoints/checkpoint_epoch_0003")


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
        find_checkpoint(location)


def test_a_training_sends_its_checkpoints_and_is_resumed_from_them(
    cluster: None,
    server: HubServer,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run without Ray is sent; one on the cluster goes on from there, repeats it, and is sent to another repository.
    Nothing that it leaves knows the token."""
    whole = loops.named(tiny_settings, "whole", {"HUB.REPO_ID": REPO})
    loops.train(whole)
    upload(whole, tmp_path / "runs/whole", epochs=0)
    assert_everything_is_there_once(server, tmp_path / "runs/whole")

    empty_store(tmp_path / "runs")
    server.faults = [Fault("PUT /lfs", 500, times=2), Fault("POST .*/commit/", "drop-after", times=1)]
    resumed = loops.named(tiny_settings, "resumed", {"HUB.REPO_ID": f"{REPO}-resumed"})
    run_training(resumed, f"hf://{REPO}/checkpoints/checkpoint_epoch_0001")
    assert [fault.times for fault in server.faults] == [0, 0]
    assert_everything_is_there_once(server, tmp_path / "runs/resumed", f"{REPO}-resumed")
    assert_same_bits(tmp_path / "runs/resumed", tmp_path / "runs/whole", "checkpoint_epoch_0002")

    out, err = capfd.readouterr()
    assert f"{REPO}-resumed has 1 checkpoint of this run, compared file by file" in caplog.text
    assert TOKEN not in out + err + caplog.text
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    left = [path for folder in (tmp_path / "runs", session) for path in folder.rglob("*") if path.is_file()]
    assert len(left) > 50
    assert not [path for path in left if TOKEN.encode() in path.read_bytes()]
    assert not [process for process in psutil.process_iter(["cmdline"]) if TOKEN in str(process.info["cmdline"])]
    assert not [content for content in tree(server).values() if TOKEN.encode() in content]
