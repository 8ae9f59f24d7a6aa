"""What CaBins is made of: prompts that attend to the image, and the decoder of depth features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.parts.upsample import resize_aligned

WIDTH, HEADS, LAYERS, DROPOUT = 256, 4, 6, 0.1  # of the context decoder


class Attention(nn.Module):
    """Multi-head attention of (B, N, WIDTH) to (B, M, WIDTH); queries, keys and values have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        query, key, value = (
            project(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project, tokens in ((self.q_proj, x), (self.k_proj, memory), (self.v_proj, memory))
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.dropout(self.proj(mixed))


class ContextLayer(nn.Module):
    """Prompts attend to each other, then to the image; norms come first."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(), Attention()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(self.norm2(x), memory)
        return x + self.dropout(self.mlp(self.norm3(x)))


class ContextDecoder(nn.Module):
    """Prompts attend to the visual tokens of their image (DenseCLIP, arXiv 2112.01518)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.memory_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, WIDTH), nn.LayerNorm(WIDTH))
        self.text_proj = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, WIDTH))
        self.decoder = nn.ModuleList(ContextLayer() for _ in range(LAYERS))
        self.out_proj = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, channels))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02, a=-2, b=2)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Prompts (B, G, D) and visual tokens (B, N, D), without positions, to (B, G, D)."""
        memory, x = self.memory_proj(visual), self.text_proj(text)
        for layer in self.decoder:
            x = layer(x, memory)
        refined: Tensor = self.out_proj(x)
        return refined


class Up(nn.Module):
    """A coarse map at the size of a finer one, both concatenated, through two 3x3 convolutions."""

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(coarse + fine, fine, 3, padding=1),
            nn.BatchNorm2d(fine),
            nn.LeakyReLU(),
            nn.Conv2d(fine, fine, 3, padding=1),
            nn.BatchNorm2d(fine),
            nn.LeakyReLU(),
        )

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        fused: Tensor = self.net(torch.cat([resize_aligned(x, finer.shape[-2:]), finer], dim=1))
        return fused


class DepthDecoder(nn.Module):
    """The pyramid and the score map to features at half of the image's size (AdaBins' decoder).

    ``channels``: of the maps, finest first. ``rim``: padding of the first convolution, which is 1x1: with 1, as
    published, its map grows by a rim of pure bias.
    """

    def __init__(self, channels: Sequence[int], scores: int, rim: int) -> None:
        super().__init__()
        *finer, coarsest = channels
        self.start = nn.Conv2d(coarsest + scores, coarsest, 1, padding=rim)
        self.up = nn.ModuleList(Up(channels[level + 1], channels[level]) for level in reversed(range(len(finer))))
        self.end = nn.Conv2d(channels[0], channels[0], 3, padding=1)

    def forward(self, maps: Sequence[Tensor], scores: Tensor) -> Tensor:
        """maps[i] (B, C_i, h / 2^i, w / 2^i), finest first, and scores (B, G, ...) to (B, C_0, 2 h, 2 w)."""
        *finer, coarsest = maps
        x: Tensor = self.start(torch.cat([coarsest, scores], dim=1))
        for up, skip in zip(self.up, reversed(finer), strict=True):
            x = up(x, skip)
        x = resize_aligned(x, [2 * side for side in x.shape[-2:]])
        features: Tensor = self.end(x)
        return features
