"""Plans the resources of a run: CPUs and GPUs for its workers, a share for evaluation, the rest for its data tasks."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import ray

from seqtrack.config import Config, ConfigError
from seqtrack.data.batches import Placement

SHARE_OF_STORE = 0.25
"""Part of the object store that the blocks of unfinished data tasks may take. Ray Data stops tasks at about half."""


class Share(NamedTuple):
    """What the evaluation of a run's checkpoints takes from the cluster."""

    cpus: float
    gpus: float


class Resources(NamedTuple):
    """Resources that a run takes from the cluster."""

    cpus_per_worker: float
    gpus_per_worker: float
    placement: Placement
    """Where the data tasks run."""
    evaluation: Share | None = None
    """What the evaluation beside the training takes; None if it has to wait for the training's end."""


def usable_cpus() -> float:
    """CPUs of this machine that this process may use: a container, a job scheduler or `taskset` may limit them."""
    logging.getLogger("ray._private.utils").setLevel(logging.ERROR)  # it says that half a CPU is none
    limited = ray._private.utils.get_num_cpus(override_docker_cpu_warning=True, truncate=False)
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return min(float(limited), float(len(affinity) or limited))


def cluster_resources() -> dict[str, float]:
    """`CPU` and `GPU` of the cluster, at its largest if it can grow; `nodes`, how many nodes there are with CPUs; and
    `store`, the bytes of all their object stores."""
    present = ray.cluster_resources()
    largest = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    most = {name: max(present.get(name, 0.0), largest.get(name, 0.0)) for name in ("CPU", "GPU")}
    return most | {"nodes": float(max(nodes, 1)), "store": present.get("object_store_memory", 0.0)}


def plan_resources(config: Config, cluster: dict[str, float]) -> Resources:
    """Divides the cluster between workers and data tasks, so that they never wait for each other's CPUs.

    Raises ConfigError if the cluster is too small.
    """
    run, cpus, gpus = config.RUN, cluster["CPU"], cluster["GPU"]
    gpus_per_worker = run.GPUS_PER_WORKER if run.GPUS_PER_WORKER is not None else float(gpus > 0)
    fewest = run.MIN_WORKERS or run.WORKERS
    if fewest * gpus_per_worker > gpus:
        raise ConfigError(
            f"RUN.WORKERS {fewest} × {gpus_per_worker:g} GPUs asked for, and the cluster has {gpus:g} "
            "(RUN.GPUS_PER_WORKER=0 trains on CPUs)"
        )
    # At most half of the CPUs by default, so that the data pipeline has the other half.
    default = min(1.0, int(cpus / (2 * run.WORKERS) * 1000) / 1000)
    cpus_per_worker = run.CPUS_PER_WORKER if run.CPUS_PER_WORKER is not None else default
    left = cpus - fewest * cpus_per_worker
    if left < 0.01:
        raise ConfigError(
            f"RUN.WORKERS {fewest} × {cpus_per_worker:g} CPUs leave none of the cluster's {cpus:g} for the data "
            "pipeline (smaller RUN.CPUS_PER_WORKER or fewer RUN.WORKERS)"
        )
    # However the workers are spread, some node has this much left: a data task cannot be split over nodes.
    left_by_all = cpus - run.WORKERS * cpus_per_worker
    left = left_by_all if left_by_all > 0 else left
    share = _evaluation_share(config, left, max(gpus - run.WORKERS * gpus_per_worker, 0.0), gpus > 0)
    most_cpus = run.DATA_CPUS
    if share is not None:
        left -= share.cpus
        most_cpus = min(most_cpus or left, left)
    cpus_per_task = max(min(1.0, int(left / cluster["nodes"] * 1000) / 1000), 0.001)
    at_once = max(int(min(left, most_cpus or left) / cpus_per_task), 1)
    placement = Placement(
        cpus_per_task, most_cpus, run.DATA_LABELS, at_once, int(cluster.get("store", 0) * SHARE_OF_STORE)
    )
    return Resources(cpus_per_worker, gpus_per_worker, placement, share)


def _evaluation_share(config: Config, cpus: float, gpus: float, has_gpus: bool) -> Share | None:
    """EVAL.RESOURCES, or what is left: of `cpus`, which the training leaves to data and evaluation, and of `gpus`.

    Where a cluster has GPUs, a CPU is no place for a model. Raises ConfigError for more than there is.
    """
    if not config.EVAL.BENCHMARKS:
        return None
    wanted = config.EVAL.RESOURCES
    if wanted is not None:
        share = Share(wanted.get("CPU", min(wanted.get("GPU", 0.0), cpus / 2)), wanted.get("GPU", 0.0))
        if not any(share):
            return None
        if share.cpus > cpus - 0.01 or share.gpus > gpus:
            raise ConfigError(
                f"EVAL.RESOURCES: {share.cpus:g} CPUs and {share.gpus:g} GPUs asked for, and the training leaves "
                f"{cpus:g} CPUs, some of them for its data, and {gpus:g} GPUs ({{}} evaluates after it)"
            )
        return share
    if has_gpus:
        return Share(min(gpus // 1, cpus / 2), gpus // 1) if gpus >= 1 else None
    free = cpus - config.RUN.DATA_CPUS if config.RUN.DATA_CPUS is not None else 0.0
    return Share(free // 1, 0.0) if free >= 1 else None
