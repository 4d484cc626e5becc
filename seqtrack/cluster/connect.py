"""Joins the Ray cluster that this process uses."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
from collections.abc import Collection
from pathlib import Path

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from seqtrack.cluster.start import StartError, init_ray
from seqtrack.cluster.watch import HeadWatch
from seqtrack.config import ConfigError
from seqtrack.environment import submission
from seqtrack.failures import explain

logger = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 10.0
"""A cluster that does not answer within this time is not there."""
_TOKEN_NEEDED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NOT_RAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
"""What is heard from a server that is no head of a cluster."""
SECONDS_FOR_A_CHECKPOINT = 20.0
"""Time that a job should have between a stop request and being killed, so that it can write a checkpoint."""
ASKS_FOR_TOKEN = "it asks for a token: RAY_AUTH_MODE=token, and the cluster's ~/.ray/auth_token on this machine"
LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket, which Ray opens below its temporary folder."""
LEAST_TEMPORARY = 64 * 2**20
"""Bytes that must be free in Ray's temporary folder. Without them its processes die, and Ray waits for them."""


class NoAnswer(StartError):
    """Whether there is a cluster is not known, since nothing was heard in time."""


def join_cluster(keep: Collection[str] = ()) -> None:
    """Joins the cluster at RAY_ADDRESS or one on this machine, or starts one. Raises ConfigError or StartError.

    `keep`: names of secrets in the environment that the processes of a Ray that is started need.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if host_and_port(address) is not None:
        logger.warning("Looking for Ray at RAY_ADDRESS %s, for at most %g s …", address, 2 * SECONDS_TO_ANSWER)
    check_address(address)
    if address != "local":
        forget_dead_cluster()
    starts = starts_here(address)
    if starts:
        check_temporary_folder()
        say_neighbours()
    shared = shared_memory()
    init_ray(address, starts, keep)
    HeadWatch.start(own=starts)
    store = ray.cluster_resources().get("object_store_memory", 0.0)
    if starts and shared is not None and shared < store:
        logger.warning(
            "/dev/shm has %.2f GiB free and Ray wants %.1f, so it keeps samples in its temporary folder, which is slow "
            "(docker run --shm-size=%dg)",
            *(shared / 2**30, store / 2**30, store // 2**30 + 1),
        )
    job = submission()
    if job is not None and job.stop_seconds < SECONDS_FOR_A_CHECKPOINT:
        logger.warning(
            "`ray job stop` kills this job %d s after asking it to stop, which may be too soon for a checkpoint: start "
            "the cluster with RAY_JOB_STOP_WAIT_TIME_S=180, or submit with "
            """--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}}'""",
            job.stop_seconds,
        )


def starts_here(address: str) -> bool:
    """Whether Ray starts on this machine, rather than joining a cluster."""
    return address == "local" or (not address and cluster_here() is None)


def host_and_port(address: str) -> tuple[str, int] | None:
    """What RAY_ADDRESS names; None for a word that is left to Ray. Raises ConfigError for what is no such address."""
    if address in ("", "auto", "local"):
        return None
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
    return host, int(port)


def check_address(address: str) -> None:
    """Raises ConfigError if no Ray cluster can be joined at RAY_ADDRESS, which Ray itself would try for minutes.

    Raises NoAnswer where that is not known: the head of a busy cluster may be slow.
    """
    named = host_and_port(address)
    try:
        reason = None if named is None else why_no_cluster(*named)
    except NoAnswer as error:
        raise NoAnswer(
            f"RAY_ADDRESS {address}: {error}; the cluster's head may be busy or behind a firewall, or another program "
            "listens there"
        ) from error
    if reason is not None:
        raise ConfigError(
            f"RAY_ADDRESS {address}: no Ray cluster can be joined there ({reason}); without RAY_ADDRESS this machine "
            "is used"
        )


