"""Exceptions that end a program early: errors that the user can fix, and a stop request."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class InputError(ValueError):
    """Settings, data, weights or a checkpoint that cannot be used.

    The message names the file, the setting or the value and what would be right. Programs print it as one line,
    without a traceback, and exit with 2.
    """


class ProgramError(Exception):
    """A program failed, and not because of its input. Programs print it without a traceback and exit with 1."""


class Stopped(Exception):
    """A run or sweep was asked to stop before its end. It can be continued later."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        """Number of the signal that asked for the stop, such as SIGTERM."""


class LeaseLostError(OSError):
    """A folder that this job worked in is another job's now, so nothing more may be written there."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean X?` with the known name closest to `name`, or an empty string if none is close."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]}?" if nearest else ""
