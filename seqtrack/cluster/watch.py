"""Notices that Ray's head is gone, and ends what the main thread waits for with a line of ours.

Without it, Ray ends this process from C++ after a minute, without an exception: nothing would say how to go on, and
nothing would tell MLflow that the run has ended.
"""

from __future__ import annotations

import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from seqtrack import interruption
from seqtrack.cluster.start import StartError, seconds_without_head
from seqtrack.failures import explain

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_TO_ANSWER = 5.0


class HeadLost(StartError):
    """Ray's head is gone, and with it the cluster."""


class HeadWatch:
    """Looks after Ray's head while this process is connected to it."""

    def __init__(
        self, gone: Callable[[], str | None], patience: float, connected: Callable[[], bool] = ray.is_initialized
    ) -> None:
        """`gone`: why the head is not there now, or None; `patience`: how many seconds it may be away; `connected`:
        whether this process still wants it."""
        self._gone, self._patience, self._connected = gone, patience, connected
        self._thread = threading.Thread(target=self._look, name="watches Ray's head", daemon=True)

    @staticmethod
    def start(own: bool) -> None:
        """Begins, in the main thread. `own`: whether this process has started Ray. Elsewhere, Ray alone looks."""
        if threading.current_thread() is not threading.main_thread():
            return
        interruption.listen()
        node = ray._private.worker._global_node

        def connected() -> bool:
            return ray.is_initialized() and ray._private.worker._global_node is node

        if own:
            HeadWatch(_own_head(node), 0.0, connected)._thread.start()
        else:
            HeadWatch(_head_at(node.gcs_address), seconds_without_head(), connected)._thread.start()

    def _look(self) -> None:
        away_since: float | None = None
        while self._connected():
            reason = self._gone()
            if reason is None:
                away_since = None
            else:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since >= self._patience and self._connected():
                    interruption.interrupt_main_thread(HeadLost(f"Ray's head is gone: {reason}"))
                    return
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _own_head(node: Any) -> Callable[[], str | None]:
    """Its process is a child of this one, and nothing starts it again."""
    process: subprocess.Popen[bytes] = node.all_processes[ray._private.ray_constants.PROCESS_TYPE_GCS_SERVER][0].process

    def gone() -> str | None:
        code = process.poll()
        if code is None:
            return None
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"its process gcs_server has ended ({how})"

    return gone


def _head_at(address: str) -> Callable[[], str | None]:
    """A head elsewhere may come back, if the cluster was made so."""
    host, _, port = address.rpartition(":")

    def gone() -> str | None:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
        except OSError as error:
            return f"{address}: {explain(error)}"
        return None

    return gone
