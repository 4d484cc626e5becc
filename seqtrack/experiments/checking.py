"""Checks that stand alone: each runs in a thread, and whatever it raises is its finding. One that hangs is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from seqtrack.failures import explain, is_no_answer


class Unfit(Exception):
    """A run could not start. The first argument says what is wrong, the second, if any, how to mend it."""


class Note(Exception):
    """A run can start without it. The first argument says what is so, the second what would be better, if anything."""


class NoAnswer(Exception):
    """What a check asks did not answer in time, so nothing is known. The message says so."""


class Finding(NamedTuple):
    """What a check found."""

    name: str
    fits: bool | None
    """None: a run can start without it, or nothing is known."""
    said: str
    mend: str = ""
    answered: bool = True
    """False: there was no answer in time, which may be different the next time."""


def start(name: str, check: Callable[[], str]) -> Future[str]:
    """Begins a check in a thread. One of a pool would be waited for at the process's end, however long it hangs."""
    future: Future[str] = Future()

    def work() -> None:
        try:
            future.set_result(check())
        except BaseException as error:  # whatever it is, it is this check's finding
            future.set_exception(error)

    threading.Thread(target=work, name=f"checks {name}", daemon=True).start()
    return future


def finding(name: str, future: Future[str], deadline: float, patience: float) -> Finding:
    """What a check found until `deadline`, which is `patience` seconds after its start."""
    try:
        return Finding(name, True, future.result(max(0.0, deadline - time.monotonic())))
    except Unfit as unfit:
        return Finding(name, False, *unfit.args)
    except Note as note:
        return Finding(name, None, *note.args)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if not future.done():
            return Finding(name, None, f"no answer within {patience:g} s", answered=False)
        known = not is_no_answer(error)
        return Finding(name, False if known else None, explain(error), answered=known)


def within(seconds: float, check: Callable[[], str]) -> str:
    """What the check says. Raises NoAnswer if it takes longer."""
    future = start("a server", check)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        raise NoAnswer(f"no answer within {seconds:g} s") from None
