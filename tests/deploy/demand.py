"""A program for a test: asks a cluster for what a job asks for, and says which nodes came and went, as lines of JSON.

python -m tests.deploy.demand ADDRESS
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from seqtrack.cluster.resources import cluster_resources

LABEL = "seqtrack-role"


def main(address: str) -> None:
    ray.init(address, log_to_driver=False)
    say("empty", nodes(), may_grow_to=cluster_resources())

    # Data tasks: one that may run anywhere, one that asks for a data node.
    anywhere = ray.remote(num_cpus=1)(where)
    on_data_nodes = anywhere.options(label_selector={LABEL: "data"})
    ran_on = ray.get([anywhere.remote(), on_data_nodes.remote()])
    say("data tasks", nodes(), ran_on=ran_on)

    # A run of four workers.
    group = placement_group([{"GPU": 1, "CPU": 1}] * 4)
    ray.get(group.ready())
    say("training", nodes())

    remove_placement_group(group)
    while len(nodes()) > 1:
        time.sleep(0.2)
    say("idle", nodes())


def where() -> str:
    """The role of the node that this runs on."""
    return str(ray.get_runtime_context().get_node_labels()[LABEL])


def nodes() -> list[tuple[str, float, float]]:
    """Role, CPUs and GPUs of each node that is alive."""
    return [
        (node["Labels"][LABEL], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def say(when: str, nodes: list[tuple[str, float, float]], **facts: Any) -> None:
    print(json.dumps({"when": when, "nodes": nodes, **facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
