"""From settings to a finished run: checks everything that can be known beforehand, then lets Ray Train work."""

from __future__ import annotations

import difflib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import ray
import torch
from pyarrow import ArrowException, fs
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    Result,
    RunConfig,
    ScalingConfig,
    UserCallback,
)
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.queue import Queue

from seqtrack.config import SETTINGS_FILE, Config, ConfigError, load_settings, setting_docs
from seqtrack.data.lasot import FrameIndex
from seqtrack.data.packed import check_frames_exist, open_index
from seqtrack.data.storage import Root, open_root
from seqtrack.data.stream import Placement, StreamSource
from seqtrack.data.synthetic import ensure_synthetic
from seqtrack.data.triplets import TripletSource
from seqtrack.locations import absolute, child, lasting
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import Weights, starting_weights
from seqtrack.submission import submission
from seqtrack.tracking import hub
from seqtrack.tracking import mlflow as tracking
from seqtrack.training.checkpoint import CheckpointError, find_checkpoint, verify_checkpoint, whole_checkpoints
from seqtrack.training.runlog import LOG_FILE, LogFollower, RunLogHandler
from seqtrack.training.state import DECISIVE_PACKAGES, changed_since, check_allowed, check_model_fits
from seqtrack.training.worker import Ended, Job, StopRequest, train_worker

logger = logging.getLogger("seqtrack.training")


SECONDS_TO_STOP = 20.0
"""So long a run that was asked to stop waits for MLflow and the Hub, which get the rest when it goes on."""


class Resources(NamedTuple):
    """What a run takes from the cluster."""

    cpus_per_worker: float
    gpus_per_worker: float
    placement: Placement
    """Of the data tasks."""


@dataclass(frozen=True)
class Outcome:
    """A run that ended as it should, or was asked to stop."""

    folder: str
    last_checkpoint: str | None
    """Its path or URI."""
    history: list[dict[str, float]]
    """Summary of each epoch."""
    step: int
    stopped_by: int | None
    """The signal that asked it to stop before the last step."""
    tracking_uri: str


def run_training(
    config: Config,
    resume_from: str | None = None,
    allow_changed: Collection[str] = (),
    parent_run: str | None = None,
) -> Outcome:
    """Trains as `config` says on the Ray cluster at hand, and shows the log on the console meanwhile.

    A run that has checkpoints of its own goes on from the newest; else from `resume_from`, if given. SIGTERM or Ctrl-C
    makes it write a checkpoint and stop. `allow_changed`: settings, packages or `dataset` that may differ from the
    checkpoint's. `parent_run`: the MLflow run that this one is a part of.
    Raises ConfigError, DataError, WeightsError, CheckpointError or HubError before any worker starts; later
    HopelessError or ray.train's TrainingFailedError.
    """
    check_supported(config)
    config = settle_paths(config)
    data = open_data(config)

    filesystem, run_folder = open_run_folder(config, allow_changed)
    own = own_checkpoint(filesystem, run_folder)
    start = own or (open_checkpoint(resume_from) if resume_from else None)
    if start is not None:
        check_checkpoint(config, start, describe_dataset(data.index), allow_changed, finished_is_fine=own is not None)
    weights, weights_source = starting_weights(config) if start is None else ({}, start.path)

    join_cluster()
    resources = plan_resources(config, cluster_resources())
    write_settings(config, filesystem, run_folder)
    if start is not None and resume_from and resume_from.startswith(hub.SCHEME) and own is None:
        start = keep_checkpoint(start, filesystem, f"{run_folder}/start")

    tags = run_tags(config, data.index.fingerprint) | (origin_tags(start, parent_run) if own is None else {})
    notices = Queue(actor_options={"num_cpus": 0}) if config.HUB.REPO_ID else None
    uploads = hub.HubThread(config, filesystem, run_folder, notices) if notices is not None else None
    if uploads is not None:
        uploads.start()
    mirror = tracking.MirrorThread(config, filesystem, run_folder, tags)
    log_path = f"{run_folder}/{LOG_FILE}"
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        job = make_job(config, data, ray.put(data.index), resources, start, weights, allow_changed, mirror.run_id())
        with LogFollower(filesystem, log_path), _Signals(job.stop) as signals:
            log_start(job, resources, weights_source, RunLogHandler(filesystem, log_path))
            callbacks = [hub.HubCallback(notices)] if notices is not None else []
            result = signals.run(build_trainer(job, resources, callbacks).fit)
        ended: Ended = result.return_value
        if ended.error is not None:
            raise ended.error
        status = "KILLED" if ended.stopped else "FINISHED"
    finally:
        if uploads is not None:
            uploads.close(SECONDS_TO_STOP if status == "KILLED" else config.HUB.PATIENCE)
        mirror.close(status, SECONDS_TO_STOP if status == "KILLED" else config.MLFLOW.PATIENCE)
    folder = child(config.RUN.STORAGE_PATH, str(config.RUN.NAME))
    return Outcome(
        folder,
        child(folder, Path(result.checkpoint.path).name) if result.checkpoint else None,
        ended.history,
        ended.step,
        signals.received if ended.stopped else None,
        tracking.without_credentials(tracking.tracking_uri(config)),
    )


