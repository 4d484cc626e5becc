"""Joins the Ray cluster that this process uses."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import ray

from seqtrack.config import ConfigError
from seqtrack.environment import submission

logger = logging.getLogger(__name__)

SECONDS_FOR_A_CHECKPOINT = 20.0
"""Time that a job should have between a stop request and being killed, so that it can write a checkpoint."""


def join_cluster() -> None:
    """Joins the cluster at RAY_ADDRESS or one on this machine, or starts one. Raises ConfigError."""
    if ray.is_initialized():
        return
    forget_dead_cluster()
    try:
        # Workers write to train.log, which the console shows. Their raw output is in Ray's own logs.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS {os.environ.get('RAY_ADDRESS', 'unset')}: {error} (a cluster with token authentication takes "
            "RAY_AUTH_MODE=token and its token)"
        ) from error
    job = submission()
    if job is not None and job.stop_seconds < SECONDS_FOR_A_CHECKPOINT:
        logger.warning(
            "`ray job stop` kills this job %d s after asking it to stop, which may be too soon for a checkpoint: start "
            "the cluster with RAY_JOB_STOP_WAIT_TIME_S=180, or submit with "
            """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}}'""",
            job.stop_seconds,
        )


def forget_dead_cluster() -> None:
    """Removes Ray's note of a cluster on this machine that was killed, as `ray stop` does.

    Ray trusts the note, and would wait minutes for a cluster that no longer exists.
    """
    note = ray._private.utils.get_ray_address_file(None)
    host, _, port = (ray._private.utils.read_ray_address() or "").rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, ValueError):
            Path(note).unlink(missing_ok=True)
