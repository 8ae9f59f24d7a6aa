"""Depth as an expectation over bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class RelativeBins(nn.Module):
    """Relative depth in (0, 1): per-pixel probabilities over bins whose widths follow the image.

    As in AdaBins and ScaleDepth's ARDE. Widths start geometric, from ``nearest`` to 1, because depth ranges are: the
    near bins are narrow.
    """

    def __init__(self, pixel_channels: int, image_channels: int, bins: int = 64, nearest: float = 0.02) -> None:
        super().__init__()
        self.logits = nn.Conv2d(pixel_channels, bins, 1)
        self.widths = nn.Linear(image_channels, bins)
        edges = torch.exp(torch.linspace(math.log(nearest), 0.0, bins + 1))
        edges[0] = 0.0
        nn.init.zeros_(self.widths.weight)
        with torch.no_grad():
            self.widths.bias.copy_(torch.log(edges.diff()))

    def forward(self, pixels: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From pixels (B, C, h, w) and image (B, P).

        Returns relative (B, 1, h, w), bin_centers (B, N) rising, bin_probs (B, N, h, w) with sum 1 over N.
        """
        widths, logits = self.widths(image).float(), self.logits(pixels).float()
        with torch.autocast(pixels.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            widths = widths.softmax(-1)
            centers = torch.cumsum(widths, -1) - widths / 2
            probs = logits.softmax(1)
            relative = torch.einsum("bnhw,bn->bhw", probs, centers).unsqueeze(1)
        return relative, centers, probs
