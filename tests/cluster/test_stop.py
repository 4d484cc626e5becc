"""From a signal to the workers: every link may be lost, and a stop arrives all the same, or is said not to."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray

from seqtrack.cluster import stop
from seqtrack.cluster.stop import StopOnSignal, StopWatch, is_stop_requested, start_stop_request

SIGNAL = signal.SIGUSR1
"""Stands for SIGTERM, which Ray handles itself in these tests."""


def kill(actor: ray.actor.ActorHandle) -> None:
    """Ends an actor's process by SIGKILL, as the kernel does where memory is short."""
    identity = actor._actor_id.hex()
    pid = next(one["Pid"] for one in ray._private.state.actors().values() if one["ActorID"] == identity)
    psutil.Process(pid).kill()


class Worker:
    """A worker that waits for a stop, as the first of a training does."""

    def __init__(self, request: ray.actor.ActorHandle) -> None:
        self._watch = StopWatch(request)

    def ready(self) -> bool:
        return True

    def heard(self) -> bool:
        deadline = time.monotonic() + 60
        while not self._watch.is_set() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._watch.close()
        return self._watch.is_set()

    def threads(self) -> list[str]:
        self._watch.close()
        return [thread.name for thread in threading.enumerate()]


def start_worker(request: ray.actor.ActorHandle) -> ray.actor.ActorHandle:
    return ray.remote(Worker).options(num_cpus=0).remote(request)


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def stopping(cluster: None) -> Iterator[StopOnSignal]:
    with StopOnSignal(SIGNAL) as stopping:
        yield stopping


@pytest.mark.parametrize("lost", ["never", "before the signal", "after the signal", "with its worker"])
def test_a_stop_reaches_the_workers_though_the_actor_between_is_lost(
    stopping: StopOnSignal, lost: str, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = start_worker(stopping.request)
    ray.get(worker.ready.remote())
    assert not is_stop_requested(stopping.request)
    if lost == "before the signal":
        kill(stopping.request)
    os.kill(os.getpid(), SIGNAL)
    wait_until(lambda: "SIGUSR1: writing a checkpoint, then stopping …" in capfd.readouterr().err)
    if lost in ("after the signal", "with its worker"):
        kill(stopping.request)
    if lost == "with its worker":  # the run starts another one, which has heard nothing
        ray.kill(worker)
        worker = start_worker(stopping.request)
    assert ray.get(worker.heard.remote(), timeout=90)
    wait_until(lambda: is_stop_requested(stopping.request))


def test_a_worker_that_is_not_asked_to_stop_leaves_no_thread(stopping: StopOnSignal) -> None:
    worker = start_worker(stopping.request)
    assert "await-stop" not in ray.get(worker.threads.remote())


def test_the_actor_lives_on_the_jobs_node(cluster: None) -> None:
    actor = start_stop_request()
    ray.get(actor.is_requested.remote())
    states = ray._private.state.actors()
    state = next(one for one in states.values() if one["ActorID"] == actor._actor_id.hex())
    assert state["Address"]["NodeID"] == ray.get_runtime_context().get_node_id()


def test_ray_tune_can_store_what_observes_it(stopping: StopOnSignal) -> None:
    assert ray.cloudpickle.loads(ray.cloudpickle.dumps(stopping)).received is None


class Lost:
    """An actor that nobody reaches."""

    def __init__(self, error: ray.exceptions.RayError, calls: int) -> None:
        self.error, self.calls = error, calls

    def get(self, _: object, timeout: float | None = None) -> None:
        self.calls -= 1
        if self.calls >= 0:
            raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.ActorDiedError(), "ActorDiedError: "),
        (ray.exceptions.ActorUnavailableError("gone", None), "ActorUnavailableError: "),
        (ray.exceptions.GetTimeoutError("late"), "no answer within 15 s"),
        (ray.exceptions.RaySystemError("no raylet"), "RaySystemError: "),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stop_that_cannot_be_passed_on_is_said_and_not_promised(
    cluster: None,
    error: ray.exceptions.RayError,
    reason: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stop, "SECONDS_BETWEEN", 0.05)
    then = threading.Event()
    with StopOnSignal(SIGNAL, then=then.set) as stopping:
        monkeypatch.setattr(ray, "get", Lost(error, 3).get)
        os.kill(os.getpid(), SIGNAL)
        assert then.wait(30), "it is tried again"
    said = capfd.readouterr().err
    assert said.count("SIGUSR1: ") == 2
    problem, promise = (line for line in said.splitlines() if line.startswith("SIGUSR1: "))
    assert problem.startswith(f"SIGUSR1: the workers cannot be told to stop ({reason}")
    assert "A second signal ends the program at once" in problem
    assert promise == "SIGUSR1: writing a checkpoint, then stopping …"
    assert stopping.received == SIGNAL
