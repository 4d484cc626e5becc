"""`seqtrack doctor` on a machine where all is well, and with faults."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from seqtrack.cli import main
from seqtrack.cluster.connect import NoAnswer as StartNoAnswer
from seqtrack.config import Config, SyntheticConfig
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.storage import DataError
from seqtrack.experiments import doctor
from tests.training.runs import REPOSITORY


@pytest.fixture
def settings(tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings with which a run could start."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    tiny_settings["MLFLOW"] = {"TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(tiny_settings))
    return file


def lines(shown: str) -> dict[str, str]:
    """Name of a check -> its line."""
    return {line[3:17].strip(): line for line in shown.splitlines() if not line.startswith("   ")}


def test_a_machine_on_which_a_run_could_start(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(settings)]) == 0
    shown = lines(capsys.readouterr().out)
    assert list(shown) == [
        *("Python", "packages", "CPUs", "memory", "shared memory", "disk", "GPUs", "Ray", "MLflow", "Hub", "decoder"),
        *("jpegtran", "settings", "workers", "weights", "data", "benchmarks"),
    ]
    assert shown["data"].endswith(": 4 sequences, 120 frames")
    assert not [line for line in shown.values() if line.startswith("NO")]


CHECKS = [name for name in vars(doctor) if name.startswith("check_") and name != "check_supported"]
FAULTS = {
    "data": ("DATA.ROOT=/nowhere", "DATA.ROOT /nowhere: no such folder"),
    "disk": ("RUN.STORAGE_PATH=/proc/runs", "/proc cannot be written to"),
    "settings": ("DATA.SAMPLER_MODE=causal", "DATA.SAMPLER_MODE causal is not supported"),
    "weights": ("MODEL.WEIGHTS=/nowhere.pth", "MODEL.WEIGHTS /nowhere.pth: no such file"),
    "workers": ("RUN.GPUS_PER_WORKER=100", "100 GPUs asked for"),
}
SERVERS = {
    "MLflow": ("MLFLOW.TRACKING_URI=http://127.0.0.1:9", "MLFLOW.REQUIRED=true", "Connection refused"),
    "Hub": ("HUB.REPO_ID=me/x", "HUB.REQUIRED=true", ""),
}


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("required", [False, True])
def test_a_server_that_does_not_answer_is_a_fault_only_where_it_is_required(
    settings: Path, name: str, required: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place, needed, message = SERVERS[name]
    code = main(["doctor", "--config", str(settings), place, *([needed] if required else [])])
    shown = lines(capsys.readouterr().out)
    assert code == (1 if required else 0)
    assert shown[name].startswith("NO" if required else "- ") and message in shown[name]


def test_without_settings_only_the_machine_is_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    assert main(["doctor"]) == 0
    assert not {"settings", "workers", "weights", "data"} & lines(capsys.readouterr().out).keys()


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_other_checks_go_on(
    settings: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith("/proc"))  # root may write anywhere
    override, message = FAULTS[name]
    assert main(["doctor", "--config", str(settings), override]) == 1
    shown = lines(capsys.readouterr().out)
    assert [other for other, line in shown.items() if line.startswith("NO")] == [name]
    assert message in shown[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"), (b"<!DOCTYPE html>", "a web page")],
)
def test_a_file_of_weights_that_a_run_could_not_start_from_is_a_fault(
    settings: Path, tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    assert main(["doctor", "--config", str(settings), f"MODEL.WEIGHTS={tmp_path}/a.pth"]) == 1
    assert message in lines(capsys.readouterr().out)["weights"]


def test_what_is_odd_about_data_is_said_though_a_run_could_start(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic(tmp_path / "tree", SyntheticConfig(SEQUENCES=2, FRAMES=20, HEIGHT=96, WIDTH=128))
    (tmp_path / "tree/bird.zip").touch()
    assert main(["doctor", "--config", str(settings), f"DATA.ROOT={tmp_path}/tree"]) == 0
    said = f" 40 frames; {tmp_path}/tree: bird.zip is still to be unpacked there"
    assert lines(capsys.readouterr().out)["data"].endswith(said)


def test_an_address_of_ray_that_nobody_answers_at_is_a_fault(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main(["doctor", "--config", str(settings)]) == 1
    assert "no Ray cluster can be joined there" in lines(capsys.readouterr().out)["Ray"]


def test_a_temporary_folder_of_too_long_a_name_is_a_fault(
    settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    assert main(["doctor", "--config", str(settings)]) == 1
    assert "too long a name: Ray's sockets" in lines(capsys.readouterr().out)["Ray"]


HANGS = """
import sys, threading
from seqtrack.cli import main
from seqtrack.data.storage import DataError
from seqtrack.experiments import doctor

