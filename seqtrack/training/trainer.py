"""From settings to a finished run: checks everything that can be known beforehand, then lets Ray Train work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from pyarrow import ArrowException, fs
from ray.train import Checkpoint, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from seqtrack.config import Config, ConfigError, load_settings
from seqtrack.data.lasot import DataError, FrameIndex, Root, build_index, open_root
from seqtrack.data.stream import StreamSource
from seqtrack.data.synthetic import ensure_synthetic
from seqtrack.data.triplets import TripletSource
from seqtrack.model.seqtrack import build_model
from seqtrack.model.weights import starting_weights
from seqtrack.tracking import mlflow as tracking
from seqtrack.training.runlog import LOG_FILE, LogFollower, RunLogHandler
from seqtrack.training.state import CheckpointError, check_model_fits, read_meta
from seqtrack.training.worker import Job, train_worker

logger = logging.getLogger("seqtrack.training")


class Resources(NamedTuple):
    """What a run takes from the cluster."""

    cpus_per_worker: float
    gpus_per_worker: float
    cpus_per_task: float
    """Of a data task."""


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    folder: str
    last_checkpoint: Checkpoint | None
    history: list[dict[str, float]]
    """Summary of each epoch."""
    tracking_uri: str


def run_training(config: Config, resume_from: str | None = None) -> Outcome:
    """Trains as `config` says on the Ray cluster at hand, and shows the log on the console meanwhile.

    Raises ConfigError, DataError or CheckpointError before any worker starts; ray.train's TrainingFailedError later.
    """
    check_supported(config)
    config = settle_paths(config)
    root = open_root(str(config.DATA.ROOT))
    index = build_index(config.DATA, root)
    triplets = TripletSource.from_config(config, index, root)
    check_frames_exist(index, root)
    checkpoint = check_checkpoint(config, resume_from) if resume_from else None
    weights, weights_source = starting_weights(config) if checkpoint is None else ({}, str(resume_from))

    join_cluster()
    resources = plan_resources(config, cluster_resources())
    filesystem, run_folder = open_run_folder(config)

    run_id = tracking.open_run(config, {"dataset_fingerprint": index.fingerprint, "seed": str(config.SEED)})
    log_path = f"{run_folder}/{LOG_FILE}"
    succeeded = False
    try:
        with LogFollower(filesystem, log_path):
            _log_start(config, index, resources, weights_source, RunLogHandler(filesystem, log_path))
            job = Job(
                config,
                StreamSource(ray.put(triplets), resources.cpus_per_task),
                index.fingerprint,
                ray.put(weights) if weights else None,
                checkpoint,
                run_id,
            )
            result = build_trainer(job, resources).fit()
        succeeded = True
    finally:
        tracking.close_run(config, run_id, succeeded)
    return Outcome(
        f"{config.RUN.STORAGE_PATH}/{config.RUN.NAME}",
        result.checkpoint,
        result.return_value,
        tracking.tracking_uri(config),
    )


def build_trainer(job: Job, resources: Resources) -> TorchTrainer:
    """The Ray Train trainer of a checked job."""
    config = job.config
    callbacks = []
    if job.mlflow_run_id:
        callbacks.append(tracking.MlflowCallback(tracking.tracking_uri(config), job.mlflow_run_id))
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.RUN.WORKERS,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker}
            | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=config.RUN.NAME,
            storage_path=config.RUN.STORAGE_PATH,
            callbacks=callbacks,
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
    if config.HUB.REPO_ID is not None:
        raise ConfigError("HUB.REPO_ID: uploading to the Hub is not supported yet")
    if config.DATA.ROOT is None:
        raise ConfigError("DATA.ROOT is not set: the LaSOT folder or URI, or `synthetic` for a small made-up data set")


def settle_paths(config: Config) -> Config:
    """Writes the synthetic data set if it is asked for, and makes local paths absolute: workers run elsewhere."""
    settled: dict[str, Any] = {"RUN.STORAGE_PATH": _absolute(config.RUN.STORAGE_PATH)}
    if config.DATA.ROOT == "synthetic":
        settled["DATA.ROOT"] = str(ensure_synthetic(config.DATA.SYNTHETIC))
    elif config.DATA.ROOT is not None:
        settled["DATA.ROOT"] = _absolute(config.DATA.ROOT)
    if config.DATA.SPLIT.endswith(".txt"):
        settled["DATA.SPLIT"] = _absolute(config.DATA.SPLIT)
    if config.MODEL.WEIGHTS is not None:
        settled["MODEL.WEIGHTS"] = _absolute(config.MODEL.WEIGHTS)
    if config.MODEL.ENCODER.PRETRAIN_FILE is not None:
        settled["MODEL.ENCODER.PRETRAIN_FILE"] = _absolute(config.MODEL.ENCODER.PRETRAIN_FILE)
    return config.with_settings(settled)


def check_frames_exist(index: FrameIndex, root: Root) -> None:
    """Raises DataError if a sequence has annotations but no folder of frames."""
    folders = [Path(index.frame_path(row, 0)).parent.as_posix() for row in range(len(index.names))]
    infos = root.filesystem.get_file_info([f"{root.path}/{folder}" for folder in folders])
    missing = [folder for folder, info in zip(folders, infos, strict=True) if info.type != fs.FileType.Directory]
    if missing:
        raise DataError(
            f"{root.path}: {len(missing)} of {len(folders)} sequences have no frames, "
            f"the first: {', '.join(missing[:5])}"
        )


@contextmanager
def open_checkpoint(path: str) -> Iterator[tuple[Checkpoint, Path]]:
    """A checkpoint at a folder or URI, and a local folder with its files. Raises CheckpointError."""
    try:
        checkpoint = Checkpoint(path if "://" in path else _absolute(path))
        with checkpoint.as_directory() as directory:
            yield checkpoint, Path(directory)
    except (OSError, ArrowException) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


def check_checkpoint(config: Config, path: str) -> Checkpoint:
    """Raises CheckpointError if there is none, if it does not fit the settings, or if nothing is left to train."""
    with open_checkpoint(path) as (checkpoint, directory):
        meta = read_meta(directory)
        with torch.device("meta"):
            model = build_model(config)
        check_model_fits(directory, model)
    if meta.get("steps_per_epoch") != config.steps_per_epoch:
        raise CheckpointError(
            f"{path}: has {meta.get('steps_per_epoch')} steps an epoch, these settings {config.steps_per_epoch}"
        )
    if meta["step"] >= config.total_steps:
        raise CheckpointError(
            f"{path}: has finished epoch {meta['epoch']}, and TRAIN.EPOCH is {config.TRAIN.EPOCH}: nothing is left to "
            f"train (TRAIN.EPOCH={meta['epoch'] + config.TRAIN.EPOCH} goes on)"
        )
    return checkpoint


def open_run_folder(config: Config) -> tuple[fs.FileSystem, str]:
    """Makes the run's folder and writes the settings into it. A run of the same name and settings goes on.

    Raises ConfigError where that is impossible, and where the folder holds a run of other settings.
    """
    try:
        filesystem, path = fs.FileSystem.from_uri(config.RUN.STORAGE_PATH)
        folder = f"{path}/{config.RUN.NAME}"
        settings_file = f"{folder}/config.yaml"
        if filesystem.get_file_info(settings_file).type == fs.FileType.File:
            with filesystem.open_input_file(settings_file) as file:
                earlier = load_settings(file.read().decode(), settings_file)
            changed = config.changed_settings(earlier)
            if changed:
                raise ConfigError(
                    f"RUN.NAME {config.RUN.NAME}: {folder} holds a run with other settings ({', '.join(changed)}); "
                    "another RUN.NAME keeps both"
                )
        filesystem.create_dir(folder, recursive=True)
        with filesystem.open_output_stream(settings_file) as file:
            file.write(config.to_yaml().encode())
    except (OSError, ArrowException) as error:
        raise ConfigError(f"RUN.STORAGE_PATH {config.RUN.STORAGE_PATH}: cannot be written ({error})") from error
    return filesystem, folder


def join_cluster() -> None:
    """Joins the cluster at RAY_ADDRESS or one on this machine, or starts one. Raises ConfigError."""
    if ray.is_initialized():
        return
    try:
        # Workers write to train.log, which is shown here; their raw output is in Ray's own logs.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', 'unset')}: {error} (a cluster with token authentication takes "
            "RAY_AUTH_MODE=token and its token)"
        ) from error


def cluster_resources() -> dict[str, float]:
    """CPUs and GPUs of the cluster, or what it may grow to where it is known to grow."""
    present = ray.cluster_resources()
    largest = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return {name: max(present.get(name, 0.0), largest.get(name, 0.0)) for name in ("CPU", "GPU")}


def plan_resources(config: Config, cluster: dict[str, float]) -> Resources:
    """Shares the cluster so that training never waits for data tasks that wait for training's CPUs.

    Raises ConfigError if the cluster is too small.
    """
    run, cpus, gpus = config.RUN, cluster["CPU"], cluster["GPU"]
    gpus_per_worker = run.GPUS_PER_WORKER if run.GPUS_PER_WORKER is not None else float(gpus > 0)
    if run.WORKERS * gpus_per_worker > gpus:
        raise ConfigError(
            f"RUN.WORKERS {run.WORKERS} × {gpus_per_worker:g} GPUs asked for, and the cluster has {gpus:g} "
            "(RUN.GPUS_PER_WORKER=0 trains on CPUs)"
        )
    # At most half of the CPUs by default, so that the data pipeline has the other half.
    default = min(1.0, int(cpus / (2 * run.WORKERS) * 1000) / 1000)
    cpus_per_worker = run.CPUS_PER_WORKER if run.CPUS_PER_WORKER is not None else default
    left = cpus - run.WORKERS * cpus_per_worker
    if left < 0.01:
        raise ConfigError(
            f"RUN.WORKERS {run.WORKERS} × {cpus_per_worker:g} CPUs leave none of the cluster's {cpus:g} for the data "
            "pipeline (smaller RUN.CPUS_PER_WORKER or fewer RUN.WORKERS)"
        )
    return Resources(cpus_per_worker, gpus_per_worker, min(1.0, left))


def _log_start(
    config: Config, index: FrameIndex, resources: Resources, weights_source: str, handler: RunLogHandler
) -> None:
    """Writes the head of the run's log."""
    lines = [f"Setting {line}" for line in config.ineffective()]
    lines.append(
        f"Run {config.RUN.NAME} : {len(index.names)} sequences, {index.num_frames:,} frames, "
        f"{config.DATA.TRAIN.SAMPLE_PER_EPOCH:,} samples and {config.steps_per_epoch:,} steps an epoch, "
        f"{config.TRAIN.EPOCH} epochs, seed {config.SEED}"
    )
    lines.append(f"Starting weights : {weights_source}")
    gpus = f" and {resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else ""
    lines.append(f"Starting {config.RUN.WORKERS} worker(s) with {resources.cpus_per_worker:g} CPU{gpus} each …")
    for line in lines:
        handler.handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
    handler.flush()


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())
