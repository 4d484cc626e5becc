from __future__ import annotations

import copy
import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.config import Config
from seqtrack.runs.checkpoint import CheckpointError, Contents, generator_file, load_plain, write_checkpoint
from seqtrack.runs.compatibility import changed_since, check_allowed
from seqtrack.training.state import TrainState, generator_states, load_generators, restore, seed_generators
from seqtrack.training.step import Batch, Objective, build_scheduler, train_step
from tests.folders import stored_at

CPU = torch.device("cpu")


def make_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        template=torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        search=torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator),
        boxes_xywh=torch.rand(4, 4, generator=generator) * 0.5,
        brightness=torch.ones(4, 3),
        sets=torch.zeros(4, dtype=torch.int64),
    )


def train(state: TrainState, config: Config, stop: int) -> None:
    state.model.train()
    while state.step < stop:
        loss, iou, grad_norm = train_step(
            state.model, state.optimizer, make_batch(state.step), Objective(config)
        ).tolist()
        state.meter.add(loss, iou, grad_norm)
        state.metrics.append((loss, iou, grad_norm, state.optimizer.param_groups[0]["lr"]))
        state.step += 1
        if state.step % 4 == 0:
            state.scheduler.step()
            state.history.append({"step": state.step, "loss": loss})


DATASET = {"sequences": 4, "frames": 120, "fingerprint": "0123456789abcdef"}


def save(state: TrainState, config: Config, folder: Path) -> Path:
    contents = Contents(
        *state.snapshot(), [generator_states()], state.meta(config, dataset=DATASET, mlflow_run_id=None)
    )
    write_checkpoint(contents, stored_at(folder))
    return folder


def generators_next() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_a_run_continued_from_its_checkpoint_ends_with_the_same_bits(tiny_config: Config, tmp_path: Path) -> None:
    whole = TrainState.fresh(tiny_config, 0, CPU)
    train(whole, tiny_config, 6)
    folder = save(whole, tiny_config, tmp_path / "checkpoint")
    train(whole, tiny_config, 12)
    after_whole = generators_next()

    seed_generators(99, 0)  # anything but what the first run had
    continued = TrainState.fresh(tiny_config.with_settings({"SEED": 77}), 0, CPU)
    continued.load(folder)
    assert load_generators(folder, 0)
    train(continued, tiny_config, 12)

    assert continued.step == 12
    assert continued.meter == whole.meter
    assert continued.history == whole.history
    assert continued.metrics == whole.metrics
    assert len(whole.metrics) == 12
    assert continued.scheduler.state_dict() == whole.scheduler.state_dict()
    assert generators_next() == after_whole
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, continued.model.state_dict()[name]), name


def test_fresh_states_of_a_seed_are_equal_and_of_ranks_draw_differently(tiny_config: Config) -> None:
    draws = []
    weights = []
    for rank in (0, 0, 1):
        weights.append(TrainState.fresh(tiny_config, rank, CPU).model.state_dict()["vocab_embed.layers.0.weight"])
        draws.append(generators_next())
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_a_snapshot_does_not_follow_later_steps(tiny_config: Config) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    train(state, tiny_config, 4)
    weights, training = state.snapshot()
    kept = copy.deepcopy((weights, training))
    train(state, tiny_config, 8)
    torch.testing.assert_close((weights, training), kept, rtol=0, atol=0)
    assert not torch.equal(weights["pos_embed"], state.model.state_dict()["pos_embed"])


def test_generators_of_a_rank_that_was_not_there_are_missing(tiny_config: Config, tmp_path: Path) -> None:
    folder = save(TrainState.fresh(tiny_config, 0, CPU), tiny_config, tmp_path / "checkpoint")
    assert not load_generators(folder, 1)


def test_a_checkpoint_of_another_model_is_refused_with_the_parameters_named(
    tiny_config: Config, tmp_path: Path
) -> None:
    folder = save(TrainState.fresh(tiny_config, 0, CPU), tiny_config, tmp_path / "checkpoint")
    other = tiny_config.with_settings({"MODEL.BINS": 20, "MODEL.DECODER.DEC_LAYERS": 2})
    with pytest.raises(CheckpointError) as error:
        TrainState.fresh(other, 0, CPU).load(folder)
    assert "18 missing: decoder.body.layers.1.linear1.bias, " in str(error.value)
    smaller = tiny_config.with_settings({"MODEL.BINS": 20})
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight is \[18, 32\], not \[22, 32\]"):
        TrainState.fresh(smaller, 0, CPU).load(folder)


