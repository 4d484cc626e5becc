"""Runs as MLflow shows them: read back through its own client, from real servers."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pyarrow import fs

from seqtrack.config import SETTINGS_FILE, Config
from seqtrack.tracking.mlflow import (
    Mirror,
    MirrorThread,
    close_parent_run,
    deliver,
    open_parent_run,
    without_credentials,
)
from seqtrack.training.runlog import LOG_FILE, METRICS_FILE, MetricsFile
from tests.settings import make_tiny_settings
from tests.tracking.servers import MlflowServer, postgresql
from tests.training.runs import REPOSITORY, job, kill_a_worker, write_config

LOCAL = fs.LocalFileSystem()
TAGS = {"phase": "first", "seed": "3"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqtrack.tracking.mlflow.SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr("seqtrack.tracking.mlflow.SECONDS_TO_OPEN", 0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


@pytest.fixture
def tracked(tiny_config: Config, tmp_path: Path) -> Callable[..., tuple[Config, Path]]:
    """A run's folder without checkpoints, whose MLflow store is at `uri`."""

    def make(uri: str, **settings: Any) -> tuple[Config, Path]:
        config = tiny_config.with_settings({"MLFLOW.TRACKING_URI": uri, "MLFLOW.EXPERIMENT": tmp_path.name, **settings})
        folder = Path(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
        folder.mkdir(parents=True)
        (folder / SETTINGS_FILE).write_text(config.to_yaml())
        (folder / LOG_FILE).write_text("Epoch 1\n")
        return config, folder

    return make


def train(folder: Path, start: int, stop: int) -> None:
    """Writes the records of steps start + 1 … stop, as a training that goes on from `start` does."""
    file = MetricsFile(LOCAL, str(folder / METRICS_FILE), start)
    for step in range(start + 1, stop + 1):
        file.add({"step": step, "time": 1_700_000_000_000 + step, "train/loss": 1 / step, "train/iou": step / 100})


def the_run(config: Config) -> tuple[MlflowClient, Run]:
    """The one run of the experiment."""
    client = MlflowClient(str(config.MLFLOW.TRACKING_URI))
    experiment = client.get_experiment_by_name(config.MLFLOW.EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def assert_history(config: Config, steps: int) -> None:
    client, run = the_run(config)
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [(step, 1 / step) for step in range(1, steps + 1)]
    assert len(client.get_metric_history(run.info.run_id, "train/iou")) == steps


def test_a_run_that_goes_on_is_one_run_with_every_step_once(
    server: MlflowServer, tracked: Callable[..., tuple[Config, Path]]
) -> None:
    config, folder = tracked(server.uri)
    train(folder, 0, 30)
    first = Mirror(config, LOCAL, str(folder))
    first.start(TAGS)
    first.sync()
    train(folder, 20, 50)  # killed after step 30, restored at 20
    again = Mirror(config, LOCAL, str(folder))
    again.start({"seed": "3"})
    again.sync()
    again.sync()
    train(folder, 50, 60)
    again.end("FINISHED")
    again.finish()
    assert_history(config, 60)
    client, run = the_run(config)
    assert run.info.status == "FINISHED"
    assert run.data.tags["phase"] == "first"
    assert run.data.params["TRAIN.LR"] == "0.001"
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "train.log"} <= names


def test_more_records_than_a_request_may_hold(
    server: MlflowServer, tracked: Callable[..., tuple[Config, Path]]
) -> None:
    config, folder = tracked(server.uri)
    train(folder, 0, 1234)
    mirror = Mirror(config, LOCAL, str(folder))
    mirror.start(TAGS)
    mirror.sync()
    assert_history(config, 1234)


def test_the_curves_of_a_run_with_every_trouble_are_those_of_a_run_without(
    cluster: None, server: MlflowServer, lasot_root: Path, tmp_path: Path
) -> None:
    """A worker is killed, and the server does not answer for half a minute, is killed too and started again."""
    settings = make_tiny_settings(lasot_root, tmp_path / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 158
    settings["TRAIN"] |= {"EPOCH": 2, "CHECKPOINT_EVERY_STEPS": 10}
    settings["MLFLOW"] = {"TRACKING_URI": server.uri, "EXPERIMENT": tmp_path.name}
    arguments = ["--config", write_config(settings, tmp_path)]
    assert job.main([*arguments, "RUN.NAME=whole"]) == 0

    def trouble() -> None:
        log = tmp_path / "runs/troubled/train.log"
        wait_until(lambda: log.exists() and "Epoch 1 : 80" in log.read_text())
        server.send(signal.SIGSTOP)
        kill_a_worker()
        time.sleep(30)
        server.send(signal.SIGCONT)
        server.stop()
        server.start()

    thread = threading.Thread(target=trouble)
    thread.start()
    assert job.main([*arguments, "RUN.NAME=troubled"]) == 0
    thread.join()
    assert (tmp_path / "runs/troubled/train.log").read_text().count("Training vit_demo") == 2
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(tmp_path.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    runs = {run.info.run_name: run.info.run_id for run in found}
    assert runs.keys() == {"whole", "troubled"}
    for run in found:
        assert {
            "phase",
            "seed",
            "git_revision",
            "dataset_fingerprint",
            "ray_job_id",
            "world_size",
        } <= run.data.tags.keys()
        assert {"perf/samples_per_second", "perf/data_wait_fraction", "perf/step_seconds"} <= run.data.metrics.keys()
        assert "system/cpu_utilization_percentage" in run.data.metrics
    for name in ("train/loss", "train/iou", "train/grad_norm", "train/lr_encoder", "epoch/loss"):
        whole, troubled = (
            [(point.step, point.value) for point in client.get_metric_history(runs[run], name)]
            for run in ("whole", "troubled")
        )
        assert len(whole) == 2 if name == "epoch/loss" else len(whole) > 30
        assert troubled == whole, name
    pictures = {artifact.path for artifact in client.list_artifacts(runs["troubled"], "snapshots")}
    assert pictures == {f"snapshots/step_{step:06d}.png" for step in (40, 80)}
    names = {artifact.path for artifact in client.list_artifacts(runs["troubled"], "figures")}
    assert {"figures/loss.png", "figures/iou.png"} <= names


def test_what_cannot_be_delivered_is_kept_with_the_command_that_delivers_it(
    server: MlflowServer,
    tracked: Callable[..., tuple[Config, Path]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://user:canary@127.0.0.1:{free.getsockname()[1]}"
    config, folder = tracked(server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    train(folder, 0, 12)
    with caplog.at_level(logging.WARNING, "seqtrack"):
        thread = MirrorThread(config, LOCAL, str(folder), TAGS)
        assert thread.run_id() is None
        wait_until(lambda: "training goes on" in caplog.text)
        thread.close("FINISHED", patience=0.5)
    assert f"lacks a part of this run (12 records), which is in {folder}." in caplog.text
    assert f"-m seqtrack.tracking.mlflow {folder}" in caplog.text
    assert "canary" not in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    told = subprocess.run(
        [sys.executable, "-m", "seqtrack.tracking.mlflow", str(folder)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    assert f"is up to date with {folder}" in told.stdout
    assert_history(config, 12)
    assert the_run(config)[1].info.status == "FINISHED"


def test_a_postgresql_store(tmp_path: Path, tracked: Callable[..., tuple[Config, Path]]) -> None:
    with postgresql() as store:
        server = MlflowServer(tmp_path, store)
        try:
            config, folder = tracked(server.uri)
            train(folder, 0, 30)
            mirror = Mirror(config, LOCAL, str(folder))
            mirror.start(TAGS)
            mirror.sync()
            train(folder, 20, 40)
            again = Mirror(config, LOCAL, str(folder))
            again.end("KILLED")
            again.finish()
            assert_history(config, 40)
            assert the_run(config)[1].info.status == "KILLED"
        finally:
            server.stop()


def test_names_from_the_environment_win(
    tracked: Callable[..., tuple[Config, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = tracked("sqlite:////nowhere/mlflow.db")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mirror = Mirror(config.with_settings({"MLFLOW.RUN_NAME": "named"}), LOCAL, str(folder))
    mirror.start(TAGS)
    mirror.sync()
    parent = open_parent_run(config)
    assert open_parent_run(config) == parent
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {"named", config.RUN.NAME}


def test_a_folder_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.yaml"):
        deliver(str(tmp_path))


def test_an_experiment_of_parts_goes_on_without_mlflow_and_shows_no_password(
    tracked: Callable[..., tuple[Config, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"http://user:canary@127.0.0.1:{free.getsockname()[1]}"
    config, folder = tracked("sqlite:////nowhere/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    with caplog.at_level(logging.WARNING, "seqtrack"):
        assert open_parent_run(config) is None
        close_parent_run(config, "any", folder, {}, "FINISHED")
    assert "no MLflow run for" in caplog.text and "MLflow did not take the report" in caplog.text
    told = subprocess.run(
        [sys.executable, "-m", "seqtrack.tracking.mlflow", str(folder)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert told.returncode == 1 and told.stderr.startswith("error: ")
    assert "canary" not in caplog.text + told.stdout + told.stderr


def test_what_is_shown_has_no_password() -> None:
    assert without_credentials("https://me:secret@host:5000/path") == "https://host:5000/path"
    assert without_credentials("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
