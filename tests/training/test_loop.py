"""The training loop, without Ray: what it logs, when it writes checkpoints, and that a run continues bit for bit."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from seqtrack.config import Config, SyntheticConfig, parse_config
from seqtrack.data.batches import HostBatch, StreamError, StreamPlan, make_batches
from seqtrack.data.datasets.lasot import build_index
from seqtrack.data.datasets.synthetic import write_synthetic
from seqtrack.data.open import open_data
from seqtrack.data.sampling import draw_sample, usable_sequences
from seqtrack.data.storage import open_root
from seqtrack.data.triplets import TripletSource
from seqtrack.model.weights import starting_weights
from seqtrack.runs.checkpoint import Contents, open_checkpoint
from seqtrack.runs.folder import RunFolder
from seqtrack.training import loop as loop_module
from seqtrack.training.loop import SECONDS_BETWEEN_QUESTIONS, BrokenDataError, DivergedError, UnwritableError
from tests.folders import stored_at
from tests.training import pair
from tests.training.loops import FolderSink, checkpoint_of, named, train
from tests.training.runs import assert_same_bits, records, step_metrics, weights

LAST = "checkpoint_epoch_0002"
STEPS_PER_EPOCH = 40


@pytest.mark.parametrize("start", pair.STARTS)
def test_one_worker_continues_bit_for_bit(looped: Path, settings: dict[str, Any], start: str) -> None:
    resumed = looped.with_name(f"looped-from-{start}")
    train(named(settings, resumed.name), stored_at(looped / start))
    assert_same_bits(resumed, looped, LAST)


@pytest.mark.parametrize("start", pair.STARTS)
def test_two_workers_continue_bit_for_bit(together: Path, start: str) -> None:
    assert_same_bits(together / f"pair-from-{start}", together / "pair", LAST)


@pytest.mark.parametrize("resumed", ["plain-1-to-2", "plain-2-to-1"])
def test_other_numbers_of_workers_get_the_same_batches(together: Path, resumed: str) -> None:
    """The losses agree to rounding: gradients are summed in another order.

    In every step, `check_batch` makes sure that the samples are the same.
    """
    reference = together / f"plain-{resumed[6]}"
    steps = slice(STEPS_PER_EPOCH, STEPS_PER_EPOCH + 20)
    ours, theirs = (step_metrics(run, LAST)[steps, 0] for run in (together / resumed, reference))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert not torch.equal(ours, theirs), "the two are the same sum, so nothing was compared"


def test_two_workers_train_on_the_same_batches_as_one(together: Path) -> None:
    one, two = (step_metrics(together / run, LAST) for run in ("plain-1", "plain-2"))
    torch.testing.assert_close(one[:20], two[:20], rtol=1e-4, atol=0)
    files = {path.name for path in (together / "plain-2" / LAST).glob("rng*")}
    assert files == {"rng_rank_0000.pt", "rng_rank_0001.pt"}


def test_workers_whose_weights_differ_stop_before_the_next_checkpoint(together: Path) -> None:
    for rank in (0, 1):
        message = json.loads((together / f"faulty-{rank}.json").read_text())
        assert "the workers' weights differ" in message and re.search(r"rank 0: \w+, rank 1: \w+", message)
    assert not list((together / "faulty").glob("checkpoint_epoch_*"))


def test_the_log_has_a_line_an_interval_and_a_summary_an_epoch(tiny_config: Config, tmp_path: Path) -> None:
    """Each batch comes after three seconds, and steps take none."""
    now = 0.0
    data = open_data(tiny_config)
    triplets = TripletSource.from_config(tiny_config, data.mixture)

    def late() -> Generator[HostBatch, None, None]:
        nonlocal now
        for step in range(tiny_config.total_steps):
            now += 3.0
            yield from make_batches(triplets, StreamPlan.from_config(tiny_config, 1), [step], 0)

    train(tiny_config, batches=late(), clock=lambda: now)
    log = (tmp_path / "runs/tiny/train.log").read_text()
    numbers = r"Loss/total: \d\.\d{5}, IoU: \d\.\d{5}, Accuracy: [\d.]+%"
    lines = re.findall(rf"^(Epoch \d : .*) , {numbers}$", log, re.MULTILINE)
    assert lines == [
        f"Epoch {epoch} : {samples} / 22 samples , time for last 8 samples : 0:00:06 , "
        f"time since beginning : {since} , time left to finish epoch : {left}"
        for epoch in (1, 2)
        for samples, since, left in ((8, "0:00:06", "0:00:10"), (16, "0:00:12", "0:00:04"), (22, "0:00:18", "0:00:00"))
    ]
    ends = r"^Epoch (\d) of 2 done in 0:00:18 : loss .*, 1.3 samples/s, waited for data 100.0% of the time$"
    assert re.findall(ends, log, re.MULTILINE) == ["1", "2"]
    assert [record["step"] for record in records(tmp_path / "runs/tiny")] == [2, 4, 6, 8, 10, 12]


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_and_continues(looped: Path, settings: dict[str, Any]) -> None:
    asked = itertools.count()
    config = named(settings, "asked", {"TRAIN.CHECKPOINT_EVERY_STEPS": None})
    ended = train(config, stop_requested=lambda: next(asked) == 16)
    assert ended.stopped and ended.step == 17
    run = looped.with_name("asked")
    assert [path.name for path in run.glob("checkpoint*")] == ["checkpoint_epoch_0000_step_000017"]
    train(config, checkpoint_of(config, "checkpoint_epoch_0000_step_000017"))
    assert_same_bits(run, looped, LAST)
    assert records(run) == records(looped)


def test_a_node_that_is_announced_to_go_means_one_checkpoint_at_once(tiny_config: Config, tmp_path: Path) -> None:
    ticks = itertools.count(step=SECONDS_BETWEEN_QUESTIONS / 8)  # some looks at the clock a step
    answers: list[bool] = []

    def leaving() -> bool:
        answers.append(True)
        return True

    ended = train(tiny_config, node_is_leaving=leaving, clock=lambda: float(next(ticks)))
    assert not ended.stopped and ended.step == 12
    assert len(answers) > 1, "it was asked once only"
    log = (tmp_path / "runs/tiny/train.log").read_text()
    (step,) = re.findall(r"Preemption : a node of this run is about to go; writing a checkpoint at step (\d+)", log)
    names = sorted(path.name for path in (tmp_path / "runs/tiny").glob("checkpoint*"))
    assert names == [f"checkpoint_epoch_0000_step_{int(step):06d}", "checkpoint_epoch_0001", "checkpoint_epoch_0002"]


class SlowSink(FolderSink):
    """Notes the order of events: a checkpoint is handed over (+), and written when the loop waits for it (-)."""

    def __init__(self, run: RunFolder) -> None:
        super().__init__(run)
        self.order = ""
        self._under_way: Callable[[], None] | None = None

    def wait(self) -> None:
        if self._under_way is not None:
            self._under_way()
            self.order += "-"
            self._under_way = None

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None:
        assert self._under_way is None, "two checkpoints are under way"
        self.order += "+"
        self._under_way = functools.partial(super().save, name, metrics, contents)


def test_one_checkpoint_at_a_time_is_under_way_and_the_last_is_waited_for(tiny_config: Config, tmp_path: Path) -> None:
    sink = SlowSink(RunFolder.of(tiny_config))
    train(tiny_config.with_settings({"TRAIN.CHECKPOINT_EVERY_STEPS": 2}), sink=sink)
    assert sink.order == "+-" * 6
    train(tiny_config.with_settings({"RUN.NAME": "plain", "TRAIN.CHECKPOINT_EVERY_STEPS": 2}))
    for path in (tmp_path / "runs/plain").glob("checkpoint*"):
        assert_same_bits(tmp_path / "runs/tiny", tmp_path / "runs/plain", path.name)


def test_fetching_ahead_changes_nothing(looped: Path, settings: dict[str, Any]) -> None:
    """Neither bits nor curves, and a run that is asked to stop has taken no batch beyond its last step."""
    config = named(settings, "ahead", {"TRAIN.CHECKPOINT_EVERY_STEPS": None})
    data = open_data(config)
    triplets, plan = TripletSource.from_config(config, data.mixture), StreamPlan.from_config(config, 1)
    taken: list[int] = []

    def noted() -> Generator[HostBatch, None, None]:
        for step in range(config.total_steps):
            taken.append(step)
            yield from make_batches(triplets, plan, [step], 0)

    asked = itertools.count()
    ended = train(config, batches=noted(), fetch_ahead=True, stop_requested=lambda: next(asked) == 16)
    assert ended.step == len(taken) == 17
    train(config, checkpoint_of(config, "checkpoint_epoch_0000_step_000017"), fetch_ahead=True)
    assert_same_bits(looped.with_name("ahead"), looped, LAST)
    assert records(looped.with_name("ahead")) == records(looped)


def test_a_batch_that_fails_while_it_is_fetched_ahead_loses_no_record(tiny_config: Config, tmp_path: Path) -> None:
    data = open_data(tiny_config)
    triplets = TripletSource.from_config(tiny_config, data.mixture)

    def failing() -> Generator[HostBatch, None, None]:
        yield from make_batches(triplets, StreamPlan.from_config(tiny_config, 1), range(2), 0)
        raise OSError("the store is gone")

    with pytest.raises(OSError, match="the store is gone"):
        train(tiny_config, batches=failing(), fetch_ahead=True)
    assert [record["step"] for record in records(tmp_path / "runs/tiny")] == [2]


def test_batches_of_another_step_are_refused(tiny_config: Config) -> None:
    data = open_data(tiny_config)
    triplets = TripletSource.from_config(tiny_config, data.mixture)

    def skipping() -> Generator[HostBatch, None, None]:
        yield from make_batches(triplets, StreamPlan.from_config(tiny_config, 1), [0, 2], 0)

    with pytest.raises(StreamError, match="rank 0 wanted step 1, samples 4 to 7, but the stream delivered step 2"):
        train(tiny_config, batches=skipping())


def test_samples_that_cannot_be_made_end_the_run_before_anything_is_written(
    tiny_settings: dict[str, Any], lasot_root: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(lasot_root, tmp_path / "tree")
    tiny_settings["DATA"]["ROOT"] = str(root)
    config = parse_config(tiny_settings, "tiny")
    data = open_data(config)
    triplets = TripletSource.from_config(config, data.mixture)

    def batches() -> Generator[HostBatch, None, None]:
        for step in range(config.total_steps):
            if step == 8:
                shutil.rmtree(root)
            yield from make_batches(triplets, StreamPlan.from_config(config, 1), [step], 0)

    with pytest.raises(
        BrokenDataError, match=r"sample \d+: no valid draw in 100 attempts; broken frames: .*is missing"
    ):
        train(config, batches=batches())
    assert [path.name for path in (tmp_path / "runs/tiny").glob("checkpoint*")] == ["checkpoint_epoch_0001"]
    assert [record["step"] for record in records(tmp_path / "runs/tiny")] == [2, 4, 6, 8]


def test_samples_that_one_of_two_workers_lacks_end_both(together: Path) -> None:
    said = {json.loads((together / f"lacking-{rank}.json").read_text()) for rank in range(2)}
    assert said == {"sample 12: no valid draw"}
    assert not list((together / "lacking").glob("checkpoint*"))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"step \d+ : loss \S+, gradient norm \S+, learning rate 1e\+30; the check"):
        train(tiny_config.with_settings({"TRAIN.LR": 1e30}))
    assert not list((tmp_path / "runs/tiny").glob("checkpoint*"))


def test_a_run_starts_from_a_pre_trained_encoder_and_a_frozen_one_keeps_it(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    vit = timm.create_model(
        "vit_base_patch16_224.mae", pretrained=False, embed_dim=128, depth=4, num_heads=4, num_classes=0
    ).state_dict()
    torch.save({"model": vit}, tmp_path / "mae.pth")
    tiny_settings["MODEL"]["ENCODER"] |= {"PRETRAIN_TYPE": "mae", "PRETRAIN_FILE": str(tmp_path / "mae.pth")}
    tiny_settings["TRAIN"] |= {"EPOCH": 1, "FREEZE_ENCODER": True}
    tiny_settings["DATA"]["TEMPLATE"]["NUMBER"] = 3
    config = parse_config(tiny_settings, "tiny")
    initial, source = starting_weights(config)
    assert source == f"MODEL.ENCODER.PRETRAIN_FILE {tmp_path}/mae.pth"
    train(config, weights=initial)
    trained = weights(tmp_path / "runs/tiny", "checkpoint_epoch_0001")
    for name, tensor in vit.items():
        if name.startswith("blocks."):
            assert torch.equal(trained[f"encoder.body.{name}"], tensor), name


def frame_drawn_rarely(config: Config, samples: int) -> tuple[str, int]:
    """A frame that occurs in some samples of the first epoch, but in less than 1 % of them, and their number."""
    root = open_root(str(config.DATA.ROOT))
    index = build_index(config.DATA, root)
    usable = usable_sequences(index, config.DATA)
    shown: Counter[str] = Counter()
    for number in range(samples):
        draws = draw_sample(index, usable, config.SEED, number, 0, config.DATA)
        shown.update({index.frame_path(draws.sequence, frame) for frame in draws.frames})
    return next((frame, times) for frame, times in sorted(shown.items()) if 1 < times < samples / 100)


def test_a_few_broken_frames_are_named_and_replaced(tiny_settings: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_synthetic(root, SyntheticConfig(SEQUENCES=4, FRAMES=100, HEIGHT=64, WIDTH=64))
    tiny_settings["DATA"] |= {"ROOT": str(root), "ON_MISMATCH": "redraw"}
    tiny_settings["DATA"]["TRAIN"]["SAMPLE_PER_EPOCH"] = 400
    tiny_settings["TRAIN"] |= {"EPOCH": 1, "BATCH_SIZE": 20, "PRINT_INTERVAL": 100}
    config = parse_config(tiny_settings, "tiny")
    frame, times = frame_drawn_rarely(config, samples=400)
    (root / frame).unlink()
    train(config)
    log = (tmp_path / "runs/tiny/train.log").read_text()
    assert log.count(f"{frame} is missing; the sample is drawn again") == times
    (summary,) = json.loads((tmp_path / "runs/tiny/checkpoint_epoch_0001/meta.json").read_text())["history"]
    assert summary["broken_frames"] == times


def test_many_broken_frames_stop_the_run_with_the_list(
    tiny_settings: dict[str, Any], lasot_root: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(lasot_root, tmp_path / "broken")
    for path in root.glob("coin/*/img/*.jpg"):
        path.write_bytes(b"")
    tiny_settings["DATA"]["ROOT"] = str(root)
    message = r"samples of this epoch met a broken frame, more than 1% of 22: coin/coin-\d/img/\d+\.jpg"
    with pytest.raises(BrokenDataError, match=message):
        train(parse_config(tiny_settings, "tiny"))


class LostSink(FolderSink):
    """Cannot write a checkpoint any more, and knows it in the next step."""

    def __init__(self, run: RunFolder, name: str) -> None:
        super().__init__(run)
        self._lost, self._asked = name, -1

    def save(self, name: str, metrics: Mapping[str, Any], contents: Contents | None) -> None:
        if name == self._lost:
            self._asked = 0
        else:
            super().save(name, metrics, contents)

    def problem(self) -> str:
        self._asked += self._asked >= 0
        return "checkpoint x cannot be written: 503" if self._asked > 0 else ""


def test_a_run_whose_checkpoint_cannot_be_written_ends_with_the_reason(tiny_config: Config, tmp_path: Path) -> None:
    sink = LostSink(RunFolder.of(tiny_config), "checkpoint_epoch_0001_step_000001")
    with pytest.raises(UnwritableError, match="checkpoint x cannot be written: 503"):
        train(tiny_config.with_settings({"TRAIN.CHECKPOINT_EVERY_STEPS": 1}), sink=sink)
    assert [path.name for path in sorted((tmp_path / "runs/tiny").glob("checkpoint*"))][-1] == "checkpoint_epoch_0001"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weights", "optimizer's state"])
def test_a_state_with_numbers_that_are_not_finite_is_not_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, where: str
) -> None:
    """The loss of the step before was a number: it is the update that spoiled the state."""
    update = loop_module.train_step

    def spoil(*given: Any) -> Any:
        metrics = update(*given)
        if (tmp_path / "runs/tiny/checkpoint_epoch_0001").exists():
            parameter = next(iter(given[0].parameters()))
            spoiled = parameter if where == "weights" else given[1].state[parameter]["exp_avg"]
            spoiled.data.view(-1)[0] = value
        return metrics

    monkeypatch.setattr(loop_module, "train_step", spoil)
    with pytest.raises(DivergedError, match=f"after its update, the {where}: 1 of .* the checkpoint before it is the"):
        train(tiny_config.with_settings({"TRAIN.CHECKPOINT_EVERY_STEPS": 1}))
    names = [path.name for path in sorted((tmp_path / "runs/tiny").glob("checkpoint*"))]
    assert names[-1] == "checkpoint_epoch_0001"
    open_checkpoint(checkpoint_of(tiny_config, names[-1]))