def test_a_checkpoint_cannot_run_code(tiny_config: Config, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    state = TrainState.fresh(tiny_config, 0, CPU)
    folder = save(state, tiny_config, tmp_path / "checkpoint")
    for file, load in (("state.pt", state.load), (generator_file(0), lambda path: load_generators(path, 0))):
        torch.save({"optimizer": Attack()}, folder / file, pickle_module=pickle)
        with pytest.raises(CheckpointError, match=f"{file}: cannot be read"):
            load(folder)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": None},
        {"history": 3},
        {"step": None, "scheduler": {"step": "text"}},
        {"scheduler": {"get_lr": 1}},
        {"metrics": [1]},
        {"meter": {"unknown": 1}},
    ],
)
def test_a_state_of_other_values_is_refused_by_name(
    tiny_config: Config, tmp_path: Path, change: dict[str, object]
) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    folder = save(state, tiny_config, tmp_path / "checkpoint")
    torch.save(load_plain(folder / "state.pt") | change, folder / "state.pt")
    with pytest.raises(CheckpointError, match=f"^{folder}/state.pt: does not fit this run "):
        state.load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_moments_of_the_optimizer_that_are_no_numbers_are_named(
    tiny_config: Config, tmp_path: Path, number: float
) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    train(state, tiny_config, 1)
    folder = save(state, tiny_config, tmp_path / "checkpoint")
    training = load_plain(folder / "state.pt")
    training["optimizer"]["state"][2]["exp_avg"].view(-1)[0] = number
    torch.save(training, folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"NaN or infinite, the first: exp_avg of parameter 2\)$"):
        state.load(folder)


