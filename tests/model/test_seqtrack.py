"""The model against numbers that the published implementation computed with weights and images made by formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from seqtrack.config import Config
from seqtrack.model.encoder import VisionTransformer, VitSize
from seqtrack.model.seqtrack import SeqTrack, build_model, sentence_ious, sentence_loss, token_weights
from seqtrack.tokens import boxes_to_tokens, decoder_input, decoder_target
from tests.model.formula import formula_images, golden_model

TINY = [
    "model_tiny",
    "model_tiny_feature_xz",
    "model_tiny_feature_token",
    "model_tiny_pre_norm_True",
    "model_tiny_seq_whxy",
    "model_tiny_seq_corner",
]
Golden = Callable[[str], Any]
Agrees = Callable[[str, str, Any, Any, float], None]


@pytest.mark.parametrize("name", [*TINY, "model_b256"])
def test_the_model_computes_what_the_published_one_does(golden: Golden, agrees: Agrees, name: str) -> None:
    case = golden(name)
    model, bins = golden_model(case), case["config"]["bins"]
    template, search = formula_images(case)
    tokens = boxes_to_tokens(torch.tensor(case["search_anno_xywh"]), bins, model.seq_format)
    assert decoder_target(tokens, bins).tolist() == case["target_tokens"]

    with torch.no_grad():
        features = model.encoder(template, search)
        logits = model(template, search, decoder_input(tokens, bins))
    agrees(name, "encoder, first token", features[0, 0, :16], case["encoder_feature_first"], 1e-4)
    agrees(name, "encoder, last token", features[-1, -1, :16], case["encoder_feature_last_token"], 1e-4)
    agrees(name, "encoder, deviation", features.std(), case["encoder_feature_std"], 1e-4)
    agrees(name, "logits", logits[:, :, :16], case["logits_first_16"], 1e-4)
    agrees(name, "logits, deviation", logits.std(), case["logits_std"], 1e-4)
    agrees(name, "loss", sentence_loss(logits, tokens, bins, token_weights(bins)), case["loss"], 1e-4)
    assert sentence_ious(logits, tokens, bins).mean().item() == pytest.approx(case["iou"], abs=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_the_model_learns_by_the_published_gradients(golden: Golden, agrees: Agrees, name: str) -> None:
    case = golden(name)
    model, bins = golden_model(case), case["config"]["bins"]
    tokens = boxes_to_tokens(torch.tensor(case["search_anno_xywh"]), bins, model.seq_format)
    logits = model(*formula_images(case), decoder_input(tokens, bins))
    sentence_loss(logits, tokens, bins, token_weights(bins)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        published = case["grad_norms"][parameter_name]
        agrees(name, f"gradient norm of {parameter_name}", parameter.grad.norm(), published, 1e-3)


@pytest.mark.parametrize("windowed", [False, True], ids=["plain", "hanning"])
@pytest.mark.parametrize("name", [*TINY, "model_b256"])
def test_the_model_writes_the_published_tokens(golden: Golden, agrees: Agrees, name: str, windowed: bool) -> None:
    case = golden(name)
    window = torch.hann_window(case["config"]["bins"], periodic=False) if windowed else None
    suffix = "_window" if windowed else ""
    tokens, confidence = golden_model(case).generate(*formula_images(case), window)
    assert tokens.tolist() == case["generated" + suffix]
    agrees(name, f"confidence{suffix}", confidence, case["confidence" + suffix], 1e-4)


@pytest.mark.parametrize("name", [*TINY, "model_b256"])
def test_parameters_have_the_published_names_and_shapes_in_order(golden: Golden, name: str) -> None:
    case = golden(name)
    model = golden_model(case)
    assert [[name, list(parameter.shape)] for name, parameter in model.named_parameters()] == case["parameters"]
    assert model.state_dict().keys() == dict(case["parameters"]).keys()


@pytest.mark.parametrize("name", TINY)
def test_feature_positions_start_as_published(golden: Golden, name: str) -> None:
    config = golden(name)["config"]
    vit = VisionTransformer(VitSize(config["dim"], 1, 1), config["size"], config["size"])
    model = SeqTrack(vit, 2, config.get("feature", "x"), "xywh", config["hidden"], config["bins"], 1, 1, 8)
    first = model.pos_embed[0, 0, :8].detach().numpy()
    np.testing.assert_allclose(first, golden(name)["decoder_pos_embed_first"], atol=1e-6)


def test_the_b256_config_builds_the_published_model(golden: Golden) -> None:
    config = Config().with_settings({"MODEL.DECODER.DEC_LAYERS": 2, "DATA.TEMPLATE.NUMBER": 2})
    with torch.device("meta"):
        model = build_model(config)
    shapes = [[name, list(parameter.shape)] for name, parameter in model.named_parameters()]
    assert shapes == golden("model_b256")["parameters"]


def test_random_weights_are_drawn_as_published(tiny_config: Config) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_config)
    for name, parameter in model.encoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            if "patch_embed" not in name:
                assert torch.equal(parameter, torch.full_like(parameter, float(name.endswith("weight")))), name
        elif "patch_embed" not in name:  # a convolution: torch's default
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
            assert parameter.abs().max() <= 2
    for name, parameter in model.decoder.named_parameters():
        if parameter.dim() > 1:
            fan_out, fan_in = parameter.shape
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name


def test_activation_checkpointing_changes_memory_and_not_gradients(tiny_config: Config) -> None:
    gradients = []
    for use in (False, True):
        torch.manual_seed(0)
        model = build_model(tiny_config.with_settings({"MODEL.ENCODER.USE_CHECKPOINT": use}))
        torch.manual_seed(1)
        logits = model(torch.ones(2, 2, 3, 32, 32), torch.ones(2, 3, 32, 32), torch.zeros(2, 5, dtype=torch.int64))
        logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_any_number_of_templates_shares_one_position_table(tiny_config: Config, number: int) -> None:
    model = build_model(tiny_config.with_settings({"DATA.TEMPLATE.NUMBER": number, "MODEL.FEATURE_TYPE": "xz"})).eval()
    template, search = torch.rand(1, number, 3, 32, 32), torch.rand(1, 3, 32, 32)
    features = model.encode(template, search)
    assert features.shape == (1, 4 + 4 * number, 32)
    swapped = model.encode(template.flip(1), search)
    torch.testing.assert_close(swapped[:, :4], features[:, :4])  # the search tokens do not see the templates' order
    torch.testing.assert_close(swapped[:, 4:].unflatten(1, (number, 4)).flip(1).flatten(1, 2), features[:, 4:])


def test_all_attention_is_the_fused_kind(tiny_config: Config) -> None:
    model = build_model(tiny_config)
    with torch.profiler.profile() as profile:
        model(torch.ones(1, 2, 3, 32, 32), torch.ones(1, 3, 32, 32), torch.zeros(1, 5, dtype=torch.int64))
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::scaled_dot_product_attention"] == 4 + 2  # encoder blocks; self- and cross-attention of a layer


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    vit = VisionTransformer(VitSize(16, 5, 1), 32, 32, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
