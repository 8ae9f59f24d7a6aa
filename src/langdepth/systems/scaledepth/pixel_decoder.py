"""Pixel decoder of Mask2Former (arXiv 2112.01527): four maps of a trunk exchange what they see.

Data flow (C channels)

    maps at strides 32, 16, 8 -> 1x1 convolution -> tokens (B, N, C), all three together
    6 times: deformable attention of every token, then two linear layers
    -> memories (B, C, h, w) at strides 32, 16, 8
    stride 8 enlarged + map at stride 4 -> 3x3 convolution -> mask features (B, C, H / 4, W / 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from langdepth.systems.scaledepth.deformable_attention import DeformableAttention, Sizes, cell_centers
from langdepth.systems.scaledepth.positions import sine_positions


class PixelFeatures(NamedTuple):
    """``masks``: (B, C, H / 4, W / 4); ``memories``: (B, C, h, w) at strides 32, 16 and 8."""

    masks: Tensor
    memories: list[Tensor]


class DeformableLayer(nn.Module):
    """Deformable attention, then two linear layers, each added to its input and normalised."""

    def __init__(self, channels: int, hidden: int, levels: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, levels)
        self.norm1 = nn.LayerNorm(channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels)
        )
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, positions: Tensor, centers: Tensor, sizes: Sizes) -> Tensor:
        """tokens (B, N, C), positions (N, C), centers (N, 2) of cells to (B, N, C)."""
        tokens = self.norm1(tokens + self.attention(tokens + positions, tokens, centers, sizes))
        done: Tensor = self.norm2(tokens + self.feed_forward(tokens))
        return done


class PixelDecoder(nn.Module):
    """``inputs``: channels of the trunk's maps, finest first. ``gradient_checkpointing``: slower, with less memory."""

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
        """The published start."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.layers.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        for module in (*self.inputs.modules(), *self.lateral, *self.output, self.masks):
            if isinstance(module, nn.Conv2d):
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                nn.init.kaiming_uniform_(module.weight, a=1)
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
