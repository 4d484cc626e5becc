"""The MLflow store: which one it is, the runs that hold other runs, and no password in what is shown."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient

from seqtrack import cli
from seqtrack.config import Config
from seqtrack.integrations import mlflow_store
from seqtrack.integrations.mirror_thread import MirrorThread
from seqtrack.integrations.mlflow import Mirror
from seqtrack.integrations.mlflow_store import (
    StoreError,
    check_store,
    close_parent_run,
    log_evaluation,
    open_parent_run,
)
from seqtrack.integrations.store_uri import artifacts_beside
from seqtrack.runs.evaluations import CheckpointScores
from seqtrack.runs.folder import RunFolder
from tests.integrations.servers import empty_store, wait_until
from tests.training.runs import REPOSITORY

Tracked = Callable[..., tuple[Config, RunFolder]]


def test_names_from_the_environment_win(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = tracked("sqlite:////nowhere/mlflow.db")
    store = empty_store(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    Mirror(config.with_settings({"MLFLOW.RUN_NAME": "named"}), run).sync()
    parent = open_parent_run(config, "sweep")
    assert open_parent_run(config, "sweep") == parent
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    assert {run.info.run_name for run in client.search_runs([experiment.experiment_id])} == {"named", config.RUN.NAME}


@pytest.mark.parametrize("name", ["it's", 'a "b"', "100% #1"])
def test_an_experiment_of_parts_is_found_again_whatever_its_name(name: str, tracked: Tracked, tmp_path: Path) -> None:
    config, _ = tracked(empty_store(tmp_path), **{"RUN.NAME": name})
    parent = open_parent_run(config, "sweep")
    assert parent is not None
    assert open_parent_run(config, "sweep") == parent


def scores(step: int, auc: float) -> CheckpointScores:
    return CheckpointScores(f"checkpoint_epoch_{step // 6:04d}", step, "lasot", "pytracking", 280, 280, {"auc": auc})


def test_an_evaluation_that_is_repeated_stays_one_point_of_the_curve(tracked: Tracked, tmp_path: Path) -> None:
    config, _ = tracked(empty_store(tmp_path))
    run = open_parent_run(config, "sweep")
    assert run is not None
    for step, auc in ((6, 10.5), (12, 20.25), (6, 10.5)):
        log_evaluation(config, run, [scores(step, auc)])
    history = MlflowClient(config.MLFLOW.TRACKING_URI).get_metric_history(run, "lasot/pytracking/auc")
    assert sorted((one.step, one.value) for one in history) == [(6, 10.5), (12, 20.25)]


def test_a_store_that_takes_no_evaluation_is_a_warning(
    tracked: Tracked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, _ = tracked(empty_store(tmp_path))
    log_evaluation(config, "0" * 32, [scores(6, 1.0)])
    assert "MLflow did not take the evaluation; the same command tries again: " in caplog.text


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("sqlite:////data/set #1/mlflow.db", "file:///data/set%20%231/mlartifacts"),
        ("sqlite:////data/a%2520b%3F/mlflow.db?timeout=5", "file:///data/a%2520b%3F/mlartifacts"),
        ("https://host:5000", None),
    ],
)
def test_artifacts_lie_beside_the_file_of_a_store(uri: str, place: str | None) -> None:
    assert artifacts_beside(uri) == place


def test_an_experiment_of_parts_goes_on_without_mlflow_and_shows_no_password(
    tracked: Tracked, nobody: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = tracked("sqlite:////nowhere/mlflow.db")
    with caplog.at_level(logging.WARNING, "seqtrack"):
        assert open_parent_run(config, "sweep") is None
        close_parent_run(config, "any", Path(run.path), {}, "FINISHED")
    assert "no MLflow run for" in caplog.text and "MLflow did not take the report" in caplog.text
    assert cli.main(["deliver", run.location]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "canary" not in caplog.text + told.out + told.err


def broken_stores(folder: Path) -> dict[str, tuple[str, str]]:
    """Why a store cannot be opened -> its URI, and a part of what is said."""
    store = empty_store(folder)
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '3da73c924c2f'")
    (folder / "no database.db").write_text("hello")
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    return {
        "away": (f"http://me:canary@{nobody}", f"MLflow at http://{nobody} cannot be opened: [Errno 111] Connection"),
        "down": (f"postgresql://me:ca/nary@{nobody}/db", "Connection refused"),
        "driver": ("mysql://me:canary@localhost/db", "the Python package MySQLdb is not installed"),
        "other driver": ("postgresql+psycopg2://localhost/db", "the Python package psycopg2 is not installed"),
        "older": (store, "Detected out-of-date database schema"),
        "no database": (f"sqlite:///{folder}/no database.db", "file is not a database"),
        "no folder": (f"sqlite:///{folder}/no database.db/runs/mlflow.db", "Not a directory"),
        "databricks": ("databricks", "Reading Databricks credential configuration failed"),
    }


@pytest.mark.parametrize(
    "kind", ["away", "down", "driver", "other driver", "older", "no database", "no folder", "databricks"]
)
def test_a_store_that_cannot_be_opened_keeps_nothing_from_starting_unless_it_is_required(
    kind: str,
    tracked: Tracked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    uri, said = broken_stores(tmp_path / "store")[kind]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{uri}\n")
    config, run = tracked("sqlite:////nowhere/mlflow.db")
    with caplog.at_level(logging.WARNING, "seqtrack"):
        assert open_parent_run(config, "sweep") is None
        close_parent_run(config, "any", Path(run.path), {}, "FINISHED")
        check_store(config)
        thread = MirrorThread(config, run, {})
        wait_until(lambda: "training goes on, and it is tried again" in caplog.text)
        thread.close("FINISHED", patience=0)
    assert f"no MLflow run for {config.RUN.NAME} as a whole: " in caplog.text and said in caplog.text
    assert "To deliver it: " in caplog.text
    required = config.with_settings({"MLFLOW.REQUIRED": True})
    for start in (check_store, partial(open_parent_run, kind="sweep")):
        with pytest.raises(StoreError, match=re.escape(said)):
            start(required)
    assert cli.main(["deliver", run.location]) == 1
    shown = caplog.text + "".join(capfd.readouterr())
    assert "Traceback" not in shown and not re.search("ca/?nary", shown)


def test_a_server_that_does_not_answer_is_waited_for_only_so_long(
    tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store, "SECONDS_TO_OPEN", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config, _ = tracked(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"cannot be opened: no answer within 0\.1 s"):
            check_store(config.with_settings({"MLFLOW.REQUIRED": True}))


STARTED_AT_ONCE = """
import sys, time
from pathlib import Path
from seqtrack.config import load_config
from seqtrack.integrations.mlflow_store import find_experiment, make_client