def why_no_cluster(host: str, port: int) -> str | None:
    """Why no Ray cluster can be reached there; None if one answers. Raises NoAnswer where that takes too long."""
    slow = f"no answer within {SECONDS_TO_ANSWER:g} s"
    try:
        socket.create_connection((host.strip("[]"), port), timeout=SECONDS_TO_ANSWER).close()
    except TimeoutError as error:
        raise NoAnswer(slow) from error
    except (OSError, OverflowError) as error:
        return explain(error)
    # Something listens. Whether it is the head of a cluster shows in its answer to what every node asks first.
    try:
        with init_grpc_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(GetClusterIdRequest(), timeout=SECONDS_TO_ANSWER)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise NoAnswer(slow) from error
        if error.code() in _TOKEN_NEEDED:
            return ASKS_FOR_TOKEN
        if error.code() in _NOT_RAY:
            return "another program listens there"
    except Exception as error:  # such as that RAY_AUTH_MODE=token is set, and there is no token
        return explain(error)
    return None


def check_temporary_folder() -> str:
    """The folder in which Ray makes its own. Raises ConfigError if Ray cannot work there.

    Ray itself says so late: after a minute and a half where the disk is full.
    """
    folder = ray._common.utils.get_default_system_temp_dir()
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name) == folder), "the folder")
    mend = "RAY_TMPDIR=/tmp, or another folder" if folder != "/tmp" else "RAY_TMPDIR=… names another folder"
    socket_path = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    there = next(path for path in (Path(folder, "ray"), *Path(folder, "ray").absolute().parents) if path.exists())
    if len(socket_path.encode()) > LONGEST_SOCKET:
        fault = (
            f"too long a name: Ray's sockets there would have {len(socket_path.encode())} bytes, of {LONGEST_SOCKET}"
        )
    elif not there.is_dir():
        fault = f"{there} is no folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        fault = f"{there} cannot be written to"
    elif (free := shutil.disk_usage(there).free) < LEAST_TEMPORARY:
        fault = f"{free / 2**20:.0f} MiB are free, and Ray needs {LEAST_TEMPORARY / 2**20:.0f}"
    else:
        return str(folder)
    raise ConfigError(f"{variable} {folder}, for Ray's temporary files: {fault} ({mend})")


def shared_memory() -> int | None:
    """Free bytes of shared memory, where Ray keeps samples; None where a system has no /dev/shm."""
    return shutil.disk_usage("/dev/shm").free if sys.platform == "linux" and Path("/dev/shm").is_dir() else None


def say_neighbours() -> None:
    """Says so if another program on this machine has a cluster of its own. Each works, and ends, without the other."""
    others = ray._private.services.find_gcs_addresses()
    if others:
        logger.warning(
            "Ray runs on this machine for another program too (%s). This one gets its own; both count on all CPUs and "
            "GPUs, so both are slower",
            ", ".join(sorted(others)),
        )


def cluster_here() -> str | None:
    """Address of the cluster that `ray start` noted on this machine; None if there is none, or no longer.

    Raises NoAnswer where that is not known.
    """
    noted = str(ray._private.utils.read_ray_address() or "")
    host, _, port = noted.rpartition(":")
    try:
        alive = bool(host) and port.isdigit() and why_no_cluster(host, int(port)) in (None, ASKS_FOR_TOKEN)
    except NoAnswer as error:
        raise NoAnswer(
            f"the Ray cluster of this machine, {noted}: {error} (RAY_ADDRESS=local starts another one, for this "
            "program alone)"
        ) from error
    return noted if alive else None


def forget_dead_cluster() -> None:
    """Removes Ray's note of a cluster on this machine that was killed, as `ray stop` does.

    Ray trusts the note, and would wait minutes for a cluster that no longer exists. Raises ConfigError, NoAnswer.
    """
    note = Path(ray._private.utils.get_ray_address_file(None))
    try:
        if note.exists() and cluster_here() is None:
            note.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"Ray's note of a cluster that has ended cannot be removed: {explain(error)} (RAY_TMPDIR names another "
            "folder)"
        ) from error