def make_job(
    config: Config,
    data: Data,
    index_ref: ray.ObjectRef[FrameIndex],
    resources: Resources,
    start: Checkpoint | None,
    weights: Weights,
    allow_changed: Collection[str] = (),
    mlflow_run_id: str | None = None,
    stop: ray.actor.ActorHandle | None = None,
) -> Job:
    """What the workers of a checked run are given. Raises DataError if no sequence can be drawn from.

    `stop`: the StopRequest of many runs; unset: one of its own.
    """
    triplets = TripletSource.from_config(config, data.index, data.root)
    return Job(
        config,
        StreamSource.of(triplets, index_ref, resources.placement),
        describe_dataset(data.index),
        ray.put(weights) if weights else None,
        start,
        frozenset(allow_changed),
        stop or make_stop_request(),
        mlflow_run_id,
        code_revision(),
    )


def make_stop_request() -> ray.actor.ActorHandle:
    return ray.remote(StopRequest).options(num_cpus=0).remote()


def run_tags(config: Config, fingerprint: str) -> dict[str, str]:
    """What the run's MLflow page says about this start of it."""
    workers, fewest = config.RUN.WORKERS, config.RUN.MIN_WORKERS
    return config.MLFLOW.TAGS | {
        "seed": str(config.SEED),
        "git_revision": code_revision(),
        "dataset_fingerprint": fingerprint,
        "ray_job_id": job.name if (job := submission()) else ray.get_runtime_context().get_job_id(),
        "world_size": str(workers) if fewest is None else f"{fewest}:{workers}",
    }


def origin_tags(start: Checkpoint | None, parent_run: str | None) -> dict[str, str]:
    """Where a run comes from that has no checkpoint of its own yet."""
    tags = {"phase": "first"}
    if start is not None:
        origin = read_checkpoint(start)["mlflow_run_id"]
        tags = {"phase": "resumed", "resumed_from": start.path} | ({"resumed_from_run": origin} if origin else {})
        parent_run = parent_run or origin
    return tags | ({"mlflow.parentRunId": parent_run} if parent_run else {})


class _Signals:
    """While its block runs, SIGTERM and Ctrl-C ask the workers to stop; a second one ends the process at once."""

    def __init__(self, stop: ray.actor.ActorHandle) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}
        self.received: int | None = None

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python hears no signals
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, fit: Callable[[], Result]) -> Result:
        """Runs `fit` in a thread of its own: in the main one Ray Train would take Ctrl-C for itself."""
        future: Future[Result] = Future()

        def call() -> None:
            try:
                future.set_result(fit())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=call, name="ray-train-fit", daemon=True).start()
        while True:
            with suppress(FutureTimeoutError):
                return future.result(timeout=0.2)
            if self.received is not None and self._stop is not None:
                self._stop.request.remote()
                self._stop = None

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        sys.stderr.write(f"\n{signal.Signals(number).name}: writing a checkpoint, then stopping …\n")
        signal.signal(number, signal.SIG_DFL)


def build_trainer(job: Job, resources: Resources, callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """The Ray Train trainer of a checked job."""
    config = job.config
    # How often the controller looks at its workers: reports, and so checkpoints, wait for it.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    workers, fewest = config.RUN.WORKERS, config.RUN.MIN_WORKERS
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=workers if fewest is None else (fewest, workers),
            use_gpu=resources.gpus_per_worker > 0,
            label_selector=config.RUN.WORKER_LABELS or None,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=config.RUN.NAME,
            storage_path=config.RUN.STORAGE_PATH,
            checkpoint_config=CheckpointConfig(num_to_keep=config.TRAIN.KEEP_CHECKPOINTS),
            failure_config=FailureConfig(max_failures=config.RUN.MAX_FAILURES),
            callbacks=list(callbacks),
            logging_config=LoggingConfig("WARNING"),
        ),
    )


