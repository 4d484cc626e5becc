"""The loop beside a training that keeps a server up to date, with functions in the server's place."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from seqtrack.integrations import background
from seqtrack.integrations.background import BackgroundSync
from tests.integrations.servers import wait_until


class Server:
    """Fails as long as `error` is set, and counts what it takes."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.looks, self.finished, self.tries = 0, 0, 0
        self.gate = threading.Event()
        self.gate.set()

    def sync(self) -> None:
        self._answer()
        self.looks += 1

    def finish(self) -> None:
        self._answer()
        self.finished += 1

    def _answer(self) -> None:
        self.gate.wait()
        self.tries += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def thread(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> BackgroundSync:
    """The sync with `server`; its looks and tries follow each other within milliseconds."""
    monkeypatch.setattr(background, "SECONDS_BETWEEN_LOOKS", 0.005)
    monkeypatch.setattr(background, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(background, "SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.WARNING, "seqtrack")
    return BackgroundSync("the server", server.sync, server.finish)


def test_it_looks_again_and_again_and_sends_the_rest_once(server: Server, thread: BackgroundSync) -> None:
    thread.start()
    wait_until(lambda: server.looks > 2)
    assert not thread.ended and server.finished == 0
    assert thread.close(patience=10)
    looks = server.looks
    time.sleep(0.05)
    assert (server.looks, server.finished) == (looks, 1)


@pytest.mark.parametrize("error", [OSError("away\nfor long"), RuntimeError(), KeyError("x")], ids=repr)
def test_a_server_that_fails_is_named_once_and_named_once_when_it_is_back(
    server: Server, thread: BackgroundSync, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    server.error = error
    thread.start()
    wait_until(lambda: server.tries > 3)
    server.error = None
    wait_until(lambda: server.looks > 3)
    assert thread.close(patience=10)
    reason = "away" if isinstance(error, OSError) else type(error).__name__
    failed, back = (record.getMessage() for record in caplog.records)
    assert failed.startswith(f"the server: {reason}") and failed.endswith("; training goes on, and it is tried again")
    assert back == "the server is back"


def test_pauses_between_tries_grow_up_to_a_longest_one(
    server: Server, thread: BackgroundSync, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        server.error = None if len(pauses) == 4 else server.error
        return False

    monkeypatch.setattr(thread._ended, "wait", wait)
    server.error = OSError("away")
    thread.start()
    wait_until(lambda: len(pauses) > 5)
    assert thread.close(patience=10)
    assert pauses[:5] == [0.01, 0.02, 0.02, 0.02, 0.005]


def test_an_end_waits_as_long_as_its_patience_and_says_for_what(
    server: Server, thread: BackgroundSync, caplog: pytest.LogCaptureFixture
) -> None:
    server.error = OSError("away")
    thread.start()
    began = time.monotonic()
    assert not thread.close(patience=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    assert "waiting for the server, 0 s more at most: away" in caplog.text
    wait_until(lambda: not thread._thread.is_alive())  # it has given up


def test_an_end_says_what_a_slow_server_is_sent(
    server: Server, thread: BackgroundSync, caplog: pytest.LogCaptureFixture
) -> None:
    thread.start()
    wait_until(lambda: server.looks > 0)
    server.gate.clear()
    thread.doing = "sending the third of four"
    assert not thread.close(patience=0.3)
    assert "more at most: sending the third of four" in caplog.text
    server.gate.set()


def test_an_end_interrupts_a_pause(server: Server, thread: BackgroundSync, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LONGEST_PAUSE", 1000.0)
    thread._pause = 1000.0
    server.error = OSError("away")
    thread.start()
    wait_until(lambda: server.tries == 1)
    server.error = None
    assert thread.close(patience=10)
    assert server.finished == 1
