from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.config import Config
from seqtrack.training.optimization import Batch, train_step
from seqtrack.training.state import (
    CheckpointError,
    TrainState,
    load_generators,
    read_meta,
    save_generators,
    seed_generators,
    write_meta,
)

CPU = torch.device("cpu")


def make_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    return Batch(
        template=torch.randint(0, 256, (4, 2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        search=torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=generator),
        boxes_xywh=torch.rand(4, 4, generator=generator) * 0.5,
        brightness=torch.ones(4, 3),
    )


def train(state: TrainState, config: Config, stop: int) -> None:
    state.model.train()
    while state.step < stop:
        loss, iou, grad_norm = train_step(state.model, state.optimizer, make_batch(state.step), config).tolist()
        state.meter.add(loss, iou, grad_norm)
        state.step += 1
        if state.step % 4 == 0:
            state.scheduler.step()
            state.history.append({"step": state.step, "loss": loss})


def generators_next() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.rand()), random.random()


def test_a_run_continued_from_its_checkpoint_ends_with_the_same_bits(tiny_config: Config, tmp_path: Path) -> None:
    whole = TrainState.fresh(tiny_config, 0, CPU)
    train(whole, tiny_config, 6)
    whole.save(tmp_path)
    save_generators(tmp_path, 0)
    train(whole, tiny_config, 12)
    after_whole = generators_next()

    seed_generators(99, 0)  # anything but what the first run had
    continued = TrainState.fresh(tiny_config.with_settings({"SEED": 77}), 0, CPU)
    continued.load(tmp_path)
    assert load_generators(tmp_path, 0)
    train(continued, tiny_config, 12)

    assert continued.step == 12
    assert continued.meter == whole.meter
    assert continued.history == whole.history
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


def test_generators_of_a_rank_that_was_not_there_are_missing(tmp_path: Path) -> None:
    save_generators(tmp_path, 0)
    assert not load_generators(tmp_path, 1)


def test_a_checkpoint_of_another_model_is_refused_with_the_parameters_named(
    tiny_config: Config, tmp_path: Path
) -> None:
    TrainState.fresh(tiny_config, 0, CPU).save(tmp_path)
    other = tiny_config.with_settings({"MODEL.BINS": 20, "MODEL.DECODER.DEC_LAYERS": 2})
    with pytest.raises(CheckpointError) as error:
        TrainState.fresh(other, 0, CPU).load(tmp_path)
    assert "18 missing: decoder.body.layers.1.linear1.bias, " in str(error.value)
    smaller = tiny_config.with_settings({"MODEL.BINS": 20})
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight is \[18, 32\], not \[22, 32\]"):
        TrainState.fresh(smaller, 0, CPU).load(tmp_path)


@pytest.mark.parametrize("file", ["state.pt", "model.safetensors"])
def test_a_cut_off_file_is_named(tiny_config: Config, tmp_path: Path, file: str) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    state.save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=f"{file}: cannot be read"):
        state.load(tmp_path)


def test_a_checkpoint_cannot_run_code(tiny_config: Config, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    state = TrainState.fresh(tiny_config, 0, CPU)
    state.save(tmp_path)
    torch.save({"optimizer": Attack()}, tmp_path / "state.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError):
        state.load(tmp_path)
    assert not (tmp_path / "attacked").exists()


def test_meta_tells_what_the_checkpoint_is(tiny_config: Config, tmp_path: Path) -> None:
    state = TrainState.fresh(tiny_config, 0, CPU)
    state.step = 9
    write_meta(tmp_path, tiny_config, state, world_size=2)
    meta = read_meta(tmp_path)
    assert (meta["step"], meta["epoch"], meta["world_size"]) == (9, 1, 2)
    assert Config.model_validate_json(json.dumps(meta["config"])) == tiny_config
    assert meta["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"step": 1}'])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meta.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"meta\.json: not the description of a checkpoint"):
        read_meta(tmp_path)
