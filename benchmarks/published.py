"""A training step as the published code takes it, to compare with ours."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.training.step import Batch, Objective


def set_up(model: SeqTrack, written_out: bool = False, recomputes: bool = False) -> None:
    """Whether the encoder's attention has a whole matrix of weights, as in the published code, and whether each block's
    activations are computed a second time in the backward pass (USE_CHECKPOINT, which some published recipes set)."""
    model.encoder.body.use_checkpoint = recomputes
    for block in model.encoder.body.blocks:
        setattr(block.attn, "fused_attn", not written_out)  # noqa: B010 - timm's own switch


def published_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.AdamW:
    """AdamW for the same parameters, which updates one after another."""
    groups = [{"params": group["params"], "lr": group["lr"]} for group in optimizer.param_groups]
    return torch.optim.AdamW(groups, weight_decay=optimizer.defaults["weight_decay"], foreach=False, fused=False)


def published_step(
    model: SeqTrack, optimizer: torch.optim.Optimizer, batch: Batch, objective: Objective
) -> tuple[float, float]:
    """Loss and IoU of a step of a model that is `set_up`. It reads them at once, so a GPU is waited for.

    Source: the method as published (arXiv 2304.14394): cross-entropy over the vocabulary, gradients clipped by their
    norm, AdamW.
    """
    with sdpa_kernel(SDPBackend.MATH):  # the decoder's attention is written out too
        loss, measured = objective(model, batch)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), objective.config.TRAIN.GRAD_CLIP_NORM, foreach=False)
    optimizer.step()
    return loss.item(), float(measured[1])
