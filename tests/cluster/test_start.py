"""Ray that does not start: what a user can mend, what is tried again, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from seqtrack.cluster import start
from seqtrack.cluster.start import init_ray, is_wrong_input
from seqtrack.commands.program import run_program
from seqtrack.config import ConfigError
from seqtrack.errors import InputError
from tests.training.runs import REPOSITORY

SLOW = [
    Exception("The current node timed out during startup. This could happen because some of the raylet failed"),
    TimeoutError("Timed out after 30 seconds while waiting for node to startup."),
    RuntimeError("Failed to get node info b'RPC error: Deadline Exceeded'"),
    ConnectionError("GCS has started but no raylets have registered yet."),
    ray.exceptions.RaySystemError("the raylet died"),
    BlockingIOError(11, "Resource temporarily unavailable"),
    OSError(12, "Cannot allocate memory"),
]
WRONG = [
    PermissionError(13, "Permission denied", "/scratch/ray"),
    FileNotFoundError(2, "No such file", f"{Path.home()}/.ray"),
    OSError(28, "No space left on device", "ray"),
    ray.exceptions.AuthenticationError("no token"),
    RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.0"),
    ValueError("object store exceeds /dev/shm size"),
]


class Ray:
    """Stands for `ray.init`: fails as often as there are errors, and notes what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
        self.errors, self.environments = list(errors), list[dict[str, str]]()
        monkeypatch.setattr(ray, "init", self.init)
        monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests share a cluster in this process

    def init(self, **_: Any) -> None:
        self.environments.append(dict(os.environ))
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture(autouse=True)
def no_settings_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (start.PATIENCE_VARIABLE, start.LOOPBACK_VARIABLE, start.DRIVERS_PATIENCE):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("error", SLOW, ids=lambda error: type(error).__name__)
def test_a_ray_that_is_too_slow_is_tried_once_more_with_more_patience(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_init = Ray(monkeypatch, error)
    init_ray("", starts=True)
    assert [one[start.PATIENCE_VARIABLE] for one in ray_init.environments] == ["30", "120"]
    assert start.PATIENCE_VARIABLE not in os.environ


@pytest.mark.parametrize("error", SLOW, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("address", ["", "10.0.0.1:6379"])
def test_one_that_stays_too_slow_is_a_failure_that_names_the_variable(
    error: Exception, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(start.PATIENCE_VARIABLE, "60")
    Ray(monkeypatch, error, error)

    def program() -> int:
        init_ray(address, starts=not address)
        return 0

    assert run_program(program, "To go on: again") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1] == "To go on: again"
    assert "RAY_raylet_start_wait_time_s=960 gives it more time (the second try had 240 s)" in said[0]


@pytest.mark.parametrize("error", WRONG, ids=lambda error: type(error).__name__)
def test_what_a_user_can_mend_is_wrong_input_at_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_init = Ray(monkeypatch, error)
    assert is_wrong_input(error)
    with pytest.raises(ConfigError):
        init_ray("", starts=True)
    assert len(ray_init.environments) == 1


def test_a_limit_that_is_no_number_is_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(start.PATIENCE_VARIABLE, "long")
    with pytest.raises(InputError, match=r"^RAY_raylet_start_wait_time_s long: a whole number of seconds is needed$"):
        init_ray("", starts=True)


def test_what_ray_started_before_it_failed_is_ended_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    folder = str(Path(ray.__file__).parent)
    before = subprocess.Popen([*sleeps, folder])
    others = set(psutil.Process().children(recursive=True))
    theirs, ours = subprocess.Popen([*sleeps, f"{folder}/dashboard.py"]), subprocess.Popen(sleeps)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        start.end_half_started(others)
        assert not psutil.pid_exists(theirs.pid), "it is waited for, too"
        assert before.poll() is None and ours.poll() is None
    finally:
        for one in (before, theirs, ours):
            one.kill()
            one.wait()


def test_a_ray_of_our_own_is_on_the_loopback_and_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    ray_init = Ray(monkeypatch)
    init_ray("", starts=True)
    init_ray("", starts=True, keep=("HF_TOKEN",))
    init_ray("10.0.0.1:6379", starts=False)
    own, keeping, joined = ray_init.environments
    assert own[start.LOOPBACK_VARIABLE] == "0" and own["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert own["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert "HF_TOKEN" not in own and "MLFLOW_TRACKING_PASSWORD" not in own
    assert "HF_TOKEN" in keeping and "MLFLOW_TRACKING_PASSWORD" not in keeping
    assert start.LOOPBACK_VARIABLE not in joined, "a cluster of several machines is not on the loopback"
    assert os.environ["HF_TOKEN"] == os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert ray._private.ray_constants.ENABLE_RAY_CLUSTER


def test_a_user_may_have_ray_listen_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(start.LOOPBACK_VARIABLE, "1")
    ray_init = Ray(monkeypatch)
    init_ray("", starts=True)
    assert ray_init.environments[0][start.LOOPBACK_VARIABLE] == "1"
    assert "GLOO_SOCKET_IFNAME" not in ray_init.environments[0]


def test_rays_handler_of_sigterm_does_not_replace_that_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(*_: object) -> None: ...

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))

    before = signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(ray, "init", init)
    try:
        init_ray("", starts=True)
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


OWN_RAY = """
import json, os, sys, psutil, ray
from seqtrack.cluster.connect import join_cluster
from seqtrack.commands.program import prepare_output, run_as_process, run_program

os.environ["HF_TOKEN"] = "secret"

@ray.remote(num_cpus=1)
class Worker:
    def environment(self):
        return {**os.environ}

    def wait(self):
        import time
        time.sleep(600)

def program():
    join_cluster()
    worker = Worker.remote()
    environment = ray.get(worker.environment.remote())
    family = psutil.Process().children(recursive=True)
    listening = [
        connection.laddr.ip
        for one in (psutil.Process(), *family)
        for connection in one.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    knowing = [one.name() for one in family if "HF_TOKEN" in one.environ()]
    print(json.dumps([listening, environment.get("HF_TOKEN"), knowing, os.environ["HF_TOKEN"]]), flush=True)
    waiting = worker.wait.remote()
    [head] = [one for one in family if one.name() == "gcs_server"]
    head.kill()
    ray.get(waiting)

prepare_output()
run_as_process(lambda: run_program(program, "To go on: again"))
"""
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def own_ray() -> subprocess.CompletedProcess[str]:
    """A program that started Ray, said what it and Ray listen on and know, and lost Ray's head."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_ADDRESS": "local", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-c", OWN_RAY], env=environment, capture_output=True, text=True, timeout=300)


def test_a_ray_of_our_own_listens_on_the_loopback_only(own_ray: subprocess.CompletedProcess[str]) -> None:
    listening = json.loads(own_ray.stdout)[0]
    assert len(listening) >= 8 and set(listening) <= LOOPBACK


def test_no_process_of_a_ray_of_our_own_has_the_hubs_token(own_ray: subprocess.CompletedProcess[str]) -> None:
    assert json.loads(own_ray.stdout)[1:] == [None, [], "secret"]


def test_a_lost_head_ends_a_program_that_waits_with_a_line_that_says_how_to_go_on(
    own_ray: subprocess.CompletedProcess[str],
) -> None:
    """Ray itself would end it from C++ a minute later, without an exception."""
    assert own_ray.stderr.splitlines()[-2:] == [
        "error: Ray's head is gone: its process gcs_server has ended (signal 9)",
        "To go on: again",
    ]
    assert own_ray.returncode == 1
