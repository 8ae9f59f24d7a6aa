"""Which pixels of an outdoor image show the sky, which has no depth.

A pixel is of the sky where it is light for its image or blue, differs little from its neighbors, and is joined to the
top of the image by such pixels. Whether the image was taken outdoors is for the caller to know: indoors a white wall
looks the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.text.scenes import OUTDOORS

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

# Levels are those of 8 bits. Chosen on street images with LiDAR; a fifth more or less of each hardly matters.
_PIXELS, _FINE_PIXELS = 192 * 144, 1 << 17  # in which the sky is looked for, and its edge then
_EDGE = 40  # levels in which neighbors differ across the edge of a thing, and clouds do not
_SMOOTH = 8  # the same of a sky without clouds, which may be darker
_LIGHT = 0.8  # of the level of the lightest things in the image: a sky with clouds
_SUNSET, _DIM = 0.7, 0.5  # the same of a smooth sky, of any color, or neutral: also in the dark corners of a lens
_LEAST_LIGHT = 80  # level that sky has at least
_BLUE, _WARM, _GREEN = 25, 12, 20  # levels of blue beyond red; of red beyond blue; of green beyond blue
_TOP = 0.1  # of the image's height: sky begins there
_BOTTOM = 0.1  # what gets there is snow, or a road
_LEAST, _MOST = 0.005, 0.95  # of the image
_LEAST_PROBABILITY = 0.5  # of all scenes outdoors


class _Colors:
    """What colors the sky of an image may have. Its lower half tells how blue the image is as a whole."""

    def __init__(self, pixels: Floats) -> None:
        self._white = float(np.percentile(_level(pixels), 98))
        self._cast = max(0.0, float(np.median(_blue(pixels)[len(pixels) // 2 :])))

    def fit(self, pixels: Floats) -> Mask:
        """Light and not warm, or blue."""
        level, blue = _level(pixels), _blue(pixels) - self._cast
        light = (level > max(_LEAST_LIGHT, _LIGHT * self._white)) & (blue > -_WARM)
        return light | ((blue > _BLUE) & (level > _LEAST_LIGHT / 2))

    def fit_smooth(self, pixels: Floats) -> Mask:
        """What else a sky without clouds may be."""
        level, blue = _level(pixels), _blue(pixels) - self._cast
        neutral = (blue > -_WARM) & (pixels[..., 2] > pixels[..., 1] - _GREEN)
        dim = (level > _DIM * self._white) & neutral
        return (dim | (level > _SUNSET * self._white)) & (level > _LEAST_LIGHT)


def is_outdoors(scene: str | None, probs: Mapping[str, float] | None) -> bool:
    """Whether an image was taken outdoors: by the scene that is stated, or else their probabilities."""
    if scene is not None:
        return scene in OUTDOORS
    return probs is not None and sum(probs.get(name, 0.0) for name in OUTDOORS) >= _LEAST_PROBABILITY


def sky_of(image: npt.NDArray[np.uint8], depth: Floats) -> Mask:
    """Where an image that was taken outdoors shows the sky.

    Args:
        image: (H, W, 3) RGB.
        depth: (H', W'), what was predicted; the sky ends above the row where it is farthest, should it run into the
            ground otherwise.

    Returns:
        (h, w), of as many pixels as the image or of about 130,000.
    """
    fine = _shrunk(Image.fromarray(image), _FINE_PIXELS)
    coarse = _shrunk(fine, _PIXELS)
    pixels = _pixels(coarse)
    colors = _Colors(pixels)
    change = _spread(pixels)
    free = (colors.fit(pixels) & (change < _EDGE)) | (colors.fit_smooth(pixels) & (change < _SMOOTH))
    seed = free.copy()
    seed[max(2, round(_TOP * len(seed))) :] = False
    sky = _thick(_joined(seed & _thick(free), free))
    if sky.mean() < _MOST and sky[-max(1, round(_BOTTOM * len(sky))) :].any():
        free[_farthest_row(depth, coarse.size) :] = False
        sky = _thick(_joined(seed & _thick(free), free))
    if not _LEAST < sky.mean() < _MOST:
        return np.zeros((fine.height, fine.width), np.bool_)
    # Between coarse pixels the edge is where the colors change.
    about = _enlarged(_grown(sky), fine.size) & colors.fit(_pixels(fine))
    return _enlarged(sky, fine.size) | about


def _shrunk(image: Image.Image, most: int) -> Image.Image:
    factor = min(1.0, math.sqrt(most / (image.width * image.height)))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(size, Image.Resampling.BOX)


def _pixels(image: Image.Image) -> Floats:
    return np.asarray(image).astype(np.float32)


def _level(pixels: Floats) -> Floats:
    level: Floats = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    return level


def _blue(pixels: Floats) -> Floats:
    return pixels[..., 2] - pixels[..., 0]


def _spread(pixels: Floats) -> Floats:
    """The largest difference among a pixel and its eight neighbors, in any channel."""
    spread: Floats = (_beside(pixels, np.maximum) - _beside(pixels, np.minimum)).max(-1)
    return spread


def _beside(values: npt.NDArray[Any], extreme: np.ufunc) -> npt.NDArray[Any]:
    """The largest or smallest (``extreme``) of each pixel (H, W, ...) and its eight neighbors."""
    padded = np.pad(values, [(1, 1), (1, 1), *[(0, 0)] * (values.ndim - 2)], mode="edge")
    rows = extreme(extreme(padded[:-2], padded[1:-1]), padded[2:])
    found: npt.NDArray[Any] = extreme(extreme(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])
    return found


def _grown(mask: Mask) -> Mask:
    return _beside(mask, np.maximum)


def _thick(mask: Mask) -> Mask:
    """Without what is thinner than three pixels: panes of a window, gaps between leaves."""
    return _grown(_beside(mask, np.minimum))


def _enlarged(mask: Mask, size: tuple[int, int]) -> Mask:
    levels = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(levels.resize(size, Image.Resampling.BILINEAR)) > 127


def _joined(seed: Mask, free: Mask) -> Mask:
    """What of ``free`` can be reached from ``seed``, a part of it, sideways, up and down.

    Along a row or column a pixel is reached where the last reached one lies behind the last that is not free.
    """
    found, before = seed, -1
    while (count := int(np.count_nonzero(found))) != before:
        before = count
        for axis in (1, 0):
            place = np.arange(1, free.shape[axis] + 1, dtype=np.int16).reshape((-1, 1) if axis == 0 else (1, -1))
            for way in (slice(None), slice(None, None, -1)):
                view = (way,) if axis == 0 else (slice(None), way)
                last, wall = (
                    np.maximum.accumulate(where[view] * place, axis) for where in (found, np.logical_not(free))
                )
                found = (free[view] & (last > wall))[view]
    return found


def _farthest_row(depth: Floats, size: tuple[int, int]) -> int:
    """The row of (width, height) ``size`` in which the ground of a depth map is farthest."""
    rows = np.asarray(Image.fromarray(depth.astype(np.float32)).resize(size, Image.Resampling.NEAREST))
    return int(np.percentile(rows, 90, axis=1).argmax())
