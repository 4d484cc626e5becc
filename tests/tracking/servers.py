"""A real MLflow server for tests, which can be stopped, blocked and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS_TO_START = 120


class MlflowServer:
    """`mlflow server` on this machine, with a store of its own."""

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self._folder = folder
        self._store = store or f"sqlite:///{folder}/server.db"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", self._store, "--artifacts-destination", str(self._folder / "artifacts")]
        with open(self._folder / "server.log", "a") as log:
            self._process = subprocess.Popen(
                [*command, "--workers", "1"], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "mlflow server did not start"
            time.sleep(0.2)

    def stop(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """To the server and all its processes. SIGSTOP: it takes connections, and does not answer."""
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
