"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) in plain PyTorch.

Data flow

    tokens of all levels, with positions (B, N, C) -> offsets (B, N, heads, levels, points, 2), in cells of their level,
                                                   -> weights (B, N, heads, levels x points), with sum 1
    tokens without positions -> values -> a map per level and head
    reference points + offsets -> bilinear samples of the maps -> weighted sum -> (B, N, C)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sizes = Sequence[tuple[int, int]]


def cell_centers(sizes: Sizes, device: torch.device | None = None) -> Tensor:
    """Centres of all cells of maps of (height, width) ``sizes``, one map after the other: (N, 2), x and y in [0, 1]."""
    found = []
    for height, width in sizes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        found.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
    return torch.cat(found)


class DeformableAttention(nn.Module):
    """Every cell of a pyramid looks at a few places of each level, which it chooses itself.

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
        """As published: each head looks in a direction of its own, its points 1, 2, 3 ... cells away."""
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

    def forward(self, queries: Tensor, tokens: Tensor, centers: Tensor, sizes: Sizes) -> Tensor:
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
