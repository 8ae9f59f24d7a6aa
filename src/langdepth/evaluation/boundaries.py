"""iBims-1's depth boundary errors: how far the edges of a depth map are from the true ones, and the edge detector.

Source: Koch et al., "Evaluation of CNN-based single-image depth estimation methods" (2018), depth boundary errors.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FARTHEST = 10.0
"""Pixels; what is farther away belongs to no edge."""
_SIGMA, _LOW, _HIGH = math.sqrt(2), 0.15, 0.3  # as is usual with this error; the paper prints no numbers

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def boundary_errors(depth: Values, edges: Mask) -> tuple[float, float]:
    """Accuracy and completeness in pixels, both from 0 (best) to ``FARTHEST``; NaN where there is no true edge.

    ``depth``: (H, W) finite, of any unit; its edges are found after stretching it to [0, 1]. ``edges``: (H, W), the
    true ones. Accuracy: mean distance of the edges of ``depth`` from the nearest true one, over those that are nearer
    than ``FARTHEST``. Completeness: mean over all edges of ``depth`` and all true ones together of the distance to the
    nearest of the other kind, at most ``FARTHEST``. Where no edge of ``depth`` is nearer than that, both are
    ``FARTHEST``.
    """
    if not edges.any():
        return math.nan, math.nan
    low, high = float(depth.min()), float(depth.max())
    found = canny((depth - low) / (high - low), _SIGMA, _LOW, _HIGH) if high > low else np.zeros_like(edges)
    to_true = ndimage.distance_transform_edt(~edges)[found]
    near = to_true[to_true < FARTHEST]
    if not near.size:
        return FARTHEST, FARTHEST
    to_found = ndimage.distance_transform_edt(~found)[edges]
    return float(near.mean()), float(np.concatenate([to_true, to_found]).clip(max=FARTHEST).mean())


def canny(image: Values, sigma: float, low: float, high: float) -> Mask:
    """Edges of an image (H, W) by Canny's method (1986), one or two pixels wide.

    Smoothed by a Gaussian of ``sigma`` pixels, whose weights outside the image count for nothing; gradient by Sobel's
    operator, not divided by its weights; kept where it is at least ``low`` and no less than on both sides along its
    direction, interpolated, if it is connected with a place where it is at least ``high``. Never at the border.
    """
    weights = ndimage.gaussian_filter(np.ones(image.shape), sigma, mode="constant")
    weights += np.finfo(np.float64).eps  # so that ties fall as in scikit-image
    smooth = ndimage.gaussian_filter(image.astype(np.float64), sigma, mode="constant") / weights
    down, right = (ndimage.sobel(smooth, axis=axis) for axis in (0, 1))
    strength = np.hypot(down, right)

    def beside(rows: int, columns: int) -> npt.NDArray[np.float64]:
        """The strength so many pixels further down and to the right of each inner pixel."""
        height, width = strength.shape
        return strength[1 + rows : height - 1 + rows, 1 + columns : width - 1 + columns]

    inner = np.s_[1:-1, 1:-1]
    middle, down, right = strength[inner], down[inner], right[inner]
    steep = np.abs(down) >= np.abs(right)  # the line along the gradient leaves through the row above and below
    falling = down * right >= 0  # it goes down to the right
    smaller, larger = np.minimum(np.abs(down), np.abs(right)), np.maximum(np.abs(down), np.abs(right))
    share = np.divide(smaller, larger, out=np.zeros_like(larger), where=larger > 0)
    highest = middle >= low
    for side in (1, -1):
        straight = np.where(steep, beside(side, 0), beside(0, side))
        turned = np.where(steep, beside(side, -side), beside(-side, side))
        corner = np.where(falling, beside(side, side), turned)
        highest &= middle >= (1 - share) * straight + share * corner
    kept = np.pad(highest, 1)
    parts, count = ndimage.label(kept, np.ones((3, 3)))
    strong = np.zeros(count + 1, np.bool_)
    strong[parts[kept & (strength >= high)]] = True
    return strong[parts]
