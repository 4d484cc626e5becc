"""Stops runs gently: a signal to the job's process becomes a stop request to all workers."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import ray


class StopRequest:
    """An actor through which the job tells the workers to write a checkpoint and end."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()

    async def request(self) -> None:
        self._requested.set()

    async def wait(self) -> None:
        await self._requested.wait()

    async def is_requested(self) -> bool:
        return self._requested.is_set()


class StopOnSignal:
    """While its `with` block runs, a signal asks the workers to stop, and a second one ends the process at once."""

    def __init__(self, *numbers: signal.Signals, then: Callable[[], None] = lambda: None) -> None:
        """`then` is called in a separate thread once the workers have been told."""
        self._numbers, self._then = numbers, then
        self._before: dict[int, Any] = {}
        self.request: ray.actor.ActorHandle = ray.remote(StopRequest).options(num_cpus=0).remote()
        """The StopRequest that workers wait for."""
        self.received: int | None = None
        """Number of the signal that came, or None."""

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other thread
            self._before = {number: signal.signal(number, self._receive) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        sys.stderr.write(f"\n{signal.Signals(number).name}: writing a checkpoint, then stopping …\n")
        for other in self._numbers:
            signal.signal(other, signal.SIG_DFL)
        threading.Thread(target=self._stop, name="stop", daemon=True).start()

    def _stop(self) -> None:
        with suppress(ray.exceptions.RayError):  # the cluster and its workers are gone
            ray.get(self.request.request.remote())
        self._then()
