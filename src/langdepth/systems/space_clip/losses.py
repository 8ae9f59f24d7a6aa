"""SPACE-CLIP's losses. Depth (B, 1, H, W) metres, masks bool of that shape; pixels outside never count.

Without any pixel that counts a loss is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.losses import ssim_map

NEAREST = 1e-7  # metres; nothing is nearer, so that every depth has a logarithm
_WINDOW, _DEVIATION = 11, 1.5  # of SSIM, pixels


def silog(prediction: Tensor, target: Tensor, mask: Tensor, variance_focus: float = 0.85) -> Tensor:
    """10 sqrt(var g + (1 - focus) mean(g)^2), g = ln p - ln t over the pixels of all images together."""
    count = mask.sum().clamp_min(1)
    difference = prediction.clamp_min(NEAREST).log() - target.clamp_min(NEAREST).log()
    mean = torch.where(mask, difference, 0).sum() / count
    variance = torch.where(mask, difference - mean, 0).square().sum() / count
    spread = variance + (1 - variance_focus) * mean.square()
    return 10 * spread.clamp_min(1e-7).sqrt() * mask.any()


def ssim(prediction: Tensor, target: Tensor, mask: Tensor, *, masked: bool) -> Tensor:
    """Mean of 1 - SSIM over the pixels of all images, both maps brought to [0, 1] by the image's range of targets.

    ``masked``: whether both are 0 where they do not count. The published loss takes them as they are: there the target
    is 0 where it is unknown, and 1 beyond the largest depth that counts; the prediction is not.
    """
    nearest = torch.where(mask, target, torch.inf).amin((1, 2, 3), keepdim=True)
    farthest = torch.where(mask, target, 0).amax((1, 2, 3), keepdim=True)
    known = mask.any(3, keepdim=True).any(2, keepdim=True)
    span = torch.where(known, farthest - nearest, 1).clamp_min(1e-6)
    nearest = torch.where(known, nearest, 0)
    kept = mask if masked else known
    target, prediction = (torch.where(kept, ((x - nearest) / span).clamp(0, 1), 0) for x in (target, prediction))
    weights = window(target.device)
    similarity = ssim_map(prediction, target, lambda x: F.conv2d(x, weights, padding=_WINDOW // 2))  # 0 outside
    return torch.where(mask, 1 - similarity, 0).sum() / mask.sum().clamp_min(1)


def window(device: torch.device | None = None) -> Tensor:
    """Weights (1, 1, 11, 11) of SSIM's windows."""
    places = torch.arange(_WINDOW, device=device, dtype=torch.float32) - _WINDOW // 2
    row = torch.exp(-places.square() / (2 * _DEVIATION**2))
    row = row / row.sum()
    return (row[:, None] * row)[None, None]


def gradient(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of slopes between neighbours that both count; x and y halved and added."""
    total = prediction.new_zeros(())
    for axis in (-1, -2):
        both = mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(axis, 0, mask.shape[axis] - 1)
        apart = (prediction.diff(dim=axis) - target.diff(dim=axis)).abs()
        total = total + torch.where(both, apart, 0).sum() / both.sum().clamp_min(1)
    return total / 2
