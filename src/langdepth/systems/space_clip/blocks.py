"""What SPACE-CLIP's decoder is made of. All maps are resized bilinearly, pixel centres on pixel centres."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def resized(x: Tensor, size: torch.Size) -> Tensor:
    """(B, C, h, w) at another height and width."""
    return x if x.shape[-2:] == size else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def film(width: int, hidden: int) -> nn.Sequential:
    """An image's embedding (B, D) to a factor and an offset for each channel, (B, 2 D)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * width))


def modulated(x: Tensor, parameters: Tensor) -> Tensor:
    """Maps (B, D, h, w) times their factors plus their offsets (B, 2 D). The factor has no 1 added to it."""
    gamma, beta = parameters[..., None, None].chunk(2, dim=1)
    return gamma * x + beta


def doubled(channels: int, out: int) -> nn.Sequential:
    """(B, C, h, w) to (B, C', 2 h, 2 w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(channels, out, 2, stride=2),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def fused(channels: int, out: int) -> list[nn.Module]:
    """The convolution that joins maps."""
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


def depth_head(channels: int, hidden: int, kernel: int) -> nn.Sequential:
    """Features to depth in metres, (B, 1, h, w), before it is cut off at 0; ``kernel``: of the last convolution."""
    last = nn.Conv2d(hidden, 1, kernel, padding=kernel // 2)
    return nn.Sequential(*fused(channels, hidden), last)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.dropout(self.norm1(self.conv1(x)).relu())
        return (x + self.norm2(self.conv2(inside))).relu()


class StructuralBlock(nn.Module):
    """A stage of the structural path: the running map, doubled, beside a projected layer."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.up = doubled(channels, out)
        self.fuse = nn.Sequential(*fused(2 * out, out))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``x`` (B, C, h, w), ``skip`` (B, C', ., .) to (B, C', 2 h, 2 w)."""
        x = self.up(x)
        joined: Tensor = self.fuse(torch.cat([x, resized(skip, x.shape[-2:])], 1))
        return joined


class SemanticBlock(nn.Module):
    """A stage of the semantic path: the running map, doubled, beside a projected layer and the structural path's map.

    Gates that follow from the running map strengthen both where they are needed, up to twice.
    """

    def __init__(self, channels: int, out: int, *, structural: bool, gates: bool, dropout: float) -> None:
        super().__init__()
        self.up = doubled(channels, out)
        self.semantic_gate = nn.Conv2d(out, out, 1) if gates else None
        self.structural_gate = nn.Conv2d(out, out, 1) if gates and structural else None
        self.fuse = nn.Sequential(*fused((2 + structural) * out, out), Residual(out, dropout))

    def forward(self, x: Tensor, semantic: Tensor, structural: Tensor | None = None) -> Tensor:
        """``x`` (B, C, h, w), the others (B, C', ., .) to (B, C', 2 h, 2 w)."""
        x = self.up(x)
        parts = [x, _gated(semantic, x, self.semantic_gate)]
        if structural is not None:
            parts.append(_gated(structural, x, self.structural_gate))
        joined: Tensor = self.fuse(torch.cat(parts, 1))
        return joined


def _gated(skip: Tensor, x: Tensor, gate: nn.Module | None) -> Tensor:
    skip = resized(skip, x.shape[-2:])
    return skip if gate is None else skip * (1 + gate(x).sigmoid())
