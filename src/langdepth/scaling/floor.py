"""The floor in a depth map, for the camera's height above it. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from langdepth.camera import Camera

_TRIES, _POINTS, _LEVEL = 300, 20_000, math.cos(math.radians(40))
_THICK, _BELOW = 0.015, 0.05  # shares of the map's median depth: how thick the floor is, how far below nothing lies
_LEAST, _MOST_BELOW = 0.05, 0.02  # shares of the pixels: on the floor, below it


def floor_of(
    depth: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_], camera: Camera
) -> tuple[float, float] | None:
    """The camera's height above the floor and the median depth of the floor's pixels, in the depth's unit; or None.

    The floor is the largest nearly level plane below the camera that has next to nothing below it. The camera is
    taken to be held upright, tilted by 40 degrees at most.
    """
    points = camera.unproject(depth)[valid].astype(np.float64)
    points = points[np.isfinite(points).all(1)]
    points = points[:: max(1, len(points) // _POINTS)]
    random, unit = np.random.default_rng(0), float(np.median(points[:, 2]))
    best, found = _LEAST, None
    for _ in range(_TRIES):
        first, second, third = points[random.integers(len(points), size=3)]
        normal = np.cross(second - first, third - first)
        norm = np.linalg.norm(normal)
        if norm < 1e-12:
            continue
        normal = normal / norm * (-1 if normal[1] < 0 else 1)  # downwards
        above = (points - first) @ normal
        if normal[1] < _LEVEL or first @ normal <= 0 or (above > _BELOW * unit).mean() > _MOST_BELOW:
            continue
        on = np.abs(above) < _THICK * unit
        if on.mean() > best:
            best, found = float(on.mean()), on
    if found is None:
        return None
    floor = points[found]
    middle = floor.mean(0)
    normal = np.linalg.eigh(np.cov((floor - middle).T))[1][:, 0]
    return abs(float(middle @ normal)), float(np.median(floor[:, 2]))
