"""With TRAIN.SLOTS, a run's bits do not depend on the number of workers."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn

from seqtrack.config import ConfigError, parse_config
from seqtrack.training import worker
from seqtrack.training.optimization import Backward
from tests.settings import make_tiny_settings
from tests.training import slot_group
from tests.training.runs import assert_same_bits, job, write_config
from tests.training.slot_group import SLOTS, VARIANTS, slot_values
from tests.training.test_continuing import WorkerKiller, records

LAST = "checkpoint_epoch_0003"


@pytest.fixture(scope="module")
def group(lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of eight processes got (`slot_group.py`)."""
    folder = tmp_path_factory.mktemp("slots")
    settings = make_tiny_settings(lasot_root, folder / "runs")
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    multiprocessing.set_forkserver_preload(["tests.training.slot_group"])  # imports once for all
    torch.multiprocessing.start_processes(
        slot_group.run, (settings, str(folder)), nprocs=SLOTS, start_method="forkserver"
    )
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
    """Loss, IoU, gradient norm of every step; weights and optimizer at the end. Dropout and drop path are on."""
    for rank in range(workers):
        assert group[rank][f"{workers} {variant}"] == group[0][f"1 {variant}"]


def test_the_variants_are_different_trainings(group: list[dict[str, Any]]) -> None:
    digests = {name: group[0][f"1 {name}"][1] for name in VARIANTS}
    assert digests["activation-checkpointing"] == digests["dropout"], "recomputing drew other random numbers"
    assert len(set(digests.values())) == len(VARIANTS) - 1


def test_it_is_the_mathematics_of_data_parallel_training(group: list[dict[str, Any]]) -> None:
    slots, ddp = (torch.tensor(group[0][name], dtype=torch.float64) for name in ("slots", "ddp"))
    assert len(slots) == 100 and slots[-1] < slots[0]
    assert ((slots - ddp).abs() / ddp).max() < 1e-5
    assert not torch.equal(slots, ddp), "the two are the same sum, so nothing was compared"


def test_workers_notice_a_single_bit(group: list[dict[str, Any]]) -> None:
    assert [group[rank]["equal"] for rank in range(2)] == ["", ""]
    assert "rank 0: " in group[0]["one bit"] and group[0]["one bit"] == group[1]["one bit"]


def train_with_a_faulty_worker(settings: dict[str, Any]) -> worker.Ended:
    """`train_worker`, but one bit of the second worker's weights is another one."""
    prepare = worker._Worker._prepare

    def prepare_and_break(self: worker._Worker) -> tuple[nn.Module, Backward]:
        prepared = prepare(self)
        if self.rank == 1:
            list(self.state.model.parameters())[3].detach().view(torch.int32).view(-1)[-1] ^= 1
        return prepared

    worker._Worker._prepare = prepare_and_break  # type: ignore[method-assign]
    try:
        return worker.train_worker(settings)
    finally:
        worker._Worker._prepare = prepare  # type: ignore[method-assign]


def test_a_run_whose_workers_differ_stops_before_its_next_checkpoint(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seqtrack.training.trainer.train_worker", train_with_a_faulty_worker)
    assert job.main(["--config", config, "RUN.WORKERS=2", "RUN.NAME=faulty"]) == 1
    run = Path(config).with_name("runs") / "faulty"
    log = (run / "train.log").read_text()
    assert "step 1 : the workers' weights differ" in log
    assert log.count("Training vit_demo_patch16") == 1, "it was tried again"
    assert not list(run.glob("checkpoint_epoch_*"))


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


@pytest.fixture(scope="module")
def config(cluster: None, lasot_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three epochs of 20 steps, with a checkpoint every 5."""
    folder = tmp_path_factory.mktemp("slots-runs")
    settings = make_tiny_settings(lasot_root, folder / "runs")
    settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 160
    settings["MODEL"]["ENCODER"]["DROP_PATH"] = 0.1
    settings["TRAIN"] |= {"BATCH_SIZE": 8, "SLOTS": 4, "EPOCH": 3, "CHECKPOINT_EVERY_STEPS": 5}
    return write_config(settings, folder)


@pytest.fixture(scope="module")
def one(config: str) -> Path:
    """The whole run on one worker."""
    assert job.main(["--config", config, "RUN.NAME=one"]) == 0
    return Path(config).with_name("runs") / "one"


def test_a_run_on_four_workers_has_the_bits_of_one(one: Path, config: str) -> None:
    four = one.with_name("four")
    assert job.main(["--config", config, "RUN.WORKERS=4", "RUN.NAME=four"]) == 0
    assert "on 4 workers (cpu, 1 thread)" in (four / "train.log").read_text()
    assert_same_bits(four, one, LAST, generators=False)


def test_a_run_moves_from_one_worker_to_four_loses_one_goes_on_with_two_and_ends_on_one(one: Path, config: str) -> None:
    def train(workers: int, epochs: int) -> int:
        arguments = [f"RUN.WORKERS={workers}", f"TRAIN.EPOCH={epochs}", "RUN.NAME=moving", "RUN.MAX_FAILURES=0"]
        return job.main(["--config", config, *arguments])

    run = one.with_name("moving")
    assert train(1, 1) == 0
    killer = WorkerKiller(run, [28], epoch=20, batch=8)
    killer.start()
    assert train(4, 3) == 1
    assert killer.killed, "the run failed by itself"
    assert train(2, 2) == 0
    assert train(1, 3) == 0
    assert_same_bits(run, one, LAST, generators=False)
    assert records(run) == records(one)
