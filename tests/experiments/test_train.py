"""What ends a training before a worker starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.runs import assert_refused, job, write_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("DATA.ROOT=/nowhere/lasot", "DATA.ROOT /nowhere/lasot: no such folder"),
        ("RUN.GPUS_PER_WORKER=1", "GPUs asked for, and the cluster has 0"),
        ("RUN.STORAGE_PATH=/dev/null/runs", "RUN.STORAGE_PATH /dev/null/runs: cannot be written"),
    ],
)
def test_what_data_and_cluster_do_not_have_gets_one_line_and_exit_code_2(
    cluster: None,
    tiny_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    assert_refused(job, ["--config", write_config(tiny_settings, tmp_path), override], message, capsys)
    assert not (tmp_path / "runs").exists(), "nothing was begun"
