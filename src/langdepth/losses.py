"""Training losses.

Depth tensors are (B, 1, H, W) metres, masks are bool of the same shape; masked-out pixels never count. A mask of None
means all pixels. Means are over all counting pixels of the batch and 0 when there is none, unless stated otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.errors import UsageError

EPSILON = 1e-3


def _difference(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """prediction - target where the mask is set, 0 elsewhere. Raises UsageError where the shapes differ."""
    if prediction.shape != target.shape:  # torch would repeat one of them along an axis
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise UsageError(f"prediction and target must have one shape, got {shapes}")
    difference = prediction - target
    return difference if mask is None else torch.where(mask, difference, torch.zeros_like(difference))


def _log_difference(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """ln prediction - ln target where the mask is set, 0 elsewhere."""
    return _difference(prediction.clamp_min(EPSILON).log(), target.clamp_min(EPSILON).log(), mask)


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the values that the mask, of the same height and width, selects."""
    if mask is None:
        return values.mean()
    chosen = mask.expand_as(values)
    return torch.where(chosen, values, torch.zeros_like(values)).sum() / chosen.sum().clamp_min(1)


def silog(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None,
    variance_focus: float = 0.85,
    weight: float = 10.0,
    *,
    root: bool = True,
    unbiased: bool = False,
) -> Tensor:
    """Scale-invariant log loss over all valid pixels of the batch: weight * sqrt(mean d^2 - focus * (mean d)^2).

    Eigen et al. 2014 with the square root of BTS (Lee et al. 2019); the defaults are also DepthCLIP's. Without ``root``
    it is Eigen's own (MDE-CLIP: focus 0.5, weight 1). ``unbiased``: the variance in it divides by one pixel less
    (AdaBins, arXiv 2011.14141).
    """
    if mask is None:
        mask = torch.ones_like(prediction, dtype=torch.bool)
    mean, squares, count = _moments(_log_difference(prediction, target, mask), mask)
    spread = squares / (count - int(unbiased)).clamp_min(1) + (1 - variance_focus) * mean.square()
    if root:
        spread = torch.sqrt(spread + 1e-8)  # finite gradient at 0
    return weight * spread * mask.any()


def _moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the values under the mask, sum of their squared deviations from it, and their number, at least 1."""
    count = mask.sum().clamp_min(1)
    mean = torch.where(mask, values, 0).sum() / count
    return mean, torch.where(mask, values - mean, 0).square().sum(), count


def silog_by_image(
    prediction: Tensor, target: Tensor, mask: Tensor, variance_focus: float = 0.85, *, dead_zone: float = 1e-3
) -> Tensor:
    """WorDepth's scale-invariant log loss of every image, (B,): valid share * (mean d^2 - focus * (mean d)^2).

    Differences d of logarithms up to ``dead_zone`` count as 0; predictions must be above 0. The published loss of a
    batch is the sum of its images' (arXiv 2404.03635).
    """
    known = prediction.where(mask, 1).log() - target.where(mask, 1).log()
    difference = known.where(known.abs() > dead_zone, 0).flatten(1)
    count = mask.flatten(1).sum(1) + 1e-6
    mean, square = difference.sum(1) / count, difference.square().sum(1) / count
    return count / difference.shape[1] * (square - variance_focus * mean.square())


def sig_plus(
    relative: Tensor,
    scale: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    max_depth: float | None = None,
    warm_up: bool = False,
) -> Tensor:
    """ScaleDepth's depth loss on relative depth times scale (B,), metres: 10 sqrt(var g + 0.15 mean(g)^2).

    g = ln(scale * relative + 1 mm) - ln(target + 1 mm) over the valid pixels of the whole batch, nearer than or at
    ``max_depth``; the variance is unbiased, otherwise it is ``silog`` with focus 0.85. In the ``warm_up`` only the mean
    counts. arXiv 2407.08187.
    """
    if max_depth is not None:
        mask = mask & (target <= max_depth)
    prediction = relative * scale.view(-1, 1, 1, 1)
    difference = (prediction.clamp_min(0) + EPSILON).log() - (torch.where(mask, target, 0) + EPSILON).log()
    mean, squares, count = _moments(difference, mask)
    spread = 0.15 * mean.square()
    if not warm_up:
        spread = spread + squares / (count - 1).clamp_min(1)
    return 10 * torch.sqrt(spread + 1e-12) * mask.any()  # finite gradient at 0


def log_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute log error, every image with valid pixels counting the same."""
    difference = _log_difference(prediction, target, mask).abs()
    count = mask.sum(dim=(1, 2, 3))
    per_image = difference.sum(dim=(1, 2, 3)) / count.clamp_min(1)
    return per_image.sum() / (count > 0).sum().clamp_min(1)


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


