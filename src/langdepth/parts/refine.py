"""WorDepth's decoder blocks: enlarge with a shortcut, refine a feature and a depth feature together (spec, 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with InstanceNorm, the first one grouped after a channel shuffle; a 3x3 one beside them.

    (B, inputs, h, w) to (B, outputs, h, w); ``inputs`` is a multiple of ``groups``.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 4) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(groups)
        self.grouped = nn.Conv2d(inputs, inputs, 3, padding=1, groups=groups)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(F.instance_norm(self.grouped(self.shuffle(x))))
        y = F.leaky_relu(F.instance_norm(self.conv(y)))
        output: Tensor = y + self.shortcut(x)
        return output


class Up(nn.Module):
    """A coarse map at twice its size (bilinear, aligned corners) behind the encoder's map, then DoubleConv."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = DoubleConv(skip + coarse, outputs)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """coarse (B, coarse, h, w), skip (B, skip, 2h, 2w) to (B, outputs, 2h, 2w)."""
        x: Tensor = self.conv(torch.cat([skip, enlarged(coarse, 2)], 1))
        return x


class Refine(nn.Module):
    """Feature (B, C, h, w) and depth feature (B, D, h, w), each renewed from both.

    The ``last`` one has no new feature, which nobody would look at: it gives None for it.
    """

    def __init__(self, channels: int, depth_channels: int, *, last: bool = False) -> None:
        super().__init__()
        both = channels + depth_channels
        self.feature = None if last else refiner(both, channels)
        self.depth = refiner(both, depth_channels)

    def forward(self, x: Tensor, depth: Tensor) -> tuple[Tensor | None, Tensor]:
        both = torch.cat([x, depth], 1)
        return None if self.feature is None else self.feature(both), self.depth(both)


def refiner(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions with LeakyReLU between."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
    )


def enlarged(x: Tensor, factor: int) -> Tensor:
    """``factor`` times the size, bilinear, aligned corners."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
