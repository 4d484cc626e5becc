"""Every program takes every spelling of an address, and none takes a checkpoint that is damaged or unfinished."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyarrow import fs
from safetensors.torch import load_file

from seqtrack.address import checkpoints, find
from seqtrack.cli import main
from seqtrack.config import load_config
from seqtrack.experiments import train as experiment
from seqtrack.experiments.evaluate import expand, tracker_name
from seqtrack.experiments.prepare import open_start
from seqtrack.integrations.mirror_state import MirrorNote
from seqtrack.integrations.mlflow import Mirror
from seqtrack.locations import child
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.weights import read_weights, save_published, starting_weights
from seqtrack.runs.record import read_phase
from seqtrack.sums import CheckpointError
from seqtrack.tracker.load import load_trained
from tests.folders import run_at
from tests.integrations.hub_runs import hub_server
from tests.integrations.hub_server import HubServer
from tests.object_stores import s3_bucket
from tests.training.loops import trained_run

FIRST, LAST = "checkpoint_epoch_0001", "checkpoint_epoch_0002"
REPO = "someone/tiny"


@pytest.fixture(scope="module")
def run(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with two checkpoints. Tests must not change it."""
    return trained_run(lasot_root, tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def bucket(run: Path) -> Iterator[str]:
    """The same run in an object store."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with s3_bucket() as uri:
            put(run, child(uri, "runs/tiny"))
            yield child(uri, "runs/tiny")


@pytest.fixture(scope="module")
def hub(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub with the run's checkpoints, the first one's weights at the top, and weights in the published form."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as monkeypatch, hub_server(monkeypatch, folder / "cache") as server:
        server.add(REPO, repository(run, folder))
        yield server


def repository(run: Path, folder: Path) -> dict[str, bytes]:
    """The files of a repository with the checkpoints of a run."""
    save_published(load_file(run / FIRST / "model.safetensors"), folder / "SEQTRACK_ep0001.pth.tar")
    inside = {f"checkpoints/{path.parent.name}/{path.name}": path.read_bytes() for path in run.glob("checkpoint_*/*")}
    return inside | {
        "model.safetensors": (run / FIRST / "model.safetensors").read_bytes(),
        "config.yaml": (run / "config.yaml").read_bytes(),
        "SEQTRACK_ep0001.pth.tar": (folder / "SEQTRACK_ep0001.pth.tar").read_bytes(),
    }


def put(folder: Path, uri: str) -> None:
    """Copies a folder into an object store."""
    filesystem, path = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(folder), path, fs.LocalFileSystem(), filesystem)


def of_epoch(weights: dict[str, torch.Tensor], run: Path) -> int | None:
    """The epoch of the run that weights are from."""
    found = [
        epoch
        for epoch, name in ((1, FIRST), (2, LAST))
        if all(torch.equal(weights[key], value) for key, value in load_file(run / name / "model.safetensors").items())
    ]
    return found[0] if found else None


CHECKPOINTS = {
    "{run}": 2,
    "{run}/": 2,
    "{run}/latest": 2,
    "{run}/1": 1,
    "{run}/checkpoint_epoch_0001": 1,
    "file://{run}/1": 1,
    "{renamed}": 1,
    "{copy}/latest": 2,
    "{copy}/1": 1,
    "{copy}/checkpoints/checkpoint_epoch_0002": 2,
    "{bucket}": 2,
    "{bucket1}": 1,
    "{bucketlatest}": 2,
    "hf://someone/tiny/latest": 2,
    "hf://someone/tiny/1": 1,
    "hf://someone/tiny/checkpoints": 2,
    "hf://someone/tiny/checkpoints/2": 2,
    "hf://someone/tiny@main/checkpoints/checkpoint_epoch_0001": 1,
    "hf://someone/tiny/checkpoint_epoch_0002": 2,
}
"""An address of a checkpoint -> the epoch after which it was written."""
MODELS = {
    "{copy}": 1,
    "{copy}/model.safetensors": 1,
    "{run}/checkpoint_epoch_0002/model.safetensors": 2,
    "{bucketfile}": 1,
    "hf://someone/tiny": 1,
    "hf://someone/tiny@main": 1,
    "hf://someone/tiny/SEQTRACK_ep0001.pth.tar": 1,
}
"""An address of weights without the rest of a training -> the same."""


@pytest.fixture(scope="module")
def places(run: Path, bucket: str, hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    for name, content in repository(run, folder).items():
        target = folder / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    shutil.copytree(run / FIRST, folder / "best")
    put(folder / "copy", child(bucket, "copy"))
    return {
        "run": str(run),
        "renamed": str(folder / "best"),
        "copy": str(folder / "copy"),
        "bucket": bucket,
        "bucket1": child(bucket, "1"),
        "bucketlatest": child(bucket, "latest"),
        "bucketfile": child(bucket, "copy/SEQTRACK_ep0001.pth.tar"),
    }


@pytest.mark.parametrize("spelling", CHECKPOINTS | MODELS)
def test_a_tracker_takes_every_address(spelling: str, places: dict[str, str], run: Path) -> None:
    trained = load_trained(spelling.format(**places), str(run / "config.yaml"))
    epoch = (CHECKPOINTS | MODELS)[spelling]
    assert of_epoch(trained.model.state_dict(), run) == epoch
    assert trained.epoch == (epoch if spelling in CHECKPOINTS else None)


@pytest.mark.parametrize("spelling", ["{run}", "{run}/1", "{copy}", "{bucket1}", "{bucketfile}", "hf://someone/tiny/1"])
def test_everything_else_that_reads_weights_takes_them(
    spelling: str, places: dict[str, str], run: Path, tmp_path: Path
) -> None:
    address, epoch = spelling.format(**places), (CHECKPOINTS | MODELS)[spelling]
    config = load_config(str(run / "config.yaml")).with_settings({"MODEL.WEIGHTS": address})
    weights, source = starting_weights(config)
    assert of_epoch(weights, run) == epoch
    assert source == find(address).shown, "the log names the checkpoint, and not only its run"
    assert main(["convert-weights", address, str(tmp_path / "a.safetensors")]) == 0
    assert of_epoch(read_weights(tmp_path / "a.safetensors"), run) == epoch
    if spelling != "{bucketfile}":  # a file without its settings
        assert of_epoch(SeqTrack.from_pretrained(address).state_dict(), run) == epoch


@pytest.mark.parametrize("spelling", [*CHECKPOINTS, "hf://someone/tiny", "{copy}"])
def test_a_training_goes_on_from_every_address_of_a_checkpoint(spelling: str, places: dict[str, str]) -> None:
    place = find(spelling.format(**places), "checkpoint")
    assert place.checkpoint
    assert place.path.endswith((f"checkpoint_epoch_000{CHECKPOINTS.get(spelling, 2)}", "best"))


@pytest.mark.parametrize("spelling", ["{run}/1", "{bucket1}", "hf://someone/tiny/1"])
def test_a_checkpoint_to_go_on_from_is_where_every_worker_can_read_it(spelling: str, places: dict[str, str]) -> None:
    opened = open_start(spelling.format(**places))
    assert opened.meta["epoch"] == 1
    with opened.stored.local() as directory:
        assert (directory / "state.pt").is_file()


@pytest.mark.parametrize(
    "spelling", ["{copy}/model.safetensors", "{bucketfile}", "hf://someone/tiny/model.safetensors"]
)
def test_a_training_does_not_go_on_from_weights_alone(spelling: str, places: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match=r"is a file; a run, RUN/3 \(after its epoch 3\)"):
        open_start(spelling.format(**places))


def test_from_pretrained_takes_a_repository_by_its_name_and_revision(run: Path, hub: HubServer) -> None:
    sha = hub.repos[f"models/{REPO}"].commits[0][0]
    assert of_epoch(SeqTrack.from_pretrained(REPO, "main").state_dict(), run) == 1
    with pytest.raises(CheckpointError, match=f"hf://{REPO}@{sha}: no such file or folder"):
        SeqTrack.from_pretrained(REPO, sha)


def test_models_are_called_after_their_checkpoints(places: dict[str, str], run: Path, bucket: str) -> None:
    both = [f"tiny-{name[-4:]}" for name in (FIRST, LAST)]
    for star in (f"{run}/*", f"hf://{REPO}/*"):
        assert [tracker_name(place) for place in expand([star])] == both
    assert checkpoints(bucket) == [child(bucket, name) for name in (FIRST, LAST)]
    assert tracker_name(expand([f"hf://{REPO}@main/latest"])[0]) == "tiny@main-0002"
    assert expand([f"hf://{REPO}"]) == [f"hf://{REPO}"]


def flip(file: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        content = bytearray((checkpoint / file).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / file).write_bytes(content)

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped weights": (flip("model.safetensors"), "model.safetensors is damaged"),
    "flipped state": (flip("state.pt"), "state.pt is damaged"),
    "flipped random state": (flip("rng_rank_0000.pt"), "rng_rank_0000.pt is damaged"),
    "flipped metadata": (flip("meta.json"), "meta.json is damaged"),
    "no sums": (lambda checkpoint: (checkpoint / "SHA256SUMS").unlink(), "SHA256SUMS"),
    "cut sums": (lambda checkpoint: (checkpoint / "SHA256SUMS").write_text("0123"), "SHA256SUMS is damaged"),
    "no state": (lambda checkpoint: (checkpoint / "state.pt").unlink(), "state.pt is missing"),
    "no weights": (lambda checkpoint: (checkpoint / "model.safetensors").unlink(), "model.safetensors is missing"),
    "a random state of another": (
        lambda checkpoint: (checkpoint / "rng_rank_0001.pt").write_bytes(
            (checkpoint / "rng_rank_0000.pt").read_bytes()
        ),
        "rng_rank_0001.pt: is not in SHA256SUMS",
    ),
}
"""What happens to a checkpoint, and what is said of it."""
EXTRAS = {"export": "onnxscript", "vot": "trax"}
PROGRAMS = {
    "train, going on": "train --config {config} RUN.STORAGE_PATH={out} RUN.NAME=new --resume-from {checkpoint}",
    "train, the checkpoint's settings": "train RUN.STORAGE_PATH={out} RUN.NAME=new --resume-from {checkpoint}",
    "train, its weights": "train --config {config} RUN.STORAGE_PATH={out} RUN.NAME=new MODEL.WEIGHTS={checkpoint}",
    "train, the same run": "train --config {config} RUN.STORAGE_PATH={runs}",
    "track": "track --weights {checkpoint} --source {sequence} --out {out}",
    "evaluate": "evaluate --weights {checkpoint} --data mine={root} --out {out}",
    "export": "export --weights {checkpoint} --output {file}.onnx",
    "vot": "vot --weights {checkpoint}",
    "reproduce": "reproduce --config {config} RUN.STORAGE_PATH={out} --phase1 {runs}/tiny --resume-epoch 2",
    "convert-weights": "convert-weights {checkpoint} {file}.safetensors",
}


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of the run with one checkpoint, which is damaged. Returns the checkpoint."""

    def make(damage: str) -> Path:
        (tmp_path / "runs/tiny").mkdir(parents=True)
        shutil.copy(run / "config.yaml", tmp_path / "runs/tiny/config.yaml")
        checkpoint = shutil.copytree(run / LAST, tmp_path / "runs/tiny" / LAST)
        DAMAGES[damage][0](checkpoint)
        return checkpoint

    return make


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_takes_a_damaged_checkpoint(
    program: str, damage: str, damaged: Callable[[str], Path], lasot_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if program == "train, the same run" and damage == "no sums":
        return  # it is no checkpoint yet: whether such a run may start over is another question
    if program in EXTRAS and importlib.util.find_spec(EXTRAS[program]) is None:
        pytest.skip(f"{EXTRAS[program]} is not installed")
    monkeypatch.setattr(experiment, "run_prepared", lambda *_: pytest.fail("a training begins"))
    checkpoint = damaged(damage)
    config = tmp_path / "tiny.yaml"
    shutil.copy(checkpoint.parent / "config.yaml", config)
    given = {
        "checkpoint": checkpoint, "config": config, "runs": tmp_path / "runs", "out": tmp_path / "out",
        "sequence": lasot_root / "coin/coin-1", "root": lasot_root, "file": tmp_path / "file",
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    assert main(PROGRAMS[program].format(**given).split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ")
    assert all(part in said[0] for part in (str(checkpoint.parent), checkpoint.name, DAMAGES[damage][1]))
    assert sorted(tmp_path.rglob("*")) == before, "something was made"


@pytest.mark.parametrize("damage", ["flipped weights", "no sums", "no state", "a random state of another"])
@pytest.mark.parametrize("place", ["bucket", "hub", "renamed"])
def test_nowhere_is_a_damaged_checkpoint_taken(
    place: str, damage: str, damaged: Callable[[str], Path], bucket: str, hub: HubServer, tmp_path: Path
) -> None:
    checkpoint = damaged(damage)
    if place == "renamed":
        address = str(checkpoint.rename(tmp_path / "best"))
    elif place == "hub":
        repo = f"someone/{tmp_path.name.replace('_', '')[:60]}"
        files = {f"checkpoints/{LAST}/{path.name}": path.read_bytes() for path in checkpoint.iterdir()}
        hub.add(repo, files)
        address = f"hf://{repo}/checkpoints/{LAST}"
    else:
        put(checkpoint, child(bucket, f"{tmp_path.name}/{LAST}"))
        address = child(bucket, f"{tmp_path.name}/{LAST}")
    for opened in (load_trained, open_start):
        with pytest.raises(CheckpointError, match=DAMAGES[damage][1].replace(".", r"\.")):
            opened(address)


@pytest.mark.parametrize("name", [LAST, "2"])
def test_an_unfinished_checkpoint_beside_finished_ones_is_named(name: str, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "tiny")
    (copy / LAST / "SHA256SUMS").unlink()
    for opened in (load_trained, open_start):
        with pytest.raises(CheckpointError, match=f"{LAST} has no SHA256SUMS: an unfinished or damaged checkpoint"):
            opened(f"{copy}/{name}")
    assert load_trained(f"{copy}/latest").epoch == 1


def test_a_run_whose_upload_is_unfinished_has_no_checkpoint_yet(
    damaged: Callable[[str], Path], bucket: str, tmp_path: Path
) -> None:
    put(damaged("no sums").parent, child(bucket, tmp_path.name))
    for opened in (load_trained, open_start):
        with pytest.raises(CheckpointError, match=f"no finished checkpoint there: {LAST} has no SHA256SUMS"):
            opened(child(bucket, tmp_path.name))


def test_a_file_of_a_checkpoint_is_compared_with_its_sum_wherever_it_is(
    damaged: Callable[[str], Path], bucket: str, tmp_path: Path
) -> None:
    checkpoint = damaged("flipped weights")
    put(checkpoint, child(bucket, f"{tmp_path.name}/{LAST}"))
    for address in (f"{checkpoint}/model.safetensors", child(bucket, f"{tmp_path.name}/{LAST}/model.safetensors")):
        with pytest.raises(CheckpointError, match=r"model.safetensors.* is damaged: its SHA-256"):
            load_trained(address, str(checkpoint.parent / "config.yaml"))


@pytest.mark.parametrize("damage", ["flipped weights", "flipped state", "a random state of another"])
def test_a_report_and_mlflow_take_no_damaged_checkpoint(
    damage: str, damaged: Callable[[str], Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = damaged(damage)
    folder = run_at(checkpoint.parent)
    with pytest.raises(CheckpointError, match=DAMAGES[damage][1]):
        read_phase("Phase 1", folder, 12)
    sent: list[Any] = []
    ignored = {"log_text": lambda *_: None, "log_artifact": lambda *_: None}
    client = SimpleNamespace(log_figure=lambda *given: sent.append(given), **ignored)
    config = load_config(checkpoint.parent / "config.yaml")
    mirror = Mirror(config, folder, MirrorNote(folder))
    mirror._pictures_due = {12}
    monkeypatch.setattr(Mirror, "_client", client)
    monkeypatch.setattr(Mirror, "_run_id", "id")
    with caplog.at_level(logging.WARNING, "seqtrack"):
        mirror._send_snapshots()
        mirror._send_snapshots()
    assert not sent and caplog.text.count("MLflow : epoch 2 has no picture: ") == 1
    assert DAMAGES[damage][1] in caplog.text


WRONG = {
    "{run}/9": "no checkpoint_epoch_0009 there, but checkpoint_epoch_0001, checkpoint_epoch_0002",
    "{run}/checkpoint_epoch_0009": "no checkpoint_epoch_0009 there, but checkpoint_epoch_0001, checkpoint_epoch_0002",
    "{tmp}/nowhere": "no such file or folder; a run, RUN/3 (after its epoch 3), a checkpoint, hf://user/repo or a file",
    "{tmp}/nowhere/latest": "no such file or folder; a run",
    "{tmp}/empty": "no such file or folder; a run",
    "{root}": "it is a data set; a run",
    "{root}/coin": "it is a data set",
    "{root}/coin/coin-1": "it is a data set",
    "{tmp}/sweep": "it is a sweep's folder; its trials are runs, such as {tmp}/sweep/trials/LR=1",
    "{tmp}/both": "it is the folder of `seqtrack reproduce`; {tmp}/both/phase1 is a run",
    "{tmp}/young": "the run has written none yet",
    "{tmp}/other": "a folder without model.safetensors; it has a.txt",
    "hf://someone/tiny/9": "no checkpoint_epoch_0009 there, but checkpoint_epoch_0001, checkpoint_epoch_0002",
    "hf://someone/nothing": "no such repository, or the token may not read it",
    "hf://someone/tiny@nowhere/latest": "the repository has no such revision",
    "hf://someone": "not a repository of the Hub: user/name",
    "hf://datasets/someone/lasot": "datasets have no model; a run",
    "{bucket}": "no checkpoint_epoch_0009 there, but checkpoint_epoch_0001, checkpoint_epoch_0002",
}


@pytest.mark.parametrize("spelling", WRONG)
def test_what_is_there_instead_is_said_in_a_line(
    spelling: str, places: dict[str, str], lasot_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("empty", "sweep/trials/LR=1", "both/phase1", "young", "other"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "young/config.yaml").touch()
    (tmp_path / "other/a.txt").touch()
    names = {"root": lasot_root, "tmp": tmp_path, "run": places["run"], "bucket": child(places["bucket"], "9")}
    address = spelling.format(**names)
    assert main(["convert-weights", address, str(tmp_path / "a.safetensors")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {address}: ") and said.count("\n") == 1
    assert WRONG[spelling].format(**names) in said
