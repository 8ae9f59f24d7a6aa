"""WorDepth's decoder blocks: enlarge with a shortcut, refine a feature and a depth feature together (spec, 2.2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv(nn.Module):
    """Two 3x3 convolutions with InstanceNorm, the first one grouped after a channel shuffle; a 3x3 one beside them.

    (B, inputs, h, w) to (B, outputs, h, w); ``inputs`` is a multiple of ``groups``. An x of fewer channels
    stands behind zeros.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 4) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(groups)
        self.grouped = nn.Conv2d(inputs, inputs, 3, padding=1, groups=groups)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        zeros = self.grouped.in_channels - x.shape[1]
        whole = F.pad(x, (0, 0, 0, 0, zeros, 0)) if zeros else x
        y = F.leaky_relu(F.instance_norm(self.grouped(self.shuffle(whole))))
        y = F.leaky_relu(F.instance_norm(self.conv(y)))
        output: Tensor = y + of_last_channels(self.shortcut, x)
        return output


class Up(nn.Module):
    """The encoder's map (None: zeros) before a coarse one at twice its size (bilinear, aligned corners); DoubleConv."""

    def __init__(self, coarse: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.conv = DoubleConv(skip + coarse, outputs)

    def forward(self, coarse: Tensor, skip: Tensor | None) -> Tensor:
        """coarse (B, coarse, h, w), skip (B, skip, 2h, 2w) to (B, outputs, 2h, 2w)."""
        x = enlarged(coarse, 2)
        output: Tensor = self.conv(x if skip is None else torch.cat([skip, x], 1))
        return output


class Refine(nn.Module):
    """Feature (B, C, h, w; None: zeros) and depth feature (B, D, h, w), each renewed from both.

    The ``last`` one has no new feature, which nobody would look at: it gives None for it.
    """

    def __init__(self, channels: int, depth_channels: int, *, last: bool = False) -> None:
        super().__init__()
        both = channels + depth_channels
        self.feature = None if last else Refiner(both, channels)
        self.depth = Refiner(both, depth_channels)

    def forward(self, x: Tensor | None, depth: Tensor) -> tuple[Tensor | None, Tensor]:
        both = depth if x is None else torch.cat([x, depth], 1)
        return None if self.feature is None else self.feature(both), self.depth(both)


class Refiner(nn.Sequential):
    """Two 3x3 convolutions with LeakyReLU between; an input of fewer channels stands behind zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        first = nn.Conv2d(inputs, inputs, 3, padding=1)
        super().__init__(first, nn.LeakyReLU(), nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        first, activation, second = self
        output: Tensor = second(activation(of_last_channels(cast(nn.Conv2d, first), x)))
        return output


def of_last_channels(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv`` of x (B, c, h, w) behind channels of zeros, which are not looked at."""
    return F.conv2d(x, conv.weight[:, -x.shape[1] :], conv.bias, padding=1)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """``factor`` times the size, bilinear, aligned corners."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)
