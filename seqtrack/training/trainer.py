"""Runs a job on Ray Train: what the workers are given, the trainer, and the reason when it fails."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial

import ray
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import WorkerGroupError

from seqtrack.cluster.resources import Resources
from seqtrack.cluster.restarts import RestartReport
from seqtrack.config import Config
from seqtrack.data.mixture import Mixture
from seqtrack.data.stamp import FrameStamp
from seqtrack.data.stream import StreamSource
from seqtrack.data.triplets import TripletSource
from seqtrack.environment import code_revision
from seqtrack.failures import explain
from seqtrack.model.weights import Weights
from seqtrack.runs.checkpoint import StoredCheckpoint, whole_checkpoints
from seqtrack.runs.folder import RunFolder
from seqtrack.runs.history import RAYS_LIST, listed_by_ray
from seqtrack.runs.log import append_to_log
from seqtrack.training.worker import Job, train_worker

logger = logging.getLogger("seqtrack.training")


def make_job(
    config: Config,
    run: RunFolder,
    mixture: Mixture,
    mixture_ref: ray.ObjectRef[Mixture],
    resources: Resources,
    start: StoredCheckpoint | None,
    weights: Weights,
    stop: ray.actor.ActorHandle,
    allow_changed: Collection[str] = (),
    find_mlflow_run: Callable[[], str | None] = lambda: None,
    frames: FrameStamp | None = None,
) -> Job:
    """Builds the job that the workers of a checked run are given. Raises DataError if no sequence can be drawn from.

    `mixture_ref` refers to `mixture`; `stop` is a StopRequest, which several runs may share;
    `find_mlflow_run` waits for an id, on a worker; `frames`: the stamp that checkpoints are to have.
    """
    triplets = TripletSource.from_config(config, mixture)
    return Job(
        config,
        run,
        StreamSource.of(triplets, mixture_ref, resources.placement),
        mixture.description,
        ray.put(weights) if weights else None,
        start,
        frozenset(allow_changed),
        stop,
        find_mlflow_run,
        code_revision(),
        frames,
    )


def train(job: Job, resources: Resources, callbacks: Sequence[UserCallback] = ()) -> Result:
    """Runs Ray Train to its end, in a separate thread: in the main thread it would handle Ctrl-C itself.

    Raises ray.train's TrainingFailedError.
    """
    trainer = build_trainer(job, resources, callbacks)
    future: Future[Result] = Future()

    def fit() -> None:
        try:
            future.set_result(trainer.fit())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fit, name="ray-train-fit", daemon=True).start()
    while True:
        with suppress(FutureTimeoutError):
            return future.result(timeout=0.2)  # signal handlers run between two of these waits


def build_trainer(job: Job, resources: Resources, callbacks: Sequence[UserCallback] = ()) -> TorchTrainer:
    """Builds the Ray Train trainer for a job."""
    config = job.config
    forget_wrong_list(job.run)
    # How often the controller polls its workers. Reports, and with them checkpoints, wait for that.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    workers, fewest = config.RUN.WORKERS, config.RUN.MIN_WORKERS
    return TorchTrainer(
        train_worker,
        # By reference: Ray Train's controller unpacks this, and would import torch, timm and OpenCV before any worker.
        train_loop_config={"job": ray.put(job)},
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
            callbacks=[RestartReport(partial(append_to_log, job.run), config.RUN.MAX_FAILURES), *callbacks],
            logging_config=LoggingConfig("WARNING"),
        ),
    )


def forget_wrong_list(run: RunFolder) -> None:
    """Removes Ray Train's own list of the run's checkpoints if it does not match the finished ones in the folder.

    Ray overwrites the list in place, so the crash that interrupted a run may have cut it off.
    """
    if not run.has(RAYS_LIST):
        return
    listed, names = listed_by_ray(run), whole_checkpoints(run)
    if not listed or listed[-1:] != names[-1:] or not set(listed) <= set(names):
        run.filesystem.delete_file(run.file(RAYS_LIST))


def explain_failure(error: Exception) -> str:
    """The workers' own errors, in one line, without the layers that carried them here."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else [error]
    return "; ".join(sorted({explain(failure) for failure in failures})) or explain(error)
