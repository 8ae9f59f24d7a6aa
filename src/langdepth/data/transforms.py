"""Joint transforms on image and depth for training, made of torchvision v2 operations.

Randomness comes from torch's global generator: seed it (``torch.random.fork_rng``) to repeat a sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from langdepth.camera import Camera
from langdepth.evaluation.protocols import Protocol
from langdepth.records import Sample

SPARSE = 0.3  # below this share of known pixels a depth map counts as sparse (LiDAR)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images vary. Every probability and strength 0 (zoom: 1) switches that part off.

    Raises ValueError for a value outside its range.
    """

    flip: float = 0.5
    """Probability of mirroring left to right."""
    random_crop: bool = True
    """Whether the part that has the network's shape is cut out at a random place, not from the middle."""
    zoom: float = 1.5
    """Largest enlargement by cropping; depth is divided by it, as if the camera had moved closer."""
    zoom_probability: float = 0.7
    """Probability of enlarging."""
    rotate: float = 5.0
    """Largest rotation, degrees."""
    rotate_probability: float = 0.5
    """Probability of rotating."""
    brightness: float = 0.3
    """Largest change of brightness, as a share."""
    contrast: float = 0.3
    """Likewise of contrast."""
    saturation: float = 0.3
    """Likewise of saturation."""
    hue: float = 0.05
    """Largest turn of the hue, as a share of the color circle."""
    gamma: float = 0.0
    """Largest change of the exponent, from 1, in half of the images."""
    colour_probability: float = 0.8
    """Probability of changing brightness, contrast, saturation and hue."""
    grey: float = 0.05
    """Probability of a grey image."""
    blur: float = 0.1
    """Probability of a slight blur."""
    cut_depth: float = 0.0
    """Probability of painting the depth of a box into the image (CutDepth, Ishii & Yamashita 2021)."""
    depth_mix: float = 0.0
    """Probability of painting the depth of a stripe of full height into the image (ScaleDepth)."""
    depth_mix_wraps: bool = False
    """Paint millimetres modulo 256, as ScaleDepth's code does by mistake."""
    erase: float = 0.0
    """Probability of greying out a box of the image."""

    def __post_init__(self) -> None:
        other_ranges = {"zoom": (1.0, 10.0), "rotate": (0.0, 180.0), "hue": (0.0, 0.5)}
        for field in fields(self):
            least, most = other_ranges.get(field.name, (0.0, 1.0))
            value = getattr(self, field.name)
            if not least <= value <= most:
                raise ValueError(f"{field.name} must lie between {least:g} and {most:g}, got {value}")

    def varying(self) -> dict[str, Any]:
        """What would have to be set for an image to be the same every time but for mirroring: field -> value."""
        off = ("zoom_probability", "rotate_probability", "colour_probability", "gamma", "grey", "blur", "cut_depth",
               "depth_mix", "erase")  # fmt: skip
        strengths = {
            "zoom_probability": self.zoom - 1,
            "rotate_probability": self.rotate,
            "colour_probability": self.brightness + self.contrast + self.saturation + self.hue,
        }
        varying = [name for name in off if getattr(self, name) * strengths.get(name, 1.0) > 0]
        return ({"random_crop": False} if self.random_crop else {}) | dict.fromkeys(varying, 0.0)


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


