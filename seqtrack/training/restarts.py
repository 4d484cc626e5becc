"""Logs why workers are restarted.

Ray Train's controller process imports this file, so it imports as little as it can.
"""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from seqtrack.runs.folder import RunFolder
from seqtrack.runs.log import RunLogHandler


class RestartLog(UserCallback):
    """Writes into `train.log` why workers are restarted: which worker, which error, how many failures so far."""

    def __init__(self, run: RunFolder, allowed: int) -> None:
        self._run, self._allowed, self._failures = run, allowed, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._failures += 1
        allowed = "any number of" if self._allowed < 0 else str(self._allowed)
        handler = RunLogHandler(self._run)
        for rank, error in sorted(worker_exceptions.items()):
            reason = " ".join(line.strip() for line in str(error).strip().splitlines() if line.strip())
            handler.write(
                f"Worker {rank} failed ({type(error).__name__}: {reason}); failure {self._failures}, and "
                f"RUN.MAX_FAILURES permits {allowed}"
            )
        handler.flush()
