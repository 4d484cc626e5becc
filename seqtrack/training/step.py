"""One optimisation step and what it needs: optimizer, schedule, loss, determinism.

Nothing here knows about Ray; on one process this is the whole training step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR

from seqtrack.config import Config, TrainConfig
from seqtrack.model.images import prepare_images
from seqtrack.model.seqtrack import sentence_ious, sentence_loss, sentence_losses, token_weights
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
    sets: Tensor
    """(B,) int64 numbers of the training sets that samples are from."""


def build_optimizer(model: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups, the encoder (LR × ENCODER_MULTIPLIER) and the rest. Freezes parameters that are not trained.

    Parameters belong to the encoder if their name contains `encoder`, as published.
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
    """The learning-rate schedule, stepped once per epoch."""
    if settings.SCHEDULER.TYPE == "Mstep":
        return MultiStepLR(optimizer, list(settings.SCHEDULER.MILESTONES), settings.SCHEDULER.GAMMA)
    return StepLR(optimizer, settings.LR_DROP_EPOCH, settings.SCHEDULER.DECAY_RATE)


class Objective(nn.Module):
    """The loss that a step minimises. Its constants are buffers, so that they are copied to the device once."""

    mean: Tensor
    std: Tensor
    token_weights: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.tensor(config.DATA.MEAN))
        self.register_buffer("std", torch.tensor(config.DATA.STD))
        self.register_buffer("token_weights", token_weights(config.MODEL.BINS))

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, from which gradients flow, and what is measured of this batch, without gradients.

        That is (2,) loss and IoU; with S > 1 training sets (2 + 3·S,), where the share of the batch that is from a set,
        its loss and its IoU follow for each set. The latter two are summed over its samples and divided by the size of
        the batch, so that means over workers, slots and steps are means over samples.
        """
        config, bins = self.config, self.config.MODEL.BINS
        template = prepare_images(batch.template, batch.brightness[:, :-1], self.mean, self.std)
        search = prepare_images(batch.search, batch.brightness[:, -1], self.mean, self.std)
        tokens = boxes_to_tokens(batch.boxes_xywh, bins, config.DATA.SEQ_FORMAT)
        with torch.autocast(search.device.type, torch.bfloat16, enabled=config.TRAIN.PRECISION == "bf16"):
            logits = model(template, search, decoder_input(tokens, bins))
        loss = sentence_loss(logits, tokens, bins, self.token_weights) * config.TRAIN.CE_WEIGHT
        ious = sentence_ious(logits, tokens, bins)
        measured = torch.stack((loss.detach(), ious.mean()))
        sets = len(config.DATA.TRAIN.DATASETS_NAME)
        if sets == 1:
            return loss, measured
        losses = sentence_losses(logits, tokens, bins, self.token_weights) * config.TRAIN.CE_WEIGHT
        of_samples = torch.stack((torch.ones_like(losses), losses, ious), dim=1)
        of_sets = (F.one_hot(batch.sets, sets)[:, :, None] * of_samples[:, None]).mean(0)
        return loss, torch.cat((measured, of_sets.flatten()))


def backward(model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
    """Runs forward and backward. Returns what `objective` measured of this batch, on the device.

    With several workers `model` is wrapped for data-parallel training, and loss and IoU are this worker's.
    """
    loss, measured = objective(model, batch)
    loss.backward()
    return measured


Backward = Callable[[nn.Module, Batch, Objective], Tensor]


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    objective: Objective,
    backward: Backward = backward,
) -> Tensor:
    """Computes and clips gradients, then steps.

    Returns on the device what `objective` measured, loss and IoU first, and at the end the gradients' norm before
    clipping.
    """
    optimizer.zero_grad(set_to_none=True)
    measured = backward(model, batch, objective)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), objective.config.TRAIN.GRAD_CLIP_NORM)
    optimizer.step()
    return torch.cat((measured, grad_norm.detach()[None]))


def set_determinism(enabled: bool) -> None:
    """Chooses between deterministic kernels (an operation without one raises) and the fastest ones."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(enabled)
    # Otherwise torch also fills all memory that it allocates, a kernel for each tensor, though nothing reads the fill.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not enabled
