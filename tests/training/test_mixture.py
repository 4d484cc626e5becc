"""Training on several sets: it continues bit for bit, and reports of each set. All of it without Ray."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seqtrack.config import Config, load_config, parse_config
from seqtrack.data.batches import StreamPlan, make_batches
from seqtrack.data.open import open_data
from seqtrack.data.triplets import TripletSource
from seqtrack.runs.checkpoint import STATE_FILE, load_plain
from seqtrack.training.step import Batch, Objective, backward
from tests.settings import SETS, make_mixture_settings, make_tiny_settings
from tests.training.loops import checkpoint_of, named, train, train_together
from tests.training.runs import REPOSITORY, assert_same_bits, records, weights

LAST = "checkpoint_epoch_0002"
MIDDLE = "checkpoint_epoch_0001_step_000003"


@pytest.fixture(scope="module")
def settings(lasot_root: Path, synthetic_sets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = make_mixture_settings(lasot_root, synthetic_sets, tmp_path_factory.mktemp("mixture") / "runs")
    settings["TRAIN"] |= {"CHECKPOINT_EVERY_STEPS": 3, "SLOTS": 2}
    return settings


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any]) -> Path:
    train(named(settings, "whole"))
    return Path(settings["RUN"]["STORAGE_PATH"], "whole")


def set_lines(run: Path) -> list[str]:
    """What a run's log says of its sets at the end of each epoch."""
    return re.findall(r"Epoch \d : samples .*", (run / "train.log").read_text())


def test_a_run_continues_bit_for_bit_from_within_an_epoch(whole: Path, settings: dict[str, Any]) -> None:
    train(named(settings, "resumed"), checkpoint_of(named(settings, "whole"), MIDDLE))
    assert_same_bits(whole.with_name("resumed"), whole, LAST)
    assert set_lines(whole.with_name("resumed")) == set_lines(whole)[1:]


def train_two(rank: int, world_size: int, settings: dict[str, Any]) -> None:
    train(named(settings, "two", {"RUN.WORKERS": 2}), None, rank, world_size)


