"""The model against numbers that the published implementation computed with weights and images made by formula."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqtrack.config import Config
from seqtrack.model.encoder import VisionTransformer, VitSize
from seqtrack.model.seqtrack import SeqTrack, build_model, sentence_iou, sentence_loss
from seqtrack.tokens import boxes_to_tokens, decoder_input, decoder_target

TINY = [
    "model_tiny",
    "model_tiny_feature_xz",
    "model_tiny_feature_token",
    "model_tiny_pre_norm_True",
    "model_tiny_seq_whxy",
    "model_tiny_seq_corner",
]
Golden = Callable[[str], Any]


def formula_weight(name: str, shape: list[int], salt: int) -> Tensor:
    z = np.random.RandomState((zlib.crc32(name.encode()) + salt) % 2**32).standard_normal(shape)
    if len(shape) == 1:
        z = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    elif "embed" in name and not name.startswith("vocab_embed") and "patch_embed" not in name:
        z = 0.5 * z
    else:
        z = 1.5 * z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(z.astype(np.float32))


def formula_images(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """(B, T, 3, s, s) templates and (B, 3, s, s) search images."""

    def images(number: int, seed: int) -> Tensor:
        shape = (number, case["batch"], 3, case["config"]["size"], case["config"]["size"])
        return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))

    template = images(case["config"].get("nt", 2), 1000 + case["salt"]).transpose(0, 1)
    return template, images(1, 1000 + case["salt"] + 3)[0]


def golden_model(case: dict[str, Any]) -> SeqTrack:
    config = case["config"]
    model = SeqTrack(
        VisionTransformer(VitSize(config["dim"], config["depth"], config["heads"]), config["size"], config["size"]),
        num_templates=config.get("nt", 2),
        feature_type=config.get("feature", "x"),
        seq_format=config.get("seq", "xywh"),
        hidden_dim=config["hidden"],
        bins=config["bins"],
        decoder_layers=config["layers"],
        heads=config["nheads"],
        feedforward=config["ff"],
        pre_norm=bool(config.get("pre_norm")),
    )
    model.load_state_dict({name: formula_weight(name, shape, case["salt"]) for name, shape in case["parameters"]})
    return model.eval()


def assert_agrees(name: str, what: str, ours: Any, published: Any, tolerance: float) -> None:
    """Largest deviation, relative to the largest published value, within the tolerance; shown by `pytest -s`."""
    ours, published = np.asarray(ours, np.float64), np.asarray(published, np.float64)
    deviation = np.abs(ours - published).max() / max(np.abs(published).max(), 1e-4)
    print(f"{name}: {what}: largest relative deviation {deviation:.1e}")
    assert deviation <= tolerance, f"{what} deviates by {deviation:.2e}"


@pytest.mark.parametrize("name", [*TINY, "model_b256"])
def test_the_model_computes_what_the_published_one_does(golden: Golden, name: str) -> None:
    case = golden(name)
    model, bins = golden_model(case), case["config"]["bins"]
    template, search = formula_images(case)
    tokens = boxes_to_tokens(torch.tensor(case["search_anno_xywh"]), bins, model.seq_format)
    assert decoder_target(tokens, bins).tolist() == case["target_tokens"]

    with torch.no_grad():
        features = model.encoder(template, search)
        logits = model(template, search, decoder_input(tokens, bins))
    assert_agrees(name, "encoder, first token", features[0, 0, :16], case["encoder_feature_first"], 1e-4)
    assert_agrees(name, "encoder, last token", features[-1, -1, :16], case["encoder_feature_last_token"], 1e-4)
    assert_agrees(name, "encoder, deviation", features.std(), case["encoder_feature_std"], 1e-4)
    assert_agrees(name, "logits", logits[:, :, :16], case["logits_first_16"], 1e-4)
    assert_agrees(name, "logits, deviation", logits.std(), case["logits_std"], 1e-4)
    assert_agrees(name, "loss", sentence_loss(logits, tokens, bins), case["loss"], 1e-4)
    assert sentence_iou(logits, tokens, bins).item() == pytest.approx(case["iou"], abs=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_the_model_learns_by_the_published_gradients(golden: Golden, name: str) -> None:
    case = golden(name)
    model, bins = golden_model(case), case["config"]["bins"]
    tokens = boxes_to_tokens(torch.tensor(case["search_anno_xywh"]), bins, model.seq_format)
    sentence_loss(model(*formula_images(case), decoder_input(tokens, bins)), tokens, bins).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None
        norm, published = parameter.grad.norm().item(), case["grad_norms"][parameter_name]
        assert norm == pytest.approx(published, rel=1e-3, abs=1e-6), parameter_name


@pytest.mark.parametrize("windowed", [False, True], ids=["plain", "hanning"])
@pytest.mark.parametrize("name", [*TINY, "model_b256"])
def test_the_model_writes_the_published_tokens(golden: Golden, name: str, windowed: bool) -> None:
    case = golden(name)
    window = torch.hann_window(case["config"]["bins"], periodic=False) if windowed else None
    suffix = "_window" if windowed else ""
    tokens, confidence = golden_model(case).generate(*formula_images(case), window)
    assert tokens.tolist() == case["generated" + suffix]
    assert_agrees(name, f"confidence{suffix}", confidence, case["confidence" + suffix], 1e-4)


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


def test_drop_path_grows_linearly_over_the_blocks() -> None:
    vit = VisionTransformer(VitSize(16, 5, 1), 32, 32, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in vit.blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
