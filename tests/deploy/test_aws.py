"""cluster.yaml on AWS, which moto plays: what Ray asks of it, spot nodes, and their end."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler.node_launch_exception import NodeLaunchException

from tests.deploy.conftest import Recorder
from tests.deploy.files import REPOSITORY, launcher_config, read


class Aws:
    """AWS's answers by moto, and a cluster that is configured as `ray up cluster.yaml` does it."""

    def __init__(self) -> None:
        self.ec2 = boto3.resource("ec2", "us-east-1")
        vpc = next(iter(self.ec2.vpcs.all()))
        group = self.ec2.create_security_group(GroupName="ours", Description="SSH from home", VpcId=vpc.id)
        for profile in ("CHANGE-ME-head", "CHANGE-ME-worker"):
            boto3.client("iam", "us-east-1").create_instance_profile(InstanceProfileName=profile)
        image = self.ec2.meta.client.describe_images()["Images"][0]["ImageId"]
        text = read("cluster.yaml").replace("sg-CHANGE-ME", group.id).replace("ami-CHANGE-ME", image)
        config = launcher_config("cluster.yaml", text)
        provider_class = _get_node_provider_cls(config["provider"])
        self.groups_before = [group.id for group in self.ec2.security_groups.all()]
        self.config = provider_class.bootstrap_config(config)
        self.provider = provider_class(self.config["provider"], self.config["cluster_name"])

    def launch(self, node_type: str) -> Any:
        """The instance of a new node."""
        config = self.config["available_node_types"][node_type]["node_config"]
        (instance,) = self.provider.create_node(config, {"ray-node-name": node_type}, 1)
        return self.ec2.Instance(instance)

    def refuse(self, code: str, spot: bool) -> None:
        """From now on AWS has no spot capacity, or fails on on-demand instances."""

        def answer(params: dict[str, Any], **_: Any) -> None:
            if spot == ("InstanceMarketOptions.MarketType" in params["body"]):
                raise ClientError({"Error": {"Code": code, "Message": "by the test"}}, "RunInstances")

        self.provider.ec2_fail_fast.meta.client.meta.events.register("before-call.ec2.RunInstances", answer)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    monkeypatch.syspath_prepend(REPOSITORY / "deploy")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        for cache in (client_cache, resource_cache):  # of Ray: connections of an earlier test see an earlier AWS
            cache.cache_clear()
        yield Aws()


class TestAws:
    def test_ray_opens_nothing_of_its_own(self, aws: Aws) -> None:
        instance = aws.launch("data")
        assert [group.id for group in aws.ec2.security_groups.all()] == aws.groups_before
        assert [group["GroupName"] for group in instance.security_groups] == ["ours"]

    def test_nodes_have_what_their_types_say(self, aws: Aws) -> None:
        types = {name: node for name, node in aws.config["available_node_types"].items() if name != "head"}
        names = [node["node_config"]["InstanceType"] for node in types.values()]
        answer = aws.ec2.meta.client.describe_instance_types(InstanceTypes=names)
        instances = {instance["InstanceType"]: instance for instance in answer["InstanceTypes"]}
        for node in types.values():
            instance = instances[node["node_config"]["InstanceType"]]
            gpus = sum(gpu["Count"] for gpu in instance.get("GpuInfo", {}).get("Gpus", []))
            assert node["resources"] == {"CPU": instance["VCpuInfo"]["DefaultVCpus"]} | ({"GPU": gpus} if gpus else {})

    def test_the_head_has_nothing_to_give_to_tasks(self, aws: Aws) -> None:
        assert aws.config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}

    def test_the_head_is_on_demand(self, aws: Aws) -> None:
        assert aws.launch("head").instance_lifecycle != "spot"

    @pytest.mark.parametrize("node_type", ["gpu-1", "gpu-4", "gpu-8", "data"])
    def test_workers_are_spot(self, aws: Aws, node_type: str) -> None:
        assert aws.launch(node_type).instance_lifecycle == "spot"

    @pytest.mark.parametrize("answer", ["InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded"])
    def test_a_worker_is_on_demand_where_there_is_no_spot_capacity(self, aws: Aws, answer: str) -> None:
        aws.refuse(answer, spot=True)
        instance = aws.launch("gpu-1")
        assert (instance.instance_type, instance.instance_lifecycle) == ("g5.2xlarge", None)

    def test_no_money_is_spent_on_demand_because_of_other_errors(self, aws: Aws) -> None:
        aws.refuse("UnauthorizedOperation", spot=True)
        with pytest.raises(NodeLaunchException, match="UnauthorizedOperation"):
            aws.launch("gpu-1")

    def test_ray_hears_why_there_is_no_node_at_all(self, aws: Aws) -> None:
        aws.refuse("InsufficientInstanceCapacity", spot=True)
        aws.refuse("VcpuLimitExceeded", spot=False)
        with pytest.raises(NodeLaunchException, match="VcpuLimitExceeded"):
            aws.launch("gpu-1")

    def test_disks_are_encrypted_and_go_with_the_node(self, aws: Aws) -> None:
        for node in aws.config["available_node_types"].values():
            for disk in node["node_config"]["BlockDeviceMappings"]:
                assert disk["Ebs"]["Encrypted"] and disk["Ebs"]["DeleteOnTermination"]


class Metadata(BaseHTTPRequestHandler):
    """An instance's metadata, of which spot_notice.sh asks for two."""

    announced = False
    asked = threading.Semaphore(0)
    """Goes up with every question whether the node is taken."""

    def do_PUT(self) -> None:
        self.answer(200, "session")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] == "session" and self.path.endswith("/spot/instance-action"):
            self.answer(200 if self.announced else 404, '{"action": "terminate"}')
            self.asked.release()

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


class TestSpotNotice:
    @pytest.fixture
    def node(self, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
        """A worker node that AWS has not announced to take, and whose script of spot_notice.sh runs."""
        monkeypatch.setattr(Metadata, "asked", threading.Semaphore(0))
        server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        metadata = f"http://127.0.0.1:{server.server_port}"
        environment = recorder.environment | {"SPOT_NOTICE_METADATA": metadata, "SPOT_NOTICE_PAUSE": "0.05"}
        (recorder.calls.parent / "deploy").symlink_to(REPOSITORY / "deploy")
        (start,) = [it for it in launcher_config("cluster.yaml")["worker_start_ray_commands"] if "spot_notice" in it]
        try:
            subprocess.run(["bash", "-c", start], env=environment, check=True)
            yield recorder
        finally:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if str(recorder.calls.parent / "deploy/spot_notice.sh") in process.cmdline():
                        process.kill()
            server.shutdown()
            server.server_close()

    def test_ray_is_told_when_aws_announces_that_it_takes_the_node(
        self, node: Recorder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Metadata, "announced", True)
        assert Metadata.asked.acquire(timeout=60)
        deadline = time.monotonic() + 60
        while not node.calls.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert node.calls.read_text().startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION")

    def test_ray_is_told_nothing_before(self, node: Recorder) -> None:
        for _ in range(3):
            assert Metadata.asked.acquire(timeout=60)
        assert not node.calls.exists()

    def test_ray_has_the_command(self) -> None:
        options = re.findall(r"--\w[\w-]+", read("deploy/spot_notice.sh").partition("ray drain-node")[2])
        ray = Path(sys.executable).with_name("ray")
        known = subprocess.run([ray, "drain-node", "--help"], capture_output=True, text=True, check=True).stdout
        assert options
        assert all(option in known for option in options)
