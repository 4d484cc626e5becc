"""The cluster files, read for tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

REPOSITORY = Path(__file__).parents[2]
LAUNCHER_FILES = ("cluster.yaml", "deploy/on_premise.yaml")
FILES = (*LAUNCHER_FILES, "deploy/kuberay.yaml")


def read(file: str) -> str:
    return (REPOSITORY / file).read_text()


def launcher_config(file: str, text: str | None = None) -> dict[str, Any]:
    """The file with Ray's defaults, as `ray up` makes it before it talks to anybody."""
    return prepare_config(yaml.safe_load(text or read(file)))


def start_commands(file: str) -> dict[str, str]:
    """The command that starts Ray, of the head and of a worker."""
    config = yaml.safe_load(read(file))
    return {
        node: next(command for command in config[f"{node}_start_ray_commands"] if "ray start" in command)
        for node in ("head", "worker")
    }


def commands(file: str) -> list[str]:
    config = yaml.safe_load(read(file))
    return [command for key, value in config.items() if key.endswith("_commands") for command in value]


def ray_cluster() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(read("deploy/kuberay.yaml")))
    (cluster,) = [document for document in documents if document["kind"] == "RayCluster"]
    return cluster


def groups() -> dict[str, dict[str, Any]]:
    spec = ray_cluster()["spec"]
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def head_environment(file: str) -> dict[str, str]:
    """What jobs find on the head."""
    if file in LAUNCHER_FILES:
        return dict(re.findall(r"(\w+)=(\S+)", start_commands(file)["head"].partition(";")[0]))
    return {entry["name"]: entry["value"] for entry in groups()["head"]["template"]["spec"]["containers"][0]["env"]}
