"""The models that people train, at their full size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from seqtrack.config import Config, load_config
from seqtrack.model.precision import cpu_has_bf16
from seqtrack.model.seqtrack import build_model, sentence_loss, token_weights
from seqtrack.tokens import decoder_input
from seqtrack.training.step import Batch, Objective, build_optimizer, train_step

CONFIGS = Path(__file__).parents[2] / "configs"


MODELS = [("demo", 1.3), ("seqtrack_b256", 90.6), ("seqtrack_b256_lasot_coin_kite", 90.6), ("seqtrack_l384", 309.0)]


def made_up_batch(config: Config) -> Batch:
    generator = torch.Generator().manual_seed(0)
    size = config.DATA.SEARCH.SIZE
    return Batch(
        torch.randint(0, 256, (1, 2, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.randint(0, 256, (1, size, size, 3), dtype=torch.uint8, generator=generator),
        torch.tensor([[0.3, 0.4, 0.2, 0.3]]),
        torch.ones(1, 3),
        torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.parametrize(("name", "millions"), MODELS)
def test_a_model_builds_and_every_parameter_gets_a_gradient(name: str, millions: float) -> None:
    """The model on the meta device, with shapes but without numbers."""
    config = load_config(CONFIGS / f"{name}.yaml", ["MODEL.ENCODER.USE_CHECKPOINT=false"])
    bins, search, template = config.MODEL.BINS, config.DATA.SEARCH, config.DATA.TEMPLATE
    with torch.device("meta"):
        model = build_model(config)
        templates = torch.empty(1, template.NUMBER, 3, template.SIZE, template.SIZE)
        tokens = torch.zeros(1, 4, dtype=torch.int64)
        logits = model(templates, torch.empty(1, 3, search.SIZE, search.SIZE), decoder_input(tokens, bins))
        loss = sentence_loss(logits, tokens, bins, token_weights(bins))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    optimizer = build_optimizer(model, config.TRAIN)
    loss.backward()
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert all(parameter.grad is not None and parameter.grad.shape == parameter.shape for parameter in trained)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["demo", *(pytest.param(name, marks=pytest.mark.soak) for name, _ in MODELS[1:])])
def test_a_step_learns_from_as_good_as_guessing(name: str, precision: str) -> None:
    if precision == "bf16" and name != "demo" and not cpu_has_bf16():
        pytest.skip("this CPU has no bf16 instructions; without them a step of this model takes many minutes")
    config = load_config(CONFIGS / f"{name}.yaml", [f"TRAIN.PRECISION={precision}"])
    torch.manual_seed(0)
    model = build_model(config)
    before = model.pos_embed.detach().clone()
    optimizer = build_optimizer(model, config.TRAIN)
    loss, *_, grad_norm = train_step(model, optimizer, made_up_batch(config), Objective(config)).tolist()
    assert loss == pytest.approx(math.log(config.MODEL.BINS), rel=0.1)
    assert grad_norm > 0
    assert not torch.equal(model.pos_embed, before)
