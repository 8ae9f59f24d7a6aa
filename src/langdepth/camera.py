"""Pinhole cameras: intrinsics, where they come from, and points in space."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole intrinsics in pixels of a (height, width) picture; (0, 0) is the centre of the top left pixel.

    ``source`` says who stated them: "user", "exif", "data set" or "guess".
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    source: str = "user"
