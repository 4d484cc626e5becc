"""benchmarks/gpu.py on a machine without a GPU."""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import gpu_exact
from benchmarks.gpu import checks, table
from benchmarks.gpu_bench import COMPILED, SHARES, Bench, Row, attempt
from benchmarks.gpu_copies import read_events
from benchmarks.gpu_exact import _compare_runs
from benchmarks.gpu_run import Check, Outcome, run
from seqtrack.config import load_config

REPOSITORY = Path(__file__).parents[2]
UNNEEDED = ("ray", "mlflow", "av", "jinja2", "matplotlib", "optuna", "psutil", "shtab")
"""Packages that this project depends on and a GPU machine may lack."""
CPU = Bench(torch.device("cpu"), compiles=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program writes on a machine that lacks what it does not need."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, on which the program takes minutes")
    folder = tmp_path_factory.mktemp("without")
    for name in UNNEEDED:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is imported', name='{name}')")
    path = os.pathsep.join(filter(None, [str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "60", "--output", str(folder / "gpu.json")]
    ended = subprocess.run(command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert ended.returncode == 0, ended.stdout.decode() + ended.stderr.decode()
    read: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return read


@pytest.mark.parametrize("name", [check.name for check in checks(on_gpu=False)])
def test_every_check_runs_on_a_cpu_without_ray_and_mlflow(results: dict[str, Any], name: str) -> None:
    (outcome,) = [outcome for outcome in results["checks"] if outcome["name"] == name]
    assert outcome["result"] == "passed"
    assert outcome["rows"]


def test_the_machine_is_in_the_results(results: dict[str, Any]) -> None:
    assert results["machine"]["device"] == "cpu"
    assert results["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("check", checks(on_gpu=True), ids=lambda check: check.name)
def test_the_checks_of_a_gpu_exist(check: Check) -> None:
    assert pkgutil.resolve_name(check.function).__doc__


@pytest.mark.parametrize("recipe", SHARES)
def test_a_gpu_trains_the_published_share_of_a_recipe(recipe: str) -> None:
    config = Bench(torch.device("cuda"), compiles=True).config(recipe, f"bf16{COMPILED}")
    assert config.TRAIN.BATCH_SIZE * 8 == load_config(f"seqtrack_{recipe}").TRAIN.BATCH_SIZE
    assert (config.TRAIN.PRECISION, config.TRAIN.COMPILE) == ("bf16", True)


def raises(bench: Bench) -> Iterator[Row]:
    """It raises."""
    yield {"number": 1}
    raise ValueError("wrong")


def dies(bench: Bench) -> Iterator[Row]:
    """It dies."""
    yield {"number": 1}
    os._exit(3)


def hangs(bench: Bench) -> Iterator[Row]:
    """It hangs."""
    yield {"number": 1}
    time.sleep(600)


@pytest.fixture(scope="module")
def start() -> Any:
    multiprocessing.set_forkserver_preload(["tests.benchmarks.test_gpu"])

    def start(function: str, limit: float = 120) -> Outcome:
        return run(Check("check", f"tests.benchmarks.test_gpu:{function}", 1), False, limit)

    return start


def test_a_check_that_raises_is_reported_with_what_it_had_measured(start: Any) -> None:
    outcome = start("raises")
    assert (outcome.result, outcome.error, outcome.rows) == ("error", "ValueError: wrong", [{"number": 1}])
    assert outcome.traceback[-1] == "ValueError: wrong"


def test_a_check_whose_process_dies_is_reported(start: Any) -> None:
    outcome = start("dies")
    assert (outcome.result, outcome.error) == ("error", "its process died (exit code 3)")


def test_a_check_that_hangs_is_stopped(start: Any) -> None:
    outcome = start("hangs", 2)
    assert (outcome.result, outcome.error[:15]) == ("error", "stopped after 2")


def test_a_line_that_cannot_be_measured_does_not_end_its_check() -> None:
    row = attempt({"way": "bf16"}, lambda: {"share": 1 / 0})
    assert (row["way"], row["error"]) == ("bf16", "ZeroDivisionError: division by zero")


def test_a_line_that_needs_too_much_memory_says_so() -> None:
    def measure() -> Row:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert attempt({"batch": 128}, measure) == {"batch": 128, "note": "does not fit into the memory"}


def test_a_training_that_does_not_go_on_exactly_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_exact, "load_generators", lambda folder, rank: False)
    torch.set_num_threads(1)
    row = _compare_runs(CPU, "fp32", {})
    assert (row["same bits twice"], row["same bits resumed"], row["ok"]) == (True, False, False)
    assert row["first step that differs"] == (None, gpu_exact.STEPS // 2 + 1)


def test_the_profile_says_what_the_device_waits_for() -> None:
    def event(name: str, begin: float, end: float, cuda: bool = True, annotation: bool = False) -> Any:
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=begin, end=end),
            device_type=DeviceType.CUDA if cuda else DeviceType.CPU,
            is_user_annotation=annotation,
        )

    row = read_events(
        [
            event("gemm", 0, 30),
            event("softmax", 20, 40),
            event("adamw", 60, 100),
            event("Memcpy HtoD (Pinned -> Device)", 30, 70),
            event("Memcpy DtoH (Device -> Pageable)", 45, 50),
            event("Optimizer.step#AdamW.step", 0, 100, annotation=True),
            event("cudaStreamSynchronize", 0, 100, cuda=False),
            event("cudaLaunchKernel", 0, 100, cuda=False),
        ]
    )
    assert row["idle share of the device"] == pytest.approx(0.2)
    assert row["hidden share of copies"] == pytest.approx(0.5)
    assert row["ms of copies a step"] == pytest.approx(0.04 / 5)
    assert row["in 5 steps"] == "1× Memcpy HtoD (Pinned -> Device), 1× cudaStreamSynchronize"


def test_the_table_has_a_column_for_whatever_any_line_has() -> None:
    rows = [{"way": "fp32", "ok": True}, {"way": "bf16", "ms": 1234.5, "traceback": ["…"]}]
    assert table(rows) == "| way | ok | ms |\n| --- | --- | --- |\n| fp32 | yes |  |\n| bf16 |  | 1,234 |"
