"""Resizing maps."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def resize_aligned(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, h, w) at another height and width, bilinear with aligned corners (the rule of most published code)."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def nearest_pixel(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, h, w) of any type at (height, width) ``size``: rows and columns floor((i + 0.5) * old / new)."""
    return F.interpolate(maps.float(), size, mode="nearest-exact").to(maps.dtype)
