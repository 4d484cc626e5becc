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


def has_bf16() -> bool:
    """Whether the CPU has instructions for it: with AVX2 only, a matrix product took 157 times as long as in fp32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "millions"),
    [("demo", 1.3), ("seqtrack_b256", 90.6), ("seqtrack_b256_lasot_coin_kite", 90.6), ("seqtrack_l384", 309.0)],
)
def test_a_config_builds_and_steps(name: str, millions: float, precision: str) -> None:
    if precision == "bf16" and millions > 10 and not has_bf16():
        pytest.skip("this CPU has no bf16 instructions; without them a step of this model takes many minutes")
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
