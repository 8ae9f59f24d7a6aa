"""Bins whose widths follow the image: the mini-ViT of AdaBins (Bhat et al., arXiv 2011.14141).

Data flow

    map (B, C, h, w) -> patches (B, N, C) + positions -> transformer -> token 0        -> widths of the bins (B, bins)
                                                                     -> tokens 1 ... Q -> queries (B, Q, C)
    map -> 3x3 convolution -> products with the queries, (B, Q, h, w) -> 1x1 convolution -> bin_probs (B, bins, h, w)
    both -> expected depth (B, 1, h, w)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import UsageError

WidthNorm = Literal["linear", "softmax", "sigmoid"]


class BinDepth(NamedTuple):
    """edges (B, bins + 1), centers (B, bins) metres, rising; probs (B, bins, h, w); depth (B, 1, h, w) metres."""

    edges: Tensor
    centers: Tensor
    probs: Tensor
    depth: Tensor


class MiniViT(nn.Module):
    """A transformer over the patches of a map tells the bins' widths and what to look for at every pixel.

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
        self.regressor = nn.Sequential(
            nn.Linear(channels, 256), nn.LeakyReLU(), nn.Linear(256, 256), nn.LeakyReLU(), nn.Linear(256, bins)
        )

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
        encoded: Tensor = self.encoder(patches + self.positions[:count])
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
            edges = F.pad((self.max_depth - self.min_depth) * widths, (1, 0), value=self.min_depth).cumsum(1)
            centers = (edges[:, 1:] + edges[:, :-1]) / 2
            probs = logits.softmax(1)
            depth = torch.einsum("bnhw,bn->bhw", probs, centers).unsqueeze(1)
        return BinDepth(edges, centers, probs, depth)
