"""SPACE-CLIP's training images: turned, cut, mirrored, colored.

Data flow: image and depth as stored -> turned by up to one degree (bicubic; depth nearest) -> cut at a random place or,
where they are smaller, resized -> mirrored with half a chance -> gamma, brightness, colors with half a chance. The
network brings the image to its own size; depth keeps that of the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from langdepth.data.bts import BtsAugmentation, BtsRules, with_pixels
from langdepth.parts.upsample import nearest_pixel
from langdepth.prediction.arrays import resized_image
from langdepth.records import Sample

Size = tuple[int, int]
RULES = BtsRules(frame="stored", degrees=1.0, brightness=(0.9, 1.1))


def training_images(sizes: Sequence[Size]) -> Callable[[Sample, Size], Sample]:
    """Turns, cuts, mirrors and recolors images as SPACE-CLIP does; sizes are those of the cuts (``data.crop``)."""
    return _draw


def _draw(sample: Sample, size: Size) -> Sample:
    random = np.random.default_rng(int(torch.randint(2**62, ())))
    return training_sample(sample, size, BtsAugmentation.draw(RULES, random))


def training_sample(sample: Sample, size: Size, augmentation: BtsAugmentation) -> Sample:
    """A training image of (height, width) ``size``, in [0, 1], from one in bytes or in [0, 1]."""
    levels = sample.image.mul(255).round().byte() if sample.image.is_floating_point() else sample.image
    levels, depth = _turned(levels, sample.depth, augmentation.angle)
    free = levels.shape[-2] - size[0], levels.shape[-1] - size[1]
    if min(free) < 0:
        levels, depth = resized_image(levels[None], size, "bicubic")[0], nearest_pixel(depth[None], size)[0]
    else:
        top, left = augmentation.corner(free)
        window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
        levels, depth = levels[window], depth[window]
    if augmentation.mirror:
        levels, depth = levels.flip(-1), depth.flip(-1)
    image = levels / 255
    if augmentation.colored:
        image = image**augmentation.gamma * augmentation.brightness
        image = (image * torch.tensor(augmentation.colors).view(3, 1, 1)).clamp(0, 1)
    return replace(with_pixels(sample, image, depth.contiguous()), mirrored=augmentation.mirror)


def _turned(levels: Tensor, depth: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
    """Counter-clockwise about the middle, black and unknown outside."""
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).rotate(degrees, Image.Resampling.BICUBIC)
    # Pillow rounds places in images of 16 bits, as depth is stored, otherwise than in images of floats.
    halves = depth[0].contiguous().numpy().view(np.uint16).reshape(*depth.shape[1:], 2)
    turned = [
        np.array(Image.fromarray(np.ascontiguousarray(half)).rotate(degrees, Image.Resampling.NEAREST))
        for half in np.moveaxis(halves, -1, 0)
    ]
    metres = np.stack(turned, -1).view(np.float32)[..., 0]
    return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(metres)[None]
