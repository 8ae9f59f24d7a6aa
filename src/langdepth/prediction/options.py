"""Options of predictions that several commands share. Imports neither torch nor NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from langdepth.errors import UsageError, nearest

COLORMAP = "magma_r"  # perceptually uniform, near bright and far dark


@dataclass(frozen=True, kw_only=True)
class ColorScale:
    """Which color stands for which depth.

    Args:
        minimum: Depth of the first color, in the unit of the map; None takes each map's own 2nd percentile.
        maximum: Depth of the last color; None takes each map's own 98th percentile.
        colormap: A name of matplotlib's.

    Raises:
        UsageError: For a range that does not rise, and for an unknown color map.
    """

    minimum: float | None = None
    maximum: float | None = None
    colormap: str = COLORMAP

    def __post_init__(self) -> None:
        if self.minimum is not None and self.maximum is not None and not self.minimum < self.maximum:
            raise UsageError(f"the range to show must go from near to far, got {self.minimum:g} to {self.maximum:g}")
        if self.colormap != COLORMAP:  # matplotlib takes a while to import
            import matplotlib

            if self.colormap not in matplotlib.colormaps:
                raise UsageError(f"unknown color map '{self.colormap}': {nearest(self.colormap, matplotlib.colormaps)}")

    @classmethod
    def from_text(cls, limits: str | None, colormap: str | None) -> ColorScale:
        """The scale that the options ``--range NEAR,FAR`` and ``--colormap NAME`` state.

        Raises:
            UsageError: For a range that is not two rising numbers from 0 on, and for an unknown color map.
        """
        low = high = None
        if limits is not None:
            try:
                low, high = (float(part) for part in limits.split(","))
            except ValueError:
                raise UsageError(f"--range: expected NEAR,FAR in metres, for example 0,10, got '{limits}'") from None
            if not (0 <= low < high and math.isfinite(high)):
                raise UsageError(f"--range: expected 0 <= NEAR < FAR, for example 0,10, got '{limits}'")
        return cls(minimum=low, maximum=high, colormap=COLORMAP if colormap is None else colormap)


AUTOMATIC = ColorScale()


def writer_options(name: str, colors: ColorScale) -> dict[str, Any]:
    """What ``langdepth.prediction.results.write_result`` takes for the format ``name``."""
    return {"colors": colors} if name == "color" else {}


def read_formats(text: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The formats that ``--save`` names with commas, each once.

    Raises:
        UsageError: For an unknown one, or none.
    """
    formats = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in formats:
        if name not in known:
            raise UsageError(f"--save: unknown format '{name}': {nearest(name, known)}")
    if not formats:
        raise UsageError(f"--save: nothing to write; known: {', '.join(known)}")
    return formats
