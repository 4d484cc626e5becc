"""`seqtrack doctor` on a machine where all is well, and with faults."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqtrack.cli import main
from seqtrack.experiments import doctor


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
        *("Python", "packages", "CPUs", "memory", "shared memory", "disk", "GPUs", "Ray", "MLflow", "Hub", "data"),
        *("decoder", "jpegtran"),
    ]
    assert shown["data"].endswith(": 4 sequences, 120 frames")
    assert not [line for line in shown.values() if line.startswith("NO")]


FAULTS = {
    "data": ("DATA.ROOT=/nowhere", "DATA.ROOT /nowhere: no such folder"),
    "disk": ("RUN.STORAGE_PATH=/proc/runs", "/proc cannot be written to"),
    "MLflow": ("MLFLOW.TRACKING_URI=http://127.0.0.1:9", "Connection refused"),
    "Hub": ("HUB.REPO_ID=me/x", ""),
    "GPUs": ("RUN.GPUS_PER_WORKER=1", "there is no GPU"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_other_checks_go_on(
    settings: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("os.access", lambda path, mode: not str(path).startswith("/proc"))  # root may write anywhere
    override, message = FAULTS[name]
    assert main(["doctor", "--config", str(settings), override]) == 1
    shown = lines(capsys.readouterr().out)
    assert [other for other, line in shown.items() if line.startswith("NO")] == [name]
    assert message in shown[name]


def test_an_address_of_ray_that_nobody_answers_at_is_a_fault(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert main(["doctor", "--config", str(settings)]) == 1
    assert "no Ray cluster answers there" in lines(capsys.readouterr().out)["Ray"]


def test_a_temporary_folder_of_too_long_a_name_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    with pytest.raises(doctor.Unfit, match="too long a name for Ray's sockets"):
        doctor.check_ray()


def test_a_check_that_hangs_is_named_for_it(tiny_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    monkeypatch.setattr(doctor, "check_decoder", lambda: time.sleep(1))
    found = {finding.name: finding for finding in doctor.examine(tiny_config)}
    assert found["decoder"] == doctor.Finding("decoder", False, "no answer within 0.2 s")
