"""A program for a test: trains on a cluster of two nodes, one of which is announced to go and then goes.

python -m tests.training.preemption CONFIG RUN_FOLDER STEP_LINE
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors

from tests.training.runs import job

SECONDS_TO_GO = 12


def main(config: str, run: Path, line: str) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:  # the usual port may be another cluster's
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):  # each has room for the worker and the data
        cluster.add_node(num_cpus=2)
    ray.init(cluster.address, log_to_driver=False)
    threading.Thread(target=take_a_node_away, args=(cluster, run / "train.log", line), daemon=True).start()
    try:
        return job.main(["--config", config, f"RUN.NAME={run.name}"])
    finally:
        ray.shutdown()
        cluster.shutdown()


def take_a_node_away(cluster: Cluster, log: Path, line: str) -> None:
    """When the log shows the line: tells Ray that the worker's node will go, as clouds do, and later ends the node."""
    while not log.exists() or line not in log.read_text():
        time.sleep(0.02)
    (worker,) = list_actors(filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")])
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address]
    command += ["--node-id", worker["node_id"], "--deadline-remaining-seconds", str(SECONDS_TO_GO)]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
    announced = time.monotonic()
    subprocess.run(command, check=True)
    time.sleep(max(0.0, SECONDS_TO_GO - (time.monotonic() - announced)))
    (node,) = [node for node in cluster.worker_nodes if node.node_id == worker["node_id"]]
    cluster.remove_node(node, allow_graceful=False)
    print("the node is gone", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