def crop_window(
    height: int, width: int, aspect: float, zoom: float, *, random: bool = True
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a window at a random place or in the middle.

    Its shape is ``aspect`` (width / height), its size the largest that fits, divided by ``zoom``.
    """
    crop_height = min(height, width / aspect) / zoom
    size = max(1, round(crop_height)), max(1, min(width, round(crop_height * aspect)))
    return *_corner(height - size[0], width - size[1], random), *size


def _corner(room_below: int, room_right: int, random: bool) -> tuple[int, int]:
    """Top and left of a window with so much room, at a random place or in the middle."""
    top, left = (int(torch.randint(0, room + 1, ())) if random else room // 2 for room in (room_below, room_right))
    return top, left


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _box(height: int, width: int) -> tuple[slice, slice]:
    """A random box of up to 3/4 of each side (CutDepth's rule)."""
    top, left = int(height * torch.rand(())), int(width * torch.rand(()))
    tall = max(1, int((height - top) * 0.75 * torch.rand(())))
    wide = max(1, int((width - left) * 0.75 * torch.rand(())))
    return slice(top, top + tall), slice(left, left + wide)


def depth_stripe(image: Tensor, depth: Tensor, left: float, width: float, *, wraps: bool = False) -> Tensor:
    """``image`` (3, H, W) in [0, 1] with the depth (1, H, W) of a stripe of full height painted over it.

    ``left`` and ``width`` from 0 to 1: share of the image that lies left of it, and of 3/4 of the rest that it takes.
    The farthest depth is white; with ``wraps`` grey is whole millimetres, rounded down, modulo 256.
    """
    first = int(image.shape[-1] * left)
    end = first + int(max(1, (image.shape[-1] - first) * 0.75 * width))
    grey = (depth / 0.001).floor() % 256 / 255 if wraps else depth / depth.max().clamp_min(1e-3)
    return torch.cat([image[..., :first], grey[..., first:end].expand(3, -1, -1), image[..., end:]], dim=-1)


def turned(
    image: Tensor,
    depth: Tensor,
    degrees: float,
    window: tuple[int, int, int, int] | None = None,
    *,
    mirrored: bool = False,
) -> tuple[Tensor, Tensor]:
    """Image (C, H, W) float of any range and depth (1, H, W), turned counter-clockwise about the middle.

    Of the result only ``window`` (top, left, height, width) is computed, ``mirrored`` left to right. The image is
    interpolated, depth takes the nearest pixel; black and unknown outside. This is Pillow's ``rotate`` without its
    rounding to whole grey levels, in half its time.
    """
    whole_height, whole_width = depth.shape[-2:]
    top, left, height, width = window or (0, 0, whole_height, whole_width)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = torch.arange(left, left + width) - (whole_width - 1) / 2
    y = torch.arange(top, top + height).unsqueeze(1) - (whole_height - 1) / 2
    if mirrored:
        x = x.flip(0)
    places = torch.empty(2, height, width)  # from -1 to 1 inside the image
    torch.add(x * (2 * cos / whole_width), y * (-2 * sin / whole_width), out=places[0])
    torch.add(x * (2 * sin / whole_height), y * (2 * cos / whole_height), out=places[1])
    grid = places.permute(1, 2, 0).unsqueeze(0)
    colors = F.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    moved = F.grid_sample(depth[None], grid, mode="nearest", align_corners=False)[0]
    inside = places.abs_().amax(0).le_(1)
    return colors.mul_(inside), moved


class TrainTransform:
    """A stored image with depth to one of the network's size, varied at random.

    Images of ``kb_sources`` are first cut to the KITTI benchmark's frame. ``resized``: whether the largest part of
    the network's shape is cut out and resized, or a part of the network's size as it is, filled with black where the
    image is smaller (depth: unknown). ``focal``: see ``InputSpec.focal``; depth is that of a camera which has it, for
    images whose camera is known.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        area: int,
        *,
        resized: bool = True,
        kb_sources: Sequence[str] = (),
        focal: float | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.area = area
        self.focal = focal
        self.resized = resized
        self.kb_sources = kb_sources
        a = augmentation
        self.color = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue)], a.colour_probability),
                v2.RandomGrayscale(a.grey),
                v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], a.blur),
            ]
        )

    def __call__(self, sample: Sample, size: tuple[int, int]) -> Sample:
        """``sample`` with uint8 or float image of any size; the result is (3, *size) float32 and (1, *size) metres.

        An overlay moves with the image and keeps its colors. A second view no longer fits and is dropped.
        """
        a = self.augmentation
        image, depth = sample.image, sample.depth
        if sample.overlay is not None:
            image = torch.cat([TF.to_dtype(image, torch.float32, scale=True), sample.overlay])
        if sample.source in self.kb_sources:
            frame = (..., *Protocol(name="kb", frame="kb").frame_slices(*image.shape[-2:]))
            image, depth = image[frame], depth[frame]
        if a.depth_mix > 0 and _chance(a.depth_mix):
            image = TF.to_dtype(image, torch.float32, scale=True)
            mixed = depth_stripe(image[:3], depth, *torch.rand(2).tolist(), wraps=a.depth_mix_wraps)
            image = torch.cat([mixed, image[3:]])
        if self.resized:
            image, depth = self._fitted(image, depth, size, sample.camera)
        else:
            height, width = (min(sides) for sides in zip(image.shape[-2:], size, strict=True))
            window = (*_corner(image.shape[-2] - height, image.shape[-1] - width, a.random_crop), height, width)
            image, depth = TF.crop(image, *window), TF.crop(depth, *window)
        turns = a.rotate > 0 and _chance(a.rotate_probability)
        degrees = a.rotate * (2 * float(torch.rand(())) - 1) if turns else 0.0
        mirrored = _chance(a.flip)
        if turns:
            image = TF.to_dtype(image, torch.float32, scale=True)
            image, depth = turned(image, depth, degrees, mirrored=mirrored)
        elif mirrored:
            image, depth = TF.horizontal_flip(image), TF.horizontal_flip(depth)
        overlay = None if sample.overlay is None else TF.to_dtype(image[3:], torch.float32, scale=True)
        image = self._recolored(image[:3], depth, size)
        missing = (0, size[1] - image.shape[-1], 0, size[0] - image.shape[-2])
        if any(missing):
            image, depth = F.pad(image, missing), F.pad(depth, missing)
            overlay = None if overlay is None else F.pad(overlay, missing)
        moved = replace(sample, image=image, depth=depth, mask=depth > 0, overlay=overlay, mirrored=mirrored)
        return replace(moved, camera=None, source_image=None, pose=None, intrinsics=None)

    def _recolored(self, image: Tensor, depth: Tensor, size: tuple[int, int]) -> Tensor:
        """The image (3, H, W) with other colors, and with boxes of depth or grey."""
        a = self.augmentation
        image = self._curved(self.color(TF.to_dtype(image, torch.float32, scale=True)))
        if a.cut_depth > 0 or a.erase > 0:
            image = image.clone()  # what follows writes into it, and up to here it may still be the caller's image
        if _chance(a.cut_depth) and bool((depth > 0).float().mean() > SPARSE):
            rows, columns = _box(*size)
            image[:, rows, columns] = (depth / depth.max())[:, rows, columns]
        if _chance(a.erase):
            rows, columns = _box(*size)
            image[:, rows, columns] = image.mean()
        return image

    def _fitted(
        self, image: Tensor, depth: Tensor, size: tuple[int, int], camera: Camera | None
    ) -> tuple[Tensor, Tensor]:
        """A part of the shape of ``size``, resized to it; depth as if the camera had moved."""
        a, (height, width) = self.augmentation, image.shape[-2:]
        zoom = 1 + (a.zoom - 1) * float(torch.rand(())) if _chance(a.zoom_probability) else 1.0
        window = crop_window(height, width, size[1] / size[0], zoom, random=a.random_crop)
        # What the whole image would be enlarged by to reach the network's area, against what this window is.
        whole = math.sqrt(self.area / (height * width))
        enlargement = (size[0] / window[2]) / whole
        if self.focal is not None and camera is not None:
            enlargement = math.sqrt(camera.fx * camera.fy / (window[2] * window[3])) / self.focal
        image = TF.resize(TF.crop(image, *window), list(size), antialias=True)
        return image, resize_depth(TF.crop(depth, *window), size) / enlargement

    def _curved(self, image: Tensor) -> Tensor:
        """The image with another gamma, with half a chance."""
        strength = self.augmentation.gamma
        if strength > 0 and _chance(0.5):
            exponent = 1 + strength * (1 - 2 * float(torch.rand(())))  # never 0, so that black stays black
            return image.log2().mul_(exponent).exp2_()  # a power, a quarter faster
        return image