def test_two_workers_give_the_bits_of_one(whole: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    train_together(functools.partial(train_two, settings=settings), tmp_path)
    two = whole.with_name("two")
    ours, theirs = weights(two, LAST), weights(whole, LAST)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert set_lines(two) == set_lines(whole) != []


def test_any_number_of_workers_gets_the_same_samples(mixture_config: Config) -> None:
    triplets = TripletSource.from_config(mixture_config, open_data(mixture_config).mixture)
    shares = {
        workers: [
            batch
            for step in range(4)
            for rank in range(workers)
            for batch in make_batches(triplets, StreamPlan.from_config(mixture_config, workers), [step], rank)
        ]
        for workers in (1, 2)
    }
    for one, two in ((shares[1], shares[2]),):
        for field in ("numbers", "sets", "search", "template", "boxes_xywh"):
            joined = [torch.cat([torch.tensor(getattr(batch, field)) for batch in part]) for part in (one, two)]
            assert torch.equal(*joined), field


def test_an_epoch_reports_samples_loss_and_iou_of_each_set(whole: Path, settings: dict[str, Any]) -> None:
    """Weighted by samples, those of the sets are those of the epoch."""
    config = named(settings, "whole")
    triplets = TripletSource.from_config(config, open_data(config).mixture)
    made = make_batches(triplets, StreamPlan.from_config(config, 1), range(config.steps_per_epoch), 0)
    counts = torch.bincount(torch.cat([torch.tensor(batch.sets) for batch in made]), minlength=len(SETS)).tolist()
    lines = map(json.loads, (whole / "metrics.jsonl").read_text().splitlines())
    epoch = next(record for record in lines if "epoch/loss" in record)
    assert [epoch[f"epoch/samples_{name}"] for name in SETS] == counts
    for metric in ("loss", "iou"):
        total = sum(count * epoch[f"epoch/{metric}_{name}"] for name, count in zip(SETS, counts, strict=True) if count)
        assert total / sum(counts) == pytest.approx(epoch[f"epoch/{metric}"], rel=1e-5)
    parts = ", ".join(
        rf"{count} of {name} \(loss \d\.\d{{5}}, IoU \d\.\d{{5}}\)" for name, count in zip(SETS, counts, strict=True)
    )
    assert re.search(rf"Epoch 1 : samples {parts}$", (whole / "train.log").read_text(), re.MULTILINE)


def test_a_run_on_lasot_alone_reports_and_stores_nothing_of_sets(lasot_root: Path, tmp_path: Path) -> None:
    settings = make_tiny_settings(lasot_root, tmp_path)
    settings["TRAIN"]["CHECKPOINT_EVERY_STEPS"] = 3
    train(parse_config(settings, "tiny"))
    run = tmp_path / "tiny"
    assert set(load_plain(run / MIDDLE / STATE_FILE)["meter"]) == {
        *("steps", "loss", "iou", "grad_norm", "seconds", "wait_seconds", "broken_frames")
    }
    assert "LASOT" not in (run / "train.log").read_text()
    assert not any("LASOT" in key for record in records(run) for key in record)


def test_the_loss_is_that_of_one_set_with_the_same_samples(mixture_config: Config) -> None:
    """What is measured of each set changes neither the loss nor its gradients."""
    torch.manual_seed(0)
    single = mixture_config.with_settings({"DATA.TRAIN.DATASETS_NAME": ["LASOT"], "DATA.TRAIN.DATASETS_RATIO": [1]})
    batch = Batch(
        torch.zeros(4, 2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(4, 32, 32, 3, dtype=torch.uint8),
        torch.rand(4, 4) / 2,
        torch.ones(4, 3),
        torch.tensor([0, 3, 0, 2]),
    )
    logits = nn.Parameter(torch.randn(4, 5, 18))

    class Fixed(nn.Module):
        def forward(self, *_: Any) -> torch.Tensor:
            return logits

    alone = backward(Fixed(), batch, Objective(single))
    gradient = logits.grad
    logits.grad = None
    mixed = backward(Fixed(), batch, Objective(mixture_config))
    assert gradient is not None and logits.grad is not None and torch.equal(logits.grad, gradient)
    assert torch.equal(mixed[:2], alone)
    shares, losses, ious = mixed[2:].reshape(4, 3).T
    assert shares.tolist() == [0.5, 0, 0.25, 0.25]
    torch.testing.assert_close(losses.sum(), alone[0])
    torch.testing.assert_close(ious.sum(), alone[1])
    assert losses[1] == ious[1] == 0


@pytest.mark.parametrize("recipe", ["seqtrack_b256", "seqtrack_b256_got"])
def test_a_published_recipe_trains_when_its_roots_are_set(
    lasot_root: Path, synthetic_sets: Path, tmp_path: Path, recipe: str
) -> None:
    """Nothing but sizes is changed, so that it takes a second."""
    tiny = parse_config(make_mixture_settings(lasot_root, synthetic_sets, tmp_path), "tiny").flat()
    sizes = {key: value for key, value in tiny.items() if key.startswith(("MODEL.", "RUN.")) or key.endswith(".SIZE")}
    places = {
        key: value for key, value in tiny.items() if key.startswith(("DATA.ROOTS.", "DATA.PARTIAL", "DATA.SPLIT"))
    }
    config = load_config(str(REPOSITORY / f"configs/{recipe}.yaml"), [])
    changed = {"TRAIN.BATCH_SIZE": 4, "TRAIN.EPOCH": 1, "DATA.TRAIN.SAMPLE_PER_EPOCH": 12, "RUN.NAME": recipe}
    config = config.with_settings(sizes | places | changed)
    assert train(config).step == 3
    names = config.DATA.TRAIN.DATASETS_NAME
    assert names == (tuple(SETS) if recipe == "seqtrack_b256" else ("GOT10K_train_full",))
