"""Real MLflow stores for tests, and a real server, which can be stopped, blocked and started again."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SECONDS_TO_START = 300


@functools.cache
def _new_store() -> tempfile.TemporaryDirectory[str]:
    """A folder with an empty SQLite store, which takes seconds to make. It lasts as long as this process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # takes seconds, too

    folder = tempfile.TemporaryDirectory(prefix="mlflow")
    SqlAlchemyStore(f"sqlite:///{folder.name}/mlflow.db", folder.name)
    return folder


def empty_store(folder: Path) -> str:
    """The URI of an empty SQLite store in `folder`: `mlflow.db`, where runs that are stored there look for it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(_new_store().name, "mlflow.db"), folder)
    return f"sqlite:///{folder}/mlflow.db"


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class MlflowServer:
    """What `mlflow server` starts, without the program itself, which takes longer to start; with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = {
            "_MLFLOW_SERVER_FILE_STORE": empty_store(folder),
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "mlflow.server.fastapi_app:app"]
        with open(self._folder / "server.log", "a") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port)],
                env=os.environ | self._settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._process.poll() is not None or self._answers(), SECONDS_TO_START)
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
        except AssertionError:
            self.stop()
            raise

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the server and all its processes. SIGSTOP: it takes connections, and does not answer."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URI of an empty PostgreSQL database. Skips the test where PostgreSQL is not installed."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian keeps its programs out of PATH
    initdb = shutil.which("initdb", path=os.pathsep.join([*map(str, installed), os.environ["PATH"]]))
    if initdb is None:
        pytest.skip("needs PostgreSQL: no initdb found")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as directory, socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
        if user:
            shutil.chown(directory, user)
        data = f"{directory}/data"
        subprocess.run([initdb, "-D", data, "-U", "mlflow", "-A", "trust"], user=user, check=True, capture_output=True)
        free.close()
        options = ["-D", data, "-p", port, "-k", directory, "-c", "listen_addresses=127.0.0.1"]
        server = subprocess.Popen([Path(initdb).with_name("postgres"), *options], user=user, stderr=subprocess.DEVNULL)
        try:
            ready = [str(Path(initdb).with_name("pg_isready")), "-h", "127.0.0.1", "-p", port, "-t", "60"]
            while subprocess.run(ready, capture_output=True).returncode:
                assert server.poll() is None, "PostgreSQL did not start"
                time.sleep(0.2)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
