"""Lets all ranks agree on when to act, and collects their values; asks whether the run's folder is still this job's."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seqtrack.runs.folder import RunFolder

SECONDS_BETWEEN_CHECKS = 1.0
"""How often a disk is asked whether the run's folder is still this job's."""


class Agreement:
    """Lets all ranks act in the same step on what one of them noticed.

    A flag that is raised in one step is seen by all ranks in the next, so that no rank waits for the answer.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._group: Any = dist.new_group(backend="gloo") if world_size > 1 else None
        self._asked: tuple[Any, Tensor] | None = None

    def exchange(self, *flags: bool) -> tuple[bool, ...]:
        """Sends this step's flags and returns which of them any rank raised in the step before.

        A single rank gets its own flags back.
        """
        if self._group is None:
            return flags
        answered, raised = self._asked, torch.tensor(flags, dtype=torch.uint8)
        self._asked = dist.all_reduce(raised, dist.ReduceOp.MAX, self._group, async_op=True), raised
        if answered is None:
            return (False,) * len(flags)
        answered[0].wait()
        return tuple(answered[1].bool().tolist())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on rank 0."""
        if self._group is None:
            return [value]
        values = [None] * self._world_size if dist.get_rank() == 0 else None
        dist.gather_object(value, values, group=self._group)
        return values or []


class OwnerCheck:
    """Why the run's folder is no longer this job's, for a loop that asks in each step; empty if it is.

    A disk is asked once a second, which takes microseconds. A store takes longer: `RaySink` asks it, beside the steps.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run, self._asked, self._reason = run, 0.0, ""

    def __call__(self) -> str:
        now = time.monotonic()
        if self._run.local and not self._reason and now - self._asked > SECONDS_BETWEEN_CHECKS:
            self._asked, self._reason = now, self._run.lost() or ""
        return self._reason
