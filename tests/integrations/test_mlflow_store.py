"""The MLflow store: which one it is, the runs that hold other runs, and no password in what is shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from seqtrack import cli
from seqtrack.config import Config
from seqtrack.integrations.mlflow import Mirror
from seqtrack.integrations.mlflow_store import close_parent_run, open_parent_run
from seqtrack.runs.folder import RunFolder
from tests.integrations.servers import empty_store

Tracked = Callable[..., tuple[Config, RunFolder]]


def test_names_from_the_environment_win(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = tracked("sqlite:////nowhere/mlflow.db")
    store = empty_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    Mirror(config.with_settings({"MLFLOW.RUN_NAME": "named"}), run).sync()
    parent = open_parent_run(config)
    assert open_parent_run(config) == parent
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {"named", config.RUN.NAME}


def test_an_experiment_of_parts_goes_on_without_mlflow_and_shows_no_password(
    tracked: Tracked, nobody: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tracked("sqlite:////nowhere/mlflow.db")
    with caplog.at_level(logging.WARNING, "seqtrack"):
        assert open_parent_run(config) is None
        close_parent_run(config, "any", Path(run.path), {}, "FINISHED")
    assert "no MLflow run for" in caplog.text and "MLflow did not take the report" in caplog.text
    assert cli.main(["deliver", run.location]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "canary" not in caplog.text + told.out + told.err
