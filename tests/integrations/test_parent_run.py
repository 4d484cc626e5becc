"""The MLflow run that holds the parts of an experiment: its id is the folder's, not the name's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from mlflow import MlflowClient

from seqtrack.config import Config
from seqtrack.integrations.mirror_state import MIRROR_FILE
from seqtrack.integrations.mlflow_store import StoreError, find_experiment, make_client, open_parent_run
from seqtrack.runs.folder import RunFolder
from tests.integrations.servers import empty_store

Tracked = Callable[..., tuple[Config, RunFolder]]
Kind = Literal["reproduce", "sweep"]


@pytest.fixture
def config(tracked: Tracked, tmp_path: Path) -> Config:
    """Of an experiment whose store is apart from its folder."""
    return tracked(empty_store(tmp_path / "store"))[0].with_settings({"MLFLOW.REQUIRED": True})


def parent(config: Config, kind: Kind = "sweep") -> str:
    found = open_parent_run(config, kind)
    assert found is not None
    return found


def earlier_parent(config: Config, part: str) -> str:
    """What an earlier version left: a run that its name finds, and a part that names it."""
    client = make_client(config)
    tags = {"experiment_of_parts": str(config.RUN.NAME)}
    run_id = str(client.create_run(find_experiment(client, config), tags=tags).info.run_id)
    note_part(config, part, run_id)
    return run_id


def note_part(config: Config, part: str, run_id: str) -> None:
    folder = RunFolder.of(config).child(part)
    folder.create()
    folder.write_json(MIRROR_FILE, {"run_id": "0" * 32, "tags": {"mlflow.parentRunId": run_id}})


@pytest.mark.parametrize("kind", ["reproduce", "sweep"])
def test_the_same_folder_goes_on_with_its_run_wherever_it_is_now(config: Config, tmp_path: Path, kind: Kind) -> None:
    first = parent(config, kind)
    assert parent(config, kind) == first
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    assert parent(config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "moved")}), kind) == first


def test_folders_and_kinds_of_one_name_have_runs_of_their_own(config: Config, tmp_path: Path) -> None:
    places = {"here": config, "there": config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "elsewhere")})}
    kinds: tuple[Kind, Kind] = ("reproduce", "sweep")
    found = {(kind, place): parent(places[place], kind) for kind in kinds for place in places}
    assert len(set(found.values())) == 4
    tags = MlflowClient(config.MLFLOW.TRACKING_URI).get_run(found["sweep", "there"]).data.tags
    assert (tags["parts_of"], tags["folder"]) == ("sweep", f"{tmp_path}/elsewhere/{config.RUN.NAME}")


def test_a_run_that_is_not_there_is_made_anew(config: Config, tmp_path: Path) -> None:
    first = parent(config)
    MlflowClient(config.MLFLOW.TRACKING_URI).delete_run(first)
    second = parent(config)
    assert second != first
    other = config.with_settings({"MLFLOW.TRACKING_URI": empty_store(tmp_path / "other")})
    third = parent(other)
    assert third != second and parent(other) == third


@pytest.mark.parametrize(("kind", "part"), [("reproduce", "phase2"), ("sweep", "trials/SEED=1")])
def test_a_run_of_an_earlier_version_goes_on_if_the_folders_parts_name_it(
    config: Config, kind: Kind, part: str
) -> None:
    earlier = earlier_parent(config, part)
    assert parent(config, kind) == earlier
    assert parent(config, kind) == earlier


def test_a_run_of_an_earlier_version_that_is_shared_goes_to_the_first(config: Config, tmp_path: Path) -> None:
    earlier = earlier_parent(config, "trials/SEED=1")
    elsewhere = config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "elsewhere")})
    note_part(elsewhere, "trials/SEED=1", earlier)
    note_part(config, "phase1", earlier)
    assert parent(config) == earlier
    assert len({earlier, parent(elsewhere), parent(config, "reproduce")}) == 3


def test_a_name_alone_finds_no_run(config: Config, tmp_path: Path) -> None:
    elsewhere = config.with_settings({"RUN.STORAGE_PATH": str(tmp_path / "elsewhere")})
    earlier = earlier_parent(elsewhere, "phase1")
    assert parent(config, "reproduce") != earlier


def test_a_damaged_note_is_named(config: Config) -> None:
    parent(config)
    folder = RunFolder.of(config)
    folder.write("mlflow_sweep.json", "")
    with pytest.raises(StoreError, match=f"{folder.file('mlflow_sweep.json')}: is empty"):
        open_parent_run(config, "sweep")
