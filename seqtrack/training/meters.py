"""Averages of the current epoch, and the log lines that show them.

The meter is saved in checkpoints, so that an interruption does not change an epoch's averages.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class EpochMeter:
    """Sums over the steps of the current epoch; plain numbers, so that they save and load exactly."""

    steps: int = 0
    loss: float = 0.0
    iou: float = 0.0
    grad_norm: float = 0.0
    seconds: float = 0.0
    """Wall time since the epoch began."""
    wait_seconds: float = 0.0
    """Part of `seconds` in which rank 0 waited for data."""
    broken_frames: int = 0
    """Frames that could not be read; their samples were drawn again."""
    sets: dict[str, list[float]] = field(default_factory=dict)
    """Training set -> its share of the batch, loss and IoU (as `Objective` gives them), each summed over the steps.
    Empty where there is only one set."""

    def add(self, loss: float, iou: float, grad_norm: float) -> None:
        """Adds one step; the values are means over all workers."""
        self.steps += 1
        self.loss += loss
        self.iou += iou
        self.grad_norm += grad_norm

    def add_sets(self, names: Sequence[str], values: Sequence[float]) -> None:
        """Adds one step of each set: three values for each name, means over all workers."""
        for place, name in enumerate(names):
            before = self.sets.get(name, [0.0, 0.0, 0.0])
            self.sets[name] = [old + new for old, new in zip(before, values[3 * place : 3 * place + 3], strict=True)]

    def of_sets(self, batch_size: int) -> dict[str, float]:
        """`samples_SET`, `loss_SET` and `iou_SET` so far; a set without a sample has no loss and IoU."""
        found: dict[str, float] = {}
        for name, (share, loss, iou) in self.sets.items():
            found[f"samples_{name}"] = round(share * batch_size)
            if share:
                found |= {f"loss_{name}": loss / share, f"iou_{name}": iou / share}
        return found

    def averages(self, batch_size: int) -> dict[str, float]:
        """Means over the steps so far, and rates."""
        steps = max(self.steps, 1)
        seconds = max(self.seconds, 1e-9)
        return {
            "loss": self.loss / steps,
            "iou": self.iou / steps,
            "accuracy": 100 * self.iou / steps,
            "grad_norm": self.grad_norm / steps,
            "samples_per_second": self.steps * batch_size / seconds,
            "data_wait_fraction": self.wait_seconds / seconds,
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the meter. A run on one set has no entry for sets."""
        return {name: value for name, value in asdict(self).items() if name != "sets" or value}


def log_line(
    epoch: int, samples: int, epoch_samples: int, interval_samples: int, interval_seconds: float, meter: EpochMeter
) -> str:
    """The log line in the published format.

    `epoch` counts from 1; loss, IoU and accuracy are averages since the epoch began.
    """
    steps = max(meter.steps, 1)
    seconds_left = meter.seconds / max(samples, 1) * (epoch_samples - samples)
    return (
        f"Epoch {epoch} : {samples} / {epoch_samples} samples , "
        f"time for last {interval_samples} samples : {_clock(interval_seconds)} , "
        f"time since beginning : {_clock(meter.seconds)} , "
        f"time left to finish epoch : {_clock(seconds_left)} , "
        f"Loss/total: {meter.loss / steps:.5f}, IoU: {meter.iou / steps:.5f}, Accuracy: {100 * meter.iou / steps:.2f}%"
    )


def summary_line(epoch: int, epochs: int, summary: dict[str, float], seconds: float) -> str:
    """The log line at an epoch's end. `summary`: from `EpochMeter.averages`."""
    return (
        f"Epoch {epoch} of {epochs} done in {_clock(seconds)} : loss {summary['loss']:.5f}, "
        f"IoU {summary['iou']:.5f}, accuracy {summary['accuracy']:.2f}%, "
        f"{summary['samples_per_second']:.1f} samples/s, waited for data {100 * summary['data_wait_fraction']:.1f}% "
        "of the time"
    )


def sets_line(epoch: int, names: Iterable[str], summary: dict[str, float]) -> str:
    """The log line at an epoch's end about each training set. `summary`: also from `EpochMeter.of_sets`."""
    parts = []
    for name in names:
        numbers = ""
        if f"loss_{name}" in summary:
            numbers = f" (loss {summary[f'loss_{name}']:.5f}, IoU {summary[f'iou_{name}']:.5f})"
        parts.append(f"{summary[f'samples_{name}']:,} of {name}{numbers}")
    return f"Epoch {epoch} : samples {', '.join(parts)}"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))
