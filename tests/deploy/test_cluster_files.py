"""The cluster files: what Ray's launcher and bash make of them, and what all of them have in common."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from ray.autoscaler._private.util import validate_config

from tests.deploy.conftest import Recorder, write_program
from tests.deploy.files import (
    FILES,
    LAUNCHER_FILES,
    REPOSITORY,
    commands,
    groups,
    head_environment,
    launcher_config,
    ray_cluster,
    read,
    start_commands,
)


class TestEveryFile:
    @pytest.mark.parametrize("file", FILES)
    def test_nothing_listens_for_the_world(self, file: str) -> None:
        assert "0.0.0.0" not in read(file)
        assert "::/0" not in read(file)

    @pytest.mark.parametrize("file", FILES)
    def test_no_secret_is_in_it(self, file: str) -> None:
        assert not re.findall(r"AKIA\w+|[0-9a-fA-F]{24,}|-----BEGIN|hf_\w{20,}", read(file))

    @pytest.mark.parametrize("file", FILES)
    def test_a_stopped_job_has_the_time_to_write_a_checkpoint(self, file: str) -> None:
        assert int(head_environment(file)["RAY_JOB_STOP_WAIT_TIME_S"]) >= 120

    @pytest.mark.parametrize("file", FILES)
    def test_jobs_find_the_mlflow_server_on_the_head_itself(self, file: str) -> None:
        assert head_environment(file)["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
        assert re.search(r"mlflow,? server.*--host[= ]127\.0\.0\.1\b.*--port[= ]5000", read(file), re.DOTALL)

    def test_all_have_the_same_roles(self) -> None:
        aws = {
            node["labels"]["seqtrack-role"] for node in launcher_config("cluster.yaml")["available_node_types"].values()
        }
        kuberay = {group["labels"]["seqtrack-role"] for group in groups().values()}
        on_premise = set(re.findall(r"(?:seqtrack-role|role)=([a-z]+)", " ".join(commands("deploy/on_premise.yaml"))))
        assert aws == kuberay == on_premise == {"head", "train", "data"}

    def test_ray_is_of_the_version_in_the_lock(self) -> None:
        (version,) = re.findall(r"^ray==(.+)$", read("requirements.lock"), re.MULTILINE)
        assert ray_cluster()["spec"]["rayVersion"] == version
        assert re.findall(r"image: .*:(.+)$", read("deploy/kuberay.yaml"), re.MULTILINE) == [version]
        assert re.findall(r"^FROM rayproject/ray:([\d.]+)-py312$", read("deploy/Dockerfile"), re.MULTILINE) == [version]


@pytest.mark.parametrize("file", LAUNCHER_FILES)
class TestLauncher:
    def test_ray_accepts_the_file(self, file: str) -> None:
        validate_config(launcher_config(file))

    def test_bash_understands_the_commands(self, file: str) -> None:
        for command in commands(file):
            assert subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True).stderr == b"", command

    def test_every_ray_process_asks_for_the_token(self, file: str) -> None:
        for command in start_commands(file).values():
            exported, _, start = command.partition("ray start")
            assert re.search(r"\bexport\b.*\bRAY_AUTH_MODE=token\b", exported) and start

    def test_the_token_comes_from_the_laptop_and_is_readable_by_one_user(self, file: str) -> None:
        config = yaml.safe_load(read(file))
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        assert config["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"

    def test_what_nodes_are_given_exists(self, file: str) -> None:
        for source in yaml.safe_load(read(file))["file_mounts"].values():
            assert source.startswith("~") or (REPOSITORY / source).exists(), source

    def test_what_commands_use_is_given_to_nodes(self, file: str) -> None:
        given = yaml.safe_load(read(file))["file_mounts"]
        used = set(re.findall(r"~/[\w./-]+\.(?:lock|sh|py)\b", " ".join(commands(file))))
        assert used
        for path in used:
            mount = next(mount for mount in given if path == mount or path.startswith(f"{mount}/"))
            assert (REPOSITORY / (given[mount] + path.removeprefix(mount))).is_file(), path

    def test_the_lock_is_what_is_installed(self, file: str) -> None:
        (install,) = [command for command in commands(file) if "pip install" in command]
        lock = install.rpartition("-r ")[2]
        assert yaml.safe_load(read(file))["file_mounts"][lock] == "requirements.lock"


class TestOnPremise:
    @pytest.mark.parametrize(("driver", "role"), [("exit 0", "train"), ("exit 9", "data")])
    def test_a_machine_says_what_it_is_for(self, recorder: Recorder, driver: str, role: str) -> None:
        write_program(recorder.programs / "nvidia-smi", driver)
        command = start_commands("deploy/on_premise.yaml")["worker"]
        environment = recorder.environment | {"RAY_HEAD_IP": "192.0.2.10"}
        subprocess.run(["bash", "-c", command], env=environment, check=True)
        assert recorder.calls.read_text().split() == [
            *("start", "--address=192.0.2.10:6379", f"--labels=seqtrack-role={role}")
        ]

    def test_the_head_has_nothing_to_give_to_tasks(self) -> None:
        assert "--num-cpus=0 --num-gpus=0" in start_commands("deploy/on_premise.yaml")["head"]

    def test_its_addresses_are_nobodys(self) -> None:
        provider = yaml.safe_load(read("deploy/on_premise.yaml"))["provider"]
        assert all(address.startswith("192.0.2.") for address in [provider["head_ip"], *provider["worker_ips"]])
