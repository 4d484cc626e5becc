"""Addresses of Ray that cannot be joined are answered at once, in a line."""

from __future__ import annotations

import socket

import pytest

from seqtrack.cluster.connect import check_address, explain_no_cluster
from seqtrack.config import ConfigError


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", "the address of a dashboard, to which `ray job submit"),
        ("https://cluster.example/", "the address of a dashboard"),
        ("ray://10.0.0.1:10001", "Ray Train cannot be run through a client"),
        ("10.0.0.1", "HOST:PORT is needed, such as 10.0.0.1:6379, or auto, or local"),
        ("10.0.0.1:http", "HOST:PORT is needed"),
        (":6379", "HOST:PORT is needed"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
        ("no-such-host.invalid:6379", "no Ray cluster answers there"),
    ],
)
def test_an_address_that_cannot_be_joined_is_refused_with_what_would_be_right(address: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_address(address)
    assert str(error.value).startswith(f"RAY_ADDRESS {address}: ") and message in str(error.value)


def test_a_stale_address_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=rf"RAY_ADDRESS 127\.0\.0\.1:{port}: no Ray cluster answers there"):
        check_address(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_words_that_ray_knows_are_left_to_it(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize(
    ("error", "address", "message"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: '/a/b'"), "", "has too long a name for sockets"),
        (PermissionError(13, "Permission denied", "/tmp/ray"), "", "/tmp/ray: permission is denied (RAY_TMPDIR names"),
        (RuntimeError("the node timed out\n at line 3"), "local", "started: RuntimeError: the node timed out"),
        (ConnectionError("no token"), "10.0.0.1:6379", "cannot be joined: no token (a cluster with token authenti"),
    ],
)
def test_what_keeps_ray_from_starting_is_one_line(error: Exception, address: str, message: str) -> None:
    said = explain_no_cluster(error, address)
    assert message in said and "\n" not in said
