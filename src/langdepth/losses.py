"""Training losses.

Depth tensors are (B, 1, H, W) metres, masks are bool of the same shape; masked-out pixels never count.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-3


def _log_difference(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """ln prediction - ln target where the mask is set, 0 elsewhere."""
    difference = torch.log(prediction.clamp_min(EPSILON)) - torch.log(target.clamp_min(EPSILON))
    return torch.where(mask, difference, torch.zeros_like(difference))


def silog(
    prediction: Tensor, target: Tensor, mask: Tensor, variance_focus: float = 0.85, weight: float = 10.0
) -> Tensor:
    """Scale-invariant log loss over all valid pixels of the batch: weight * sqrt(mean d^2 - focus * (mean d)^2).

    Eigen et al. 2014 with the square root of BTS (Lee et al. 2019). 0 when no pixel is valid.
    """
    difference = _log_difference(prediction, target, mask)
    count = mask.sum().clamp_min(1)
    mean = difference.sum() / count
    square = difference.square().sum() / count
    spread = torch.sqrt((square - variance_focus * mean.square()).clamp_min(0) + 1e-8)  # finite gradient at 0
    return weight * spread * mask.any()


def log_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute log error, every picture with valid pixels counting the same."""
    difference = _log_difference(prediction, target, mask).abs()
    count = mask.sum(dim=(1, 2, 3))
    per_picture = difference.sum(dim=(1, 2, 3)) / count.clamp_min(1)
    return per_picture.sum() / (count > 0).sum().clamp_min(1)


def gradient(prediction: Tensor, target: Tensor, mask: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of log-depth gradients between neighbours at strides 1, 2, 4 ... (MegaDepth, 2018).

    ``scales``: how many strides.
    """
    difference = _log_difference(prediction, target, mask)
    total = difference.new_zeros(())
    for level in range(scales):
        step = 2**level
        d, m = difference[..., ::step, ::step], mask[..., ::step, ::step]
        for axis in (-1, -2):
            both = m.narrow(axis, 1, m.shape[axis] - 1) & m.narrow(axis, 0, m.shape[axis] - 1)
            total = total + (d.diff(dim=axis).abs() * both).sum() / both.sum().clamp_min(1)
    return total / scales


def scene_cross_entropy(logits: Tensor, scene: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B, K) scene logits against (B,) labels; -1 means unknown and does not count.

    0 when all are unknown.
    """
    total = F.cross_entropy(logits, scene, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing)
    return total / (scene >= 0).sum().clamp_min(1)
