"""The loop that MLflow's mirror and the Hub's uploads share: a thread beside a training keeps a server up to date.

Training writes into the run's folder, whatever the server does. The thread looks into the folder every few seconds and
sends what is new. A server that is slow, away or failing is tried again, with growing pauses, and delays no step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from seqtrack.failures import explain

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0
LONGEST_PAUSE = 30.0
"""Seconds between two tries at a server that does not take what it is sent; the pauses double up to this one."""
SECONDS_BETWEEN_LINES = 5.0
"""While the run's end waits for the server, a line says so this often."""
SECONDS_TO_ABANDON = 5.0
"""How long what is being sent may take when nothing more is to be sent."""


class BackgroundSync:
    """Keeps a server up to date in a thread. Whatever the server does, nothing of it reaches the training."""

    def __init__(
        self,
        server: str,
        sync: Callable[[], None],
        finish: Callable[[], None],
    ) -> None:
        """`server`: what messages call it. `sync` sends what is new; it is called every few seconds. `finish` sends the
        rest when the run has ended. Both may raise anything, are then called again, and must bear that."""
        self._server, self._sync, self._finish = server, sync, finish
        self.doing = ""
        """What the thread is at, for the lines of `close`."""
        self.problem: str | None = None
        """Why the last try failed, if it did."""
        self._pause = SECONDS_BETWEEN_LOOKS
        self._ended, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"sync with {server}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self._ended.is_set()

    def end(self) -> None:
        """The run has ended: from now on the thread sends the rest."""
        self._ended.set()

    def close(self, patience: float) -> bool:
        """Waits until the server has everything, for `patience` seconds at most, then gives up.

        Returns whether the server has everything.
        """
        self.end()
        deadline = time.monotonic() + patience
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, SECONDS_BETWEEN_LINES))
            if self._thread.is_alive():
                reason = self.problem or self.doing
                left = max(deadline - time.monotonic(), 0)
                logger.warning("waiting for %s, %d s more at most%s", self._server, left, reason and f": {reason}")
        self._given_up.set()
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Sends nothing more: what the run's folder has is another job's now."""
        self._given_up.set()
        self.end()
        self._thread.join(SECONDS_TO_ABANDON)

    def _run(self) -> None:
        while not self.ended:
            self._try(self._sync)
            self._ended.wait(self._pause)
        self._pause = SECONDS_BETWEEN_LOOKS
        while not self._given_up.is_set() and not self._try(self._finish):
            self._given_up.wait(self._pause)

    def _try(self, send: Callable[[], None]) -> bool:
        """Says once that the server fails, and once that it is back."""
        try:
            send()
        except Exception as error:  # whatever it is, it must not end this thread: the next try may succeed
            reason = explain(error)
            if self.problem is None:
                goes_on = "" if self.ended else "training goes on, and "
                logger.warning("%s: %s; %sit is tried again", self._server, reason, goes_on)
            self.problem, self._pause = reason, min(2 * self._pause, LONGEST_PAUSE)
            return False
        if self.problem is not None:
            logger.warning("%s is back", self._server)
        self.problem, self._pause = None, SECONDS_BETWEEN_LOOKS
        return True
