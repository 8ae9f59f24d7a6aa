"""From coarse feature maps to a finer one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def resize_aligned(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) at another height and width, bilinear with aligned corners (the rule of most published code)."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class ConvNormAct(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class ResidualConv(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvNormAct(channels, channels)
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class NearestDecoder(nn.Module):
    """``blocks`` times: twice the size (nearest), 3x3 convolution, ReLU; channels stay (Auty & Mikolajczyk 2023)."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")))
        return x


class FeaturePyramid(nn.Module):
    """Top-down decoder: at every level the coarser map is enlarged (bilinear) to the finer one's size and added to it.

    ``inputs``: channels of the encoder maps, fine to coarse; ``widths``: channels of the decoder at the same levels.
    """

    def __init__(self, inputs: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(i, w, 1) for i, w in zip(inputs, widths, strict=True))
        self.reduce = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.refine = nn.ModuleList(ResidualConv(w) for w in widths)

    def forward(self, features: Sequence[Tensor], top: Tensor | None = None) -> Tensor:
        """features, fine to coarse, each (B, inputs[i], h_i, w_i). Returns (B, widths[0], h_0, w_0).

        ``top`` (B, widths[-1]) is added everywhere on the coarsest level.
        """
        x = self.lateral[-1](features[-1])
        if top is not None:
            x = x + top[..., None, None]
        x = self.refine[-1](x)
        for level in range(len(features) - 2, -1, -1):
            skip = self.lateral[level](features[level])
            # Reducing channels before enlarging commutes with bilinear interpolation and costs a quarter.
            x = F.interpolate(self.reduce[level](x), size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = self.refine[level](skip + x)
        return x
