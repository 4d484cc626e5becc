"""`ray job submit` to a cluster of its own, which asks for a token and does not have the package."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil
import pytest
from ray._private.runtime_env.packaging import create_package

from tests.training.runs import REPOSITORY, assert_same_bits

RAY = str(Path(sys.executable).with_name("ray"))
LAST = "checkpoint_epoch_0002"
NOT_INSTALLED = """
import sys

sys.meta_path = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path = [folder for folder in sys.path if folder != {repository!r}]
"""


@dataclass(frozen=True)
class Cluster:
    address: str
    """Address of its dashboard, which accepts jobs."""
    home: Path
    token: str

    def ray(self, *arguments: str, token: bool = True) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_ADDRESS": self.address, "HOME": str(self.home / "elsewhere")}
        if token:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return subprocess.Popen(
            [RAY, *arguments], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def submit(self, name: str, *arguments: str, wait: bool = True) -> tuple[int, str]:
        options = ["--submission-id", name, "--working-dir", ".", *([] if wait else ["--no-wait"])]
        return ended(self.ray("job", "submit", *options, "--", "python", *arguments))

    def stop(self, name: str) -> None:
        """Does what `ray job stop` does, which takes longer to start than this training to end."""
        headers = {"Authorization": f"Bearer {self.token}"}
        httpx2.post(f"{self.address}/api/jobs/{name}/stop", headers=headers).raise_for_status()

    def status(self, name: str) -> dict[str, str | int]:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer: dict[str, str | int] = httpx2.get(f"{self.address}/api/jobs/{name}", headers=headers).json()
        return answer


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate()
    return process.returncode, output


def free_ports(count: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def token_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head as cluster.yaml starts it. Its Python has every package but this one."""
    home = tmp_path_factory.mktemp("head")
    (home / "sitecustomize.py").write_text(NOT_INSTALLED.format(repository=str(REPOSITORY)))
    port, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    environment |= {"RAY_JOB_STOP_WAIT_TIME_S": "60", "HOME": str(home), "PYTHONPATH": str(home)}
    environment["PATH"] = f"{Path(RAY).parent}:{environment['PATH']}"
    options = [f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    options.append(f"--dashboard-agent-listen-port={agent}")
    temporary = tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True)  # names of sockets must be short
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary.name}", *options],
        cwd=home, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "--block" in line:
                break
        else:
            raise AssertionError(output)
        yield Cluster(f"http://127.0.0.1:{dashboard}", home, environment["RAY_AUTH_TOKEN"])
    finally:
        for one in (*psutil.Process(process.pid).children(recursive=True), process):  # an orderly end takes long
            one.kill()
        process.wait()
        temporary.cleanup()


def test_a_job_that_is_stopped_and_submitted_again_ends_as_if_nothing_had_happened(
    token_cluster: Cluster, config: str, looped: Path
) -> None:
    train = ["ray_jobs/train.py", "--config", config, "RUN.NAME=job", "RUN.STORAGE_PATH=runs"]
    returned, output = token_cluster.submit("first", *train, wait=False)
    assert returned == 0, output
    logs = token_cluster.ray("job", "logs", "--follow", "first")
    assert logs.stdout is not None
    seen = ""
    for line in logs.stdout:
        seen += line
        if "Epoch 1 : 40" in line:
            break
    token_cluster.stop("first")
    seen += ended(logs)[1]
    assert token_cluster.status("first")["status"] == "STOPPED"
    stopped = re.search(r"Stopped by SIGTERM after step (\d+); the checkpoint is (.*)\nTo go on: (.*)", seen)
    assert stopped is not None, seen
    run = token_cluster.home / "runs" / "job"
    assert stopped[2].startswith(str(run)), "below home, since the working folder goes with the job"
    again = "ray job submit --working-dir . -- python ray_jobs/train.py"
    assert stopped[3].startswith(again) and stopped[3].endswith("RUN.NAME=job")

    returned, output = token_cluster.submit("second", *train)
    assert returned == 0, output
    assert f"Restored {stopped[2]} : step {stopped[1]}" in output
    assert_same_bits(run, looped, LAST)
    meta = json.loads((run / LAST / "meta.json").read_text())
    assert meta["code_revision"].startswith("_ray_pkg_"), "the code that travelled was not what ran"


def test_a_job_that_cannot_start_says_why_and_fails(token_cluster: Cluster, config: str) -> None:
    returned, output = token_cluster.submit("bad", "ray_jobs/train.py", "--config", config, "TRAIN.LRR=1")
    assert returned == 1
    assert "TRAIN.LRR: unknown setting; did you mean TRAIN.LR?" in output
    status = token_cluster.status("bad")
    assert (status["status"], status["driver_exit_code"]) == ("FAILED", 2)


def test_without_the_token_nothing_is_taken(token_cluster: Cluster) -> None:
    returned, output = ended(token_cluster.ray("job", "list", token=False))
    assert returned != 0
    assert "token" in output and "RAY_AUTH_MODE" in output


def test_what_travels_is_the_code_and_little_else(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(REPOSITORY), package, include_gitignore=False)
    names = zipfile.ZipFile(package).namelist()
    assert {name.partition("/")[0] for name in names} >= {"seqtrack", "ray_jobs", "configs"}
    assert not [name for name in names if re.match(r"(data|runs|tests|docs|\.venv|\.git|.*_cache)(/|$)", name)]
    code = [path for name in ("seqtrack", "ray_jobs", "configs") for path in (REPOSITORY / name).rglob("*")]
    size = sum(path.stat().st_size for path in code if path.is_file() and "__pycache__" not in path.parts)
    assert package.stat().st_size < size + 100 * 2**10, "names and other files of the zip take the rest"
