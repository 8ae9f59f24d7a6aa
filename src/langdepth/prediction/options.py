"""Options of predictions that several commands share. Imports neither torch nor NumPy."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from langdepth.errors import UsageError, nearest
from langdepth.evaluation.protocols import check_window
from langdepth.utils.arguments import check_fields
from langdepth.utils.numbers import plain_number

Precision: TypeAlias = Literal["float32", "bfloat16"]
SkyKind: TypeAlias = Literal["auto", "mark", "keep"]
COLORMAPS = ("magma", "inferno", "plasma", "viridis", "cividis", "turbo", "gray")  # each with "_r", reversed
COLORED = ("color", "html")  # formats whose files show depth in colors
COLORMAP = "magma_r"  # perceptually uniform, near bright and far dark


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How depth is predicted, the same for all images of a call.

    Args:
        flip: Average with the mirrored image: a little better, twice the time.
        window: Predict windows of HEIGHTxWIDTH pixels and average them, for example 352x512; for systems that were
            trained on parts of that size.
        stride: Distance of the windows, HEIGHTxWIDTH; without it they lie side by side.
        samples: Draw this many depths near the one of the image; the result is their mean, with their standard
            deviation (in npz files). For systems that imagine (wordepth).
        spread: How far the samples lie apart, above 0 and up to 1; without it 0.5.
        seed: Of the samples: another seed, other ones; without it 0. Every image takes the same noise.
        device: auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.
        dtype: Precision of the network.
        batch_size: How many images of one shape go through the network at once.
        keep_distortion: Of images that a lens bends (a camera with one): the map of the image as it is. Without it the
            map is that of the straightened image, as OpenCV and ROS (image_rect) make it.
        sky: What happens to the sky, which has no depth: auto (it gets no value where the scene that the system reads
            from the image, or that is stated, lies outdoors), mark (it is taken for granted that the images were taken
            outdoors), keep (the number that the system gives).

    Raises:
        UsageError: For values of the wrong type or range, and for options that do not fit together.
    """

    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    samples: int | None = None
    spread: float | None = None
    seed: int | None = None
    device: Any = None
    dtype: Precision = "float32"
    batch_size: int = 4
    keep_distortion: bool = False
    sky: SkyKind = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        check_window(self.window, self.stride)
        if self.batch_size < 1:
            raise UsageError(f"batch size must be at least 1, got {self.batch_size}")
        if self.samples is None:
            for name in ("spread", "seed"):
                if getattr(self, name) is not None:
                    raise UsageError(f"{name} is of samples; give samples, too")
        elif self.flip or self.window is not None:
            raise UsageError("samples go with neither flip nor windows; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class ColorScale:
    """Which color stands for which depth.

    Args:
        minimum: Depth of the first color, in the unit of the map; None takes each map's own 2nd percentile.
        maximum: Depth of the last color; None takes each map's own 98th percentile.
        colormap: One of ``COLORMAPS``, or another name of matplotlib's where that is installed.

    Raises:
        UsageError: For a range that does not rise, and for an unknown color map.
    """

    minimum: float | None = None
    maximum: float | None = None
    colormap: str = COLORMAP

    def __post_init__(self) -> None:
        check_fields(self)
        if self.minimum is not None and self.maximum is not None and not self.minimum < self.maximum:
            raise UsageError(f"the range to show must go from near to far, got {self.minimum:g} to {self.maximum:g}")
        if self.colormap.removesuffix("_r") not in COLORMAPS:
            known: Iterable[str] = COLORMAPS
            with suppress(ImportError):
                known = [*colormaps()]
            if self.colormap not in known:
                raise UsageError(f"unknown color map '{self.colormap}': {nearest(self.colormap, known)}")

    @classmethod
    def from_text(cls, limits: str | None, colormap: str | None) -> ColorScale:
        """The scale that the options ``--range NEAR,FAR`` and ``--colormap NAME`` state.

        Raises:
            UsageError: For a range that is not two rising numbers from 0 on, and for an unknown color map.
        """
        low = high = None
        if limits is not None:
            try:
                low, high = (plain_number(part) for part in limits.split(","))
            except ValueError:
                raise UsageError(f"--range: expected NEAR,FAR in metres, for example 0,10, got '{limits}'") from None
            if not (0 <= low < high and math.isfinite(high)):
                raise UsageError(f"--range: expected 0 <= NEAR < FAR, for example 0,10, got '{limits}'")
        return cls(minimum=low, maximum=high, colormap=COLORMAP if colormap is None else colormap)


def colormaps() -> Mapping[str, Any]:
    """Those of matplotlib, which a wrong name in the environment would keep from being imported: nothing is shown."""
    if "matplotlib" not in sys.modules and (backend := os.environ.pop("MPLBACKEND", None)) is not None:
        import matplotlib

        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    import matplotlib

    found: Mapping[str, Any] = matplotlib.colormaps
    return found


AUTOMATIC = ColorScale()


def reversed_colormap(name: str) -> str:
    """matplotlib's name of a color map with its ends exchanged."""
    return name.removesuffix("_r") if name.endswith("_r") else f"{name}_r"


def writer_options(name: str, colors: ColorScale, depth_unit: float | None = None) -> dict[str, Any]:
    """What ``langdepth.prediction.results.write_result`` takes for the format ``name``."""
    if name in COLORED:
        return {"colors": colors}
    return {"scale": depth_unit} if name == "depth16" else {}


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
