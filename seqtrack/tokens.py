"""Boxes as sentences: four coordinate tokens 0 … bins-1, then END = bins; a decoder input opens with START = bins + 1.

Source: SeqTrack, section 3.2, and its published implementation, which truncates instead of rounding.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from seqtrack import boxes

SeqFormat = Literal["xywh", "whxy", "corner"]
SENTENCE_LENGTH = 5
"""Decoder positions. The input is START and four coordinates, the output is the four coordinates and END."""


def vocabulary_size(bins: int) -> int:
    return bins + 2


def boxes_to_tokens(boxes_xywh: Tensor, bins: int, seq_format: SeqFormat) -> Tensor:
    """(B, 4) boxes normalised to the crop -> (B, 4) int64 tokens. Parts outside the crop are cut off first."""
    corners = boxes.xywh_to_xyxy(boxes_xywh).clamp(0, 1)
    if seq_format == "corner":
        coordinates = corners
    else:
        coordinates = boxes.xyxy_to_cxcywh(corners)
        if seq_format == "whxy":
            coordinates = coordinates.roll(2, -1)  # not an index list, for which a GPU's step would wait
    return (coordinates * (bins - 1)).to(torch.int64)


def tokens_to_boxes(tokens: Tensor, bins: int, seq_format: SeqFormat) -> Tensor:
    """(..., 4) tokens -> (..., 4) float32 boxes_xyxy normalised to the crop."""
    coordinates = tokens.to(torch.float32) / (bins - 1)
    if seq_format == "corner":
        return coordinates
    if seq_format == "whxy":
        coordinates = coordinates.roll(2, -1)
    return boxes.cxcywh_to_xyxy(coordinates)


def decoder_input(tokens: Tensor, bins: int) -> Tensor:
    """(B, 4) coordinate tokens -> (B, 5): START t0 t1 t2 t3."""
    return torch.cat((tokens.new_full((len(tokens), 1), bins + 1), tokens), dim=1)


def decoder_target(tokens: Tensor, bins: int) -> Tensor:
    """(B, 4) coordinate tokens -> (B, 5): t0 t1 t2 t3 END."""
    return torch.cat((tokens, tokens.new_full((len(tokens), 1), bins)), dim=1)
