"""Pixel decoder and masked query decoder of Mask2Former (arXiv 2112.01527), as ScaleDepth uses them.

Pixel decoder (C channels)

    maps at strides 32, 16, 8 -> 1x1 convolution -> tokens (B, N, C), all three together
    6 layers: multi-scale deformable attention (Deformable DETR, arXiv 2010.04159), then two linear layers
    -> memories (B, C, h, w) at strides 32, 16, 8
    stride 8 enlarged + map at stride 4 -> 3x3 convolution -> mask features (B, C, H / 4, W / 4)

Query decoder (Q masked queries, F free ones)

    learned contents and positions (Q + F, C)
    9 layers: mask logits of the masked queries -> where they may attend in the layer's memory
              attention to the memory, attention among the queries, two linear layers -> contents (B, Q + F, C)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MapSizes = Sequence[tuple[int, int]]


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine waves over the rows, then over the columns: (height * width, channels) float32, row by row.

    Each axis has channels / 2 features of frequencies from 1 down to 1 / 10000, sine and cosine in turn, over the
    range 0 ... 2 pi whatever the map's size (DETR, arXiv 2005.12872). ``channels`` is a multiple of 4.
    """
    features = channels // 2
    frequencies = 10000.0 ** (-torch.arange(0, features, 2, device=device) / features)

    def waves(count: int) -> Tensor:
        total = torch.as_tensor(count + 1e-6, dtype=torch.float32, device=device)  # in a trace, count is a tensor
        place = torch.arange(1, count + 1, device=device) / total * (2 * math.pi)
        angles = place[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows, columns = waves(height)[:, None], waves(width)[None]
    grid = torch.cat([rows.expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)


def cell_centers(sizes: MapSizes, device: torch.device | None = None) -> Tensor:
    """Centres of all cells of maps of (height, width) ``sizes``, one map after the other: (N, 2), x and y in [0, 1]."""
    found = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        found.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
    return torch.cat(found)


class DeformableAttention(nn.Module):
    """Every cell of a pyramid samples a few predicted places of each level and adds them with predicted weights.

    Places and samples are float32 under autocast, too: a bfloat16 coordinate would be off by whole cells of a large
    map.
    """

    def __init__(self, channels: int, levels: int = 3, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: each head starts with its own direction, its points 1, 2, 3 ... cells away."""
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        bias = directions[:, None, None, :] * steps[:, None]  # (heads, 1, points, 2)
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for projection in (self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, queries: Tensor, tokens: Tensor, centers: Tensor, sizes: MapSizes) -> Tensor:
        """``queries``: tokens with positions; both (B, N, C), the levels of (h, w) ``sizes`` one after the other.

        ``centers``: of the cells, (N, 2), see ``cell_centers``. Returns (B, N, C).
        """
        batch, count, channels = tokens.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.offsets(queries).view(*shape, 2)
        weights = self.weights(queries).view(*shape[:3], -1)
        values = self.value(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            # One image per head, the points before the cells: (B * heads, levels, points, N, ...)
            offsets = offsets.float().permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
            weights = weights.float().softmax(-1).view(shape).permute(0, 2, 3, 4, 1).flatten(0, 1)
            maps = values.float().view(batch, count, self.heads, -1).permute(0, 2, 3, 1).flatten(0, 1)
            mixed = maps.new_zeros(batch * self.heads, channels // self.heads, count)
            levels = maps.split([height * width for height, width in sizes], dim=-1)
            for index, (level, (height, width)) in enumerate(zip(levels, sizes, strict=True)):
                grid = (2 * centers - 1) + offsets[:, index] * offsets.new_tensor([2 / width, 2 / height])
                samples = F.grid_sample(level.unflatten(-1, (height, width)), grid, align_corners=False)
                mixed = mixed + (samples * weights[:, None, index]).sum(2)
        joined = mixed.view(batch, channels, count).transpose(1, 2)
        output: Tensor = self.output(joined)
        return output


class PixelFeatures(NamedTuple):
    """``masks``: (B, C, H / 4, W / 4); ``memories``: (B, C, h, w) at strides 32, 16 and 8."""

    masks: Tensor
    memories: list[Tensor]


def feed_forward(channels: int, hidden: int) -> nn.Sequential:
    """Two linear layers with ReLU between."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels))


class DeformableLayer(nn.Module):
    """Deformable attention, then two linear layers, each added to its input and normalised."""

    def __init__(self, channels: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, levels)
        self.norm1 = nn.LayerNorm(channels)
        self.feed_forward = feed_forward(channels, hidden)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, positions: Tensor, centers: Tensor, sizes: MapSizes) -> Tensor:
        """tokens (B, N, C), positions (N, C), centers (N, 2) of cells to (B, N, C)."""
        tokens = self.norm1(tokens + self.attention(tokens + positions, tokens, centers, sizes))
        done: Tensor = self.norm2(tokens + self.feed_forward(tokens))
        return done


class PixelDecoder(nn.Module):
    """``inputs``: channels of the encoder's maps, finest first."""

    def __init__(self, inputs: Sequence[int], channels: int = 256, layers: int = 6, hidden: int = 1024) -> None:
        super().__init__()
        finest, *others = inputs
        self.gradient_checkpointing = False
        self.inputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1), nn.GroupNorm(32, channels)) for width in others[::-1]
        )
        self.levels = nn.Parameter(torch.randn(len(others), channels))
        self.layers = nn.ModuleList(DeformableLayer(channels, hidden, len(others)) for _ in range(layers))
        self.lateral = nn.Sequential(nn.Conv2d(finest, channels, 1, bias=False), nn.GroupNorm(32, channels))
        self.output = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(32, channels), nn.ReLU()
        )
        self.masks = nn.Conv2d(channels, channels, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Published initialisation."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.layers.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        for module in (*self.inputs.modules(), *self.lateral, *self.output, self.masks):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.inputs.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> PixelFeatures:
        """maps[i] (B, inputs[i], h_i, w_i), finest first."""
        finest, *others = maps
        pyramid = [project(level) for project, level in zip(self.inputs, others[::-1], strict=True)]
        sizes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        counts = [height * width for height, width in sizes]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)
        channels, device = tokens.shape[-1], tokens.device
        codes = [
            sine_positions(*size, channels, device) + level for size, level in zip(sizes, self.levels, strict=True)
        ]
        positions, centers = torch.cat(codes), cell_centers(sizes, device)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(layer, tokens, positions, centers, sizes, use_reentrant=False)
            else:
                tokens = layer(tokens, positions, centers, sizes)
        memories = [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(tokens.split(counts, dim=1), sizes, strict=True)
        ]
        fine = self.lateral(finest)
        fine = fine + F.interpolate(memories[-1], size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return PixelFeatures(self.masks(self.output(fine)), memories)


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
        self.feed_forward = feed_forward(channels, hidden)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        """Contents x (B, N, C), positions (N, C), memory with positions and without (B, M, C) to contents.

        ``allowed``: (B, 1, N, M) bool, where queries may attend.
        """
        x = self.norm1(x + self.cross_attention(x + position, key, value, allowed))
        placed = x + position
        x = self.norm2(x + self.self_attention(placed, placed, x))
        done: Tensor = self.norm3(x + self.feed_forward(x))
        return done


class QueryDecoder(nn.Module):
    """``masked`` queries attend inside their own masks, ``free`` ones everywhere; layers take the memories in turn.

    ``levels``: number of memories. All is float32 under autocast, too: signs decide where a query attends, and
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
        """Memories (B, C, h_i, w_i), in the order in which layers use them, and mask features (B, C, h, w).

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
            small.append(F.interpolate(mask_features.detach(), memory.shape[-2:], mode="bilinear", align_corners=False))
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
        """Where queries may attend, (B, 1, masked + free, h * w); everywhere for a query whose mask is empty."""
        allowed = self.mask_logits(contents, features).flatten(2) >= 0
        allowed = allowed | ~allowed.any(-1, keepdim=True)
        free = contents.shape[1] - self.masked
        return F.pad(allowed, (0, 0, 0, free), value=True)[:, None]