@pytest.mark.parametrize("change", [{"torch": 1}, {"python": (3, (1, 2), None)}, {"numpy": {}}, {"numpy": "beyond"}])
def test_generators_of_other_values_are_refused_by_name(
    tiny_config: Config, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = save(TrainState.fresh(tiny_config, 0, CPU), tiny_config, tmp_path / "checkpoint")
    states = load_plain(folder / generator_file(0))
    if change == {"numpy": "beyond"}:
        states["numpy"]["state"]["pos"] = 10**6  # NumPy itself would read what lies there in memory
        change = {}
    torch.save(states | change, folder / generator_file(0))
    with pytest.raises(CheckpointError, match=f"^{folder}/{generator_file(0)}: holds no states of random generators"):
        load_generators(folder, 0)


def test_meta_tells_what_the_checkpoint_is(tiny_config: Config) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    state.step = 9
    meta = state.meta(tiny_config, world_size=2)
    assert (meta["step"], meta["epoch"], meta["world_size"]) == (9, 1, 2)
    assert Config.model_validate_json(json.dumps(meta["config"])) == tiny_config
    assert meta["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_what_alters_a_step_is_told_from_what_does_not(tiny_config: Config) -> None:
    meta = TrainState.fresh(tiny_config, 0, CPU).meta(tiny_config, dataset=DATASET)
    assert changed_since(meta, tiny_config, DATASET) == {}
    harmless = {
        "TRAIN.EPOCH": 9,
        "RUN.WORKERS": 2,
        "TRAIN.PRINT_INTERVAL": 1,
        "RUN.NAME": "b",
        "DATA.ROOT": "/elsewhere",
    }
    assert changed_since(meta, tiny_config.with_settings(harmless), DATASET) == {}
    meta["versions"]["torch"] = "1.0"
    other_data = DATASET | {"frames": 119}
    changed = changed_since(meta, tiny_config.with_settings({"TRAIN.LR": 0.5, "SEED": 4}), other_data)
    assert changed == {
        "TRAIN.LR": "0.5, not 0.001",
        "SEED": "4, not 3",
        "dataset": "4 sequences, 119 frames, annotations 0123456789ab, "
        "not 4 sequences, 120 frames, annotations 0123456789ab",
        "torch": f"{torch.__version__.partition('+')[0]}, not 1.0",
    }


def test_a_change_has_to_be_allowed_by_name() -> None:
    changed = {"TRAIN.LR": "0.5, not 0.001", "torch": "2, not 1"}
    check_allowed(changed, {"TRAIN.LR", "torch", "SEED"}, "runs/a")
    with pytest.raises(CheckpointError) as error:
        check_allowed(changed, {"torch"}, "runs/a")
    assert str(error.value) == (
        "runs/a cannot be continued exactly: TRAIN.LR: 0.5, not 0.001 (--allow-changed TRAIN.LR goes on all the same)"
    )


def test_a_changed_learning_rate_takes_effect_at_the_checkpoints_epoch(tiny_config: Config, tmp_path: Path) -> None:
    whole = TrainState.fresh(tiny_config, 0, CPU)  # LR 0.001, × 0.1 after each epoch of 4 steps
    train(whole, tiny_config, 4)
    folder = save(whole, tiny_config, tmp_path / "checkpoint")
    changed = tiny_config.with_settings({"TRAIN.LR": 0.5, "TRAIN.WEIGHT_DECAY": 0.25})
    continued = TrainState.fresh(changed, 0, CPU)
    continued.load(folder, new_schedule=True)
    rest, encoder = continued.optimizer.param_groups
    assert (rest["lr"], encoder["lr"]) == (pytest.approx(0.05), pytest.approx(0.005))
    assert rest["weight_decay"] == 0.25
    continued.scheduler.step()
    assert rest["lr"] == pytest.approx(0.005)
    assert continued.optimizer.state_dict()["state"].keys() == whole.optimizer.state_dict()["state"].keys()


@pytest.mark.parametrize(("wrote", "reads"), [(False, True), (True, False)], ids=["CPU to GPU", "GPU to CPU"])
@pytest.mark.parametrize("new_schedule", [False, True])
def test_how_the_optimizer_computes_belongs_to_the_device_and_what_it_computes_to_the_checkpoint(
    tiny_config: Config, tmp_path: Path, wrote: bool, reads: bool, new_schedule: bool
) -> None:
    """Fused kernels stand for a GPU, where they are on; torch has them on the CPU too."""
    on_theirs, on_ours = (
        {"fused": fused, "foreach": False if fused else None, "capturable": fused} for fused in (wrote, reads)
    )
    theirs = TrainState.fresh(tiny_config, 0, CPU)
    train(theirs, tiny_config, 1)
    for group in theirs.optimizer.param_groups:
        group |= on_theirs | {"betas": (0.8, 0.9), "eps": 1e-7}
    folder = save(theirs, tiny_config, tmp_path / "checkpoint")
    ours = TrainState.fresh(tiny_config, 0, CPU)
    for group in ours.optimizer.param_groups:
        group |= on_ours
    ours.load(folder, new_schedule)
    for group in ours.optimizer.param_groups:
        assert {name: group[name] for name in on_ours} == on_ours
        assert (group["betas"] == (0.8, 0.9)) == (not new_schedule), "a new schedule takes all from the settings"
    for group in ours.optimizer.param_groups:
        group["capturable"] = False  # torch has it on GPUs only
    train(ours, tiny_config, 2)


def test_a_fused_optimizer_goes_on_from_moments_of_one_that_is_not(tiny_config: Config, tmp_path: Path) -> None:
    whole = TrainState.fresh(tiny_config, 0, CPU)
    train(whole, tiny_config, 2)
    folder = save(whole, tiny_config, tmp_path / "checkpoint")
    fused = TrainState.fresh(tiny_config, 0, CPU)
    fused.optimizer = torch.optim.AdamW(
        [{name: group[name] for name in ("params", "lr")} for group in fused.optimizer.param_groups], fused=True
    )
    fused.scheduler = build_scheduler(fused.optimizer, tiny_config.TRAIN)
    fused.load(folder)
    for state in (whole, fused):
        load_generators(folder, 0)
        train(state, tiny_config, 3)
    assert [group["fused"] for group in fused.optimizer.param_groups] == [True, True]
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(fused.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


class Device:
    """A GPU's random generator, as far as checkpoints go."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.restored: dict[int, object] = {}
        self.seeds: list[int] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: self.restored.update({device: state}))
        seed = torch.manual_seed

        def note(number: int) -> torch.Generator:
            self.seeds.append(number)
            return seed(number)

        monkeypatch.setattr(torch, "manual_seed", note)


@pytest.mark.parametrize(("stored", "here", "restored"), [(0, 1, []), (2, 1, [0]), (1, 2, [0]), (1, 0, [])])
def test_generators_of_other_numbers_of_gpus_are_restored_as_far_as_there_are_both(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int, here: int, restored: list[int]
) -> None:
    folder = save(TrainState.fresh(tiny_config, 0, CPU), tiny_config, tmp_path / "checkpoint")
    states = load_plain(folder / generator_file(0)) | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * stored}
    torch.save(states, folder / generator_file(0))
    device = Device(here, monkeypatch)
    assert load_generators(folder, 0)
    assert list(device.restored) == restored


def test_a_gpu_whose_generator_the_checkpoint_lacks_does_not_draw_again_what_the_run_began_with(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    train(state, tiny_config, 2)
    folder = save(state, tiny_config, tmp_path / "checkpoint")
    expected = generators_next()
    device = Device(1, monkeypatch)
    fresh = TrainState.fresh(tiny_config, 0, CPU)
    began = list(device.seeds)
    stored = stored_at(folder)
    restore(fresh, stored, tiny_config, DATASET, (), 0, "cpu", stored.run)
    assert len(device.seeds) > len(began) and device.seeds[-1] not in began
    assert generators_next() == expected, "those of the CPU are the checkpoint's"
