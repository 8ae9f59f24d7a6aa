"""Implausible ground truth: numbers which show that a unit, or what stands for "no value", was misunderstood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from langdepth.data.rows import Metres, Row, known_depth
from langdepth.errors import ImageError

IN_METRES = (".npy", ".npz")
MAPS_MEASURED = 5  # of a data set, before it is used
_LARGEST = (65535, 65534, 32767)  # numbers of 16 bits that stand for no value
_USUAL_SCALES = (0.001, 1 / 256, 0.01)  # metres per unit that files of metres were made from
_SATURATED = 0.01  # share of the known pixels at that number, from which it is no depth
_ROUNDING = 2e-6  # of float32
_BEYOND = 4.0  # times the end of the range that single sensors, and single windows of rooms, reach
_SCATTER = 3.0  # times by which the median of one map may lie outside the range of that of several


class Expected(Protocol):
    """What is known about the depth of a data set, see ``base.DatasetCard``."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def depth_range(self) -> tuple[float, float]: ...

    @property
    def median_range(self) -> tuple[float, float]: ...


def impossible_depth(card: Expected, row: Row, metres: Metres) -> str | None:
    """Why the depth of a row cannot be right, one line that names its file; None where it may be.

    Args:
        card: What the data set's depth should be.
        row: Where the depth is from.
        metres: Of any shape, 0 where it is unknown.
    """
    farthest = float(metres.max(initial=0))
    # A file of many items, such as the cache, chooses its scale by the farthest point.
    largest = _saturation(farthest, row.depth_scale if row.item is None else _USUAL_SCALES[0])
    if farthest and largest is not None and not 0.99 < card.depth_range[1] / farthest < 1.01:
        share = np.count_nonzero(metres >= farthest * (1 - _ROUNDING)) / np.count_nonzero(metres)
        if share >= _SATURATED:
            return (
                f"{row.path_depth}: {share:.1%} of the known pixels are {largest}, the largest number of "
                f"{16 if largest > 2**15 else 15} bits, read as {farthest:.5g} m; where it stands for no value, store 0"
            )
    if farthest > _BEYOND * card.depth_range[1]:
        return (
            f"{row.path_depth}: depth of {farthest:.4g} m, for {card.name} it should not be beyond "
            f"{card.depth_range[1]:g} m ({card.unit})"
        )
    return None


def _saturation(farthest: float, scale: float) -> int | None:
    """The number of ``_LARGEST`` that a distance is, stored at its own ``scale`` or at a usual one, or None."""
    numbers = ((number, number * unit) for unit in (scale, *_USUAL_SCALES) for number in _LARGEST)
    return next((number for number, metres in numbers if abs(farthest - metres) <= _ROUNDING * metres), None)


def impossible_median(card: Expected, row: Row, median: float) -> str | None:
    """Why the ``median`` of one map is doubtful, metres; None where it is not."""
    low, high = card.median_range
    if low / _SCATTER <= median <= high * _SCATTER:
        return None
    return (
        f"{row.path_depth}: its median depth is {median:.4g} m, for {card.name} it should lie between {low:g} and "
        f"{high:g} m; the unit seems wrong ({card.unit})"
    )


def unused_scale(row: Row) -> str | None:
    """That an index states a scale beside a file that holds metres; None where it does not."""
    if not row.stated or row.depth_scale == 1 or row.path_depth.suffix.lower() not in IN_METRES:
        return None
    return f"{row.path_depth}: holds metres, depth_scale {row.depth_scale:g} is not applied; state 1, or convert it"


def wrong_unit(card: Expected, rows: Sequence[Row]) -> str | None:
    """What makes the unit of depth doubtful: a few maps hold what cannot be, or their median lies outside the range."""
    values = []
    for row in rows[:: max(1, len(rows) // MAPS_MEASURED)][:MAPS_MEASURED]:
        try:
            depth = known_depth(row)
        except ImageError:
            continue  # reported when it is read for a sample
        doubt = impossible_depth(card, row, depth)
        if doubt is not None:
            return doubt
        values.append(depth[depth > 0])
    known = np.concatenate(values) if values else np.empty(0)
    if not known.size:
        return None
    median, (low, high) = float(np.median(known)), card.median_range
    if low <= median <= high:
        return None
    return (
        f"the median depth of {len(values)} maps is {median:.4g} m, for {card.name} it should lie between {low:g} and "
        f"{high:g} m; the unit seems wrong ({card.unit})"
    )
