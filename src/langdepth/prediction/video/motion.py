"""Where each pixel of a frame was in the frame before: optical flow in NumPy, at a small size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]

LONGER_SIDE = 96  # pixels of the longer side at which motion is found
_LEAST_SIDE = 2  # which slopes need
_LEVELS = 4  # the coarsest sees motions of a tenth of the image as one pixel or two
_ROUNDS = 2
_WINDOW = 4  # pixels on each side over which motion is one
_BACKGROUND = 8  # pixels on each side whose mean is taken away, so that exposure does not count
_LEAST_TEXTURE = 1e-3  # of the squared slopes; below, a place keeps the motion of the coarser level
_SAME = 0.05  # brightness in [0, 1] up to which two places look alike


def small_grey(pixels: npt.NDArray[np.uint8]) -> Floats:
    """(h, w) in [0, 1] of an RGB image (H, W, 3), its longer side ``LONGER_SIDE``."""
    image = Image.fromarray(pixels).resize(small_size(pixels.shape[:2])[::-1], Image.Resampling.BOX)
    return np.asarray(image.convert("L"), np.float32) / np.float32(255)


def small_size(size: Sequence[int]) -> tuple[int, int]:
    """(h, w) at which motion is found in images of (height, width) ``size``."""
    factor = min(1.0, LONGER_SIDE / max(size))
    return max(_LEAST_SIDE, round(size[0] * factor)), max(_LEAST_SIDE, round(size[1] * factor))


class Motion:
    """From each pixel of ``frame`` to where it was ``before``, both (h, w) in [0, 1].

    alike: (h, w) bool, whether the place was in the image and looked the same.
    """

    def __init__(self, before: Floats, frame: Floats) -> None:
        old, new = _pyramid(_flattened(before)), _pyramid(_flattened(frame))
        flow = np.zeros((2, *new[-1].shape), np.float32)
        for source, goal in zip(reversed(old), reversed(new), strict=True):
            if flow.shape[1:] != goal.shape:
                ratio = np.array(goal.shape, np.float32) / flow.shape[1:]
                flow = np.stack([_resized(one, goal.shape) * factor for one, factor in zip(flow, ratio, strict=True)])
            flow = _refined(source, goal, flow)
        rows, columns = np.indices(frame.shape, np.float32)
        self._y, self._x = rows + flow[0], columns + flow[1]
        height, width = frame.shape
        inside = (self._y >= 0) & (self._y <= height - 1) & (self._x >= 0) & (self._x <= width - 1)
        self.alike = inside & (np.abs(self.along(old[0]) - new[0]) < _SAME)

    def along(self, values: Floats) -> Floats:
        """What a map (h, w) of the frame before had at the places that the pixels of this frame come from."""
        return _at(values, self._y, self._x)


def _refined(source: Floats, goal: Floats, flow: Floats) -> Floats:
    """Lucas and Kanade's steps: the least squares of the difference in a window about each pixel."""
    rows, columns = np.indices(goal.shape, np.float32)
    slope_y, slope_x = np.gradient(goal)
    yy, xx, xy = (_mean(a * b, _WINDOW) for a, b in ((slope_y, slope_y), (slope_x, slope_x), (slope_x, slope_y)))
    yy, xx = yy + _LEAST_TEXTURE, xx + _LEAST_TEXTURE
    scale = 1 / (yy * xx - xy * xy)
    for _ in range(_ROUNDS):
        error = _at(source, rows + flow[0], columns + flow[1]) - goal
        ey, ex = _mean(slope_y * error, _WINDOW), _mean(slope_x * error, _WINDOW)
        step = np.stack(((xx * ey - xy * ex) * scale, (yy * ex - xy * ey) * scale))
        flow = flow - step.clip(-1, 1)
    return flow


def _flattened(image: Floats) -> Floats:
    return image - _mean(image, _BACKGROUND)


def _pyramid(image: Floats) -> list[Floats]:
    levels = [image]
    while len(levels) < _LEVELS and min(levels[-1].shape) >= 4 * _WINDOW:
        levels.append(_resized(levels[-1], tuple(-(-side // 2) for side in levels[-1].shape)))
    return levels


def _resized(values: Floats, size: Sequence[int]) -> Floats:
    return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _mean(values: Floats, reach: int) -> Floats:
    """Over the window of ``reach`` pixels on each side; at the border, its part in the image repeated."""
    for axis in (0, 1):
        padded = np.pad(values, [(reach + 1, reach) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        sums = padded.cumsum(axis, dtype=np.float64)
        length = values.shape[axis]
        values = np.take(sums, range(2 * reach + 1, 2 * reach + 1 + length), axis) - np.take(sums, range(length), axis)
    return (values / (2 * reach + 1) ** 2).astype(np.float32)


def _at(values: Floats, y: Floats, x: Floats) -> Floats:
    """Bilinearly between the pixels; beyond the border, the border."""
    height, width = values.shape
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    top, left = np.minimum(y.astype(np.intp), height - 2).clip(0), np.minimum(x.astype(np.intp), width - 2).clip(0)
    below, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = values[top, left] * (1 - dx) + values[top, right] * dx
    lower = values[below, left] * (1 - dx) + values[below, right] * dx
    return upper * (1 - dy) + lower * dy