def check_supported(config: Config) -> None:
    """Refuses settings that the published configuration has and this project does not carry out."""
    others = [name for name in config.DATA.TRAIN.DATASETS_NAME if name != "LASOT"]
    if others:
        raise ConfigError(
            f"DATA.TRAIN.DATASETS_NAME: {', '.join(others)} cannot be trained on here, only LASOT "
            "(DATA.TRAIN.DATASETS_NAME=[LASOT] DATA.TRAIN.DATASETS_RATIO=[1])"
        )
    if config.DATA.SAMPLER_MODE != "order":
        raise ConfigError(f"DATA.SAMPLER_MODE {config.DATA.SAMPLER_MODE} is not supported, only order")
    if config.DATA.ROOT is None:
        raise ConfigError("DATA.ROOT is not set: the LaSOT folder or URI, or `synthetic` for a small made-up data set")


def settle_paths(config: Config) -> Config:
    """Writes the synthetic data set if it is asked for, and makes local paths absolute: workers run elsewhere."""
    settled: dict[str, Any] = {
        "RUN.STORAGE_PATH": lasting(config.RUN.STORAGE_PATH),
        "DATA.SYNTHETIC.PATH": lasting(config.DATA.SYNTHETIC.PATH),
    }
    if config.DATA.ROOT == "synthetic":
        settled["DATA.ROOT"] = str(ensure_synthetic(config.with_settings(settled).DATA.SYNTHETIC))
    elif config.DATA.ROOT is not None:
        settled["DATA.ROOT"] = absolute(config.DATA.ROOT)
    if config.DATA.SPLIT.endswith(".txt"):
        settled["DATA.SPLIT"] = absolute(config.DATA.SPLIT)
    if config.MODEL.WEIGHTS is not None:
        settled["MODEL.WEIGHTS"] = absolute(config.MODEL.WEIGHTS)
    if config.MODEL.ENCODER.PRETRAIN_FILE is not None:
        settled["MODEL.ENCODER.PRETRAIN_FILE"] = absolute(config.MODEL.ENCODER.PRETRAIN_FILE)
    return config.with_settings(settled)


@dataclass(frozen=True)
class Data:
    """What runs train on."""

    index: FrameIndex
    root: Root


def open_data(config: Config) -> Data:
    """Reads the annotations and looks for the frames. Raises DataError."""
    root = open_root(str(config.DATA.ROOT))
    index = open_index(config.DATA, root)
    TripletSource.from_config(config, index, root)
    check_frames_exist(index, root)
    return Data(index, root)


def describe_dataset(index: FrameIndex) -> dict[str, Any]:
    """What checkpoints say about the data: sizes, by class too, and the fingerprint of the annotations."""
    classes: dict[str, dict[str, int]] = {}
    for name, frames in zip(index.classes, index.lengths.tolist(), strict=True):
        sizes = classes.setdefault(name, {"sequences": 0, "frames": 0})
        sizes["sequences"] += 1
        sizes["frames"] += frames
    return {
        "sequences": len(index.names),
        "frames": index.num_frames,
        "classes": classes,
        "fingerprint": index.fingerprint,
    }


def open_checkpoint(path: str) -> Checkpoint:
    """The checkpoint that a path or URI means (as `find_checkpoint`). Raises CheckpointError.

    One on the Hub (`hf://user/repo/checkpoints/NAME`) is downloaded to this machine.
    """
    if path.startswith(hub.SCHEME):
        return Checkpoint(str(hub.fetch_checkpoint(path)), fs.LocalFileSystem())
    try:
        filesystem, fs_path = fs.FileSystem.from_uri(absolute(path))
        return Checkpoint(find_checkpoint(filesystem, fs_path, path), filesystem)
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def keep_checkpoint(checkpoint: Checkpoint, filesystem: fs.FileSystem, folder: str) -> Checkpoint:
    """A copy of this machine's checkpoint where every worker can read it."""
    target = f"{folder}/{Path(checkpoint.path).name}"
    try:
        filesystem.create_dir(target, recursive=True)
        fs.copy_files(checkpoint.path, target, checkpoint.filesystem, filesystem)
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{target}: cannot be written ({error})") from error
    return Checkpoint(target, filesystem)


