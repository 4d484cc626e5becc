"""One training from beginning to end: run on the cluster, shown on the console, mirrored to MLflow and the Hub."""

from __future__ import annotations

import signal
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import ray
from ray.exceptions import RayError
from ray.train.v2.api.exceptions import TrainingFailedError

from seqtrack.address import SCHEME
from seqtrack.cluster.connect import join_cluster
from seqtrack.cluster.resources import Resources, cluster_resources, plan_resources
from seqtrack.cluster.stop import StopOnSignal
from seqtrack.config import Config
from seqtrack.environment import code_revision, submission
from seqtrack.experiments.prepare import PreparedRun, keep_start, log_start, prepare
from seqtrack.failures import without_passwords
from seqtrack.integrations import hub
from seqtrack.integrations.mirror_state import await_mlflow_run
from seqtrack.integrations.mirror_thread import MirrorThread
from seqtrack.integrations.store_uri import tracking_uri
from seqtrack.lease import Lease
from seqtrack.locations import child, lasting
from seqtrack.runs.checkpoint import OpenedCheckpoint, remove_unfinished
from seqtrack.runs.evaluations import forget_later
from seqtrack.runs.folder import own_run, write_settings
from seqtrack.runs.log import LogFollower
from seqtrack.training.loop import Ended
from seqtrack.training.trainer import make_job, train

if TYPE_CHECKING:
    from seqtrack.experiments.evaluate_run import RunEvaluation

SECONDS_TO_STOP = 20.0
"""Seconds to wait for MLflow and the Hub after a stop request. They get the rest when the run goes on."""


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
    resume_from: OpenedCheckpoint | str | None = None,
    allow_changed: Collection[str] = (),
    asked: str | None = None,
    take_over: bool = False,
) -> Outcome:
    """Makes the run's folder its own, prepares the run and trains it; see `prepare` and `run_prepared`.

    `take_over`: takes the folder from another job that trains there. Raises InputError before any worker starts.
    """
    config = config.with_settings({"RUN.STORAGE_PATH": lasting(config.RUN.STORAGE_PATH)})
    with own_run(config, take_over) as lease:
        return run_prepared(prepare(config, resume_from, allow_changed, asked=asked), lease)


def run_prepared(prepared: PreparedRun, lease: Lease, parent_run: str | None = None) -> Outcome:
    """Trains on the Ray cluster at hand, and shows the log on the console meanwhile.

    SIGTERM or Ctrl-C makes it write a checkpoint and stop. `lease`: on the run's folder; if another job takes that,
    this one writes nothing more and ends. `parent_run`: the MLflow run that this one is a part of. Raises InputError
    before any worker starts; later LeaseLostError, HopelessError or ray.train's TrainingFailedError.
    """
    prepared = replace(prepared, run=prepared.run.under(lease))
    config, run = prepared.config, prepared.run
    if config.MLFLOW.REQUIRED:
        from seqtrack.integrations.mlflow_store import check_store  # imports MLflow

        check_store(config)
    join_cluster()
    resources = plan_resources(config, cluster_resources())
    write_settings(config, run)
    remove_unfinished(run)
    start = prepared.start.stored if prepared.start is not None else None
    if start is not None and start.run.location.startswith(SCHEME):
        start = keep_start(start, run)

    evaluation = measure_beside(prepared, resources) if prepared.benchmarks else None
    uploads = hub.HubThread(config, run) if config.HUB.REPO_ID else None
    if uploads is not None:
        uploads.start()
    mirror = MirrorThread(config, run, tags_of(prepared, parent_run), prepared.data.mixture.params())
    measured = True
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
    try:
        with LogFollower(run), StopOnSignal(signal.SIGTERM, signal.SIGINT) as stop:
            job = make_job(
                config,
                run,
                prepared.data.mixture,
                ray.put(prepared.data.mixture),
                resources,
                start,
                prepared.weights,
                stop.request,
                prepared.allow_changed,
                partial(await_mlflow_run, run),
                prepared.data.frames,
            )
            lease.when_lost(partial(ask_to_stop, stop))
            log_start(prepared, resources)
            if evaluation is not None:
                evaluation.start()
            result = train(job, resources)
            run.check_owner()
            ended: Ended = result.return_value
            if ended.error is not None:
                raise ended.error
            if evaluation is not None and not ended.stopped:
                measured = evaluation.finish(lambda: stop.received is not None)
        stopped = ended.stopped or (not measured and stop.received is not None)
        status = "KILLED" if stopped else "FINISHED"
    except TrainingFailedError:
        run.check_owner()
        raise
    finally:
        end_beside(prepared, status, evaluation, uploads, mirror)
    return Outcome(
        run.location,
        child(run.location, result.checkpoint.path.rpartition("/")[2]) if result.checkpoint else None,
        ended.history,
        ended.step,
        stop.received if stopped else None,
        without_passwords(tracking_uri(config)),
    )


def end_beside(
    prepared: PreparedRun,
    status: Literal["FINISHED", "FAILED", "KILLED"],
    evaluation: RunEvaluation | None,
    uploads: hub.HubThread | None,
    mirror: MirrorThread,
) -> None:
    """Ends what runs beside a training. It is waited for, unless the folder is another job's by now."""
    config, lost, stopped = prepared.config, prepared.run.lost() is not None, status == "KILLED"
    if evaluation is not None:
        evaluation.close()
    if uploads is not None:
        uploads.close(0 if lost else SECONDS_TO_STOP if stopped else config.HUB.PATIENCE)
    if lost:
        mirror.abandon()
    else:
        mirror.close(status, SECONDS_TO_STOP if stopped else config.MLFLOW.PATIENCE)


def ask_to_stop(stop: StopOnSignal) -> None:
    """Asks the workers to stop, as a signal would. They find out by themselves that the folder is another job's."""
    with suppress(RayError):  # the cluster and its workers are gone
        ray.get(stop.request.request.remote())


def measure_beside(prepared: PreparedRun, resources: Resources) -> RunEvaluation:
    """Measures a run's checkpoints on what its training leaves of the cluster; after it, on all of the cluster."""
    from seqtrack.experiments.evaluate_run import RunEvaluation  # imports what draws figures
    from seqtrack.experiments.evaluators import plan_within, plan_workers

    forget_later(prepared.run, prepared.step)
    share = resources.evaluation
    beside = plan_within(share, yields=True) if share is not None else None
    return RunEvaluation(
        prepared.config, prepared.run, prepared.benchmarks, beside, lambda: plan_workers(None, None, None, "fp32")
    )


def tags_of(prepared: PreparedRun, parent_run: str | None) -> dict[str, str]:
    """What the run's MLflow page says about this start of it, and where the run comes from if it is new."""
    tags = run_tags(prepared.config, prepared.data.mixture.fingerprint)
    tags |= {} if prepared.continued else origin_tags(prepared.start)
    return tags | ({"mlflow.parentRunId": parent_run} if parent_run else {})


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


def origin_tags(start: OpenedCheckpoint | None) -> dict[str, str]:
    """Where a run comes from that has no checkpoint of its own yet."""
    if start is None:
        return {"phase": "first"}
    tags, origin = {"phase": "resumed", "resumed_from": start.path}, start.meta["mlflow_run_id"]
    return tags | ({"resumed_from_run": origin, "mlflow.parentRunId": origin} if origin else {})
