"""Addresses of Ray that cannot be joined are answered at once, in a line."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated.gcs_service_pb2 import GetClusterIdReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

from seqtrack.cluster import connect
from seqtrack.cluster.connect import (
    NoAnswer,
    check_address,
    check_temporary_folder,
    forget_dead_cluster,
    why_no_cluster,
)
from seqtrack.cluster.start import explain_no_cluster
from seqtrack.commands.program import run_program
from seqtrack.config import ConfigError
from tests.training.runs import REPOSITORY


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "the address of a dashboard, to which `ray job submit"),
        ("https://cluster.example/", "the address of a dashboard"),
        ("ray://10.0.0.1:10001", "Ray Train cannot be run through a client"),
        ("10.0.0.1", "HOST:PORT is needed, such as 10.0.0.1:6379, or auto, or local"),
        ("10.0.0.1:http", "HOST:PORT is needed"),
        (":6379", "HOST:PORT is needed"),
        ("127.0.0.1:99999", "no Ray cluster can be joined there"),
        ("no-such-host.invalid:6379", "no Ray cluster can be joined there"),
    ],
)
def test_an_address_that_cannot_be_joined_is_refused_with_what_would_be_right(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert str(error.value).startswith(f"RAY_ADDRESS {address}: ") and message in str(error.value)


def test_a_stale_address_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS 127\.0\.0\.1:{port}: no Ray cluster can be joined there"):
        check_address(f"127.0.0.1:{port}")


def test_a_server_of_web_pages_is_no_cluster() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert why_no_cluster("127.0.0.1", server.server_port) == "another program listens there"
        server.shutdown()


def test_a_server_that_does_not_answer_yet_is_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head of a busy cluster, perhaps: no wrong input, so the program fails with 1."""
    monkeypatch.setattr(connect, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def program() -> int:
            check_address(f"127.0.0.1:{port}")
            return 0

        assert run_program(program, "To go on: again") == 1
    assert capsys.readouterr().err == (
        f"error: RAY_ADDRESS 127.0.0.1:{port}: no answer within 0.5 s; the cluster's head may be busy or behind a "
        "firewall, or another program listens there\nTo go on: again\n"
    )


class Head(NodeInfoGcsServiceServicer):
    """The head of a cluster, as far as its first answer goes."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def GetClusterId(self, request: Any, context: grpc.ServicerContext) -> GetClusterIdReply:
        if self.token is not None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return GetClusterIdReply(cluster_id=b"x")


@pytest.mark.parametrize(("token", "expected"), [(None, None), ("secret", "it asks for a token: RAY_AUTH_MODE=token")])
def test_the_head_of_a_cluster_is_one_and_says_if_it_wants_a_token(token: str | None, expected: str | None) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Head(token), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        found = why_no_cluster("127.0.0.1", port)
    finally:
        server.stop(None)
    assert found == expected or (expected is not None and found is not None and found.startswith(expected))


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_token_that_is_missing_here_is_said(mode: str, tmp_path: Path) -> None:
    """It runs in a process of its own, since Ray reads these variables once."""
    code = "import sys; from seqtrack.cluster.connect import why_no_cluster; print(why_no_cluster('127.0.0.1', %d))"
    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Head("secret"), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": mode}
    try:
        said = subprocess.run(
            [sys.executable, "-c", code % port], env=environment, cwd=REPOSITORY, capture_output=True, text=True
        ).stdout
    finally:
        server.stop(None)
    assert said.startswith("AuthenticationError: " if mode == "token" else "it asks for a token: ")


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_folder_of_too_long_a_name_is_refused_with_its_variable_and_its_length(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = tmp_path / ("x" * 60)
    monkeypatch.setenv(variable, str(folder))
    with pytest.raises(
        ConfigError, match=rf"^{variable} {folder}, .*: Ray's sockets there would have \d+ bytes, of 107"
    ):
        check_temporary_folder()


@pytest.mark.parametrize(
    ("folder", "message"), [("/proc/version", "is no folder"), ("/proc/sys", "cannot be written to")]
)
def test_a_temporary_folder_that_takes_no_files_is_refused(
    folder: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith("/proc"))  # root may write anywhere
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(ConfigError, match=message):
        check_temporary_folder()


def test_a_full_temporary_folder_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(connect, "LEAST_TEMPORARY", 2**60)
    with pytest.raises(ConfigError, match=r"^RAY_TMPDIR /tmp, .* MiB are free, and Ray needs "):
        check_temporary_folder()


def test_cpus_that_a_scheduler_withholds_are_not_counted() -> None:
    print_usable = "from seqtrack.cluster.resources import usable_cpus; print(usable_cpus())"
    one = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {print_usable}"
    assert subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True).stdout == "1.0\n"


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_words_that_ray_knows_are_left_to_it(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("error", "address", "message"),
    [
        (FileNotFoundError(2, "No such", f"{Path.home()}/.ray"), "", "in the home folder; HOME=… names another one)"),
        (ValueError("object store exceeds /dev/shm size"), "", "(a larger /dev/shm: docker run --shm-size=…)"),
        (
            PermissionError(13, "Permission denied", "/scratch/ray"),
            "",
            "/scratch/ray: permission is denied (RAY_TMPDIR names",
        ),
        (RuntimeError("the node timed out\n at line 3"), "local", "started: RuntimeError: the node timed out"),
        (ConnectionError("no token"), "10.0.0.1:6379", "cannot be joined: no token"),
    ],
)
def test_what_keeps_ray_from_starting_is_one_line(error: Exception, address: str, message: str) -> None:
    said = explain_no_cluster(error, address)
    assert message in said and "\n" not in said


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which `ray start` notes its cluster."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray/ray_current_cluster"


def test_the_note_of_a_cluster_whose_port_another_program_has_now_is_removed(note: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        note.write_text(f"127.0.0.1:{server.server_port}")
        forget_dead_cluster()
        server.shutdown()
    assert not note.exists()


def test_the_note_of_a_cluster_that_does_not_answer_yet_stays(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "SECONDS_TO_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        note.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(NoAnswer, match=r"no answer within 0\.5 s \(RAY_ADDRESS=local starts another one"):
            forget_dead_cluster()
    assert note.exists()


def test_a_note_of_a_dead_cluster_that_cannot_be_removed_is_named(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note.write_text("127.0.0.1:9")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)  # root may remove anything
    with pytest.raises(ConfigError, match=rf"cannot be removed: {note}: permission is denied \(RAY_TMPDIR"):
        forget_dead_cluster()
