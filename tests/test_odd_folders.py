"""Folders with the characters that URIs, shells and databases treat in their own ways."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtrack.cli import main
from seqtrack.config import SETTINGS_FILE, Config, load_config
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.open import open_data, open_index
from seqtrack.data.packing import pack_shard, plan_shards, write_index
from seqtrack.data.storage import Root, open_root
from seqtrack.experiments.prepare import prepare, settle_paths
from seqtrack.integrations.mlflow import deliver
from seqtrack.integrations.mlflow_store import make_client
from seqtrack.integrations.store_uri import sqlite_uri, tracking_uri
from seqtrack.locations import filesystem_at
from seqtrack.model.weights import MODEL_FILE, read_weights, save_safetensors
from seqtrack.runs.checkpoint import find_checkpoint, newest_checkpoint
from seqtrack.runs.folder import RunFolder
from tests.integrations.servers import empty_store
from tests.training.loops import train

NAMES = ("set #1", "100% é", "a%20b", "what?", "~x", "[a] & 'b'")

Written = Callable[[Path], str]
"""How a folder is written: as a path or as a URI."""


def as_typed(path: Path) -> str:
    """A URI as people type it: only what would be decoded is encoded."""
    return f"file://{path}".replace("%20", "%2520")


written = pytest.mark.parametrize("written", [str, Path.as_uri, as_typed], ids=["path", "uri", "raw"])


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / request.param
    place.mkdir()
    return place


@written
def test_a_folder_is_found_however_it_is_written(folder: Path, written: Written, lasot_root: Path) -> None:
    assert RunFolder.at(written(folder)).path == str(folder)
    assert open_root(written(folder)).path == str(folder)
    config = Config().with_settings(
        {
            "RUN.STORAGE_PATH": written(folder),
            "MODEL.WEIGHTS": written(folder / "w.pth"),
            "DATA.SPLIT": written(folder / "s"),
        }
    )
    settled = settle_paths(config)
    assert str(folder) == settled.RUN.STORAGE_PATH
    assert str(folder / "w.pth") == settled.MODEL.WEIGHTS
    assert str(folder / "s") == settled.DATA.SPLIT
    (folder / "c.yaml").write_text("SEED: 5\n")
    assert load_config(written(folder / "c.yaml")).SEED == 5


@pytest.mark.parametrize("written", [str, Path.as_uri], ids=["path", "uri"])
def test_a_run_trains_goes_on_and_is_shown_by_mlflow(
    folder: Path, written: Written, tiny_config: Config, lasot_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(lasot_root, folder / "tree")
    (folder / "list").write_text("coin-1\nkite-1\n")
    settings = {
        "DATA.ROOT": written(folder / "tree"), "DATA.SPLIT": written(folder / "list"), "TRAIN.EPOCH": 1,
        "RUN.STORAGE_PATH": written(folder / "runs"), "RUN.NAME": folder.name.strip("~"),
    }  # fmt: skip
    config = settle_paths(tiny_config.with_settings(settings))
    prepare(config)
    train(config)
    run = RunFolder.of(config)
    run.write(SETTINGS_FILE, config.to_yaml())
    place = folder / "runs" / str(config.RUN.NAME)
    newest = newest_checkpoint(run)
    assert newest is not None and find_checkpoint(written(place)) == newest
    assert find_checkpoint(f"{written(place)}/1") == newest
    assert prepare(config).continued

    empty_store(folder / "runs")
    mirror = deliver(written(place))
    assert mirror.note.state.run_id is not None
    client = make_client(config)
    assert tracking_uri(config) == sqlite_uri(folder / "runs/mlflow.db")
    assert {file.path for file in client.list_artifacts(mirror.note.state.run_id)} >= {SETTINGS_FILE, "train.log"}
    assert list(folder.glob("runs/mlartifacts/*/artifacts/train.log")) != []


@pytest.mark.parametrize("written", [str, Path.as_uri], ids=["path", "uri"])
def test_a_tree_is_packed_into_it_and_read_from_it(
    folder: Path, written: Written, tiny_config: Config, lasot_root: Path
) -> None:
    config = tiny_config.with_settings({"DATA.ROOT": written(folder / "packed")})
    tree, target = open_root(str(lasot_root)), Root(*filesystem_at(written(folder / "packed")))
    index = build_index(config.DATA, tree)
    plan = plan_shards(index)
    write_index(
        index, target, plan, [pack_shard(index, tree, target, path, rows, False) for path, rows in plan.items()]
    )
    assert open_data(settle_paths(config)).mixture.sets[0].index.names == open_index(tiny_config.DATA, tree).names


@pytest.mark.parametrize("written", [str, Path.as_uri], ids=["path", "uri"])
def test_weights_are_converted_in_it(folder: Path, written: Written, tiny_config: Config) -> None:
    ended = train(tiny_config.with_settings({"TRAIN.EPOCH": 1}))
    assert ended.step > 0
    newest = newest_checkpoint(RunFolder.of(tiny_config))
    assert newest is not None
    save_safetensors(read_weights(Path(newest.path, MODEL_FILE)), folder / "a.safetensors")
    assert main(["convert-weights", written(folder / "a.safetensors"), written(folder / "b.pth")]) == 0
    assert read_weights(folder / "b.pth").keys() == read_weights(folder / "a.safetensors").keys()


def test_weights_are_not_written_into_an_object_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-weights", "a.pth", "s3://bucket/b.pth"]) == 2
    assert capsys.readouterr().err == "error: s3://bucket/b.pth: is no file of this machine; name one here\n"


def test_a_run_that_is_called_like_an_epoch_is_found(tiny_config: Config) -> None:
    config = tiny_config.with_settings({"RUN.NAME": "2024", "TRAIN.EPOCH": 1})
    train(config)
    run = RunFolder.of(config)
    run.write(SETTINGS_FILE, config.to_yaml())
    assert find_checkpoint(run.location) == newest_checkpoint(run)
