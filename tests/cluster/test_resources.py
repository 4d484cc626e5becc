"""How a run shares the cluster between training and making samples."""

from __future__ import annotations

from typing import Any

import pytest

from seqtrack.cluster.resources import plan_resources
from seqtrack.config import Config, ConfigError


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "workers", "expected"),
    [
        (2, 0, 1, 1, (1.0, 0.0, 1.0)),
        (2, 0, 1, 2, (0.5, 0.0, 1.0)),
        (1, 0, 1, 1, (0.5, 0.0, 0.5)),
        (2, 0, 2, 2, (0.5, 0.0, 0.5)),  # a worker on each node leaves each half of a CPU
        (4, 0, 3, 2, (1.0, 0.0, 0.666)),
        (64, 8, 4, 8, (1.0, 1.0, 1.0)),
    ],
)
def test_training_leaves_cpus_for_data(
    cpus: float, gpus: float, nodes: float, workers: int, expected: tuple[float, float, float]
) -> None:
    """CPUs and GPUs of a worker, and CPUs of a data task, some node of which always has room for one."""
    cluster = {"CPU": cpus, "GPU": gpus, "nodes": nodes}
    resources = plan_resources(Config().with_settings({"RUN.WORKERS": workers}), cluster)
    assert (resources.cpus_per_worker, resources.gpus_per_worker, resources.placement.cpus_per_task) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RUN.GPUS_PER_WORKER": 1.0}, r"1 × 1 GPUs asked for, and the cluster has 0 \(RUN.GPUS_PER_WORKER=0"),
        ({"RUN.CPUS_PER_WORKER": 2.0}, r"1 × 2 CPUs leave none of the cluster's 2 for the data pipeline"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_resources(Config().with_settings(settings), {"CPU": 2, "GPU": 0, "nodes": 1})
