"""The published step that ours is measured against."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from benchmarks.gpu_bench import Bench
from benchmarks.published import published_optimizer, published_step, set_up
from seqtrack.training.step import train_step

BENCH = Bench(torch.device("cpu"), compiles=False)
STEPS = 3
BLOCKS = 4
"""Of the demo's encoder."""


class Steps(NamedTuple):
    """What some steps were."""

    losses: list[float]
    kernels: dict[str, int]
    """How often torch called each."""


def take_steps(published: bool) -> Steps:
    config = BENCH.config("demo").with_settings({"MODEL.DECODER.DROPOUT": 0})
    state, objective = BENCH.start(config)
    set_up(state.model, written_out=published, recomputes=published)
    optimizer = published_optimizer(state.optimizer) if published else state.optimizer
    losses = []
    with torch.profiler.profile() as profile:
        for number in range(STEPS):
            batch = BENCH.batch(config, 4, number)
            if published:
                losses.append(published_step(state.model, optimizer, batch, objective)[0])
            else:
                losses.append(float(train_step(state.model, optimizer, batch, objective)[0]))
    return Steps(losses, {event.key: event.count for event in profile.key_averages()})


@pytest.fixture(scope="module")
def published() -> Steps:
    return take_steps(published=True)


@pytest.fixture(scope="module")
def ours() -> Steps:
    return take_steps(published=False)


def test_both_learn_the_same(published: Steps, ours: Steps) -> None:
    assert published.losses == pytest.approx(ours.losses, rel=1e-5)
    assert len(set(ours.losses)) == STEPS


def fused_attention(steps: Steps) -> int:
    return sum(count for name, count in steps.kernels.items() if name.startswith("aten::_scaled_dot_product_flash"))


def test_only_ours_has_fused_attention(published: Steps, ours: Steps) -> None:
    assert fused_attention(published) == 0
    assert fused_attention(ours) == STEPS * (BLOCKS + 4) * 2  # the decoder's two layers attend twice each; and backward


def test_only_the_published_encoder_writes_its_attention_out(published: Steps, ours: Steps) -> None:
    """In its blocks' own code, since a recomputed block is outside of what makes the decoder write it out."""
    attended = "aten::scaled_dot_product_attention"
    assert (published.kernels[attended], ours.kernels[attended]) == (STEPS * 4, STEPS * (BLOCKS + 4))


def test_the_encoders_blocks_are_computed_twice_where_that_is_asked_for(published: Steps, ours: Steps) -> None:
    extra = published.kernels["aten::gelu"] - ours.kernels["aten::gelu"]
    assert extra == STEPS * BLOCKS
