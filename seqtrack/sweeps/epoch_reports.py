"""What Ray Tune is told while a trial trains.

Ray Train's controller, a process of its own, imports this file; so it imports as little as it can.
"""

from __future__ import annotations

from typing import Any

from ray.train import Checkpoint
from ray.tune.integration.ray_train import TuneReportCallback


class EpochReports(TuneReportCallback):
    """Passes on to Ray Tune what Ray Train is told at each epoch's end, not at the checkpoints between."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if "epoch" in metrics[0]:
            super().after_report(run_context, metrics, None)
