"""Joint transforms on picture and depth for training, made of torchvision v2 operations.

Randomness comes from torch's global generator: seed it (``torch.random.fork_rng``) to repeat a sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from langdepth.types import Sample

SPARSE = 0.3  # below this share of known pixels a depth map counts as sparse (LiDAR)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training pictures vary. Every probability and strength 0 (zoom: 1) switches that part off.

    Raises ValueError for a value outside its range.
    """

    flip: float = 0.5
    """Probability of mirroring left to right."""
    zoom: float = 1.5
    """Largest enlargement by cropping; depth is divided by it, as if the camera had moved closer."""
    zoom_probability: float = 0.7
    rotate: float = 5.0
    """Largest rotation, degrees."""
    rotate_probability: float = 0.5
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05
    colour_probability: float = 0.8
    grey: float = 0.05
    """Probability of a grey picture."""
    blur: float = 0.1
    """Probability of a slight blur."""
    cut_depth: float = 0.0
    """Probability of painting the depth of a box into the picture (CutDepth, Ishii & Yamashita 2021)."""
    erase: float = 0.0
    """Probability of greying out a box of the picture."""

    def __post_init__(self) -> None:
        other_ranges = {"zoom": (1.0, 10.0), "rotate": (0.0, 180.0), "hue": (0.0, 0.5)}
        for field in fields(self):
            least, most = other_ranges.get(field.name, (0.0, 1.0))
            value = getattr(self, field.name)
            if not least <= value <= most:
                raise ValueError(f"{field.name} must lie between {least:g} and {most:g}, got {value}")


def resize_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth (1, H, W), 0 = unknown, at another size without mixing near and far.

    Dense maps take the nearest pixel. Sparse ones, made smaller, keep the nearest known distance of every cell, so that
    LiDAR points are not lost.
    """
    if depth.shape[-2:] == size:
        return depth
    sparse = (depth > 0).float().mean() < SPARSE
    if not sparse or size[0] > depth.shape[-2] or size[1] > depth.shape[-1]:
        return F.interpolate(depth[None], size=size, mode="nearest-exact")[0]
    closeness = torch.where(depth > 0, 1 / depth, torch.zeros_like(depth))
    closest = F.adaptive_max_pool2d(closeness, size)
    return torch.where(closest > 0, 1 / closest, torch.zeros_like(closest))


def random_crop(height: int, width: int, aspect: float, zoom: float) -> tuple[int, int, int, int]:
    """Top, left, height, width of a random window.

    Its shape is ``aspect`` (width / height), its size the largest that fits, divided by ``zoom``.
    """
    crop_height = min(height, width / aspect) / zoom
    size = max(1, round(crop_height)), max(1, min(width, round(crop_height * aspect)))
    top = int(torch.randint(0, height - size[0] + 1, ()))
    left = int(torch.randint(0, width - size[1] + 1, ()))
    return top, left, *size


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _box(height: int, width: int) -> tuple[slice, slice]:
    """A random box of up to 3/4 of each side (CutDepth's rule)."""
    top, left = int(height * torch.rand(())), int(width * torch.rand(()))
    tall = max(1, int((height - top) * 0.75 * torch.rand(())))
    wide = max(1, int((width - left) * 0.75 * torch.rand(())))
    return slice(top, top + tall), slice(left, left + wide)


class TrainTransform:
    """A stored picture with depth to one of the network's size, varied at random."""

    def __init__(self, augmentation: Augmentation, area: int) -> None:
        self.augmentation = augmentation
        self.area = area
        a = augmentation
        self.colour = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], a.colour_probability),
                v2.RandomGrayscale(a.grey),
                v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], a.blur),
            ]
        )

    def __call__(self, sample: Sample, size: tuple[int, int]) -> Sample:
        """``sample`` with uint8 or float image of any size; the result is (3, *size) float32 and (1, *size) metres.

        An overlay moves with the picture and keeps its colours. A second view no longer fits and is dropped.
        """
        a = self.augmentation
        image, depth = sample.image, sample.depth
        if sample.overlay is not None:
            image = torch.cat([image, sample.overlay.to(image.dtype)])
        height, width = image.shape[-2:]
        aspect = size[1] / size[0]
        zoom = 1 + (a.zoom - 1) * float(torch.rand(())) if _chance(a.zoom_probability) else 1.0
        window = random_crop(height, width, aspect, zoom)
        # What the whole picture would be enlarged by to reach the network's area, against what this window is.
        whole = math.sqrt(self.area / (height * width))
        enlargement = (size[0] / window[2]) / whole
        image = TF.resize(TF.crop(image, *window), list(size), antialias=True)
        depth = resize_depth(TF.crop(depth, *window), size) / enlargement
        if a.rotate > 0 and _chance(a.rotate_probability):
            angle = a.rotate * (2 * float(torch.rand(())) - 1)
            image = TF.rotate(image, angle, TF.InterpolationMode.BILINEAR)
            depth = TF.rotate(depth, angle, TF.InterpolationMode.NEAREST)
        if _chance(a.flip):
            image, depth = TF.horizontal_flip(image), TF.horizontal_flip(depth)
        overlay = None if sample.overlay is None else TF.to_dtype(image[3:], torch.float32, scale=True)
        image = image[:3]
        # A copy: what follows writes into it, and up to here it may still be the caller's picture.
        image = TF.to_dtype(self.colour(image), torch.float32, scale=True).clone()
        if _chance(a.cut_depth) and bool((depth > 0).float().mean() > SPARSE):
            rows, columns = _box(*size)
            image[:, rows, columns] = (depth / depth.max())[:, rows, columns]
        if _chance(a.erase):
            rows, columns = _box(*size)
            image[:, rows, columns] = image.mean()
        moved = replace(sample, image=image, depth=depth, mask=depth > 0, overlay=overlay)
        return replace(moved, camera=None, source_image=None, pose=None, intrinsics=None)
