"""The operations of prediction on torch tensors and on NumPy arrays, which systems without torch give and take.

Bytes on a CPU are resized by Pillow for both, so that every runtime gets the same pixels. Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.records import Enlarge, Shrink
from langdepth.systems.contract import Array


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor; whoever holds one has imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(array: Array) -> npt.NDArray[Any]:
    """The same numbers as a NumPy array."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.detach().cpu())


def as_float(image: Array) -> Array:
    """Bytes in [0, 255] as float32 in [0, 1]; floats as they are."""
    if isinstance(image, np.ndarray):
        return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
    return image if image.is_floating_point() else image.float().div_(255)


def as_float32(array: Array) -> Array:
    """In float32."""
    return array.astype(np.float32, copy=False) if isinstance(array, np.ndarray) else array.float()


def joined(parts: Sequence[Array]) -> Array:
    """Batches as one."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(tuple(parts))


def split(batch: Array, count: int) -> list[Array]:
    """A batch in parts of ``count``."""
    return [batch[start : start + count] for start in range(0, len(batch), count)]


def mirrored(image: Array) -> Array:
    """Left and right exchanged."""
    return image[..., ::-1] if isinstance(image, np.ndarray) else image.flip(-1)


def mean(arrays: Sequence[Array]) -> Array:
    """Element by element."""
    return sum(arrays[1:], arrays[0]) / len(arrays)


def mean_and_std(batch: Array) -> tuple[Array, Array]:
    """Of N arrays (N, ...), with N - 1 degrees of freedom."""
    return batch.mean(0), batch.std(0, ddof=1) if isinstance(batch, np.ndarray) else batch.std(0)


def zeros_like(image: Array, *shape: int) -> Array:
    """Float32 zeros of another shape, where ``image`` is."""
    if isinstance(image, np.ndarray):
        return np.zeros(shape, np.float32)
    import torch

    return torch.zeros(shape, device=image.device)


def not_finite(dtype: str = "float32") -> str:
    """What a message says of depth with NaN or infinity in it, after the name of the system that gave it."""
    coarse = "" if dtype == "float32" else f"; or {dtype} is too coarse for it, then compute in float32"
    return (
        "gave depth that is not finite (NaN or infinity); its training diverged, then train it again with a lower "
        f"optim.lr, or its weights were damaged, then fetch them again{coarse}"
    )


def all_finite(maps: Array) -> list[bool]:
    """Of each map of a batch (B, ...), whether all its numbers are finite."""
    flat = to_numpy(maps).reshape(len(maps), -1)
    return [bool(found) for found in np.isfinite(flat).all(axis=1)]


def resized_image(image: Array, size: tuple[int, int], shrink: Shrink) -> Array:
    """Images (B, C, H, W) at (height, width) ``size``. Averaged bytes stay bytes, so that nothing large becomes float.

    Args:
        image: uint8, or float in [0, 1].
        size: The goal.
        shrink: See ``records.Shrink``; corner-aligned samples are floats.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    if shrink == "bilinear-aligned":
        return resized_map(as_float(image), size, "bilinear-aligned")
    weights = "bicubic" if shrink == "bicubic" else "bilinear"
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8:
            return _resized_bytes(image, size, Image.Resampling[weights.upper()])
        plane = _resized_floats(image, size, Image.Resampling[weights.upper()])
        return plane.clip(0, 1) if shrink == "bicubic" else plane
    import torch
    from torch.nn import functional as F

    if image.dtype != torch.uint8:
        found = F.interpolate(image, size=size, mode=weights, antialias=True)
        return found.clamp_(0, 1) if shrink == "bicubic" else found
    if image.device.type == "cpu":
        return torch.from_numpy(_resized_bytes(image.numpy(), size, Image.Resampling[weights.upper()]))
    return F.interpolate(image.float(), size=size, mode=weights, antialias=True).round_().clamp_(0, 255).byte()


def _resized_bytes(
    images: npt.NDArray[np.uint8], size: tuple[int, int], weights: Image.Resampling
) -> npt.NDArray[np.uint8]:
    found = np.empty((len(images), *size, 3), np.uint8)
    for index, image in enumerate(images.transpose(0, 2, 3, 1)):
        pixels = Image.fromarray(np.ascontiguousarray(image))
        found[index] = np.asarray(pixels.resize(size[::-1], weights))
    return found.transpose(0, 3, 1, 2)


def _resized_floats(
    images: npt.NDArray[Any], size: tuple[int, int], weights: Image.Resampling
) -> npt.NDArray[np.float32]:
    found = np.empty((*images.shape[:2], *size), np.float32)
    for index in np.ndindex(*images.shape[:2]):
        plane = Image.fromarray(images[index].astype(np.float32))
        found[index] = np.asarray(plane.resize(size[::-1], weights))
    return found


def resized_map(maps: Array, size: Sequence[int], enlarge: Enlarge) -> Array:
    """Maps (B, C, h, w) of floats at (height, width) ``size``, bilinearly, see ``records.Enlarge``."""
    height, width = size
    if tuple(maps.shape[-2:]) == (height, width):
        return maps
    aligned = enlarge == "bilinear-aligned"
    if isinstance(maps, np.ndarray):
        return _along(_along(maps, height, -2, aligned), width, -1, aligned)
    from torch.nn import functional as F

    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=aligned)


def _along(maps: npt.NDArray[np.float32], goal: int, axis: int, aligned: bool) -> npt.NDArray[np.float32]:
    """One axis at ``goal`` places between its values."""
    if maps.shape[axis] == goal:
        return maps
    below, above, share = _places(maps.shape[axis], goal, aligned)
    if axis == -2:
        share = share[:, None]
    first = np.take(maps, below, axis)
    change = np.take(maps, above, axis)
    change -= first
    change *= share
    first += change
    return first


@lru_cache(maxsize=16)
def _places(size: int, goal: int, aligned: bool) -> tuple[Any, Any, npt.NDArray[np.float32]]:
    """For each of ``goal`` places: the values below and above, and the share of the latter."""
    if aligned:
        places = np.arange(goal) * ((size - 1) / max(goal - 1, 1))
    else:
        places = ((np.arange(goal) + 0.5) * (size / goal) - 0.5).clip(0, size - 1)
    below = places.astype(np.intp)
    return below, np.minimum(below + 1, size - 1), (places - below).astype(np.float32)
