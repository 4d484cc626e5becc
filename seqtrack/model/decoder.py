"""The decoder: a DETR-style transformer that writes the box one token at a time (SeqTrack, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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


class KeysValues(NamedTuple):
    """What an attention layer reads, by head: H heads of D / H channels, S positions."""

    keys: Tensor
    """(B, H, S, D / H)."""
    values: Tensor
    """(B, H, S, D / H)."""

    def then(self, new: KeysValues) -> KeysValues:
        """These positions and, after them, the new ones."""
        return KeysValues(torch.cat((self.keys, new.keys), dim=2), torch.cat((self.values, new.values), dim=2))


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
            return self.self_attn(query, query, x, attn_mask=causal_LL, need_weights=False, is_causal=True)[0]

        def cross_attention(x: Tensor) -> Tensor:
            return self.multihead_attn(x + pos_LD, memory_BND + pos_ND, memory_BND, need_weights=False)[0]

        return self._sublayers(x_BLD, self_attention, cross_attention)

    def read(self, memory_BND: Tensor, pos_ND: Tensor) -> KeysValues:
        """What the cross-attention reads of the image. It does not depend on the tokens, so one frame needs it once."""
        return _keys_values(self.multihead_attn, memory_BND + pos_ND, memory_BND)

    def step(
        self, x_B1D: Tensor, pos_1D: Tensor, image: KeysValues, before: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """One more position of what `forward` computes, without dropout: its output, and what later positions read.

        `before`: what this position reads of those before it; None at the first one.
        """
        own: list[KeysValues] = []

        def self_attention(x: Tensor) -> Tensor:
            query = x + pos_1D
            new = _keys_values(self.self_attn, query, x)
            own.append(new if before is None else before.then(new))
            return _attend(self.self_attn, query, own[0])

        def cross_attention(x: Tensor) -> Tensor:
            return _attend(self.multihead_attn, x + pos_1D, image)

        return self._sublayers(x_B1D, self_attention, cross_attention), own[0]

    def _sublayers(
        self, x: Tensor, self_attention: Callable[[Tensor], Tensor], cross_attention: Callable[[Tensor], Tensor]
    ) -> Tensor:
        def feedforward(x: Tensor) -> Tensor:
            return self.linear2(self.dropout(F.relu(self.linear1(x))))

        for sublayer, norm in (
            (self_attention, self.norm1),
            (cross_attention, self.norm2),
            (feedforward, self.norm3),
        ):
            x = x + self.dropout(sublayer(norm(x))) if self.pre_norm else norm(x + self.dropout(sublayer(x)))
        return x


def _keys_values(attention: nn.MultiheadAttention, keys: Tensor, values: Tensor) -> KeysValues:
    _, weight_key, weight_value = attention.in_proj_weight.chunk(3)
    _, bias_key, bias_value = attention.in_proj_bias.chunk(3)
    return KeysValues(
        _by_head(attention, F.linear(keys, weight_key, bias_key)),
        _by_head(attention, F.linear(values, weight_value, bias_value)),
    )


def _attend(attention: nn.MultiheadAttention, query_B1D: Tensor, read: KeysValues) -> Tensor:
    dim = attention.embed_dim
    query = _by_head(attention, F.linear(query_B1D, attention.in_proj_weight[:dim], attention.in_proj_bias[:dim]))
    return attention.out_proj(F.scaled_dot_product_attention(query, *read).transpose(1, 2).flatten(2))


def _by_head(attention: nn.MultiheadAttention, x_BSD: Tensor) -> Tensor:
    """(B, S, D) -> (B, H, S, D / H)."""
    return x_BSD.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)


class DecoderBody(nn.Module):
    """The stack of layers and its final LayerNorm."""

    causal_LL: Tensor
    """-inf where a position must not see the tokens after it, else 0. Fused attention does not read it, but
    nn.MultiheadAttention asks for it, and would make one of numbers out of a boolean one each time."""

    def __init__(self, layers: int, dim: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, feedforward, dropout, pre_norm) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        unseen_LL = torch.full((SENTENCE_LENGTH, SENTENCE_LENGTH), -torch.inf).triu(1)
        self.register_buffer("causal_LL", unseen_LL, persistent=False)

    def forward(self, x_BLD: Tensor, memory_BND: Tensor, pos_LD: Tensor, pos_ND: Tensor) -> Tensor:
        causal_LL = self.causal_LL[: x_BLD.shape[1], : x_BLD.shape[1]]
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

    def start(self, memory_BND: Tensor, pos_ND: Tensor) -> Sentence:
        """Begins a sentence about an image, to be written token by token with what `forward` would compute."""
        return Sentence(self, memory_BND, pos_ND)


class Sentence:
    """A sentence that is being written. Nothing is computed twice: neither for the image, nor for earlier tokens."""

    def __init__(self, decoder: Decoder, memory_BND: Tensor, pos_ND: Tensor) -> None:
        self._decoder = decoder
        self._layers: list[DecoderLayer] = list(decoder.body.layers)  # type: ignore[arg-type]
        self._image = [layer.read(memory_BND, pos_ND) for layer in self._layers]
        self._before: list[KeysValues | None] = [None] * len(self._layers)
        self._position = 0

    def add(self, token: Tensor) -> Tensor:
        """(B,) the next token -> (B, D) the feature from which the token after it is read."""
        embedding, position = self._decoder.embedding, self._position
        pos_1D = embedding.position_embeddings.weight[position : position + 1]
        x_B1D = embedding(token[:, None])
        for number, layer in enumerate(self._layers):
            x_B1D, self._before[number] = layer.step(x_B1D, pos_1D, self._image[number], self._before[number])
        self._position += 1
        return self._decoder.body.norm(x_B1D)[:, 0]


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
