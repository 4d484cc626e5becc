"""Tells Ray how large a running cluster may grow.

python node_types.py CONFIG     a launcher's file, or a RayCluster as `kubectl get raycluster NAME -o yaml` writes it

Run it on the head, with the cluster's token; `-` reads standard input. Before it starts, a job asks Ray how large the
cluster may become, but the autoscalers of Ray 2.60 do not tell Ray. On an idle cluster, a job would find only a head
without CPUs and GPUs, and would be refused. Run it again after a restart of the head.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ray
import yaml
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig


def main(path: str) -> None:
    config = yaml.safe_load(sys.stdin if path == "-" else Path(path).read_text("utf-8"))
    if config.get("kind") == "RayCluster":
        config = _derive_autoscaling_config_from_ray_cr(config)
    address = canonicalize_bootstrap_address_or_die(None)
    key, namespace = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE
    value = node_groups(config).SerializeToString()
    ray._raylet.GcsClient(address).internal_kv_put(key.encode(), value, True, namespace.encode())


def node_groups(config: dict[str, Any]) -> ClusterConfig:
    """The node types in the form that Ray expects."""
    return ClusterConfig(
        node_group_configs=[
            NodeGroupConfig(
                name=name,
                min_count=node.get("min_workers", 0),
                max_count=node.get("max_workers", config["max_workers"]),
                resources={key: int(value) for key, value in node["resources"].items()},
            )
            for name, node in config["available_node_types"].items()
            if name != config["head_node_type"]
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1])
