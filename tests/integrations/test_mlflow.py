"""Runs as MLflow shows them: read back through its own client, from real stores and a real server."""

from __future__ import annotations

import logging
import shlex
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from seqtrack import cli
from seqtrack.config import Config
from seqtrack.environment import command
from seqtrack.experiments.train import run_training
from seqtrack.integrations import mlflow
from seqtrack.integrations.mirror_state import MIRROR_FILE, MirrorState, await_mlflow_run
from seqtrack.integrations.mirror_thread import MirrorThread
from seqtrack.integrations.mlflow import Mirror, deliver
from seqtrack.runs.checkpoint import whole_checkpoints
from seqtrack.runs.evaluations import CheckpointScores, add_evaluation
from seqtrack.runs.folder import RunFileError, RunFolder
from seqtrack.runs.log import LOG_FILE, METRICS_FILE, MetricsFile, parse_record, read_metrics
from tests.integrations.servers import MlflowServer, postgresql, wait_until
from tests.settings import make_tiny_settings
from tests.training import loops
from tests.training.runs import kill_a_worker

TAGS = {"phase": "first", "seed": "3"}
Tracked = Callable[..., tuple[Config, RunFolder]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()


def train(run: RunFolder, start: int, stop: int, time: int = 0) -> None:
    """Writes the records of steps start + 1 … stop, as a training that goes on from `start` does."""
    file = MetricsFile(run, start)
    for step in range(start + 1, stop + 1):
        record = {
            "step": step,
            "time": 1_700_000_000_000 + time + step,
            "train/loss": 1 / step,
            "train/iou": step / 100,
        }
        file.add(record)


def started(config: Config, run: RunFolder, tags: dict[str, str] = TAGS) -> Mirror:
    mirror = Mirror(config, run)
    mirror.note.start(tags)
    return mirror


def the_run(config: Config) -> tuple[MlflowClient, Run]:
    """The one run of the experiment."""
    client = MlflowClient(str(config.MLFLOW.TRACKING_URI))
    experiment = client.get_experiment_by_name(config.MLFLOW.EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def history(config: Config, name: str) -> list[tuple[int, float]]:
    """The points of a curve: of those at one step, the latest."""
    client, run = the_run(config)
    points = sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.timestamp)
    return sorted({point.step: point.value for point in points}.items())


def artifacts(config: Config, folder: str | None = None) -> set[str]:
    client, run = the_run(config)
    return {artifact.path for artifact in client.list_artifacts(run.info.run_id, folder)}


def assert_history(config: Config, steps: int) -> None:
    assert history(config, "train/loss") == [(step, 1 / step) for step in range(1, steps + 1)]
    assert len(history(config, "train/iou")) == steps


def test_a_run_that_goes_on_is_one_run_with_every_step_once(server: MlflowServer, tracked: Tracked) -> None:
    config, run = tracked(server.uri)
    train(run, 0, 30)
    started(config, run).sync()
    train(run, 20, 50)  # killed after step 30, restored at 20
    again = started(config, run, {"seed": "3"})
    again.sync()
    again.sync()
    train(run, 50, 60)
    again.note.end("FINISHED")
    again.finish()
    assert_history(config, 60)
    _, found = the_run(config)
    assert found.info.status == "FINISHED"
    assert found.data.tags["phase"] == "first"
    assert found.data.tags["trained_again"].startswith("steps 21 to 30 : ")
    assert found.data.params["TRAIN.LR"] == "0.001"
    assert {"config.yaml", "train.log"} <= artifacts(config)


def test_a_line_break_after_the_address_of_a_server_is_no_part_of_it(
    server: MlflowServer, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = tracked(server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{server.uri}\n")
    mirror = started(config, run)
    mirror.finish()
    assert {"config.yaml", "train.log"} <= artifacts(config)


def test_numbers_of_checkpoints_and_their_page_arrive_once(server: MlflowServer, tracked: Tracked) -> None:
    config, run = tracked(server.uri)
    mirror = started(config, run)
    scores = CheckpointScores("checkpoint_epoch_0001", 6, "lasot", "pytracking", 280, 280, {"auc": 10.5})
    add_evaluation(run, scores)
    mirror.sync()
    add_evaluation(run, replace(scores, checkpoint="checkpoint_epoch_0002", step=12, measures={"auc": 20.25}))
    run.child("evaluation").create()
    run.write("evaluation/index.html", "<p>A page</p>")
    mirror.finish()
    started(config, run).finish()
    assert history(config, "lasot/pytracking/auc") == [(6, 10.5), (12, 20.25)]
    assert artifacts(config, "evaluation") == {"evaluation/index.html"}


def test_more_records_than_a_request_may_hold(server: MlflowServer, tracked: Tracked) -> None:
    config, run = tracked(server.uri)
    train(run, 0, 1234)
    started(config, run).sync()
    assert_history(config, 1234)


def test_a_look_reads_only_what_is_new(server: MlflowServer, tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = tracked(server.uri)
    parsed: list[str] = []

    def parse(line: str, where: str) -> dict[str, float]:
        parsed.append(line)
        return parse_record(line, where)

    monkeypatch.setattr("seqtrack.runs.log.parse_record", parse)

    def parsed_by_looks(mirror: Mirror, looks: int = 3) -> int:
        parsed.clear()
        for _ in range(looks):
            mirror.sync()
        return len(parsed)

    mirror = started(config, run)
    train(run, 0, 20)
    assert parsed_by_looks(mirror) == 20 + 20  # where to begin is searched from the end
    train(run, 20, 25)
    assert parsed_by_looks(mirror) == 5
    train(run, 10, 30)  # the run went back to a checkpoint, and the end of the file was written anew
    assert parsed_by_looks(mirror) == 20 + 21
    assert parsed_by_looks(mirror) == 0
    train(run, 30, 31)
    again = started(config, run)
    assert parsed_by_looks(again) == 1 + 2, "what MLflow has is not read again"
    assert_history(config, 31)


def test_every_epoch_that_is_kept_has_a_picture_and_is_looked_for_until_then(
    server: MlflowServer, tracked: Tracked, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = tracked(server.uri, **{"TRAIN.EPOCH": 3})
    listings: list[RunFolder] = []

    def listed(run: RunFolder, known: Collection[str] = ()) -> list[str]:
        listings.append(run)
        return whole_checkpoints(run, known)

    monkeypatch.setattr(mlflow, "whole_checkpoints", listed)
    loops.train(config)
    first, last = Path(run.path, "checkpoint_epoch_0001"), Path(run.path, "checkpoint_epoch_0003")
    shutil.rmtree(first)  # not kept
    last.rename(last.with_name("unfinished"))
    mirror = started(config, run)
    mirror.sync()
    assert artifacts(config, "snapshots") == {"snapshots/step_000012.png"}
    last.with_name("unfinished").rename(last)
    mirror.sync()
    assert artifacts(config, "snapshots") == {"snapshots/step_000012.png", "snapshots/step_000018.png"}
    listings.clear()
    mirror.sync()
    assert not listings, "all epochs are settled, and the folder was listed again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"run_id": "0123', "is cut off or damaged"),
        ('{"run": "0123"}', "is not what this version writes"),
    ],
    ids=["empty", "cut off", "something else"],
)
def test_a_damaged_state_is_named_and_not_taken_for_a_new_run(
    tracked: Tracked, tmp_path: Path, content: str, message: str
) -> None:
    config, run = tracked(f"sqlite:///{tmp_path}/none.db")
    run.write(MIRROR_FILE, content)
    with pytest.raises(RunFileError, match=f"{run.file(MIRROR_FILE)}: {message}"):
        MirrorThread(config, run, TAGS)
    assert run.read_text(MIRROR_FILE) == content


@pytest.mark.parametrize("line", ['{"step": 2, "tr', "[1, 2]", '{"step": "2"}'])
def test_a_damaged_record_is_named(server: MlflowServer, tracked: Tracked, line: str) -> None:
    config, run = tracked(server.uri)
    train(run, 0, 1)
    mirror = started(config, run)
    with open(run.file(METRICS_FILE), "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunFileError, match=f"^{run.file(METRICS_FILE)}, line 2: is no record of a step"):
        mirror.sync()


def test_a_state_that_cannot_be_written_stays_the_old_one_and_stops_nothing(
    server: MlflowServer, tracked: Tracked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, run = tracked(server.uri)
    thread = MirrorThread(config, run, TAGS)
    assert await_mlflow_run(run) is not None
    before = MirrorState.read(run)

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with caplog.at_level(logging.WARNING, "seqtrack"):
        thread.close("FINISHED", patience=60)
    assert "the run's status cannot be noted (no space left on device)" in caplog.text
    assert MirrorState.read(run) == before
    assert the_run(config)[1].info.status == "FINISHED"


def test_what_cannot_be_delivered_is_kept_with_the_command_that_delivers_it(
    server: MlflowServer,
    tracked: Tracked,
    nobody: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, run = tracked(server.uri)
    train(run, 0, 12)
    with caplog.at_level(logging.WARNING, "seqtrack"):
        thread = MirrorThread(config, run, TAGS)
        wait_until(lambda: "training goes on" in caplog.text)
        assert await_mlflow_run(run, patience=0) is None
        thread.close("FINISHED", patience=0.5)
    assert f"lacks a part of this run (12 records), which is in {run.location}." in caplog.text
    assert f"To deliver it: {shlex.join(command('deliver', [run.location]))}" in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert cli.main(["deliver", run.location]) == 0
    assert f"is up to date with {run.location}" in capsys.readouterr().out
    assert_history(config, 12)
    assert the_run(config)[1].info.status == "FINISHED"
    assert "canary" not in caplog.text


def test_a_postgresql_store(tmp_path: Path, tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts of a store that is no file
    with postgresql() as store:
        config, run = tracked(store)
        train(run, 0, 30)
        started(config, run).sync()
        train(run, 20, 40)
        again = Mirror(config, run)
        again.note.end("KILLED")
        again.finish()
        assert_history(config, 40)
        assert the_run(config)[1].info.status == "KILLED"


def test_a_folder_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"config\.yaml: no such file; this is not the folder of a run"):
        deliver(str(tmp_path))


@pytest.mark.soak
def test_the_curves_of_a_training_with_every_trouble_are_those_of_one_without(
    cluster: None, server: MlflowServer, lasot_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is blocked, a worker killed meanwhile; then the server is killed too, and started again."""
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
    settings = make_tiny_settings(lasot_root, tmp_path / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 158
    settings["TRAIN"] |= {"EPOCH": 2, "CHECKPOINT_EVERY_STEPS": 10}
    settings["MLFLOW"] = {"TRACKING_URI": server.uri, "EXPERIMENT": tmp_path.name, "PATIENCE": 300}
    config, whole = loops.named(settings, "troubled"), loops.named(settings, "whole")
    loops.train(whole)
    log = tmp_path / "runs/troubled" / LOG_FILE

    def trouble() -> None:
        try:
            wait_until(lambda: log.exists() and "Epoch 1 : 80" in log.read_text(), seconds=300)
            server.send(signal.SIGSTOP)
            kill_a_worker()
            wait_until(lambda: log.read_text().count("Training vit_demo") == 2, seconds=300)
            wait_until(lambda: "Epoch 2 : 80" in log.read_text(), seconds=300)  # beside a blocked server
        finally:  # nobody waits for a blocked server, whatever happened
            server.stop()
            server.start()

    with ThreadPoolExecutor(1) as pool:
        troubled = pool.submit(trouble)
        run_training(config)
        troubled.result()

    run = RunFolder.of(config)
    expected = read_metrics(RunFolder.of(whole))
    for name in ("train/loss", "train/iou", "train/grad_norm", "train/lr_encoder", "epoch/loss"):
        points = [(int(record["step"]), record[name]) for record in expected if name in record]
        assert len(points) == 2 if name == "epoch/loss" else len(points) > 30
        assert history(config, name) == points, name
    _, found = the_run(config)
    assert found.info.run_name == "troubled" and found.info.status == "FINISHED"
    tags = {"phase", "seed", "git_revision", "dataset_fingerprint", "ray_job_id", "world_size"}
    assert tags <= found.data.tags.keys()
    assert {"perf/samples_per_second", "perf/data_wait_fraction", "perf/step_seconds"} <= found.data.metrics.keys()
    assert "system/cpu_utilization_percentage" in found.data.metrics
    assert len(read_metrics(run)) == len(history(config, "perf/step_seconds"))
    assert artifacts(config, "snapshots") == {f"snapshots/step_{step:06d}.png" for step in (40, 80)}
    assert {"figures/loss.png", "figures/iou.png"} <= artifacts(config, "figures")
    assert (run.read_json("checkpoint_epoch_0002/meta.json") or {})["mlflow_run_id"] == found.info.run_id
