"""Compiled blocks. What is compiled is compiled once for all tests of this file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtrack.config import Config, parse_config
from seqtrack.model.compile import compile_blocks, why_no_compiler
from seqtrack.model.seqtrack import build_model
from tests.settings import make_tiny_settings
from tests.training.loops import checkpoint_of, named, start_together, train
from tests.training.runs import assert_same_bits, step_metrics

CPU = torch.device("cpu")
LAST = "checkpoint_epoch_0002"
STEPS = 50
COMPILED = {"TRAIN.COMPILE": True}


@pytest.fixture(scope="module")
def settings(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if reason := why_no_compiler(CPU):
        pytest.skip(f"torch cannot compile here: {reason}")
    settings = make_tiny_settings(lasot_root, tmp_path_factory.mktemp("compiled"))
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = STEPS // 2 * settings["TRAIN"]["BATCH_SIZE"]
    return settings


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any]) -> Iterator[Path]:
    """The folder of the runs `compiled` and `plain`."""
    torch.compiler.reset()  # what earlier tests compiled
    torch._dynamo.utils.counters.clear()
    train(named(settings, "compiled", COMPILED))
    train(named(settings, "plain"))
    yield Path(settings["RUN"]["STORAGE_PATH"])


def continue_compiled(rank: int, settings: dict[str, Any]) -> None:
    start = checkpoint_of(named(settings, "compiled"), "checkpoint_epoch_0001")
    train(named(settings, "continued", COMPILED), start)


def test_a_compiled_run_continues_bit_for_bit_in_another_process(runs: Path, settings: dict[str, Any]) -> None:
    start_together(continue_compiled, (settings,), 1)
    assert_same_bits(runs / "continued", runs / "compiled", LAST)


def test_compiled_steps_compute_what_others_do_to_rounding(runs: Path) -> None:
    ours, theirs = (step_metrics(runs / name, LAST) for name in ("compiled", "plain"))
    assert len(ours) == STEPS
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert not torch.equal(ours, theirs), "nothing was compiled"


def test_equal_blocks_share_their_code_and_nothing_is_compiled_twice(runs: Path) -> None:
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 3, "one of the compiler's trial, one of the encoder's blocks, one of the decoder's layer"


def test_without_a_compiler_the_log_says_so_and_nothing_is_compiled(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()  # it forgets that the trial was compiled
    model = build_model(tiny_config)
    with torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        assert not compile_blocks(model, CPU)
    assert all(module._compiled_call_impl is None for module in model.modules())
    (said,) = (record.message for record in caplog.records if record.name == "seqtrack.model")
    assert "TRAIN.COMPILE: torch cannot compile for cpu here, so nothing is compiled" in said
    assert "No working C++ compiler" in said


def test_continuing_compiled_what_was_not_compiled_is_a_change(tiny_config: Config) -> None:
    stored = tiny_config.model_dump(mode="json")
    del stored["TRAIN"]["COMPILE"]  # as in checkpoints that were written before there was the setting
    compiled = tiny_config.with_settings(COMPILED)
    assert compiled.changed_settings(parse_config(stored, "meta.json")) == {"TRAIN.COMPILE": "True, not False"}