def edges(
    prediction: Tensor, target: Tensor, mask: Tensor, ratio: float = 1.1, distances: Sequence[int] = (1, 2, 4)
) -> Tensor:
    """Mean absolute error of log-depth differences over pairs of pixels in a row or column with an edge between them.

    That is where one is truly farther than ``ratio`` times the other. Unlike in ``gradient``, the many pairs on even
    surfaces do not count. Pixels some ``distances`` apart find an edge that is a little beside its true place, where
    only a blurred one would escape neighbours.
    """
    logs = [depth.clamp_min(EPSILON).log() for depth in (prediction, target)]
    total = logs[0].new_zeros(())
    for distance in distances:
        for axis in (-1, -2):
            size = max(0, target.shape[axis] - distance)
            found, true = (one.narrow(axis, -size, size) - one.narrow(axis, 0, size) for one in logs)
            known = mask.narrow(axis, -size, size) & mask.narrow(axis, 0, size)
            total = total + _mean((found - true).abs(), known & (true.abs() > math.log(ratio)))
    return total / (2 * len(distances))


def scene_cross_entropy(
    logits: Tensor,
    scene: Tensor,
    label_smoothing: float = 0.0,
    *,
    form: Literal["logits", "probabilities"] = "logits",
    mean_over_all: bool = False,
) -> Tensor:
    """Cross-entropy of (B, K) scene logits against (B,) labels; -1 means unknown and does not count.

    0 when all are unknown. ``form``: "probabilities" takes the softmax twice, as ScaleDepth does by mistake (its
    gradients are tiny). ``mean_over_all`` divides by the number of all images, as it also does.
    """
    if form == "probabilities":
        logits = logits.softmax(-1)
    total = F.cross_entropy(logits, scene, ignore_index=-1, reduction="sum", label_smoothing=label_smoothing)
    return total / (len(scene) if mean_over_all else (scene >= 0).sum().clamp_min(1))


# Depth as it is


