"""Ends what the main thread is at, as Ctrl-C would, for a reason that is not Ctrl-C.

Much code, Ray's among it, lets only a KeyboardInterrupt through, and some raises a new one in its place. So the reason
is kept here, until the program's end asks for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from seqtrack.errors import Stopped

WAKES = signal.SIGURG
"""What interrupts the main thread from another one: a signal that does nothing where nobody waits for it."""
_reasons: list[Exception] = []
_pending: list[Exception] = []
"""For the main thread, which has not been woken yet."""


def reason() -> Exception | None:
    """Why the main thread was interrupted; None where it was not, or by Ctrl-C."""
    return _reasons[0] if _reasons else None


def forget() -> None:
    """A new program begins, in the same process perhaps."""
    _reasons.clear()


def interrupt(error: Exception) -> NoReturn:
    """Raises KeyboardInterrupt; `reason` is the error. For handlers of signals."""
    _reasons.append(error)
    raise KeyboardInterrupt


def interrupt_main_thread(error: Exception) -> None:
    """Does what `interrupt` does, in the main thread, from any other. Nothing unless `listen` was called."""
    _pending.append(error)
    signal.pthread_kill(threading.main_thread().ident or 0, WAKES)


def listen() -> None:
    """From now on, the main thread, which calls this, can be interrupted by others."""
    signal.signal(WAKES, _wake)


def _wake(number: int, frame: FrameType | None) -> None:
    if _pending:
        interrupt(_pending.pop())


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """While it runs, SIGTERM interrupts the main thread with Stopped. Does nothing where another handler is set."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    interrupt(Stopped(number))
