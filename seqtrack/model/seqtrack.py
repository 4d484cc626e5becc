"""SeqTrack: images in, a box as a sentence of tokens out (CVPR 2023, arXiv 2304.14394)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqtrack import boxes
from seqtrack.config import Config
from seqtrack.model.decoder import Decoder, Mlp, sinusoid_positions
from seqtrack.model.encoder import VIT_SIZES, Encoder, VisionTransformer
from seqtrack.tokens import SeqFormat, decoder_target, vocabulary_size

FeatureType = Literal["x", "xz", "token"]


class Generated(NamedTuple):
    """Output of `SeqTrack.generate`."""

    tokens: Tensor
    """(B, 4) int64 coordinate tokens."""
    confidence: Tensor
    """(B, 4) probability of each token, weighted by the window if one was given."""


class SeqTrack(nn.Module):
    """Encoder, bottleneck, decoder and vocabulary head. Parameter names are those of the published checkpoints."""

    def __init__(
        self,
        body: VisionTransformer,
        num_templates: int,
        feature_type: FeatureType,
        seq_format: SeqFormat,
        hidden_dim: int,
        bins: int,
        decoder_layers: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.1,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.feature_type = feature_type
        self.seq_format = seq_format
        vocabulary = vocabulary_size(bins)
        width = body.norm.normalized_shape[0]
        num_features = {
            "x": body.num_search,
            "xz": body.num_search + num_templates * body.num_template,
            "token": 1,
        }[feature_type]
        # Positions count from 1; the single mean token has position 0, as published.
        first_position = 0 if feature_type == "token" else 1
        self.pos_embed = nn.Parameter(sinusoid_positions(first_position, num_features, hidden_dim))
        self.encoder = Encoder(body)
        self.bottleneck = nn.Linear(width, hidden_dim) if width != hidden_dim else nn.Identity()
        self.decoder = Decoder(vocabulary, hidden_dim, decoder_layers, heads, feedforward, dropout, pre_norm)
        self.vocab_embed = Mlp(hidden_dim, vocabulary, layers=3)

    def forward(self, template: Tensor, search: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits: (B, T, 3, h, w), (B, 3, H, W), (B, L) decoder input -> (B, L, vocabulary)."""
        return self._decode(self.encode(template, search), tokens)

    def encode(self, template: Tensor, search: Tensor) -> Tensor:
        """Images -> the (B, N, HIDDEN_DIM) features that the decoder reads; N depends on FEATURE_TYPE."""
        return self._to_memory(self.encoder(template, search))

    def _to_memory(self, features_BNC: Tensor) -> Tensor:
        if self.feature_type == "x":
            features_BNC = features_BNC[:, : self.encoder.body.num_search]
        elif self.feature_type == "token":
            features_BNC = features_BNC.mean(dim=1, keepdim=True)
        return self.bottleneck(features_BNC)

    @torch.no_grad()
    def generate(self, template: Tensor, search: Tensor, window: Tensor | None = None) -> Generated:
        """Predicts the box greedily, one coordinate token after another, in evaluation mode.

        `window`: (bins,) weights of the probabilities of the two centre tokens, for tracking.
        """
        return self.generate_with(self.encoder.body.embed_templates(template), search, window)

    @torch.no_grad()
    def generate_with(self, templates_BNC: Tensor, search: Tensor, window: Tensor | None = None) -> Generated:
        """`generate` with the templates' embedded patches (from `embed_templates`), which trackers keep."""
        windowed = (2, 3) if self.seq_format == "whxy" else (0, 1)  # corners: the first two, as published
        body = self.encoder.body
        memory_BND = self._to_memory(body.attend(body.embed_search(search), templates_BNC))
        sentence = self.decoder.start(memory_BND, self.pos_embed)
        token = torch.full((search.shape[0],), self.bins + 1, dtype=torch.int64, device=search.device)
        tokens, confidence = [], []
        for position in range(4):
            probabilities = self.vocab_embed(sentence.add(token)).float().softmax(-1)[:, : self.bins]
            if window is not None and position in windowed:
                probabilities = probabilities * window
            best, token = probabilities.max(dim=-1)
            confidence.append(best)
            tokens.append(token)
        return Generated(torch.stack(tokens, dim=1), torch.stack(confidence, dim=1))

    def _decode(self, memory_BND: Tensor, tokens: Tensor) -> Tensor:
        return self.vocab_embed(self.decoder(tokens, memory_BND, self.pos_embed))

    @classmethod
    def from_pretrained(cls, source: str, revision: str | None = None) -> SeqTrack:
        """The trained model of a Hub repository (`user/name`) or at another address (`seqtrack.address`), in eval mode.

        `revision`: of the repository. Raises InputError.
        """
        from seqtrack.model.weights import load_pretrained  # imported here, because it imports this module

        return load_pretrained(source, revision)


def build_model(config: Config) -> SeqTrack:
    """The model that the settings describe, with random weights drawn from torch's global generator."""
    encoder, decoder = config.MODEL.ENCODER, config.MODEL.DECODER
    return SeqTrack(
        VisionTransformer(
            VIT_SIZES[encoder.TYPE],
            config.DATA.SEARCH.SIZE,
            config.DATA.TEMPLATE.SIZE,
            encoder.DROP_PATH,
            encoder.USE_CHECKPOINT,
        ),
        num_templates=config.DATA.TEMPLATE.NUMBER,
        feature_type=config.MODEL.FEATURE_TYPE,
        seq_format=config.DATA.SEQ_FORMAT,
        hidden_dim=config.MODEL.HIDDEN_DIM,
        bins=config.MODEL.BINS,
        decoder_layers=decoder.DEC_LAYERS,
        heads=decoder.NHEADS,
        feedforward=decoder.DIM_FEEDFORWARD,
        dropout=decoder.DROPOUT,
        pre_norm=decoder.PRE_NORM,
    )


def token_weights(bins: int) -> Tensor:
    """(vocabulary,) weights of the loss: 1 for coordinates, 0.01 for END and START, as published."""
    weights = torch.ones(vocabulary_size(bins))
    weights[bins:] = 0.01
    return weights


def sentence_loss(logits: Tensor, tokens: Tensor, bins: int, weights: Tensor) -> Tensor:
    """Next-token cross-entropy of (B, 5, vocabulary) logits against (B, 4) coordinate tokens and END.

    `weights`: `token_weights(bins)` on the logits' device; the mean is weighted too, as published.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), decoder_target(tokens, bins).flatten(), weight=weights)


@torch.no_grad()
def sentence_losses(logits: Tensor, tokens: Tensor, bins: int, weights: Tensor) -> Tensor:
    """(B,) `sentence_loss` of each sample. Their mean is that of the batch, since all sentences have equal weights."""
    target = decoder_target(tokens, bins)
    losses = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), weight=weights, reduction="none")
    return losses.view_as(target).sum(1) / weights[target].sum(1)


@torch.no_grad()
def sentence_ious(logits: Tensor, tokens: Tensor, bins: int) -> Tensor:
    """(B,) IoU of the likeliest coordinates of (B, 5, vocabulary) teacher-forced logits with (B, 4) target tokens.

    Both are read as (cx, cy, w, h) whatever the sentence's order is, as published.
    """
    predicted = logits[:, :4, :bins].argmax(-1)
    return boxes.iou(boxes.cxcywh_to_xyxy(predicted / (bins - 1)), boxes.cxcywh_to_xyxy(tokens / (bins - 1)))
