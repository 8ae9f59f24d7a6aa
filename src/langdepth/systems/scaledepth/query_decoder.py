"""Masked transformer decoder of Mask2Former (arXiv 2112.01527): queries gather what belongs to them from an image.

Data flow (Q masked queries and F free ones, C channels)

    learned contents and positions (Q + F, C)
    every layer: mask logits of the masked queries -> where they may look in the layer's memory
                 attention to the memory, attention among the queries, two linear layers  -> contents (B, Q + F, C)
    contents of masked queries -> class logits (B, Q), mask embeddings (B, Q, C); these x mask features -> mask logits
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from langdepth.systems.scaledepth.positions import sine_positions


class Attention(nn.Module):
    """Scaled-dot-product attention with several heads; ``inputs`` makes queries, keys and values, in this order."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B, N, C), key and value (B, M, C), allowed (B, 1, N, M) bool to (B, N, C)."""
        weights, biases = self.inputs.weight.chunk(3), self.inputs.bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


class QueryLayer(nn.Module):
    """Attention to a memory, attention among the queries, linear layers; each added to its input and normalised."""

    def __init__(self, channels: int, hidden: int, heads: int = 8) -> None:
        super().__init__()
        self.cross_attention = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """Contents x (B, N, C), positions (N, C), memory with positions and without (B, M, C) to contents.

        ``allowed``: (B, 1, N, M) bool, where queries may look.
        """
        x = self.norm1(x + self.cross_attention(x + position, key, value, allowed))
        placed = x + position
        x = self.norm2(x + self.self_attention(placed, placed, x))
        done: Tensor = self.norm3(x + self.feed_forward(x))
        return done


class QueryDecoder(nn.Module):
    """``masked`` queries look where their own masks are, ``free`` ones everywhere; layers read the memories in turn.

    ``levels``: how many memories there are. All is float32 under autocast, too: signs decide where a query looks, and
    bfloat16 changes some of them.
    """

    def __init__(
        self, masked: int, free: int, channels: int = 256, layers: int = 9, hidden: int = 2048, levels: int = 3
    ) -> None:
        super().__init__()
        self.masked = masked
        self.gradient_checkpointing = False
        self.contents = nn.Parameter(torch.randn(masked + free, channels))
        self.positions = nn.Parameter(torch.randn(masked + free, channels))
        self.levels = nn.Parameter(torch.randn(levels, channels))
        self.layers = nn.ModuleList(QueryLayer(channels, hidden) for _ in range(layers))
        for parameter in self.layers.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
        self.norm = nn.LayerNorm(channels)
        self.logit = nn.Linear(channels, 1)
        self.mask_embedding = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels), nn.ReLU(),
            nn.Linear(channels, channels),
        )  # fmt: skip

    def forward(self, memories: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
        """Memories (B, C, h_i, w_i), in the order in which layers read them, and mask features (B, C, h, w).

        Returns the contents (B, masked + free, C) after every layer.
        """
        with torch.autocast(mask_features.device.type, enabled=False):
            return self._decode([memory.float() for memory in memories], mask_features.float())

    def _decode(self, memories: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
        batch, channels = mask_features.shape[:2]
        keys, values, small = [], [], []
        for memory, level in zip(memories, self.levels, strict=True):
            value = memory.flatten(2).transpose(1, 2) + level
            values.append(value)
            keys.append(value + sine_positions(memory.shape[-2], memory.shape[-1], channels, memory.device))
            # Only signs of logits are taken here, and no gradient: shrinking the features once is shrinking all masks.
            small.append(_shrunk(mask_features.detach(), memory.shape[-2:]))
        x = self.contents.expand(batch, -1, -1)
        outputs = []
        for index, layer in enumerate(self.layers):
            level = index % len(memories)
            inputs = x, self.positions, keys[level], values[level], self._allowed(x, small[level])
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
            outputs.append(x)
        return outputs

    def class_logits(self, contents: Tensor) -> Tensor:
        """(B, masked + free, C) to (B, masked)."""
        logits: Tensor = self.logit(self.norm(contents[:, : self.masked])).squeeze(-1)
        return logits

    def mask_logits(self, contents: Tensor, mask_features: Tensor) -> Tensor:
        """(B, masked + free, C) and (B, C, h, w) to (B, masked, h, w), float32."""
        with torch.autocast(contents.device.type, enabled=False):
            embedding = self.mask_embedding(self.norm(contents[:, : self.masked].float()))
            return torch.einsum("bqc,bchw->bqhw", embedding, mask_features.float())

    @torch.no_grad()
    def _allowed(self, contents: Tensor, features: Tensor) -> Tensor:
        """Where queries may look, (B, 1, masked + free, h * w); a query that might look nowhere may look everywhere."""
        allowed = self.mask_logits(contents, features).flatten(2) >= 0
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        free = contents.shape[1] - self.masked
        return F.pad(allowed, (0, 0, 0, free), value=True)[:, None]


def _shrunk(features: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
