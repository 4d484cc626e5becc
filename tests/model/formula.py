"""Weights and images made by formula, as the published implementation was given them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqtrack.model.encoder import VisionTransformer, VitSize
from seqtrack.model.seqtrack import SeqTrack


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
    """The model of a golden file, with its weights, in evaluation mode."""
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
