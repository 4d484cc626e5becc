"""Says why workers are restarted.

Ray Train's controller process imports this file, so it imports as little as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ray.train import UserCallback

from seqtrack.failures import explain


class RestartReport(UserCallback):
    """Reports each failure of a training: which worker, which error, how many failures so far."""

    def __init__(self, report: Callable[[Iterable[str]], None], allowed: int) -> None:
        """`report` gets the lines, in Ray Train's controller process. `allowed`: as RUN.MAX_FAILURES."""
        self._report, self._allowed, self._failures = report, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._failures += 1
        allowed = "any number of" if self._allowed < 0 else str(self._allowed)
        self._report(
            f"Worker {rank} failed ({explain(error)}); failure {self._failures}, and RUN.MAX_FAILURES permits {allowed}"
            for rank, error in sorted(worker_exceptions.items())
        )
