"""Ray's autoscaler with cluster.yaml's node types and Ray's fake provider, whose nodes are processes here."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fake_cluster(address: str) -> dict[str, Any]:
    """cluster.yaml with nodes that are processes of this machine, and an idle timeout of seconds."""
    config = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    types = config["available_node_types"]
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])  # a name that the provider insists on
    for node in types.values():
        node["node_config"] = {}
    return config | {
        "provider": {
            "type": "external",  # Ray's name for it, fake_multinode, wants a file that is not in the wheel
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,  # there is nobody to talk SSH with
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "auth": {},
        "file_mounts": {},
        "idle_timeout_minutes": 0.05,
    }


class Story(NamedTuple):
    """What tests/deploy/demand.py saw."""

    by_moment: dict[str, dict[str, Any]]
    stranger: str
    """How the program ended that had another token."""

    def nodes(self, moment: str) -> list[str]:
        """Names of the node types that were there, without the head's."""
        types = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
        names = {
            (node["labels"]["seqtrack-role"], node["resources"]["CPU"], node["resources"].get("GPU", 0)): name
            for name, node in types.items()
        }
        return sorted({names[tuple(node)] for node in self.by_moment[moment]["nodes"]} - {"head"})


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: the names of Ray's sockets are below it, and limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def story(folder: Path) -> Iterator[Story]:
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = fake_cluster(address)
    (folder / "cluster.json").write_text(json.dumps(config))
    head = config["available_node_types"][FAKE_HEAD_NODE_TYPE]
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` has it
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}"]
    command += [f"--autoscaling-config={folder / 'cluster.json'}", f"--temp-dir={folder / 'ray'}"]
    command += ["--include-dashboard=false", "--dashboard-agent-listen-port=0", "--object-store-memory=100000000"]
    command += [f"--ray-client-server-port={free_port()}"]
    # The launcher says these in the environment, which the nodes of the fake provider would inherit.
    command += [f"--num-cpus={head['resources']['CPU']}", f"--num-gpus={head['resources']['GPU']}"]
    command += ["--labels", ",".join(f"{key}={value}" for key, value in head["labels"].items())]
    try:
        subprocess.run(command, env=environment, check=True, timeout=120)
        program = [sys.executable, "-m", "tests.deploy.demand", address]
        # Ray tries a token that is refused for half a minute, so both programs run at once.
        stranger = subprocess.Popen(
            program, cwd=REPOSITORY, env=environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, stderr=subprocess.PIPE
        )
        tell = [sys.executable, "deploy/node_types.py", str(folder / "cluster.json")]
        subprocess.run(tell, cwd=REPOSITORY, env=environment | {"RAY_ADDRESS": address}, check=True, timeout=120)
        told = subprocess.run(program, cwd=REPOSITORY, env=environment, check=True, timeout=300, stdout=subprocess.PIPE)
        lines = [json.loads(line) for line in told.stdout.splitlines() if line.startswith(b"{")]
        yield Story({line["when"]: line for line in lines}, stranger.communicate(timeout=120)[1].decode())
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if any(str(folder) in argument or address in argument for argument in process.cmdline()):
                    process.kill()


def test_an_empty_cluster_is_its_head(story: Story) -> None:
    assert story.nodes("empty") == []


def test_jobs_know_what_it_may_grow_to(story: Story) -> None:
    expected = {"CPU": 4 * 8 + 2 * 48 + 96 + 4 * 16, "GPU": 4 * 1 + 2 * 4 + 8}
    assert expected.items() <= story.by_moment["empty"]["may_grow_to"].items()


def test_data_tasks_bring_data_nodes_and_no_gpu_nodes(story: Story) -> None:
    assert story.nodes("data tasks") == ["data"]


def test_no_task_runs_on_the_head(story: Story) -> None:
    assert story.by_moment["data tasks"]["ran_on"] == ["data", "data"]


def test_four_workers_bring_a_node_of_four_gpus(story: Story) -> None:
    assert [node for node in story.nodes("training") if node != "data"] == ["gpu-4"]


def test_idle_nodes_go(story: Story) -> None:
    assert story.nodes("idle") == []


def test_who_has_not_the_token_is_refused(story: Story) -> None:
    assert "AuthenticationError" in story.stranger
