"""What the CLIP adapters for depth minimise: one sum over the image and its mirror image.

Source: "Unveiling the Efficacy of Foundation Models for Depth Estimation" (2023; docs/systems/clip-adapters.md).

Data flow: depth of the image and of its mirror image (mirrored back), both limited to [0, max_depth] -> symmetry of
the two; their mean, resized to the ground truth -> depth, smoothness and photometric loss; the image's bin logits,
resized -> bin loss; each times its weight -> total.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from langdepth import losses
from langdepth.parts.upsample import resize_aligned
from langdepth.systems.clip_adapters.view_warp import warp_view


@dataclass(frozen=True, kw_only=True)
class AdapterLosses:
    """Weights and choices. The defaults are those of the published CLIP-Adapter."""

    depth_norm: Literal["l1", "l2"] = "l1"
    """Absolute difference, or the squared one of the Eigen and coarse-refined systems."""
    depth: float = 1.0
    smoothness: float = 0.001
    symmetry: float = 0.0
    bins: float = 0.0
    photometric: float = 0.0
    """Needs a source view; 0.0 leaves the warp out."""
    shrink: int = 1
    """Factor by which ground truth and image are made smaller first: 4 for systems of a quarter of the resolution."""
    max_depth: float = 10.0
    """Metres."""
    reference_exact: bool = False
    """The published sign of the photometric loss and the published warp (docs/systems/clip-adapters.md)."""


@dataclass(frozen=True, kw_only=True)
class SourceView:
    """Another view: image (B, 3, H, W), transform (B, 3, 4) from the image's camera to its own, intrinsics (3, 3)."""

    image: Tensor
    transform: Tensor
    intrinsics: Tensor


def merge_views(depth: Tensor, mirrored: Tensor, max_depth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Both depths (B, 1, h, w) limited to [0, max_depth], and their mean."""
    depth, mirrored = depth.clamp(0, max_depth), mirrored.clamp(0, max_depth)
    return depth, mirrored, (depth + mirrored) / 2


def adapter_losses(
    settings: AdapterLosses,
    *,
    depth: Tensor,
    mirrored: Tensor,
    logits: Tensor | None,
    image: Tensor,
    target: Tensor,
    mask: Tensor | None,
    bin_centers: Tensor | None,
    source: SourceView | None = None,
) -> dict[str, Tensor]:
    """Every loss unweighted (for the log), and the weighted sum as "total".

    depth, mirrored (B, 1, h, w) metres, the second predicted from the mirror image and mirrored back; logits
    (B, K, h', w') and bin_centers (K,) rising, metres: None leaves the bin loss out; image (B, 3, H, W) normalised for
    the network; target (B, 1, H, W) metres; mask (B, 1, H, W) bool, None counts every pixel, holes too, as
    published.
    """
    depth, mirrored, mean = merge_views(depth, mirrored, settings.max_depth)
    target, mask, small_image = _shrink(target, mask, image, settings.shrink)
    mean = resize_aligned(mean, target.shape[-2:])
    norm = losses.l1 if settings.depth_norm == "l1" else losses.l2
    terms = {
        "symmetry": losses.symmetry(depth, mirrored),
        "smoothness": losses.smoothness(mean, small_image),
        "depth": norm(mean, target, mask),
    }
    if logits is not None and bin_centers is not None:
        terms["bins"] = losses.bin_cross_entropy(resize_aligned(logits, target.shape[-2:]), target, bin_centers, mask)
    if settings.photometric:
        if source is None:
            raise ValueError("a photometric loss needs a source view")
        exact = settings.reference_exact
        depth_of_image = resize_aligned(mean, image.shape[-2:])
        warped, valid = warp_view(
            source.image, depth_of_image, source.transform, source.intrinsics, reference_exact=exact
        )
        terms["photometric"] = losses.photometric(warped, image, None if exact else valid, reference_exact=exact)
    weighted = [getattr(settings, name) * value for name, value in terms.items() if getattr(settings, name)]
    return terms | {"total": sum(weighted, mean.new_zeros(()))}


def _shrink(target: Tensor, mask: Tensor | None, image: Tensor, factor: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Ground truth, mask and image at 1 / ``factor``. With a mask, holes never blend into the depth beside them."""
    if factor == 1:
        return target, mask, image
    size = tuple(side // factor for side in target.shape[-2:])
    if mask is None:
        return resize_aligned(target, size), None, resize_aligned(image, size)
    share = resize_aligned(mask.to(target.dtype), size)
    target = resize_aligned(target.where(mask, target.new_zeros(())), size) / share.clamp_min(0.5)
    return target, share > 0.5, resize_aligned(image, size)
