"""What `tiny` is made of: a feature pyramid from coarse to fine, depth as an expectation over bins, sharp enlarging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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

    def forward(self, pixels: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From pixels (B, C, h, w) and image (B, P).

        Returns relative (B, 1, h, w), the mean of the bins, and their standard deviation, bin_centers (B, N) rising,
        bin_probs (B, N, h, w) with sum 1 over N.
        """
        widths, logits = self.widths(image).float(), self.logits(pixels).float()
        with torch.autocast(pixels.device.type, enabled=False):  # a bfloat16 sum would step by 0.4 %
            widths = widths.softmax(-1)
            centers = torch.cumsum(widths, -1) - widths / 2
            probs = logits.permute(0, 2, 3, 1).softmax(-1)  # ONNX Runtime moves other axes there and back
            moments = probs @ torch.stack([centers, centers**2], -1)[:, None]
            relative, squares = moments.permute(0, 3, 1, 2).split(1, 1)
            spread = (squares - relative**2).clamp_min(0).sqrt()
            return relative, spread, centers, probs.permute(0, 3, 1, 2)


class ConvexUpsampling(nn.Module):
    """A map at a quarter of the image's size to all of it: every pixel is a weighted mean of the 3x3 cells around it.

    The weights, positive with sum 1, come from the decoder's features, the encoder's finest map and the pixels of each
    cell (RAFT, Teed & Deng 2020), so that a pixel can belong to one side of an edge wholly. They begin as those of
    bilinear interpolation. With an ``edge`` (``depth_steps``) a pixel there is more decided between the cells.
    """

    FACTOR = 4
    DECIDED = 4.0  # so much larger are the logits of the weights at an edge

    def __init__(self, pixel_channels: int, fine_channels: int, channels: int) -> None:
        super().__init__()
        # Channels of each map, those of the finer ones for every pixel of a cell.
        self.inputs = (pixel_channels, fine_channels * (self.FACTOR // 2) ** 2, 3 * self.FACTOR**2)
        self.hidden = nn.Sequential(ConvNormAct(sum(self.inputs), channels, 1), ConvNormAct(channels, channels))
        self.logits = nn.Conv2d(channels, 9 * self.FACTOR**2, 1)
        nn.init.normal_(self.logits.weight, std=1e-3)
        self.logits.bias = nn.Parameter((_bilinear(self.FACTOR) + 1e-3).log().flatten())

    def forward(self, image: Tensor, fine: Tensor, pixels: Tensor, edge: Tensor | None = None) -> Tensor:
        """Weights (B, 9, 16, h, w), positive; their shares of the sum over the cells count.

        ``image``: (B, 3, 4h, 4w), normalised; ``fine``: (B, F, 2h, 2w); ``pixels``: (B, C, h, w); ``edge``: (B, 1, h,
        w) in [0, 1].
        """
        entrance: Any = self.hidden[0]
        conv, norm, activation = entrance
        x = self.hidden[1](activation(norm(self._of_cells(conv, pixels, fine, image))))
        # A softmax, which ONNX Runtime computes four times slower where the axis is not the last one.
        logits = self.logits(x).float()
        if edge is not None:
            logits = logits * (1 + (self.DECIDED - 1) * edge)
        return logits.clamp(-40, 40).exp().unflatten(1, (9, -1))

    def _of_cells(self, conv: nn.Conv2d, *maps: Tensor) -> Tensor:
        """``conv`` of all maps side by side, the pixels of a cell being channels (``F.pixel_unshuffle``).

        As a sum of convolutions that step from cell to cell, each with its part of the weights: unshuffling moves all
        numbers in memory.
        """
        weights, steps = conv.weight.split(self.inputs, 1), (1, self.FACTOR // 2, self.FACTOR)
        x = F.conv2d(maps[0], weights[0], conv.bias)
        for one, weight, step in zip(maps[1:], weights[1:], steps[1:], strict=True):
            x = x + F.conv2d(one, weight.reshape(len(weight), -1, step, step), stride=step)
        return x

    @classmethod
    def enlarge(cls, coarse: Tensor, weights: Tensor) -> Tensor:
        """(B, 1, h, w) to (B, 1, 4h, 4w)."""
        height, width = coarse.shape[-2:]
        padded = F.pad(coarse, (1, 1, 1, 1), mode="replicate")
        around = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
        means = (torch.stack(around, 1) * weights).sum(1) / weights.sum(1)
        return F.pixel_shuffle(means, cls.FACTOR)


def depth_steps(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Depth that changes in one step at an edge, not over several cells, and where edges are.

    An edge is where depth differs within the 3x3 cells around one (none below a ratio of 1.1, wholly one above 1.35)
    nearly as much as within 7x7, unlike on a slope (log range: none below 0.45 of it, wholly one above 0.7). There a
    cell takes the depth of the nearer of the two sides, as in toggle mapping (Kramer & Bruckner 1975).

    Args:
        depth: (B, 1, h, w), positive.

    Returns:
        Depth like it, and edges (B, 1, h, w) in [0, 1].
    """
    logs = depth.clamp_min(1e-6).log()
    far, near = F.max_pool2d(logs, 3, 1, 1), -F.max_pool2d(-logs, 3, 1, 1)
    low, high, step = math.log(1.1), math.log(1.35), far - near
    wide = F.max_pool2d(logs, 7, 1, 3) + F.max_pool2d(-logs, 7, 1, 3)
    edge = ((step - low) / (high - low)).clamp(0, 1) * ((step / wide.clamp_min(low) - 0.45) / 0.25).clamp(0, 1)
    side = torch.where(far - logs < logs - near, far, near)
    return torch.lerp(logs, side, edge).exp(), edge


def _bilinear(factor: int) -> Tensor:
    """Weights (9, factor ** 2) of the 3x3 cells around each pixel of the middle cell."""
    places = (torch.arange(factor) + 0.5) / factor - 0.5  # from the middle of the cell
    line = (1 - (places - torch.tensor([-1.0, 0.0, 1.0])[:, None]).abs()).clamp_min(0)  # (3, factor)
    return torch.einsum("ai,bj->abij", line, line).reshape(9, factor**2)
