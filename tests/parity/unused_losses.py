"""Losses that papers' code holds but trains nothing with: only the golden cases know them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.losses import _difference, _mean, _windows


def berhu(prediction: Tensor, target: Tensor, mask: Tensor | None = None, threshold: float = 0.2) -> Tensor:
    """Reverse Huber loss (Laina et al. 2016): abs(d) up to c, (d^2 + c^2) / 2c above it.

    c is ``threshold`` times the largest difference of the batch, taken as a constant.
    """
    difference = _difference(prediction, target, mask).abs()
    c = (threshold * difference.detach().amax()).clamp_min(torch.finfo(difference.dtype).tiny)
    return _mean(torch.where(difference <= c, difference, (difference.square() + c.square()) / (2 * c)), mask)


def sobel_gradient(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, outside_weight: float | None = None
) -> Tensor:
    """Mean absolute difference of the vertical slopes plus that of the horizontal ones (DepthCLIP).

    With a mask only pixels count whose eight neighbours are valid too. ``outside_weight`` instead lets every pixel
    count, those outside of the mask by that weight; 0.1 is the published value.
    """
    inside = None if mask is None else _windows(mask, padding=1)
    if mask is not None and outside_weight is None:
        prediction, target = (torch.where(mask, depth, torch.zeros_like(depth)) for depth in (prediction, target))
    total = prediction.new_zeros(())
    for ours, theirs in zip(sobel(prediction), sobel(target), strict=True):
        difference = (ours - theirs).abs()
        if mask is None or outside_weight is None:
            total = total + _mean(difference, inside)
        else:
            total = total + torch.where(mask, difference, outside_weight * difference).mean()
    return total


def known_depth(depth: Tensor, region: Tensor | None = None, *, union: bool = False) -> Tensor:
    """Mask of the pixels with depth above 1 mm, inside ``region`` (bool) if one is given.

    ``union`` takes the pixels that are either in the region or known, as DepthCLIP's training helper does for
    KITTI: pixels without ground truth then count as 0 m.
    """
    known = depth > 1e-3
    if region is None:
        return known
    return known | region if union else known & region


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal Sobel slopes of the channel mean of (B, C, H, W), each (B, 1, H, W); zeros outside."""
    kernel = image.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    slopes = F.conv2d(image.mean(1, keepdim=True), torch.stack([kernel.T, kernel])[:, None], padding=1)
    return slopes[:, :1], slopes[:, 1:]