def l1(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference, metres."""
    return _mean(_difference(prediction, target, mask).abs(), mask)


def l2(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference, square metres."""
    return _mean(_difference(prediction, target, mask).square(), mask)


def bin_cross_entropy(logits: Tensor, target: Tensor, bin_centers: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of (B, K, H, W) logits against the bin of the target; see ``bin_index``."""
    loss = F.cross_entropy(logits, bin_index(target, bin_centers)[:, 0], reduction="none")
    return _mean(loss[:, None], mask)


def bin_index(depth: Tensor, bin_centers: Tensor) -> Tensor:
    """Index of the nearest of K rising bin centres (K,); midway between two the lower one. int64, shaped like depth."""
    return torch.bucketize(depth, (bin_centers[1:] + bin_centers[:-1]) / 2)


def bin_chamfer(bin_centers: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Chamfer distance between rising bin centres (B, N) and the depths of each image (AdaBins, arXiv 2011.14141).

    Mean squared distance of the centres to their nearest depth, plus that of the depths to their nearest centre, metres
    squared; mean over images, those without depth counting 0. Both look-ups are searches in sorted rows, so nothing
    of size centres times pixels is made.
    """
    depth = target.flatten(1)
    known = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask.flatten(1)
    count = known.sum(1, keepdim=True)
    fixed = bin_centers.detach()
    nearest = torch.searchsorted((fixed[:, 1:] + fixed[:, :-1]) / 2, depth)
    to_center = (depth - bin_centers.gather(1, nearest)).square()
    of_depths = torch.where(known, to_center, 0).sum(1) / count[:, 0].clamp_min(1)
    ordered = torch.where(known, depth, torch.inf).sort(1).values
    after = torch.searchsorted(ordered, fixed)
    last = (count - 1).clamp_min(0)
    neighbours = (ordered.gather(1, index.clamp_min(0).minimum(last)) for index in (after - 1, after))
    below, above = ((bin_centers - torch.where(count > 0, found, fixed)).square() for found in neighbours)
    return (torch.minimum(below, above).mean(1) + of_depths).mean()


# Its slopes


def smoothness(depth: Tensor, image: Tensor) -> Tensor:
    """Edge-aware smoothness: mean of abs(slope of depth) * exp(-abs(slope of image)), over x and over y, added.

    Slopes are differences of neighbours, those of image (B, C, H, W) averaged over channels (Godard et al. 2017;
    depth is not divided by its mean).
    """
    total = depth.new_zeros(())
    for axis in (-1, -2):
        slope = depth.diff(dim=axis).abs() * torch.exp(-image.diff(dim=axis).abs().mean(1, keepdim=True))
        total = total + slope.mean()
    return total


# Two views


def symmetry(depth: Tensor, mirrored: Tensor) -> Tensor:
    """Squared difference between the depth of an image and that of its mirror image, mirrored back.

    Each is pulled towards the other taken as a constant, so the value is twice the mean squared difference.
    """
    return l2(depth, mirrored.detach()) + l2(mirrored, depth.detach())


def ssim_dissimilarity(
    image: Tensor, other: Tensor, mask: Tensor | None = None, *, gaussian: bool = False, data_range: float = 1.0
) -> Tensor:
    """Mean of (1 - SSIM) / 2, limited to [0, 1], over windows of (B, C, H, W) images or depth; 0 for equal ones.

    The windows are 3 x 3, inside the image, every pixel counting the same (Godard et al. 2017); with ``gaussian`` 7 x
    7 around every pixel, weighted by a Gaussian of deviation 1.5, the image mirrored at its border (Wang et al. 2004,
    as in kornia). ``data_range``: the largest value. With a mask (B, 1, H, W) only windows count that are valid as a
    whole.
    """
    if mask is not None:
        image, other = (torch.where(mask, one, torch.zeros_like(one)) for one in (image, other))

    def pool(values: Tensor) -> Tensor:
        return _gaussian_mean(values) if gaussian else F.avg_pool2d(values, 3, stride=1)

    windows = None
    if mask is not None:
        windows = _windows(mask, padding=3, size=7) if gaussian else _windows(mask, padding=0)
    return _mean(((1 - ssim_map(image, other, pool, data_range)) / 2).clamp(0, 1), windows)


def ssim_map(image: Tensor, other: Tensor, mean: Callable[[Tensor], Tensor], data_range: float = 1.0) -> Tensor:
    """SSIM (Wang et al. 2004) of each window; ``mean``: over the windows of a map."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_1, mean_2 = mean(image), mean(other)
    variance_1, variance_2 = mean(image.square()) - mean_1.square(), mean(other.square()) - mean_2.square()
    covariance = mean(image * other) - mean_1 * mean_2
    above = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return above / ((mean_1.square() + mean_2.square() + c1) * (variance_1 + variance_2 + c2))


def _gaussian_mean(values: Tensor) -> Tensor:
    """Means of (B, C, H, W) over 7 x 7 windows, Gaussian of deviation 1.5; mirrored at the border."""
    weights = torch.exp(-torch.arange(-3, 4, device=values.device, dtype=values.dtype).square() / (2 * 1.5**2))
    weights = (weights / weights.sum()).view(1, 1, 1, 7)
    padded = F.pad(values, (3, 3, 3, 3), mode="reflect").flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.conv2d(padded, weights), weights.mT).view_as(values)


def photometric(warped: Tensor, image: Tensor, mask: Tensor | None = None, *, reference_exact: bool = False) -> Tensor:
    """0.85 * dissimilarity + 0.15 * mean absolute difference of two (B, C, H, W) images; 0 when they are equal.

    ``mask`` (B, 1, H, W): where ``warped`` is known. ``reference_exact`` takes (1 - dissimilarity) / 2, as the
    published CLIP adapters do, which rewards images for being different (docs/systems/clip-adapters.md).
    """
    dissimilarity = ssim_dissimilarity(warped, image, mask)
    if reference_exact:
        dissimilarity = (1 - dissimilarity) / 2
    return 0.85 * dissimilarity + 0.15 * l1(warped, image, mask)


def _windows(mask: Tensor, padding: int, size: int = 3) -> Tensor:
    """Where all of a ``size`` x ``size`` window of the mask is set; half of it as padding: at pixels that exist."""
    return F.max_pool2d((~mask).float(), size, stride=1, padding=padding) == 0
