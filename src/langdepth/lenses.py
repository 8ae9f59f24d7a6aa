"""Lenses that bend straight lines: where a point appears, and images and maps with the bending undone and redone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from langdepth.errors import UsageError, nearest
from langdepth.utils.arguments import check_fields

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers: TypeAlias = npt.NDArray[np.float64]
    _Value = TypeVar("_Value", bound=np.generic)

MODELS = {"polynomial": 12, "equidistant": 4}  # by how many coefficients at most
_WIDEST_DEGREES = 85.0  # from the axis; a plane in front of the camera ends at 90
_WIDEST_VIEW_DEGREES = 65.0  # from the axis, of a pinhole view: beyond it the middle would have few pixels
_LEAST_SHARE = 0.02  # of a straightened image that shows something
_GRID = 48  # places across and down by which that share is found
_PART = 1 << 20  # pixels that are worked on at once
_NO_TURN = (1, 0, 0, 0, 1, 0, 0, 0, 1)


@dataclass(frozen=True, kw_only=True)
class Lens:
    """How a lens departs from a pinhole, and the straightened (rectified) image that belongs to it.

    model: "polynomial" with the coefficients k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 of OpenCV, as many as there
    are (ROS: plumb_bob, rational_polynomial), or "equidistant" with k1, k2, k3, k4 (fisheye). rotation: row by row, the
    matrix that turns points of the camera's frame into that of the straightened image; () for none. straight: fx, fy,
    cx, cy of the straightened image; () for those of the camera. Raises UsageError.
    """

    model: str = "polynomial"
    coefficients: tuple[float, ...] = ()
    rotation: tuple[float, ...] = ()
    straight: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.model not in MODELS:
            raise UsageError(f"lens: unknown model '{self.model}': {nearest(self.model, MODELS)}")
        sizes = {"coefficients": range(MODELS[self.model] + 1), "rotation": (0, 9), "straight": (0, 4)}
        for name, allowed in sizes.items():
            values = getattr(self, name)
            if len(values) not in allowed:
                raise UsageError(f"lens: {len(values)} numbers as {name} of a lens that is {self.model}")
            if not all(math.isfinite(value) for value in values):
                raise UsageError(f"lens: {name} must be finite numbers, got {values}")
        if self.rotation and not _is_rotation(self.rotation):
            raise UsageError(f"lens: {self.rotation} is no rotation")

    def is_straight(self, camera: tuple[float, float, float, float]) -> bool:
        """Whether nothing is to be done for a ``camera`` (fx, fy, cx, cy): it bends, turns and moves nothing."""
        turned, moved = self.rotation or _NO_TURN, self.straight or camera
        same = all(abs(a - b) < 1e-9 for a, b in zip((*turned, *moved), (*_NO_TURN, *camera), strict=True))
        return self.model == "polynomial" and not any(self.coefficients) and same

    def scaled(self, sx: float, sy: float) -> Lens:
        """The lens of the image resized by these factors."""
        if not self.straight:
            return self
        fx, fy, cx, cy = self.straight
        return replace(self, straight=(fx * sx, fy * sy, (cx + 0.5) * sx - 0.5, (cy + 0.5) * sy - 0.5))

    def distort(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        """Where rays (x, y, 1) of the camera's frame appear, in focal lengths; NaN outside the reach of the lens.

        Beyond its reach a polynomial folds back: a point there would appear among those of the middle.
        """
        import numpy as np

        inside = np.hypot(x, y) <= _profile(self)[0][-1]
        x, y = self._moved(np.where(inside, x, np.nan), np.where(inside, y, np.nan))
        return x, y

    def undistort(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        """The rays (x, y, 1) that appear at (x, y), in focal lengths; NaN where none does."""
        import numpy as np

        radii, seen = _profile(self)
        found = np.hypot(x, y)
        start = np.interp(found, seen, radii, right=np.nan) / np.where(found > 0, found, 1)
        start = np.where(found > 0, start, 1)
        a, b, step = x * start, y * start, 1e-6
        with np.errstate(invalid="ignore", divide="ignore"):
            for _ in range(6):  # Newton's method; the start is right but for what is not radial
                u, v = self._moved(a, b)
                ux, vx = ((to - at) / step for to, at in zip(self._moved(a + step, b), (u, v), strict=True))
                uy, vy = ((to - at) / step for to, at in zip(self._moved(a, b + step), (u, v), strict=True))
                determinant = ux * vy - uy * vx
                a, b = (
                    a - ((u - x) * vy - (v - y) * uy) / determinant,
                    b - ((v - y) * ux - (u - x) * vx) / determinant,
                )
            u, v = self.distort(a, b)
            good = np.hypot(u - x, v - y) < 1e-6
        return np.where(good, a, np.nan), np.where(good, b, np.nan)

    def _moved(self, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
        """``distort`` without a limit."""
        import numpy as np

        square = x * x + y * y
        if self.model == "equidistant":
            radius = np.sqrt(square)
            factor = np.where(radius > 1e-8, self._radial(radius) / np.where(radius > 1e-8, radius, 1), 1)
            return x * factor, y * factor
        _, _, p1, p2, _, _, _, _, s1, s2, s3, s4 = _padded(self.coefficients, 12)
        factor = _ratio(self.coefficients, square)
        u = x * factor + 2 * p1 * x * y + p2 * (square + 2 * x * x) + square * (s1 + s2 * square)
        v = y * factor + p1 * (square + 2 * y * y) + 2 * p2 * x * y + square * (s3 + s4 * square)
        return u, v

    def _radial(self, radius: Numbers) -> Numbers:
        """Where a ray at this distance from the axis appears, by what is radial."""
        import numpy as np

        if self.model == "polynomial":
            moved: Numbers = radius * _ratio(self.coefficients, radius * radius)
            return moved
        k1, k2, k3, k4 = _padded(self.coefficients, 4)
        angle = np.arctan(radius)
        square = angle * angle
        bent: Numbers = angle * (1 + square * (k1 + square * (k2 + square * (k3 + square * k4))))
        return bent


def _ratio(coefficients: tuple[float, ...], square: Numbers) -> Numbers:
    k1, k2, _, _, k3, k4, k5, k6 = _padded(coefficients, 12)[:8]
    upper = 1 + square * (k1 + square * (k2 + square * k3))
    return upper / (1 + square * (k4 + square * (k5 + square * k6)))


def _padded(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return (*values, *(0.0,) * (count - len(values)))


@lru_cache(maxsize=64)
def _profile(lens: Lens) -> tuple[Numbers, Numbers]:
    """Distances from the axis, rising, and where they appear, rising as well: as far as the lens goes."""
    import numpy as np

    radii = np.tan(np.linspace(0, math.radians(_WIDEST_DEGREES), 4096))
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = lens._radial(radii)
    falls = np.flatnonzero(~(np.diff(seen) > 0))
    end = falls[0] + 1 if len(falls) else len(radii)
    if end < 2:
        raise UsageError(f"lens: the coefficients {lens.coefficients} turn the image inside out")
    return radii[:end], seen[:end]


def _is_rotation(values: tuple[float, ...]) -> bool:
    import numpy as np

    matrix = np.reshape(values, (3, 3))
    return bool(np.abs(matrix @ matrix.T - np.eye(3)).max() < 1e-3 and np.linalg.det(matrix) > 0)


@dataclass(frozen=True, kw_only=True)
class Straightening:
    """The way between the image of a camera with a lens and the same scene through a pinhole, both (H, W).

    fx, fy, cx, cy: of the camera. flat: fx, fy, cx, cy of the pinhole.
    """

    lens: Lens
    camera: tuple[float, float, float, float]
    flat: tuple[float, float, float, float]
    height: int
    width: int

    def image(self, pixels: npt.NDArray[_Value]) -> tuple[npt.NDArray[_Value], npt.NDArray[np.bool_]]:
        """An image (H, W, C) straightened, and where it shows something, (H, W); elsewhere the border is drawn out."""
        import numpy as np

        found, inside = np.empty_like(pixels), np.empty((self.height, self.width), np.bool_)
        for rows, (u, v) in self._parts():
            u, v = self._origin(u, v)
            part = _sampled(pixels, u, v)
            found[rows] = np.rint(part) if pixels.dtype.kind in "ui" else part
            inside[rows] = self._within(u, v)
        return found, inside

    def bent(self, depth: npt.NDArray[np.float32], *, inverse: bool = False) -> npt.NDArray[np.float32]:
        """A map (H, W) of the straightened image as one of the camera's own, 0 where it has no value.

        Depth is along the axis, which a rotation turns; ``inverse``: the numbers are 1 / depth.
        """
        import numpy as np

        found = np.empty_like(depth)
        for rows, (u, v) in self._parts():
            x, y, _ = _rays(u, v, self.camera)
            x, y, z = self._turned(*self.lens.undistort(x, y), back=False)
            with np.errstate(invalid="ignore", divide="ignore"):
                u, v = _pixels(x / z, y / z, self.flat)
                usable = self._within(u, v) & (z > 0)
            known = _sampled((depth > 0).astype(np.float32)[..., None], u, v)[..., 0]
            value = _sampled(depth[..., None], u, v)[..., 0] / np.where(known > 0, known, 1)
            found[rows] = np.where(usable & (known >= 0.5), value * z if inverse else value / z, 0)
        return found

    def whole(self) -> Straightening:
        """The same into a view that holds the whole image, as far as a pinhole can; its middle has fewer pixels."""
        import numpy as np

        across, down = np.arange(self.width, dtype=np.float64), np.arange(self.height, dtype=np.float64)
        u = np.concatenate([across, across, 0 * down, 0 * down + self.width - 1])
        v = np.concatenate([0 * across, 0 * across + self.height - 1, down, down])
        a, b, _ = _rays(u, v, self.camera)
        limit, bent = math.tan(math.radians(_WIDEST_VIEW_DEGREES)), np.maximum(np.hypot(a, b), 1e-9)
        x, y, z = self._turned(*self.lens.undistort(a, b), back=False)
        with np.errstate(invalid="ignore", divide="ignore"):
            x, y = (np.where(z > 0, to / z, limit * at / bent) for to, at in ((x, a), (y, b)))
            if self._within(*_pixels(x, y, self.flat)).all():
                return self
        far = np.minimum(1, limit / np.hypot(x, y))
        (left, right), (top, bottom) = ((to.min(), to.max()) for to in (x * far, y * far))
        fx, fy = self.flat[:2]
        shrink = min(1.0, (self.width - 1) / (right - left) / fx, (self.height - 1) / (bottom - top) / fy)
        fx, fy = fx * shrink, fy * shrink
        middle = (self.width - 1 - fx * (left + right)) / 2, (self.height - 1 - fy * (top + bottom)) / 2
        return replace(self, flat=(fx, fy, *middle))

    def require_view(self) -> None:
        """Raise UsageError where the straightened image shows next to nothing of the image: the lens is of another."""
        import numpy as np

        v, u = np.meshgrid(*(np.linspace(0, side - 1, _GRID) for side in (self.height, self.width)), indexing="ij")
        share = float(self._within(*self._origin(u, v)).mean())
        if share < _LEAST_SHARE:
            raise UsageError(
                f"lens: the straightened image would show something at {share:.1%} of its pixels; the coefficients, "
                "the rotation or the projection are not those of this camera"
            )

    def _origin(self, u: Numbers, v: Numbers) -> tuple[Numbers, Numbers]:
        """Where pixels of the straightened image are in the image; NaN where they cannot be."""
        import numpy as np

        x, y, z = self._turned(*_rays(u, v, self.flat), back=True)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return _pixels(*self.lens.distort(np.where(z > 0, x / z, np.nan), y / z), self.camera)

    def _parts(self) -> Iterator[tuple[slice, tuple[Numbers, Numbers]]]:
        """Rows of the image and their pixels' places (u, v), so that few are held at once."""
        import numpy as np

        count = max(1, _PART // self.width)
        for top in range(0, self.height, count):
            rows = slice(top, min(top + count, self.height))
            v, u = np.mgrid[rows, : self.width].astype(np.float64)
            yield rows, (u, v)

    def _turned(self, x: Any, y: Any, z: Any = 1.0, *, back: bool) -> tuple[Any, Any, Any]:
        """Points of the camera's frame in that of the straightened image; ``back``: the other way."""
        if not self.lens.rotation:
            return x, y, z
        r = self.lens.rotation
        rows = (r[0::3], r[1::3], r[2::3]) if back else (r[0:3], r[3:6], r[6:9])
        a, b, c = (row[0] * x + row[1] * y + row[2] * z for row in rows)
        return a, b, c

    def _within(self, u: Numbers, v: Numbers) -> npt.NDArray[np.bool_]:
        """Whether places lie in the image; half a pixel of its border counts to it."""
        within: npt.NDArray[np.bool_] = (u >= -0.5) & (u <= self.width - 0.5) & (v >= -0.5) & (v <= self.height - 0.5)
        return within


def _rays(u: Numbers, v: Numbers, camera: tuple[float, ...]) -> tuple[Numbers, Numbers, float]:
    fx, fy, cx, cy = camera
    return (u - cx) / fx, (v - cy) / fy, 1.0


def _pixels(x: Numbers, y: Numbers, camera: tuple[float, ...]) -> tuple[Numbers, Numbers]:
    fx, fy, cx, cy = camera
    return fx * x + cx, fy * y + cy


def _sampled(values: npt.NDArray[Any], u: Numbers, v: Numbers) -> npt.NDArray[np.float32]:
    """(..., C) of an image (H, W, C) at places between its pixels, bilinearly; outside, and at NaN, of its border."""
    import numpy as np

    height, width = values.shape[:2]
    u = np.nan_to_num(u, nan=0.0).clip(0, width - 1)
    v = np.nan_to_num(v, nan=0.0).clip(0, height - 1)
    left, top = (np.minimum(place.astype(np.intp), last) for place, last in ((u, width - 2), (v, height - 2)))
    across, down = ((place - start).astype(np.float32)[..., None] for place, start in ((u, left), (v, top)))
    flat = values.reshape(height * width, -1)
    corner = top * width + left
    upper = flat[corner] * (1 - across) + flat[corner + 1] * across
    lower = flat[corner + width] * (1 - across) + flat[corner + width + 1] * across
    sampled: npt.NDArray[np.float32] = (upper * (1 - down) + lower * down).astype(np.float32, copy=False)
    return sampled
