"""Ray's head is looked after, and what waits for it is ended when it is gone for good."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from seqtrack import interruption
from seqtrack.cluster import watch
from seqtrack.cluster.watch import HeadLost, HeadWatch


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LOOKS", 0.01)
    before = signal.getsignal(interruption.WAKES)
    interruption.listen()
    yield
    signal.signal(interruption.WAKES, before)
    interruption.forget()


def test_a_head_that_is_away_for_too_long_interrupts_the_main_thread_and_the_reason_is_kept() -> None:
    HeadWatch(lambda: "refused", patience=0.05, connected=lambda: True)._thread.start()
    with pytest.raises(KeyboardInterrupt):
        time.sleep(60)  # it is interrupted
    assert isinstance(interruption.reason(), HeadLost)
    assert str(interruption.reason()) == "Ray's head is gone: refused"


@pytest.mark.parametrize("looks", [["refused", None] * 9, [None, "it has ended", "it has ended"]], ids=["back", "left"])
def test_a_head_that_comes_back_or_is_not_needed_any_more_interrupts_nothing(looks: list[str | None]) -> None:
    coming, left = list(looks), threading.Event()

    def gone() -> str | None:
        reason = coming.pop(0)
        if not coming or (len(looks) == 3 and reason is not None):
            left.set()  # as `ray.shutdown` does, before it ends the head
        return reason

    started = HeadWatch(gone, 0.0 if len(looks) == 3 else 5.0, lambda: not left.is_set())
    started._thread.start()
    started._thread.join(10)
    assert interruption.reason() is None and not started._thread.is_alive()


def test_a_head_elsewhere_is_there_as_long_as_it_takes_connections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        look = watch._head_at(address)
        assert look() is None
    assert str(look()).startswith(f"{address}: ")
