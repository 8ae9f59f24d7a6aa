"""Position codes of feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine waves over the rows, then over the columns: (height * width, channels) float32, row by row.

    Each axis has channels / 2 features of frequencies from 1 down to 1 / 10000, sine and cosine in turn, over the
    range 0 ... 2 pi whatever the map's size (DETR, arXiv 2005.12872). ``channels`` is a multiple of 4.
    """
    features = channels // 2
    frequencies = 10000.0 ** (-torch.arange(0, features, 2, device=device) / features)

    def waves(count: int) -> Tensor:
        place = torch.arange(1, count + 1, device=device) / (count + 1e-6) * (2 * math.pi)
        angles = place[:, None] * frequencies
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows, columns = waves(height)[:, None], waves(width)[None]
    grid = torch.cat([rows.expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1)
    return grid.flatten(0, 1)
