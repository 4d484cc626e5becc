"""The decoder: a DETR-style transformer that writes the box one token at a time (SeqTrack, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqtrack.tokens import SENTENCE_LENGTH


class TokenEmbedding(nn.Module):
    """Word embedding -> LayerNorm -> dropout, and the learned positions that the attention layers add to queries."""

    def __init__(self, vocabulary: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, dim)
        self.position_embeddings = nn.Embedding(SENTENCE_LENGTH, dim)
        self.LayerNorm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens -> (B, L, D)."""
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention, feed-forward. Positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, memory_BND: Tensor, pos_LD: Tensor, pos_ND: Tensor, causal_LL: Tensor) -> Tensor:
        def self_attention(x: Tensor) -> Tensor:
            query = x + pos_LD
            return self.self_attn(query, query, x, attn_mask=causal_LL, need_weights=False)[0]

        def cross_attention(x: Tensor) -> Tensor:
            return self.multihead_attn(x + pos_LD, memory_BND + pos_ND, memory_BND, need_weights=False)[0]

        def feedforward(x: Tensor) -> Tensor:
            return self.linear2(self.dropout(F.relu(self.linear1(x))))

        x = x_BLD
        for sublayer, norm in (
            (self_attention, self.norm1),
            (cross_attention, self.norm2),
            (feedforward, self.norm3),
        ):
            x = x + self.dropout(sublayer(norm(x))) if self.pre_norm else norm(x + self.dropout(sublayer(x)))
        return x


class DecoderBody(nn.Module):
    """The stack of layers and its final LayerNorm."""

    def __init__(self, layers: int, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, feedforward, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BLD: Tensor, memory_BND: Tensor, pos_LD: Tensor, pos_ND: Tensor) -> Tensor:
        length = x_BLD.shape[1]
        # True marks what must not be seen: the tokens after each position.
        causal_LL = torch.ones(length, length, dtype=torch.bool, device=x_BLD.device).triu(1)
        for layer in self.layers:
            x_BLD = layer(x_BLD, memory_BND, pos_LD, pos_ND, causal_LL)
        return self.norm(x_BLD)


class Decoder(nn.Module):
    """Tokens so far + image features -> one feature vector per position."""

    def __init__(
        self, vocabulary: int, dim: int, layers: int, heads: int, feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocabulary, dim, dropout)
        self.body = DecoderBody(layers, dim, heads, feedforward, dropout, pre_norm)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, tokens: Tensor, memory_BND: Tensor, pos_ND: Tensor) -> Tensor:
        """(B, L) tokens, (B, N, D) features, (1, N, D) their positions -> (B, L, D)."""
        pos_LD = self.embedding.position_embeddings.weight[: tokens.shape[1]]
        return self.body(self.embedding(tokens), memory_BND, pos_LD, pos_ND)


class Mlp(nn.Module):
    """The vocabulary head: Linear layers with ReLU between."""

    def __init__(self, dim: int, out_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, out_dim if i == layers - 1 else dim) for i in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def sinusoid_positions(first: int, length: int, dim: int) -> Tensor:
    """(1, length, dim) sine (even channels) and cosine (odd) of positions first, first + 1, …, as in DETR, but 1-D."""
    position = torch.arange(first, first + length, dtype=torch.float32)[:, None]
    frequency = 10000 ** (2 * (torch.arange(dim) // 2) / dim)
    angle = position / frequency
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())[None]
