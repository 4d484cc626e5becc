"""How a run shares the cluster between training and making samples."""

from __future__ import annotations

from typing import Any

import pytest

from seqtrack.cluster.resources import Share, plan_resources
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
        (2, 0, 1000, 1, (1.0, 0.0, 0.001)),  # some share of a CPU is always asked for
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


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "share", "data"),
    [
        ({}, 8, 0, None, None),  # data tasks take all that is free
        ({"RUN.DATA_CPUS": 4.0}, 8, 0, Share(3, 0), 4),
        ({"RUN.DATA_CPUS": 4.0}, 5, 0, None, 4),
        ({}, 16, 1, None, None),  # a CPU is no place for a model where there are GPUs
        ({"RUN.WORKERS": 2}, 16, 4, Share(2, 2), 12),
        ({"RUN.WORKERS": 2, "EVAL.RESOURCES": {"GPU": 1.0}}, 16, 4, Share(1, 1), 13),
        ({"EVAL.RESOURCES": {"CPU": 2.0}}, 8, 0, Share(2, 0), 5),
        ({"EVAL.RESOURCES": {"CPU": 2.0}, "RUN.DATA_CPUS": 3.0}, 8, 0, Share(2, 0), 3),
        ({"EVAL.RESOURCES": {}}, 16, 4, None, None),
    ],
)
def test_evaluation_takes_what_is_left_or_what_settings_say(
    settings: dict[str, Any], cpus: float, gpus: float, share: Share | None, data: float | None
) -> None:
    """The share, and the most CPUs of all data tasks."""
    config = Config().with_settings(settings | {"EVAL.BENCHMARKS": {"lasot": "/data/lasot"}})
    resources = plan_resources(config, {"CPU": cpus, "GPU": gpus, "nodes": 1})
    assert (resources.evaluation, resources.placement.most_cpus) == (share, data)


def test_without_benchmarks_nothing_is_kept_for_evaluation() -> None:
    config = Config().with_settings({"EVAL.RESOURCES": {"CPU": 2.0}})
    resources = plan_resources(config, {"CPU": 8, "GPU": 0, "nodes": 1})
    assert resources.evaluation is None and resources.placement.most_cpus is None


def test_a_share_that_leaves_nothing_for_data_is_refused() -> None:
    config = Config().with_settings({"EVAL.BENCHMARKS": {"lasot": "/x"}, "EVAL.RESOURCES": {"CPU": 7.0}})
    with pytest.raises(ConfigError, match="7 CPUs and 0 GPUs asked for, and the training leaves 7 CPUs"):
        plan_resources(config, {"CPU": 8, "GPU": 0, "nodes": 1})


@pytest.mark.parametrize("asked", [{}, None, {"CPU": 2.0}])
def test_an_elastic_run_that_begins_small_may_be_measured(asked: dict[str, float] | None) -> None:
    """Training may grow to more GPUs than there are; then none is left."""
    settings = {
        "TRAIN.BATCH_SIZE": 12,
        "RUN.WORKERS": 4,
        "RUN.MIN_WORKERS": 1,
        "EVAL.BENCHMARKS": {"lasot": "/x"},
        "EVAL.RESOURCES": asked,
    }
    resources = plan_resources(Config().with_settings(settings), {"CPU": 16, "GPU": 2, "nodes": 1})
    assert resources.evaluation == (Share(2, 0) if asked else None)


@pytest.mark.parametrize(("settings", "at_once"), [({}, 7), ({"RUN.DATA_CPUS": 2.5}, 2), ({"RUN.WORKERS": 4}, 4)])
def test_the_data_tasks_that_run_at_once_share_a_quarter_of_the_object_store(
    settings: dict[str, Any], at_once: int
) -> None:
    cluster = {"CPU": 8, "GPU": 0, "nodes": 1, "store": 4e9}
    placement = plan_resources(Config().with_settings(settings), cluster).placement
    assert (placement.at_once, placement.store_bytes) == (at_once, 10**9)
