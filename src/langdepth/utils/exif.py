"""The focal length that a photo's EXIF tags state, and whether it is that of this image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
_EXIF_FOCAL_LENGTH, _EXIF_FOCAL_LENGTH_35MM = 0x920A, 0xA405
_EXIF_PIXEL_WIDTH, _EXIF_PIXEL_HEIGHT = 0xA002, 0xA003
_EXIF_FOCAL_PLANE_X_RESOLUTION, _EXIF_FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_MILLIMETRES_PER_UNIT = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
_SAME_RATIO = 1.02  # up to which two ratios of sides are one, rounded: 3:2 and 4:3 differ by 1.125
_WIDEST = 2.5  # ratio of the sides of sensors; panoramas of several photos are wider
_SAME_FOCAL = 1.25  # the 35 mm equivalent is rounded to whole millimetres


def is_cut(exif: Mapping[int, Any], width: int, height: int) -> bool:
    """Whether EXIF tags state the focal length of a larger image, of which one of this size is a part, or of its parts.

    It is when its sides have another ratio than those that the tags state, or one that no sensor has, or when the two
    ways in which the tags state the focal length contradict each other: one follows the size of the image, the other
    that of the sensor. A part with the ratio of the whole cannot be distinguished from the whole made smaller.
    """
    equivalent, plane = focal_35mm(exif, width, height), focal_plane(exif, width, height)
    if not (equivalent or plane):
        return False
    ratio = max(width, height) / min(width, height)
    sides = _number(exif, _EXIF_PIXEL_WIDTH), _number(exif, _EXIF_PIXEL_HEIGHT)
    if ratio > _WIDEST or (all(sides) and not _alike(max(sides) / min(sides), ratio, _SAME_RATIO)):
        return True
    return bool(equivalent and plane) and not _alike(equivalent, plane, _SAME_FOCAL)


def _alike(one: float, other: float, factor: float) -> bool:
    return 1 / factor <= one / other <= factor


def _number(exif: Mapping[int, Any], tag: int) -> float:
    """A positive finite number, else 0."""
    try:
        value = float(exif.get(tag, 0))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):  # a broken or 0/0 rational
        return 0.0
    return value if math.isfinite(value) and value > 0 else 0.0


def focal_35mm(exif: Mapping[int, Any], width: int, height: int) -> float:
    """Pixels, from the 35 mm equivalent; 0 where it is not stated."""
    return _number(exif, _EXIF_FOCAL_LENGTH_35MM) / _FILM_DIAGONAL_MM * math.hypot(width, height)


def focal_plane(exif: Mapping[int, Any], width: int, height: int) -> float:
    """Pixels, from the focal length and the sensor's resolution, which counts pixels of the original photo; or 0."""
    millimetres = _MILLIMETRES_PER_UNIT.get(int(_number(exif, _EXIF_FOCAL_PLANE_UNIT) or 2), 25.4)
    pixels_per_millimetre = _number(exif, _EXIF_FOCAL_PLANE_X_RESOLUTION) / millimetres
    original = max(_number(exif, _EXIF_PIXEL_WIDTH), _number(exif, _EXIF_PIXEL_HEIGHT))
    shrinking = max(width, height) / original if original else 1.0
    return _number(exif, _EXIF_FOCAL_LENGTH) * pixels_per_millimetre * shrinking
