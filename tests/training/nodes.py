"""A program for tests: trains on a cluster whose nodes come and go meanwhile.

python -m tests.training.nodes RUN_FOLDER ARGUMENTS_OF_TRAIN.PY…
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_tasks

from tests.training.runs import job

SECONDS_TO_GO = 8
TRAIN, DATA = ({"seqtrack-role": role} for role in ("train", "data"))


@dataclass
class Stage:
    cluster: Cluster
    log: Path
    training: Future[int]

    def await_line(self, line: str, times: int = 1) -> None:
        while not self.log.exists() or self.log.read_text().count(line) < times:
            assert not self.training.done(), f"training ended before {line!r}"
            time.sleep(0.02)

    def worker_node(self) -> str:
        """The id of a node that has a training worker."""
        alive = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
        return str(list_actors(self.cluster.address, filters=alive)[0]["node_id"])

    def data_nodes(self) -> Counter[str]:
        """How many blocks of samples each node has made, by its id."""
        done = [("name", "=", "ReadSteps"), ("state", "=", "FINISHED")]
        return Counter(task["node_id"] for task in list_tasks(self.cluster.address, filters=done, limit=1000))

    def remove(self, node_id: str) -> None:
        (node,) = [node for node in self.cluster.worker_nodes if node.node_id == node_id]
        self.cluster.remove_node(node, allow_graceful=False)


def come_and_go(stage: Stage) -> None:
    """Removes a training node after an announcement, as clouds do; then another one without; then the only node that
    is labelled for data."""
    (data_node,) = {node["NodeID"] for node in ray.nodes() if node["Labels"].items() >= DATA.items()}
    stage.await_line("Epoch 1 : 200 /")
    node = stage.worker_node()
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", stage.cluster.address]
    command += ["--node-id", node, "--deadline-remaining-seconds", str(SECONDS_TO_GO)]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken away"]
    announced = time.monotonic()
    subprocess.run(command, check=True)
    stage.await_line("Preemption : ")
    time.sleep(max(0.0, SECONDS_TO_GO - (time.monotonic() - announced)))
    stage.remove(node)
    print("the announced node is gone", flush=True)
    stage.cluster.add_node(num_cpus=2, labels=TRAIN)
    stage.await_line("Restored")
    stage.await_line("Epoch 1 : 1200 /")
    made = stage.data_nodes()
    print(f"{made[data_node]} of {made.total()} blocks of samples were made on the data node", flush=True)
    stage.remove(stage.worker_node())
    print("the second node is gone", flush=True)
    stage.await_line("Restored", times=2)
    stage.await_line("Epoch 1 : 1800 /")
    stage.remove(data_node)
    print("the data node is gone", flush=True)


def main(run: Path, arguments: list[str]) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:  # the usual port may be another cluster's
        port = free.getsockname()[1]
    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):  # each has room for the worker and the data
        cluster.add_node(num_cpus=2, labels=TRAIN)
    cluster.add_node(num_cpus=2, labels=DATA)
    ray.init(cluster.address, log_to_driver=False)
    # Nodes can be added in the main thread only.
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(job.main, [*arguments, f"RUN.NAME={run.name}"])
        come_and_go(Stage(cluster, run / "train.log", training))
    ray.shutdown()
    cluster.shutdown()
    return training.result()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
