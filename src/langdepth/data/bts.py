"""Training images as BTS makes them, and AdaBins, WorDepth and others after it: cropped, rotated and colored.

Data flow: image and depth as stored -> KITTI: the benchmark's 352 x 1216; NYU: depth outside the inner frame unknown
-> rotation -> crop to the network's size -> mirror -> gamma, brightness, colors -> Sample. Images stay in
[0, 1]: normalising them is the system's part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from langdepth.data.transforms import turned
from langdepth.errors import ImageError
from langdepth.evaluation.protocols import Protocol
from langdepth.records import Sample

INNER = slice(45, 472), slice(43, 608)  # of a 480 x 640 NYU image; around it depth is unreliable
GAMMA = COLORS = (0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class BtsRules:
    """What differs between the data sets: frame ("kb" or "nyu"), largest rotation in degrees, range of brightness."""

    frame: str
    degrees: float
    brightness: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class BtsAugmentation:
    """What is random in a training image.

    angle in degrees, counter-clockwise; x, y: place of the crop as shares of the free space, 0 to 1; gamma: exponent of
    the image; brightness: factor on it; colors: factors on red, green and blue.
    """

    angle: float = 0.0
    x: float = 0.0
    y: float = 0.0
    mirror: bool = False
    gamma: float = 1.0
    brightness: float = 1.0
    colors: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def colored(self) -> bool:
        """Whether gamma, brightness or colors change anything."""
        return (self.gamma, self.brightness, *self.colors) != (1.0,) * 5

    def corner(self, free: tuple[int, int]) -> tuple[int, int]:
        """Top and left of a crop, of ``free`` rows and columns that it leaves out."""
        top, left = (min(int(share * (side + 1)), side) for share, side in zip((self.y, self.x), free, strict=True))
        return top, left

    @classmethod
    def draw(cls, rules: BtsRules, random: np.random.Generator) -> BtsAugmentation:
        """The published distributions: half of the images are mirrored, half are colored."""
        moved = cls(
            angle=random.uniform(-rules.degrees, rules.degrees),
            x=random.uniform(),
            y=random.uniform(),
            mirror=random.uniform() > 0.5,
        )
        if random.uniform() <= 0.5:
            return moved
        red, green, blue = random.uniform(*COLORS, 3).tolist()
        gamma, brightness = random.uniform(*GAMMA), random.uniform(*rules.brightness)
        return replace(moved, gamma=gamma, brightness=brightness, colors=(red, green, blue))


def evaluation_sample(sample: Sample, rules: BtsRules) -> Sample:
    """The image as it is evaluated: as stored, or KITTI's frame of it."""
    if rules.frame != "kb":
        return sample
    window = (..., *Protocol(name="kb", frame="kb").frame_slices(*sample.image.shape[-2:]))
    return with_pixels(sample, sample.image[window], sample.depth[window])


def training_sample(sample: Sample, size: tuple[int, int], rules: BtsRules, augmentation: BtsAugmentation) -> Sample:
    """A training image of (height, width) ``size``, from one in [0, 1] or in bytes.

    Raises ImageError for images smaller than that.
    """
    sample = evaluation_sample(sample, rules)
    image, depth = sample.image, sample.depth
    if rules.frame == "nyu":
        image, depth = _inner(sample, cut=size[0] != image.shape[-2])
    free = image.shape[-2] - size[0], image.shape[-1] - size[1]
    if min(free) < 0:
        height, width = image.shape[-2:]
        raise ImageError(f"{sample.path}: {width}x{height} is too small for training at {size[1]}x{size[0]}")
    top, left = augmentation.corner(free)
    levels = image.mul(255).round() if image.is_floating_point() else image
    if augmentation.angle:
        # Pillow rounds down, in float64: what is whole there may lie just below here.
        levels = _planes(levels).add_(1e-4)
        levels, depth = turned(levels, depth, augmentation.angle, (top, left, *size), mirrored=augmentation.mirror)
    else:
        window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        levels, depth = levels[window], depth[window]
        if augmentation.mirror:
            levels, depth = levels.flip(-1), depth.flip(-1)
        levels = _planes(levels)
    image = _colored(levels, augmentation) if augmentation.colored else levels.floor_().div_(255)
    return replace(with_pixels(sample, image, depth.contiguous()), mirrored=augmentation.mirror)


def _planes(levels: Tensor) -> Tensor:
    """Red, green and blue one after the other, in float32: they are turned faster than bytes side by side."""
    return levels.to(torch.float32, memory_format=torch.contiguous_format)


def _colored(levels: Tensor, augmentation: BtsAugmentation) -> Tensor:
    """Grey levels, rounded down, to [0, 1] with gamma, brightness and colors, each channel through a table."""
    curve = (torch.arange(256) / 255) ** augmentation.gamma
    image = torch.empty_like(levels)
    for colored, channel, factor in zip(image, levels.int(), augmentation.colors, strict=True):
        table = (curve * (factor * augmentation.brightness)).clamp(0, 1)
        torch.index_select(table, 0, channel.flatten(), out=colored.view(-1))
    return image


class BtsTransform:
    """Training images from stored samples; random numbers follow torch's global generator."""

    def __init__(self, rules: BtsRules) -> None:
        self.rules = rules

    def __call__(self, sample: Sample, size: tuple[int, int]) -> Sample:
        """``sample`` at (height, width) ``size``. Raises ImageError for images smaller than that."""
        random = np.random.default_rng(int(torch.randint(2**62, ())))
        return training_sample(sample, size, self.rules, BtsAugmentation.draw(self.rules, random))


def _inner(sample: Sample, cut: bool) -> tuple[Tensor, Tensor]:
    """Image and depth of an NYU image: ``cut`` to the inner frame, or whole with no depth known around it."""
    if tuple(sample.image.shape[-2:]) != (480, 640):
        height, width = sample.image.shape[-2:]
        raise ImageError(f"{sample.path}: is {width}x{height}, NYU's images are 640x480")
    window = (..., *INNER)
    if cut:
        return sample.image[window], sample.depth[window]
    depth = torch.zeros_like(sample.depth)
    depth[window] = sample.depth[window]
    return sample.image, depth


def with_pixels(sample: Sample, image: Tensor, depth: Tensor) -> Sample:
    """The sample with other pixels; what no longer fits them is dropped."""
    changed = replace(sample, image=image, depth=depth, mask=depth > 0, camera=None, overlay=None)
    return replace(changed, source_image=None, pose=None, intrinsics=None)
