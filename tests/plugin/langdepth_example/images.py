"""The training images of the example: the left half of each image, resized to the network's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch.nn import functional as F

from langdepth.records import Sample

Size = tuple[int, int]  # height, width


def half_images(sizes: Sequence[Size]) -> Callable[[Sample, Size], Sample]:
    """The pipeline example-half; it makes images of any of the network's ``sizes``."""
    return _left_half


def _left_half(sample: Sample, size: Size) -> Sample:
    left = (..., slice(sample.image.shape[-1] // 2))
    image = F.interpolate(sample.image[left][None].float() / 255, size=size, mode="bilinear")[0]
    depth = F.interpolate(sample.depth[left][None], size=size)[0]
    return replace(sample, image=image, depth=depth, mask=depth > 0, camera=None)
