"""With TRAIN.SLOTS, a run's bits do not depend on the number of workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from seqtrack.config import ConfigError, parse_config
from tests.folders import stored_at
from tests.settings import make_tiny_settings
from tests.training import slot_group
from tests.training.loops import named, start_together, train
from tests.training.runs import WorkerKiller, assert_same_bits, job, records, write_config
from tests.training.slot_group import SLOTS, VARIANTS, slot_values

LAST = "checkpoint_epoch_0003"


@pytest.fixture(scope="module")
def group(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of eight processes (`slot_group.py`)."""
    folder = tmp_path_factory.mktemp("slots")
    settings = make_tiny_settings(lasot_root, folder / "runs")
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    start_together(slot_group.run, (settings, str(folder)), SLOTS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SLOTS)]


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_the_sum_is_that_of_one_tree_on_every_worker(group: list[dict[str, Any]], workers: int) -> None:
    a, b, c, d, e, f, g, h = map(slot_values, range(SLOTS))
    expected = ((a + b) + (c + d)) + ((e + f) + (g + h))
    assert not torch.equal(expected, a + b + c + d + e + f + g + h), "these values could be added in any order"
    for rank in range(workers):
        assert torch.equal(group[rank][f"{workers} sum"], expected)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("workers", [2, 4])
def test_training_has_the_same_bits_on_any_number_of_workers(
    group: list[dict[str, Any]], variant: str, workers: int
) -> None:
    """Compares every step's loss, IoU and gradient norm, and the final weights and optimizer, with dropout on."""
    for rank in range(workers):
        assert group[rank][f"{workers} {variant}"] == group[0][f"1 {variant}"]


def test_the_variants_are_different_trainings(group: list[dict[str, Any]]) -> None:
    digests = {name: group[0][f"1 {name}"][1] for name in VARIANTS}
    assert digests["activation-checkpointing"] == digests["dropout"], "recomputing drew other random numbers"
    assert len(set(digests.values())) == len(VARIANTS) - 1


def test_losses_are_those_of_data_parallel_training(group: list[dict[str, Any]]) -> None:
    slots, ddp = (torch.tensor(group[0][name], dtype=torch.float64) for name in ("slots", "ddp"))
    assert len(slots) == 100 and slots[-1] < slots[0]
    assert ((slots - ddp).abs() / ddp).max() < 1e-5
    assert not torch.equal(slots, ddp), "the two are the same sum, so nothing was compared"


def test_workers_notice_a_single_bit(group: list[dict[str, Any]]) -> None:
    assert [group[rank]["equal"] for rank in range(2)] == ["", ""]
    assert "rank 0: " in group[0]["one bit"] and group[0]["one bit"] == group[1]["one bit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLOTS": 3}, "TRAIN.SLOTS 3 is not a power of two"),
        ({"SLOTS": 8}, "TRAIN.SLOTS 8 does not divide TRAIN.BATCH_SIZE 12"),
        ({"SLOTS": 2, "WORKERS": 4}, "RUN.WORKERS 4 does not divide TRAIN.SLOTS 2; these do: 1, 2"),
        ({"SLOTS": 4, "WORKERS": 3}, "RUN.WORKERS 3 does not divide TRAIN.SLOTS 4; these do: 1, 2, 4"),
        ({"SLOTS": 4, "WORKERS": 4, "MIN_WORKERS": 2}, "RUN.WORKERS 3 does not divide TRAIN.SLOTS 4"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    tiny_settings: dict[str, Any], changes: dict[str, int], message: str
) -> None:
    tiny_settings["TRAIN"] |= {"BATCH_SIZE": 12, "SLOTS": changes.pop("SLOTS")}
    tiny_settings["RUN"] |= changes
    with pytest.raises(ConfigError, match=message):
        parse_config(tiny_settings, "tiny")


@pytest.mark.soak
def test_a_run_that_changes_its_number_of_workers_has_the_bits_of_one_worker(
    cluster: None, lasot_root: Path, tmp_path: Path
) -> None:
    """The run starts on one worker, continues on four of which one is killed, then elastically, and ends on one."""
    settings = make_tiny_settings(lasot_root, tmp_path / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 160
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    settings["TRAIN"] |= {"BATCH_SIZE": 8, "SLOTS": 4, "EPOCH": 3, "CHECKPOINT_EVERY_STEPS": 5}
    config, run, one = write_config(settings, tmp_path), tmp_path / "runs/moving", tmp_path / "runs/one"
    train(named(settings, "one"))

    train(named(settings, "moving", {"TRAIN.EPOCH": 1}))
    killer = WorkerKiller(run, [28], epoch=20, batch=8)
    killer.start()
    again = ["--config", config, "RUN.NAME=moving", "RUN.MAX_FAILURES=0"]
    assert job.main([*again, "RUN.WORKERS=4"]) == 1
    assert killer.killed, "the run failed by itself"
    assert "on 4 workers (cpu, 1 thread)" in (run / "train.log").read_text()
    assert job.main([*again, "--workers", "1:2", "TRAIN.EPOCH=2"]) == 0
    assert re.search(r"Training .* on [12] worker", (run / "train.log").read_text())
    train(named(settings, "moving"), stored_at(run / "checkpoint_epoch_0002"))
    assert_same_bits(run, one, LAST, generators=False)
    assert records(run) == records(one)