storage, name = sys.argv[1:]
config = load_config("demo", [f"RUN.STORAGE_PATH={storage}", f"RUN.NAME={name}"])
Path(storage, name).touch()
while not all(Path(storage, other).exists() for other in ("one", "two")):
    time.sleep(0.001)
client = make_client(config)
client.create_run(find_experiment(client, config), run_name=name)
"""


def test_two_trainings_that_start_at_once_in_a_new_folder_both_get_their_run(tmp_path: Path) -> None:
    names = ["one", "two"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STARTED_AT_ONCE, str(tmp_path)]
    started = [subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE) for name in names]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("seqtrack")
    assert experiment is not None
    assert sorted(run.info.run_name for run in client.search_runs([experiment.experiment_id])) == names


def test_a_store_appears_when_it_is_whole(tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a process that is killed while it makes one leaves what nobody can open."""
    config, run = tracked(f"sqlite:///{tmp_path}/new/mlflow.db")
    with monkeypatch.context() as patched:

        def killed(engine: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("mlflow.store.db.utils._upgrade_db", killed)
        with pytest.raises(KeyboardInterrupt):
            Mirror(config, run).sync()
    assert not (tmp_path / "new/mlflow.db").exists()
    Mirror(config, run).sync()
    assert (tmp_path / "new/mlflow.db").exists()


@pytest.mark.parametrize("mask", [0o002], ids=oct)
def test_a_store_in_a_file_can_be_written_by_those_that_the_umask_lets(tmp_path: Path, mask: int) -> None:
    """SQLite's own choice is 0644 at most."""
    before = os.umask(mask)
    try:
        mlflow_store._make_database(tmp_path / "mlflow.db")
    finally:
        os.umask(before)
    assert oct((tmp_path / "mlflow.db").stat().st_mode & 0o777) == oct(0o666 & ~mask)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