def own_checkpoint(filesystem: fs.FileSystem, run_folder: str) -> Checkpoint | None:
    """The newest finished checkpoint in a run's folder, where an earlier start of the run was interrupted.

    Ray Train's own list of a run's checkpoints is set aside where it knows another newest one, or cannot be read: it is
    not written in one piece, and the crash that interrupted the run may have cut it off.
    """
    names = whole_checkpoints(filesystem, run_folder)
    snapshot = f"{run_folder}/checkpoint_manager_snapshot.json"
    if filesystem.get_file_info(snapshot).type == fs.FileType.File:
        with filesystem.open_input_stream(snapshot) as file:
            content = file.read()
        try:
            listed = [result["checkpoint_dir_name"] for result in json.loads(content)["checkpoint_results"]]
        except (ValueError, KeyError, TypeError):
            listed = []
        if not listed or listed[-1:] != names[-1:] or not set(listed) <= set(names):
            filesystem.delete_file(snapshot)
    return Checkpoint(f"{run_folder}/{names[-1]}", filesystem) if names else None


def read_checkpoint(
    checkpoint: Checkpoint, check: Callable[[Path, dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Verifies a checkpoint and returns its `meta.json`; `check` sees the local copy too. Raises CheckpointError."""
    try:
        with checkpoint.as_directory() as directory:
            meta = verify_checkpoint(Path(directory), checkpoint.path)
            if check is not None:
                check(Path(directory), meta)
            return meta
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read ({error})") from error


def check_checkpoint(
    config: Config,
    checkpoint: Checkpoint,
    dataset: dict[str, Any],
    allow_changed: Collection[str] = (),
    finished_is_fine: bool = False,
) -> None:
    """Raises CheckpointError if it is damaged, going on from it would not be exact, or nothing is left to train."""

    def check(directory: Path, meta: dict[str, Any]) -> None:
        with torch.device("meta"):
            model = build_model(config)
        check_model_fits(directory, model)
        path = checkpoint.path
        if meta["steps_per_epoch"] != config.steps_per_epoch:
            raise CheckpointError(
                f"{path}: has {meta['steps_per_epoch']} steps an epoch, these settings {config.steps_per_epoch}"
            )
        check_allowed(changed_since(meta, config, dataset), allow_changed, path)
        if meta["step"] >= config.total_steps and not finished_is_fine:
            raise CheckpointError(
                f"{path}: has finished epoch {meta['epoch']}, and TRAIN.EPOCH is {config.TRAIN.EPOCH}: nothing is left "
                f"to train (TRAIN.EPOCH={meta['epoch'] + config.TRAIN.EPOCH} goes on)"
            )

    read_checkpoint(checkpoint, check)


def open_run_folder(config: Config, allow_changed: Collection[str] = ()) -> tuple[fs.FileSystem, str]:
    """The run's folder, which need not exist yet. A run of the same name and settings goes on.

    Raises ConfigError where it cannot be read, and where it holds a run of other settings.
    """
    try:
        filesystem, path = fs.FileSystem.from_uri(config.RUN.STORAGE_PATH)
        folder = f"{path}/{config.RUN.NAME}"
        settings_file = f"{folder}/{SETTINGS_FILE}"
        if filesystem.get_file_info(settings_file).type == fs.FileType.File:
            with filesystem.open_input_stream(settings_file) as file:
                earlier = load_settings(file.read().decode(), settings_file)
            changed = [
                f"{key}: {change}"
                for key, change in config.changed_settings(earlier).items()
                if key not in allow_changed
            ]
            if changed:
                raise ConfigError(
                    f"RUN.NAME {config.RUN.NAME}: {folder} holds a run with other settings ({', '.join(changed)}); "
                    "another RUN.NAME keeps both"
                )
    except (OSError, ArrowException) as error:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be read ({error})") from error
    return filesystem, folder


def write_settings(config: Config, filesystem: fs.FileSystem, folder: str) -> None:
    """Makes the run's folder and writes the settings into it. Raises ConfigError."""
    try:
        filesystem.create_dir(folder, recursive=True)
        with filesystem.open_output_stream(f"{folder}/{SETTINGS_FILE}") as file:
            file.write(config.to_yaml().encode())
    except (OSError, ArrowException) as error:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be written ({error})") from error


def check_allowances(keys: Collection[str]) -> None:
    """Raises ConfigError naming what `--allow-changed` cannot mean."""
    known = {key for key, _, _ in setting_docs()} | {"dataset", *DECISIVE_PACKAGES}
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            raise ConfigError(
                f"--allow-changed {key}: neither a setting nor `dataset` nor one of {', '.join(DECISIVE_PACKAGES)}"
                + (f"; did you mean {nearest[0]}?" if nearest else "")
            )


def explain_failure(error: Exception) -> str:
    """The workers' own errors, without the layers that carried them here."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    return "\n".join(sorted({str(failure) for failure in failures.values()})) or str(error)


def code_revision() -> str:
    """The commit that this package runs from, with a + where files were changed since.

    Outside of git it is the name that Ray gave to the contents of the folder that travelled with the job, or "unknown".
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        job = submission()
        return job.package if job is not None and job.package else "unknown"
    return commit + ("+" if status else "")


def join_cluster() -> None:
    """Joins the cluster at RAY_ADDRESS or one on this machine, or starts one. Raises ConfigError."""
    if ray.is_initialized():
        return
    forget_dead_cluster()
    try:
        # Workers write to train.log, which is shown here; their raw output is in Ray's own logs.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', 'unset')}: {error} (a cluster with token authentication takes "
            "RAY_AUTH_MODE=token and its token)"
        ) from error
    job = submission()
    if job is not None and job.stop_seconds < SECONDS_TO_STOP:
        logger.warning(
            "`ray job stop` kills this job %d s after asking it to stop, which may be too soon for a checkpoint: start "
            "the cluster with RAY_JOB_STOP_WAIT_TIME_S=180, or submit with "
            """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}}'""",
            job.stop_seconds,
        )


def forget_dead_cluster() -> None:
    """Removes the note of this machine's cluster, as `ray stop` does, where that cluster was killed.

    Ray takes the note on trust and waits minutes for a cluster that is gone.
    """
    note = ray._private.utils.get_ray_address_file(None)
    host, _, port = (ray._private.utils.read_ray_address() or "").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError):
            Path(note).unlink(missing_ok=True)


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the cluster, or what it may grow to where it is known to grow; and its nodes that have CPUs."""
    present = ray.cluster_resources()
    largest = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    most = {name: max(present.get(name, 0.0), largest.get(name, 0.0)) for name in ("CPU", "GPU")}
    return most | {"nodes": float(max(nodes, 1))}


def plan_resources(config: Config, cluster: dict[str, float]) -> Resources:
    """Shares the cluster so that training never waits for data tasks that wait for training's CPUs.

    Raises ConfigError if the cluster is too small.
    """
    run, cpus, gpus = config.RUN, cluster["CPU"], cluster["GPU"]
    gpus_per_worker = run.GPUS_PER_WORKER if run.GPUS_PER_WORKER is not None else float(gpus > 0)
    fewest = run.MIN_WORKERS or run.WORKERS
    if fewest * gpus_per_worker > gpus:
        raise ConfigError(
            f"RUN.WORKERS {fewest} × {gpus_per_worker:g} GPUs asked for, and the cluster has {gpus:g} "
            "(RUN.GPUS_PER_WORKER=0 trains on CPUs)"
        )
    # At most half of the CPUs by default, so that the data pipeline has the other half.
    default = min(1.0, int(cpus / (2 * run.WORKERS) * 1000) / 1000)
    cpus_per_worker = run.CPUS_PER_WORKER if run.CPUS_PER_WORKER is not None else default
    left = cpus - fewest * cpus_per_worker
    if left < 0.01:
        raise ConfigError(
            f"RUN.WORKERS {fewest} × {cpus_per_worker:g} CPUs leave none of the cluster's {cpus:g} for the data "
            "pipeline (smaller RUN.CPUS_PER_WORKER or fewer RUN.WORKERS)"
        )
    # However the workers are spread, some node has this much left: a data task cannot be split over nodes.
    left_by_all = cpus - run.WORKERS * cpus_per_worker
    cpus_per_task = min(1.0, int((left_by_all if left_by_all > 0 else left) / cluster["nodes"] * 1000) / 1000)
    return Resources(cpus_per_worker, gpus_per_worker, Placement(cpus_per_task, run.DATA_CPUS, run.DATA_LABELS))


def log_start(job: Job, resources: Resources, weights_source: str, handler: RunLogHandler) -> None:
    """Writes the head of the run's log."""
    config = job.config
    lines = [f"Setting {line}" for line in config.ineffective()]
    lines.append(
        f"Run {config.RUN.NAME} : {job.dataset['sequences']} sequences, {job.dataset['frames']:,} frames, "
        f"{config.DATA.TRAIN.SAMPLE_PER_EPOCH:,} samples and {config.steps_per_epoch:,} steps an epoch, "
        f"{config.TRAIN.EPOCH} epochs, seed {config.SEED}"
    )
    lines.append(f"Starting weights : {weights_source}")
    gpus = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    lines.append(f"Starting {config.RUN.WORKERS} worker(s) with {resources.cpus_per_worker:g} CPU{gpus} each …")
    for line in lines:
        handler.handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
    handler.flush()
