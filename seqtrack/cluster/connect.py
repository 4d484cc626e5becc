"""Joins the Ray cluster that this process uses."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from pathlib import Path

import ray

from seqtrack.config import ConfigError
from seqtrack.environment import submission
from seqtrack.failures import explain

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 10.0
"""A cluster that does not take a connection within this time is not there."""
SECONDS_FOR_A_CHECKPOINT = 20.0
"""Time that a job should have between a stop request and being killed, so that it can write a checkpoint."""


def join_cluster() -> None:
    """Joins the cluster at RAY_ADDRESS or one on this machine, or starts one. Raises ConfigError."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "").strip()
    check_address(address)
    forget_dead_cluster()
    try:
        # Workers write to train.log, which the console shows. Their raw output is in Ray's own logs.
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray passes on whatever its parts raise
        raise ConfigError(explain_no_cluster(error, address)) from error
    job = submission()
    if job is not None and job.stop_seconds < SECONDS_FOR_A_CHECKPOINT:
        logger.warning(
            "`ray job stop` kills this job %d s after asking it to stop, which may be too soon for a checkpoint: start "
            "the cluster with RAY_JOB_STOP_WAIT_TIME_S=180, or submit with "
            """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}}'""",
            job.stop_seconds,
        )


def check_address(address: str) -> None:
    """Raises ConfigError if no Ray cluster can be joined at RAY_ADDRESS, which Ray itself would try for minutes."""
    if address in ("", "auto", "local"):
        return
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"RAY_ADDRESS {address}: the address of a dashboard, to which `ray job submit -- python ray_jobs/…` brings "
            "jobs; without RAY_ADDRESS this machine is used"
        )
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS {address}: Ray Train cannot be run through a client; `ray job submit` runs it in the "
            "cluster, and HOST:PORT joins it from one of its machines"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"RAY_ADDRESS {address}: HOST:PORT is needed, such as 10.0.0.1:6379, or auto, or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({explain(error)}); without RAY_ADDRESS this machine "
            "is used"
        ) from error


def explain_no_cluster(error: Exception, address: str) -> str:
    """What to say where Ray cannot be started or joined."""
    reason = explain(error)
    if "AF_UNIX path length" in str(error):
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return (
            f"Ray cannot be started: its temporary folder {folder} has too long a name for sockets, which may have 107 "
            "bytes (RAY_TMPDIR=/tmp names a shorter one)"
        )
    if address and address != "local":
        return (
            f"RAY_ADDRESS {address}: cannot be joined: {reason} (a cluster with token authentication takes "
            "RAY_AUTH_MODE=token and its token)"
        )
    if isinstance(error, OSError):
        return f"Ray cannot be started: {reason} (RAY_TMPDIR names another folder for its files)"
    return f"Ray cannot be started: {reason}"


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
