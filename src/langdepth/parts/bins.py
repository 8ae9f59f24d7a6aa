"""Depth as an expectation over bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBins(nn.Module):
    """Relative depth in (0, 1): per-pixel probabilities over bins whose widths follow the picture (AdaBins, ScaleDepth's ARDE).

    Widths start geometric, from ``nearest`` to 1, because depth ranges are: the near bins are narrow.
    """

    def __init__(self, pixel_channels: int, picture_channels: int, bins: int = 64, nearest: float = 0.02) -> None:
        super().__init__()
        self.logits = nn.Conv2d(pixel_channels, bins, 1)
        self.widths = nn.Linear(picture_channels, bins)
        edges = torch.exp(torch.linspace(math.log(nearest), 0.0, bins + 1))
        edges[0] = 0.0
        nn.init.zeros_(self.widths.weight)
        with torch.no_grad():
            self.widths.bias.copy_(torch.log(edges.diff()))

    def forward(self, pixels: Tensor, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pixels (B, C, h, w), picture (B, P) -> relative (B, 1, h, w), bin_centers (B, N) rising, bin_probs (B, N, h, w)."""
        widths = self.widths(picture).float().softmax(-1)
        edges = torch.cumsum(widths, -1)
        centers = edges - widths / 2
        probs = self.logits(pixels).float().softmax(1)
        relative = torch.einsum("bnhw,bn->bhw", probs, centers).unsqueeze(1)
        return relative, centers, probs
