"""Turns crops (uint8) into the input of the network (normalised float32)."""

from __future__ import annotations

from torch import Tensor


def prepare_images(images: Tensor, brightness: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(…, H, W, 3) uint8, (…) factors -> (…, 3, H, W) float32: × brightness, clamped to [0, 1], normalised."""
    scaled = (images.float() / 255 * brightness[..., None, None, None]).clamp(0, 1)
    return ((scaled - mean) / std).movedim(-1, -3).contiguous()
