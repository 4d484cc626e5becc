"""Stops runs gently: a signal to the job's process becomes a stop request to all workers.

Between the two is an actor, which workers wait for. It may be lost, as any process may. So it lives where the job does,
Ray starts it again, the job tells it again and again, and workers ask again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seqtrack.failures import explain

logger = logging.getLogger(__name__)

SECONDS_TO_PASS_ON = 15.0
"""A lost actor is started again within a second or two, on a busy machine in many."""
SECONDS_BETWEEN = 1.0
"""Pause before the actor is told, or asked, again."""


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


def start_stop_request() -> ray.actor.ActorHandle:
    """A StopRequest on this process's node: what takes that node away takes the job, too."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lasting = ray.remote(StopRequest).options(
        num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1
    )
    return lasting.remote()


def is_stop_requested(stop: ray.actor.ActorHandle) -> bool:
    """Whether the job is asked to stop. False where the actor does not say so in time: the job tells it again."""
    try:
        return bool(ray.get(stop.is_requested.remote(), timeout=SECONDS_TO_PASS_ON))
    except RayError as error:
        logger.warning("it is not known whether the job is asked to stop: %s", explain(error))
        return False


class StopWatch:
    """Hears, in a thread of a worker, that the job is asked to stop."""

    def __init__(self, stop: ray.actor.ActorHandle) -> None:
        self._stop, self._requested, self._closed = stop, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._wait, name="await-stop", daemon=True)
        self._thread.start()

    def is_set(self) -> bool:
        return self._requested.is_set()

    def close(self) -> None:
        """Ends the thread: one that is inside of Ray at the end of a process can abort it."""
        self._closed.set()
        self._thread.join(5 * SECONDS_BETWEEN)

    def _wait(self) -> None:
        heard = None
        while not self._closed.is_set():
            try:
                heard = self._stop.wait.remote() if heard is None else heard
                ray.get(heard, timeout=SECONDS_BETWEEN)
                self._requested.set()
                return
            except GetTimeoutError:
                continue
            except RayError:  # the actor was lost, and its next start knows nothing of this question
                heard = None
                self._closed.wait(SECONDS_BETWEEN)


class StopOnSignal:
    """While its `with` block runs, a signal asks the workers to stop, and a second one ends the process at once."""

    def __init__(self, *numbers: signal.Signals, then: Callable[[], None] = lambda: None) -> None:
        """`then` is called in a separate thread once the workers have been told."""
        self._numbers, self._then = numbers, then
        self._before: dict[int, Any] = {}
        self._left = threading.Event()
        self._thread: threading.Thread | None = None
        self.request = start_stop_request()
        """The StopRequest that workers wait for."""
        self.received: int | None = None
        """Number of the signal that came, or None."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune stores a copy of all that it is given, which nobody uses. Locks cannot be copied."""
        return {"received": self.received}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers in no other thread
            self._before = {number: signal.signal(number, self._receive) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._left.set()
        if self._thread is not None:
            self._thread.join(SECONDS_TO_PASS_ON)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = number
        for other in self._numbers:
            signal.signal(other, signal.SIG_DFL)
        self._thread = threading.Thread(target=self._pass_on, args=(number,), name="stop", daemon=True)
        self._thread.start()

    def _pass_on(self, number: int) -> None:
        """Tells the actor, and tells it again: a new start of it, or of a worker, has not heard. Says how that goes."""
        name, told, problem = signal.Signals(number).name, False, None
        while not self._left.is_set():
            before, problem = problem, self._tell()
            if problem is None and not told:
                told = True
                sys.stderr.write(f"\n{name}: writing a checkpoint, then stopping …\n")
                threading.Thread(target=self._then, name="stopped", daemon=True).start()
            elif problem is not None and before is None and not self._left.is_set():
                sys.stderr.write(
                    f"\n{name}: the workers cannot be told to stop ({problem}), and train on. It is tried again. A "
                    "second signal ends the program at once, without a new checkpoint; the same command then goes on "
                    "from the last one\n"
                )
            self._left.wait(SECONDS_BETWEEN)

    def _tell(self) -> str | None:
        """Tells the actor. Returns why it was not told."""
        try:
            ray.get(self.request.request.remote(), timeout=SECONDS_TO_PASS_ON)
        except GetTimeoutError:
            return f"no answer within {SECONDS_TO_PASS_ON:g} s"
        except RayError as error:
            return explain(error)
        return None
