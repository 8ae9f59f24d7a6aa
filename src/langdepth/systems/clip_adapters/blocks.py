"""Small networks on top of CLIP features (pinying567, 2023; the fine-scale network is Eigen et al.'s, 2014)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

START_DEPTH = 2.5
"""Metres, the output of untrained layers, about the middle of a room: below 0 m there would be no gradient."""


def _start(layer: nn.Linear | nn.Conv2d) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, START_DEPTH)


class BottleneckAdapter(nn.Module):
    """CLIP-Adapter: x' = mix * A(x) + (1 - mix) * x on the last axis; A is two layers without bias, ReLU after each."""

    def __init__(self, channels: int, reduction: int, mix: float) -> None:
        super().__init__()
        self.mix = mix
        hidden = max(1, channels // reduction)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, channels, bias=False), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mix * self.fc(x) + (1 - self.mix) * x


class CoarseMap(nn.Module):
    """Two linear layers from ``inputs`` numbers to a map of ``size`` (height, width).

    Without ``dropout`` nothing is between them (the Coarse Adapter), with it ReLU and dropout (Eigen et al. 2014).
    """

    def __init__(self, inputs: int, hidden: int, size: tuple[int, int], dropout: float | None = None) -> None:
        super().__init__()
        self.size = size
        output = nn.Linear(hidden, size[0] * size[1])
        _start(output)
        between = nn.Identity() if dropout is None else nn.Sequential(nn.ReLU(), nn.Dropout(dropout))
        self.fc = nn.Sequential(OrderedDict(hidden=nn.Linear(inputs, hidden), between=between, output=output))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., height, width)."""
        depth: Tensor = self.fc(x)
        return depth.unflatten(-1, self.size)


class EigenRefiner(nn.Module):
    """Eigen's fine-scale network: edges of the image sharpen a coarse map at a quarter of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 63, 9, stride=2, padding=4), nn.ReLU(), nn.MaxPool2d(2))
        output = nn.Conv2d(64, 1, 5, padding=2)
        _start(output)
        self.conv2 = nn.Sequential(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), output)

    def forward(self, image: Tensor, coarse: Tensor) -> Tensor:
        """image (B, 3, 4h, 4w) normalised, coarse (B, 1, h, w) to (B, 1, h, w)."""
        refined: Tensor = self.conv2(torch.cat([self.conv1(image), coarse], dim=1))
        return refined


class ConvBlock(nn.Sequential):
    """3x3 convolution with bias, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(inputs, outputs, 3, padding=1), bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)
            )
        )


class UpBlock(nn.Module):
    """Twice the size by a 2x2 transposed convolution, the skip map concatenated, two convolution blocks."""

    def __init__(self, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.upsample = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv_block_1 = ConvBlock(outputs + skip, outputs)
        self.conv_block_2 = ConvBlock(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up: Tensor = self.conv_block_2(self.conv_block_1(torch.cat([self.upsample(x), skip], dim=1)))
        return up


class MultiScaleDecoder(nn.Module):
    """U-Net decoder of the Multi-Scale Adapter: a bridge on the coarsest map, then one block per finer map.

    ``channels``: of the maps at strides 1, 2, 4 ..., fine to coarse; every block halves the channels of the bridge.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        coarsest = channels[-1]
        self.bridge = nn.Sequential(ConvBlock(coarsest, coarsest), ConvBlock(coarsest, coarsest))
        widths = [coarsest >> level for level in range(len(channels))]
        self.up_blocks = nn.ModuleList(
            UpBlock(inputs, skip, outputs)
            for inputs, skip, outputs in zip(widths, reversed(channels[:-1]), widths[1:], strict=False)
        )
        self.out = nn.Conv2d(widths[-1], 1, 1)
        _start(self.out)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps[i] (B, channels[i], H / 2^i, W / 2^i) to (B, 1, H, W)."""
        x = self.bridge(maps[-1])
        for block, skip in zip(self.up_blocks, reversed(maps[:-1]), strict=True):
            x = block(x, skip)
        out: Tensor = self.out(x)
        return out
