"""One optimisation step and what it needs: optimizer, schedule, images on the device, determinism.

Nothing here knows about Ray; on one process this is the whole training step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR

from seqtrack.config import Config, TrainConfig
from seqtrack.model.seqtrack import sentence_iou, sentence_loss
from seqtrack.tokens import boxes_to_tokens, decoder_input


class Batch(NamedTuple):
    """One worker's share of a global batch, on its device."""

    template: Tensor
    """(B, T, h, w, 3) uint8 RGB."""
    search: Tensor
    """(B, H, W, 3) uint8 RGB."""
    boxes_xywh: Tensor
    """(B, 4) float32 targets in the search crops, normalised."""
    brightness: Tensor
    """(B, T + 1) float32 factors, templates first."""


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups, the encoder (LR × ENCODER_MULTIPLIER) and the rest; freezes what is not to be trained.

    Parameters belong to the encoder when their name holds `encoder`, as published.
    """
    encoder, rest = [], []
    for name, parameter in model.named_parameters():
        if "encoder" not in name:
            rest.append(parameter)
            continue
        body_name = name.removeprefix("encoder.body.")
        opened = body_name in settings.ENCODER_OPEN[:2] or any(part in body_name for part in settings.ENCODER_OPEN[2:])
        if settings.ENCODER_MULTIPLIER == 0 or (settings.FREEZE_ENCODER and not opened):
            parameter.requires_grad_(False)
        else:
            encoder.append(parameter)
    groups = [{"params": rest, "lr": settings.LR}]
    if encoder:
        groups.append({"params": encoder, "lr": settings.LR * settings.ENCODER_MULTIPLIER})
    return torch.optim.AdamW(groups, weight_decay=settings.WEIGHT_DECAY, fused=rest[0].is_cuda)


def build_scheduler(optimizer: torch.optim.Optimizer, settings: TrainConfig) -> LRScheduler:
    """The schedule, stepped once an epoch."""
    if settings.SCHEDULER.TYPE == "Mstep":
        return MultiStepLR(optimizer, list(settings.SCHEDULER.MILESTONES), settings.SCHEDULER.GAMMA)
    return StepLR(optimizer, settings.LR_DROP_EPOCH, settings.SCHEDULER.DECAY_RATE)


def prepare_images(images: Tensor, brightness: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(…, H, W, 3) uint8, (…) factors -> (…, 3, H, W) float32: × brightness, clamped to [0, 1], normalised."""
    scaled = (images.float() / 255 * brightness[..., None, None, None]).clamp(0, 1)
    return ((scaled - mean) / std).movedim(-1, -3).contiguous()


def backward(model: nn.Module, batch: Batch, config: Config) -> Tensor:
    """Forward, loss, gradients. Returns (2,) loss and IoU of this batch, on the device.

    With several workers `model` is wrapped for data-parallel training, and loss and IoU are this worker's.
    """
    bins = config.MODEL.BINS
    mean, std = batch.brightness.new_tensor(config.DATA.MEAN), batch.brightness.new_tensor(config.DATA.STD)
    template = prepare_images(batch.template, batch.brightness[:, :-1], mean, std)
    search = prepare_images(batch.search, batch.brightness[:, -1], mean, std)
    tokens = boxes_to_tokens(batch.boxes_xywh, bins, config.DATA.SEQ_FORMAT)
    with torch.autocast(search.device.type, torch.bfloat16, enabled=config.TRAIN.PRECISION == "bf16"):
        logits = model(template, search, decoder_input(tokens, bins))
    loss = sentence_loss(logits, tokens, bins) * config.TRAIN.CE_WEIGHT
    loss.backward()
    return torch.stack((loss.detach(), sentence_iou(logits, tokens, bins)))


Backward = Callable[[nn.Module, Batch, Config], Tensor]


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, config: Config, backward: Backward = backward
) -> Tensor:
    """Gradients, clip, step. Returns (3,) loss, IoU and gradient norm before clipping, on the device."""
    optimizer.zero_grad(set_to_none=True)
    measured = backward(model, batch, config)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.TRAIN.GRAD_CLIP_NORM)
    optimizer.step()
    return torch.cat((measured, grad_norm.detach()[None]))


def set_determinism(enabled: bool) -> None:
    """Deterministic kernels only (an operation that has none raises), or whatever is fastest."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = not enabled
