"""Starts Ray on this machine, or joins one that runs: what is passed on, who may reach it, how long it may take.

A Ray that this process starts is this process's alone. It listens on the loopback interface, and is not given what only
the job needs of its environment.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from seqtrack.cluster.resources import usable_cpus
from seqtrack.cluster.secrets import environment_with, secrets_of
from seqtrack.config import ConfigError
from seqtrack.errors import ProgramError
from seqtrack.failures import explain

logger = logging.getLogger(__name__)

PATIENCE_VARIABLE = "RAY_raylet_start_wait_time_s"
"""Ray's own variable: how many seconds its processes may take to start."""
PATIENCE, LONGER = 30.0, 4.0
"""What Ray waits by default, and how many times as long the second try may take."""
LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own variable: 0 makes a Ray that `ray.init` starts listen on the loopback interface, as it does on a Mac."""
DRIVERS_PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's own variable: after so many seconds without its head, Ray ends this process from C++, without an exception."""
SECONDS_WITHOUT_HEAD = 60.0
"""What Ray waits by default."""
SECONDS_TO_END = 10.0
"""How long processes of Ray that were killed are waited for."""
_SHORT_OF = (errno.ENOMEM, errno.EAGAIN, errno.EINTR)
"""Errors of a machine that is busy, not of a folder."""
_WRONG = ("Version mismatch", "No node info found", "/dev/shm")
"""What is in the messages of errors that a user can mend, where Ray has no type for them."""


class StartError(ProgramError):
    """Ray did not start, or did not let this process in, though nothing that the user set is wrong."""


def init_ray(address: str, starts: bool, keep: Collection[str] = ()) -> None:
    """Starts or joins Ray; a second time, with more patience, if the first fails. Raises ConfigError or StartError.

    `starts`: whether it starts one, rather than join the one at `address`. `keep`: names of secrets in the environment
    that its processes need.
    """
    patience = _patience()
    for seconds in (patience, patience * LONGER):
        others = set(psutil.Process().children(recursive=True))
        try:
            with _sigterm_kept(), _loopback_only(starts), environment_with(_environment(starts, seconds, keep)):
                # Workers write to train.log, which the console shows. Their raw output is in Ray's own logs; only what
                # a node reports of itself is printed by Ray, in lines that begin with "(raylet)".
                ray.init(
                    num_cpus=max(1, int(usable_cpus())) if starts else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            return
        except Exception as error:  # Ray passes on whatever its parts raise
            end_half_started(others)
            if is_wrong_input(error):
                raise ConfigError(explain_no_cluster(error, address)) from error
            failure = error
        if seconds == patience:
            said = "Ray did not start (%s); it is tried once more, for %g s"
            logger.warning(
                said if starts else said.replace("start", "answer"), explain(failure).rstrip("."), patience * LONGER
            )
    raise StartError(
        f"{explain_no_cluster(failure, address).rstrip('.')}, in a second try too; where the machine is busy, "
        f"{PATIENCE_VARIABLE}={4 * patience * LONGER:g} gives it more time (the second try had {patience * LONGER:g} s)"
    ) from failure


def end_half_started(others: Collection[psutil.Process]) -> None:
    """Ends what Ray has started of itself before it failed, which it leaves behind. `others`: who was there before."""
    ray.shutdown()
    folder, ended = str(Path(ray.__file__).parent), list[psutil.Process]()
    for one in set(psutil.Process().children(recursive=True)) - set(others):
        with suppress(psutil.Error):  # it has ended by itself
            if any(part.startswith((folder, "ray::")) for part in one.cmdline()):
                one.kill()
                ended.append(one)
    psutil.wait_procs(ended, timeout=SECONDS_TO_END)


def is_wrong_input(error: Exception) -> bool:
    """Whether a user can mend what keeps Ray from starting: a folder, an address, a token, a version."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return False
    if isinstance(error, OSError):
        return error.errno not in _SHORT_OF
    token = any(kind.__name__ == "AuthenticationError" for kind in type(error).__mro__)
    return token or isinstance(error, TypeError) or any(part in str(error) for part in _WRONG)


def explain_no_cluster(error: Exception, address: str) -> str:
    """What to say where Ray cannot be started or joined."""
    reason = explain(error)
    if address and address != "local":
        return f"RAY_ADDRESS {address}: cannot be joined: {reason}"
    files = isinstance(error, OSError) and is_wrong_input(error)
    if files and str(getattr(error, "filename", None)).startswith(str(Path.home())):
        return f"Ray cannot be started: {reason} (Ray keeps a token in the home folder; HOME=… names another one)"
    if files:
        return f"Ray cannot be started: {reason} (RAY_TMPDIR names another folder for its files)"
    if "/dev/shm" in str(error):
        return f"Ray cannot be started: {reason} (a larger /dev/shm: docker run --shm-size=…)"
    return f"Ray cannot be started: {reason}"


def seconds_without_head() -> float:
    """How long Ray's head may be away: DRIVERS_PATIENCE, if it is set, or Ray's default."""
    return _number(DRIVERS_PATIENCE, SECONDS_WITHOUT_HEAD)


def _patience() -> float:
    return _number(PATIENCE_VARIABLE, PATIENCE)


def _number(variable: str, default: float) -> float:
    """The value of a variable of Ray's. Raises ConfigError if it is no whole number of seconds, as Ray needs it."""
    text = os.environ.get(variable, "").strip()
    if text and not text.isdigit():
        raise ConfigError(f"{variable} {text}: a whole number of seconds is needed")
    return float(text) if text else default


def _environment(starts: bool, seconds: float, keep: Collection[str]) -> Mapping[str, str | None]:
    """What differs while Ray starts, in this process and for all that it starts."""
    changed: dict[str, str | None] = {
        PATIENCE_VARIABLE: f"{seconds:.0f}",
        "RAY_gcs_server_port_wait_time_s": f"{seconds:.0f}",
        # Long enough for this program to say its own line: `HeadWatch` finds out first.
        DRIVERS_PATIENCE: f"{seconds_without_head() + 3600:.0f}",
    }
    if not starts:
        return changed
    if LOOPBACK_VARIABLE not in os.environ:
        changed[LOOPBACK_VARIABLE] = "0"
        # The workers of a training talk to each other on the same interface.
        changed["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", _loopback_interface())
    return changed | dict.fromkeys(secrets_of(os.environ, keep))


def _loopback_interface() -> str | None:
    """Its name: `lo` on Linux."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, ours in interfaces if any(one.address == "127.0.0.1" for one in ours)), None)


@contextmanager
def _loopback_only(starts: bool) -> Iterator[None]:
    """Ray has read LOOPBACK_VARIABLE when it was imported."""
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = before and not (starts and LOOPBACK_VARIABLE not in os.environ)
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray sets a handler of its own for SIGTERM, which ends a program with exit code 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and signal.getsignal(signal.SIGTERM) is not before:
            signal.signal(signal.SIGTERM, before)
