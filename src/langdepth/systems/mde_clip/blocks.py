"""What MDE-CLIP is made of: attention of pixels to words, the decoder over the pyramid, bins that follow the image.

Adaptive bins are the mini-ViT of AdaBins (Bhat et al., arXiv 2011.14141):

    map (B, C, h, w) -> patches (B, N, C) + positions -> transformer -> token 0        -> widths of the bins (B, bins)
                                                                     -> tokens 1 ... Q -> queries (B, Q, C)
    map -> 3x3 convolution -> products with the queries, (B, Q, h, w) -> 1x1 convolution -> bin_probs (B, bins, h, w)
    both -> expected depth (B, 1, h, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import UsageError
from langdepth.parts.bins import bin_edges, expected_depth, width_regressor

WidthNorm = Literal["linear", "softmax", "sigmoid"]


class CrossAttention(nn.Module):
    """Scaled-dot-product attention of pixels (queries) with the rows of a text matrix (keys and values), one head.

    With few words it is cheapest to move the layers of the pixels to the words: q(x) . k = x . W_q' k + b_q . k, and as
    the weights add up to 1, the output layer of the mixed values is the mix of the values' outputs. What is left at
    every pixel is a product with K rows; nothing of size (HW, C, C) or (HW, HW) is computed. The numbers are those of
    the usual order up to rounding. The keys have no bias: it would move all scores of a pixel alike.
    """

    def __init__(self, channels: int, text_channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(text_channels, channels, bias=False)
        self.value = nn.Linear(text_channels, channels)
        self.output = nn.Linear(channels, channels)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)
        for biased in (self.query, self.value, self.output):
            nn.init.zeros_(biased.bias)

    def words(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of text (N, K, D): keys (N, K, C), offsets of the scores (N, 1, K), values (N, K, C)."""
        keys = self.key(text)
        scale = self.query.in_features**-0.5
        offsets = scale * (keys @ self.query.bias)
        return scale * (keys @ self.query.weight), offsets[:, None], self.output(self.value(text))

    def forward(self, features: Tensor, text: Tensor) -> Tensor:
        """features (B, C, h, w) and text (N, K, D), N = B or 1, to (B, C, h, w): at each pixel a mix of K values."""
        pixels = features.flatten(2).transpose(1, 2)
        keys, offsets, values = (part.expand(pixels.shape[0], -1, -1).to(pixels.dtype) for part in self.words(text))
        mixed = F.scaled_dot_product_attention(pixels, keys, values, attn_mask=offsets, scale=1.0)
        return mixed.transpose(1, 2).unflatten(2, features.shape[2:])


class WordDecoder(nn.Module):
    """Every level of the pyramid attends to the words; convolutions go from coarse to fine.

    ``channels``: of the maps, finest first, each half of the next. Gives half of the finest's, at twice its size.
    """

    def __init__(self, channels: Sequence[int], text_channels: int) -> None:
        super().__init__()
        coarse_first = channels[::-1]
        self.attention = nn.ModuleList(CrossAttention(width, text_channels) for width in coarse_first)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width // 2, 2, stride=2) for width in coarse_first)
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for width in coarse_first[1:]
        )

    def forward(self, maps: Sequence[Tensor], text: Tensor) -> Tensor:
        """maps[i] (B, C_i, h / 2^i, w / 2^i), finest first, and text (N, K, D) to (B, C_0 / 2, 2 h, 2 w)."""
        coarsest, *finer = (attend(level, text) for attend, level in zip(self.attention, reversed(maps), strict=True))
        x: Tensor = self.up[0](coarsest)
        for up, fuse, attended in zip(self.up[1:], self.fuse, finer, strict=True):
            x = up(fuse(torch.cat([attended, x], dim=1)))
        return x


class BinDepth(NamedTuple):
    """edges (B, bins + 1), centers (B, bins) metres, rising; probs (B, bins, h, w); depth (B, 1, h, w) metres."""

    edges: Tensor
    centers: Tensor
    probs: Tensor
    depth: Tensor


class MiniViT(nn.Module):
    """A transformer over the patches of a map gives the bins' widths and the queries that pixels are compared with.

    ``widths``: how numbers become widths that add up to 1: "linear" is ReLU and 0.1 more (published), "softmax",
    "sigmoid". ``patches``: rows of the position table, the most patches that a map may have.
    """

    def __init__(
        self,
        channels: int,
        bins: int,
        queries: int = 128,
        patch: int = 16,
        patches: int = 500,
        widths: WidthNorm = "linear",
    ) -> None:
        super().__init__()
        self.queries, self.widths = queries, widths
        self.patch_embedding = nn.Conv2d(channels, channels, patch, stride=patch)
        self.positions = nn.Parameter(torch.rand(patches, channels))
        layer = nn.TransformerEncoderLayer(channels, nhead=4, dim_feedforward=1024, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.regressor = width_regressor(channels, 256, bins)

    def tokens(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, N, C), a token per patch. Raises UsageError for too small and too large maps."""
        patches = self.patch_embedding(features).flatten(2).transpose(1, 2)
        count, most = patches.shape[1], len(self.positions)
        if not self.queries < count <= most:
            side = self.patch_embedding.stride[0]
            raise UsageError(
                f"adaptive bins take maps of {self.queries + 1} to {most} patches of {side} x {side} cells; "
                f"{features.shape[-1]}x{features.shape[-2]} cells are {count}; choose another image size"
            )
        encoded: Tensor = self.encoder(patches + self.positions[:count].expand_as(patches))
        return encoded

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to widths (B, bins) with sum 1, float32, and range attention maps (B, queries, h, w)."""
        tokens = self.tokens(features)
        maps = torch.einsum("bqc,bchw->bqhw", tokens[:, 1 : self.queries + 1], self.conv(features))
        numbers = self.regressor(tokens[:, 0]).float()
        if self.widths == "softmax":
            return numbers.softmax(1), maps
        positive = numbers.relu() + 0.1 if self.widths == "linear" else numbers.sigmoid()
        return positive / positive.sum(1, keepdim=True), maps


class AdaptiveBins(nn.Module):
    """Depth between ``min_depth`` and ``max_depth`` metres as the expectation over bins that follow the image.

    The other options are those of ``MiniViT``.
    """

    def __init__(
        self,
        channels: int,
        bins: int,
        min_depth: float,
        max_depth: float,
        queries: int = 128,
        patch: int = 16,
        widths: WidthNorm = "linear",
    ) -> None:
        super().__init__()
        self.min_depth, self.max_depth = min_depth, max_depth
        self.transformer = MiniViT(channels, bins, queries, patch, widths=widths)
        self.logits = nn.Conv2d(queries, bins, 1)

    def forward(self, features: Tensor) -> BinDepth:
        """Depth of a map (B, C, h, w). Raises UsageError for too small and too large maps."""
        widths, maps = self.transformer(features)
        logits = self.logits(maps).float()
        with torch.autocast(features.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            edges, centers = bin_edges((self.max_depth - self.min_depth) * widths, nearest=self.min_depth)
            probs = logits.softmax(1)
            return BinDepth(edges, centers, probs, expected_depth(probs, centers))