doctor.PATIENCE = 3.0
doctor.check_decoder = doctor.check_jpegtran = threading.Event().wait
sys.exit(main(sys.argv[1:]))
"""


def test_checks_that_hang_are_named_and_do_not_keep_the_program(settings: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, "doctor", "--config", str(settings)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    shown = lines(ended.stdout)
    assert ended.returncode == 1, "whether a run could start is not known"
    for name in ("decoder", "jpegtran"):
        assert shown[name].startswith("? ") and shown[name].endswith("no answer within 3 s")


NO_ANSWER = [
    TimeoutError("timed out"),
    subprocess.TimeoutExpired("nvidia-smi", 4),
    httpx2.ConnectTimeout(""),
    StartNoAnswer("no answer within 10 s"),
    DataError("s3://bucket/x: cannot be read (curlCode: 28, Timeout was reached)"),
]


@pytest.mark.parametrize("error", NO_ANSWER, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["Ray", "disk", "data", "MLflow", "Hub"])
def test_a_time_limit_is_no_answer_yet_and_no_fault(
    settings: Path,
    name: str,
    error: Exception,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(*_: object) -> str:
        raise error

    for other in CHECKS:
        monkeypatch.setattr(doctor, other, check if other == f"check_{name.lower()}" else lambda *_: "fine")
    words = ["doctor", "--config", str(settings), "MLFLOW.REQUIRED=true", "HUB.REQUIRED=true", "HUB.REPO_ID=me/x"]
    assert main(words) == 1
    shown = lines(capsys.readouterr().out)
    assert [other for other, line in shown.items() if line.startswith("? ")] == [name]
    assert not [line for line in shown.values() if line.startswith("NO")]


@pytest.mark.parametrize("required", [False, True])
def test_a_server_that_hangs_is_not_known_where_it_is_required_and_else_done_without(
    settings: Path, required: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in CHECKS:
        monkeypatch.setattr(doctor, other, lambda *_: "fine")
    monkeypatch.setattr(doctor, "check_mlflow", lambda *_: threading.Event().wait())
    monkeypatch.setattr(doctor, "PATIENCE", 0.4)
    assert main(["doctor", "--config", str(settings), f"MLFLOW.REQUIRED={str(required).lower()}"]) == (
        1 if required else 0
    )
    shown = lines(capsys.readouterr().out)["MLflow"]
    assert shown.startswith("? " if required else "- ") and "no answer within 0.3 s" in shown


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3)])
def test_a_check_that_raises_is_one_line(
    tiny_config: Config, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> str:
        raise error

    monkeypatch.setattr(doctor, "check_decoder", check)
    found = {finding.name: finding for finding in doctor.examine(tiny_config)}
    assert found["decoder"].fits is False and len(found) == 17


def test_colours_are_for_terminals_that_want_them(settings: Path) -> None:
    code = "import sys; from seqtrack.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "doctor", "--config", str(settings)]
    shown = {}
    for wanted in ("", "1"):
        ours, theirs = pty.openpty()
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_COLOR": wanted}
        subprocess.run(words, env=environment, stdout=theirs, check=True)
        os.close(theirs)
        shown[wanted] = os.read(ours, 1000)
        os.close(ours)
    assert b"\x1b[32mok\x1b[0m" in shown[""] and b"\x1b" not in shown["1"]
