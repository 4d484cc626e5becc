"""The encoder: a ViT that attends over search and template patches jointly (SeqTrack, section 3.3).

Built from timm's blocks. Parameter names are those of the published checkpoints (`encoder.body.…` in the whole model).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PATCH = 16


class VitSize(NamedTuple):
    """Width in channels, number of blocks, attention heads."""

    dim: int
    depth: int
    heads: int


VIT_SIZES = {
    "vit_base_patch16": VitSize(768, 12, 12),
    "vit_large_patch16": VitSize(1024, 24, 16),
    "vit_demo_patch16": VitSize(128, 4, 4),
}


class VisionTransformer(nn.Module):
    """ViT over one search image and T templates; every token attends to every other in all blocks."""

    def __init__(
        self, size: VitSize, search_size: int, template_size: int, drop_path: float = 0.0, use_checkpoint: bool = False
    ) -> None:
        # Imported when a model is built: with torchvision and torch's compiler, timm takes seconds, and most processes
        # that know what a model is build none.
        from timm.layers import PatchEmbed
        from timm.models.vision_transformer import Block

        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.num_search = (search_size // PATCH) ** 2
        self.num_template = (template_size // PATCH) ** 2
        self.patch_embed = PatchEmbed(
            img_size=None, patch_size=PATCH, in_chans=3, embed_dim=size.dim, strict_img_size=False
        )
        # One table for the search grid, one that all templates share, kept in one parameter as published.
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_search + self.num_template, size.dim))
        self.blocks = nn.ModuleList(
            Block(
                size.dim,
                size.heads,
                mlp_ratio=4.0,
                qkv_bias=True,
                drop_path=drop_path * index / max(size.depth - 1, 1),
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for index in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim, eps=1e-6)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        """(B, T, 3, h, w), (B, 3, H, W) -> (B, N_search + T·N_template, C): search tokens first."""
        return self.attend(self.embed_search(search), self.embed_templates(template))

    def embed_search(self, search: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N_search, C): patches with their positions."""
        return self.patch_embed(search) + self.pos_embed[:, : self.num_search]

    def embed_templates(self, template: Tensor) -> Tensor:
        """(B, T, 3, h, w) -> (B, T·N_template, C): patches with their positions, which all templates share."""
        batch, num_templates = template.shape[:2]
        patches_BNC = self.patch_embed(template.flatten(0, 1)) + self.pos_embed[:, self.num_search :]
        return patches_BNC.reshape(batch, num_templates * self.num_template, -1)

    def attend(self, search_BNC: Tensor, templates_BNC: Tensor) -> Tensor:
        """Embedded patches -> (B, N_search + T·N_template, C) features: search tokens first."""
        x_BNC = torch.cat((search_BNC, templates_BNC), dim=1)
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                x_BNC = checkpoint(block, x_BNC, use_reentrant=False)
            else:
                x_BNC = block(x_BNC)
        return self.norm(x_BNC)


class Encoder(nn.Module):
    """Holds the ViT as `body`, so that parameter names are the published ones."""

    def __init__(self, body: VisionTransformer) -> None:
        super().__init__()
        self.body = body

    def forward(self, template: Tensor, search: Tensor) -> Tensor:
        return self.body(template, search)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
