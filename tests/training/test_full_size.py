"""The models that people train, at their full size: they build and make a step on this machine's CPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from seqtrack.config import load_config
from seqtrack.model.seqtrack import build_model
from seqtrack.training.optimization import Batch, build_optimizer, train_step

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "millions", "precision"),
    [
        ("demo", 1.3, "fp32"),
        ("demo", 1.3, "bf16"),
        ("seqtrack_b256", 90.6, "fp32"),
        ("seqtrack_b256", 90.6, "bf16"),  # minutes on a CPU without instructions for it, so no larger model
        ("seqtrack_b256_lasot_coin_kite", 90.6, "fp32"),
        ("seqtrack_l384", 309.0, "fp32"),
    ],
)
def test_a_config_builds_and_steps(name: str, millions: float, precision: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml", [f"TRAIN.PRECISION={precision}"])
    generator = torch.Generator().manual_seed(0)
    size = config.DATA.SEARCH.SIZE
    batch = Batch(
        torch.randint(0, 256, (1, 2, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.tensor([[0.3, 0.4, 0.2, 0.3]]),
        torch.ones(1, 3),
    )
    torch.manual_seed(0)
    model = build_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    before = model.pos_embed.detach().clone()
    loss, _, grad_norm = train_step(model, build_optimizer(model, config.TRAIN), batch, config).tolist()
    assert loss == pytest.approx(math.log(config.MODEL.BINS), rel=0.1)  # as good as guessing
    assert grad_norm > 0
    assert not torch.equal(model.pos_embed, before)
