"""kuberay.yaml: what KubeRay, Kubernetes and Ray's autoscaler make of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config

from tests.deploy.files import groups, launcher_config, ray_cluster, read


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = {"type": "object"}  # checked by Kubernetes' own schema
GROUP = {"rayStartParams": TEXTS, "labels": TEXTS, "resources": TEXTS, "template": POD}
RAY_CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["token", "disabled"]}, "secretName": TEXT}),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": closed(
            {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": NUMBER,
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            }
        ),
        "headGroupSpec": closed(
            {**GROUP, "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}}, "rayStartParams", "template"
        ),
        "workerGroupSpecs": {
            "type": "array",
            "items": closed(
                {
                    **GROUP,
                    "groupName": TEXT,
                    "replicas": NUMBER,
                    "minReplicas": NUMBER,
                    "maxReplicas": NUMBER,
                    "idleTimeoutSeconds": NUMBER,
                    "numOfHosts": NUMBER,
                },
                *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            ),
        },
    },
    *("headGroupSpec", "workerGroupSpecs", "rayVersion"),
)
"""The fields of KubeRay's RayClusterSpec (1.5.1 to 1.7) that are of use here: a field of another name is a mistake."""


class TestKubeRay:
    def test_kuberay_knows_the_fields(self) -> None:
        cluster = ray_cluster()
        assert (cluster["apiVersion"], cluster.keys()) == ("ray.io/v1", {"apiVersion", "kind", "metadata", "spec"})
        jsonschema.validate(cluster["spec"], RAY_CLUSTER)

    def test_the_whole_file_is_as_kuberays_own_schema_has_it(self) -> None:
        file = os.environ.get("KUBERAY_CRD")
        if not file:
            pytest.skip("no KubeRay schema (KUBERAY_CRD names KubeRay's ray.io_rayclusters.yaml)")
        versions = yaml.safe_load(Path(file).read_text())["spec"]["versions"]
        (schema,) = [it["schema"]["openAPIV3Schema"] for it in versions if it["name"] == "v1"]
        jsonschema.validate(ray_cluster(), without_unknown_fields(schema))

    @pytest.mark.parametrize("group", groups())
    def test_kubernetes_accepts_the_pods(self, group: str) -> None:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": groups()[group]["template"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)

    def test_kubernetes_accepts_the_volume(self) -> None:
        volume, _ = yaml.safe_load_all(read("deploy/kuberay.yaml"))
        kubernetes_validate.validate(volume, "1.33", strict=True)

    def test_rays_autoscaler_sees_the_groups_as_the_node_types_of_aws(self) -> None:
        cluster = ray_cluster()
        cluster["metadata"]["namespace"] = "default"
        config = _derive_autoscaling_config_from_ray_cr(cluster)
        validate_config(config)
        kuberay, aws = config["available_node_types"], launcher_config("cluster.yaml")["available_node_types"]
        kuberay["head"] = kuberay.pop("headgroup")
        assert kuberay.keys() == aws.keys()
        for name, node in aws.items():
            for key in ("labels", "min_workers", "max_workers"):
                assert kuberay[name][key] == node[key], name
            assert kuberay[name]["resources"].get("GPU", 0) == node["resources"].get("GPU", 0), name
        assert kuberay["head"]["resources"]["CPU"] == 0

    def test_the_token_is_asked_for(self) -> None:
        assert ray_cluster()["spec"]["authOptions"] == {"mode": "token"}

    def test_it_is_reachable_from_within_the_cluster_only(self) -> None:
        assert groups()["head"]["serviceType"] == "ClusterIP"
        assert {document["kind"] for document in yaml.safe_load_all(read("deploy/kuberay.yaml"))} == {
            "PersistentVolumeClaim",
            "RayCluster",
        }


def without_unknown_fields(schema: Any) -> Any:
    """The schema, refusing fields that Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [without_unknown_fields(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    schema = {key: without_unknown_fields(value) for key, value in schema.items()}
    is_closed = schema.get("type") == "object" and "properties" in schema and not open_ended
    return schema | ({"additionalProperties": False} if is_closed else {})
