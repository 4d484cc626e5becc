"""Where a worker begins: it has its first batches made before it imports torch and timm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray
import ray.train

from seqtrack.training.job import Job

if TYPE_CHECKING:
    from seqtrack.training.loop import Ended


def run_job(settings: dict[str, Any]) -> Ended:
    """The function that Ray Train runs on each worker: see `train_worker`. `settings["job"]` refers to the Job."""
    job: Job = ray.get(settings["job"])
    new = job.resume_from is None and ray.train.get_checkpoint() is None
    # Torch and timm are imported while the first batch is made.
    batches = job.open_stream(0) if new else None

    from seqtrack.training.worker import train_worker

    return train_worker(job, batches)
