"""Depth as images: colors, a legend in metres, and contact sheets of image, ground truth and prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from langdepth.errors import UsageError
from langdepth.prediction.options import AUTOMATIC, ColorScale, colormaps

Pixels = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.floating[Any]]

INVALID_GREY = 128

_ROBUST_PERCENTILES = (2, 98)
_PERCENTILE_SAMPLES = 1_000_000
_MIN_SIDE_WITH_LEGEND = 200  # below, the labels would not fit
_LABEL_SPACING = 1.1  # of the labels of a legend, in sizes of their font
_MIN_CELL_HEIGHT = 48
_MARGIN = 6
_SPARSE = 0.25  # share of known pixels below which errors are drawn thicker
_LEAST_SHARE = 0.01  # of the farthest depth that a logarithmic scale starts at
ERROR_COLORS = ColorScale(minimum=0.0, maximum=0.5, colormap="inferno")  # of |prediction - target| / target


class SheetRow(NamedTuple):
    """One row of a contact sheet.

    image: (H, W, 3) uint8 RGB. target, prediction: (H, W) metres, 0 or not finite where there is no value; one of them
    may be None, the target in single rows, the prediction only in all of a sheet.
    """

    image: Pixels
    target: Depth | None
    prediction: Depth | None
    title: str = ""


def robust_range(depth: Depth, valid: npt.NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """(minimum, maximum) to show: 2nd and 98th percentile of valid pixels, never equal; (0, 1) when none is valid."""
    values = depth[_usable(depth, valid)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = _percentiles(values[:: 1 + values.size // _PERCENTILE_SAMPLES], _ROBUST_PERCENTILES)
    margin = max(0.0, 0.01 * high - (high - low) / 2)  # a wall at 2 m is shown in a range from 1.98 to 2.02 m
    return float(low - margin), float(high + margin)


def _percentiles(values: Depth, percents: Sequence[float]) -> list[float]:
    """As ``np.percentile``, which imports ``numpy.ma``: a twentieth of the time that one image takes from nothing."""
    places = [percent / 100 * (values.size - 1) for percent in percents]
    ends = [(int(place), min(int(place) + 1, values.size - 1)) for place in places]
    parted = np.partition(values, sorted({index for pair in ends for index in pair}))
    return [
        float(parted[below]) + (float(parted[above]) - float(parted[below])) * (place - below)
        for place, (below, above) in zip(places, ends, strict=True)
    ]


def colorize(depth: Depth, valid: npt.NDArray[np.bool_] | None = None, colors: ColorScale = AUTOMATIC) -> Pixels:
    """Depth (H, W) as RGB (H, W, 3) uint8, linear in depth: near bright, far dark with the default map.

    The ends of ``colors`` (by default ``robust_range``) get the first and the last color, and so does what lies beyond
    them. Pixels that are not ``valid``, not finite or not positive are grey. Raises UsageError when the one stated end
    of a range lies beyond the other, measured one.
    """
    usable = _usable(depth, valid)
    low, high = shown_range(depth, usable, colors)
    level = (np.where(usable, depth, np.float32(low)) - np.float32(low)) * np.float32(256 / (high - low))
    pixels: Pixels = palette(colors.colormap).take(level.clip(0, 255).astype(np.uint8), axis=0)
    pixels[~usable] = INVALID_GREY
    return pixels


def color_with_legend(
    depth: Depth,
    valid: npt.NDArray[np.bool_] | None = None,
    colors: ColorScale = AUTOMATIC,
    unit: str = "m",
    note: str = "",
) -> Pixels:
    """``colorize`` with a labelled bar at the right, near at the top, and the ``note`` below it: (H', W', 3) uint8.

    An image whose smaller side is below 200 pixels is enlarged by a whole factor, so that the labels can be read.
    """
    low, high = shown_range(depth, _usable(depth, valid), colors)
    pixels = colorize(depth, valid, replace(colors, minimum=low, maximum=high))
    factor = -(-_MIN_SIDE_WITH_LEGEND // min(depth.shape))
    if factor > 1:
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    font_size = max(12, min(pixels.shape[:2]) // 28)
    bar = _legend(pixels.shape[0], font_size, low, high, colors.colormap, unit, note=note)
    return np.concatenate((pixels, bar), axis=1)


def sheet(
    rows: Iterable[SheetRow],
    *,
    cell_width: int = 320,
    unit: str = "m",
    errors: bool = True,
    colors: ColorScale = AUTOMATIC,
) -> Pixels:
    """A contact sheet, RGB uint8: per row image, target, prediction and (``errors``) |prediction - target| / target.

    Target and prediction of a row share one range of ``colors`` (where it states none, that of the target, or of the
    prediction where there is no target). Sparse targets stay visible when a cell is smaller than the image.

    Raises:
        UsageError: Without rows, or when sizes in a row differ.
    """
    rows = list(rows)
    if not rows:
        raise UsageError("a contact sheet needs at least one image")
    predicted = any(row.prediction is not None for row in rows)
    with_errors = errors and predicted and any(row.target is not None for row in rows)
    strips = [_sheet_row(row, cell_width, unit, with_errors, colors) for row in rows]
    names = [
        "image",
        "ground truth",
        *(["prediction"] if predicted else []),
        *(["error 0 to 50 %"] if with_errors else []),
    ]
    header = text_strip(strips[0].shape[1], {i * (cell_width + _MARGIN): name for i, name in enumerate(names)})
    return np.concatenate((header, *strips), axis=0)


def maps_sheet(
    rows: Iterable[tuple[str, Sequence[Depth]]],
    *,
    cell_width: int = 320,
    unit: str = "m",
    colors: ColorScale = AUTOMATIC,
) -> Pixels:
    """A sheet of depth maps alone, RGB uint8: per row a title and its maps side by side.

    The maps of a row share one range of ``colors``, logarithmic, which the bar at its right shows. A range that
    ``colors`` state is that of all rows.
    Raises UsageError without maps, or when the rows differ in number.
    """
    rows = list(rows)
    if not rows or len({len(maps) for _, maps in rows}) > 1 or not rows[0][1]:
        raise UsageError("a sheet of depth maps needs the same number of maps in every row, at least one")
    strips = []
    for title, maps in rows:
        values = np.concatenate([depth.ravel() for depth in maps])
        low, high = shown_range(values, _usable(values, None), colors)
        low = low if low > 0 else _LEAST_SHARE * high  # a logarithm has no 0
        levels_of = ColorScale(minimum=1.0, maximum=1 + math.log(high / low), colormap=colors.colormap)
        height = max(_MIN_CELL_HEIGHT, *(round(cell_width * depth.shape[0] / depth.shape[1]) for depth in maps))
        # From 1 on: colors are for what is above 0.
        levels = [1 + np.log(_resampled(depth, (height, cell_width)) / low).clip(0) for depth in maps]
        bar = _legend(height, 12, low, high, colors.colormap, unit, width=72, logarithmic=True)
        strips.append(_strip(title, [colorize(level, None, levels_of) for level in levels], bar))
    return np.concatenate(strips, axis=0)


def _strip(title: str, cells: Sequence[Pixels], bar: Pixels) -> Pixels:
    """A row of a sheet: its title, and below it the cells and the legend side by side."""
    gap = np.full((bar.shape[0], _MARGIN, 3), 255, dtype=np.uint8)
    strip = np.concatenate((*(part for cell in cells for part in (cell, gap)), bar), axis=1)
    return np.concatenate((text_strip(strip.shape[1], {0: title}), strip), axis=0)


def _sheet_row(row: SheetRow, cell_width: int, unit: str, with_errors: bool, colors: ColorScale) -> Pixels:
    target = np.zeros(row.image.shape[:2], dtype=np.float32) if row.target is None else row.target
    prediction = target if row.prediction is None else row.prediction
    if not row.image.shape[:2] == target.shape == prediction.shape:
        raise UsageError(
            f"contact sheet, {row.title or 'row'}: image {row.image.shape}, ground truth {target.shape} and prediction "
            f"{prediction.shape} differ in size"
        )
    size = (max(_MIN_CELL_HEIGHT, round(cell_width * target.shape[0] / target.shape[1])), cell_width)
    leading = prediction if row.target is None else target
    low, high = shown_range(leading, _usable(leading, None), colors)
    colors = replace(colors, minimum=low, maximum=high)
    image = Image.fromarray(np.ascontiguousarray(row.image)).resize(size[::-1], Image.Resampling.BOX)
    shown = (target,) if row.prediction is None else (target, prediction)
    cells = [np.asarray(image), *(colorize(_resampled(depth, size), None, colors) for depth in shown)]
    if with_errors:
        error = _relative_error(prediction, target, _usable(target, None) & _usable(prediction, None))
        cells.append(colorize(_resampled(error, size), None, ERROR_COLORS))
    return _strip(row.title, cells, _legend(size[0], 12, low, high, colors.colormap, unit, width=72))


def error_map(prediction: Depth, target: Depth, valid: npt.NDArray[np.bool_]) -> Pixels:
    """|prediction - target| / target in percent with a legend, RGB uint8: 0 is black, 50 % and more bright.

    Args:
        prediction: Depth (H, W) in metres.
        target: Depth (H, W) in metres.
        valid: (H, W), where the two are compared; the other pixels are grey.

    Sparse ground truth (a laser scanner's) is drawn three pixels wide where nothing else is known.
    """
    error = _relative_error(prediction, target, valid & _usable(target, None) & np.isfinite(prediction))
    if 0 < np.count_nonzero(error) < _SPARSE * error.size:
        error = _thickened(error)
    assert ERROR_COLORS.minimum is not None
    assert ERROR_COLORS.maximum is not None
    percent = replace(ERROR_COLORS, minimum=100 * ERROR_COLORS.minimum, maximum=100 * ERROR_COLORS.maximum)
    return color_with_legend(100 * error, None, percent, unit="%")


def _relative_error(prediction: Depth, target: Depth, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """|prediction - target| / target (H, W) and a trifle, as no error is a value, too; 0 where it is not known."""
    error = np.abs(np.where(known, prediction, 0) - target) / np.where(known, target, 1)
    return np.where(known, error + 1e-6, 0).astype(np.float32)


def _thickened(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(H, W) with every pixel that is 0 at the largest value of its eight neighbours."""
    height, width = values.shape
    around = np.pad(values, 1)
    largest = np.max([around[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    return np.where(values > 0, values, largest)


def _resampled(depth: Depth, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Depth at (height, width) ``size``, values not mixed; a pixel shows a known value that falls into it, if any."""
    depth = np.where(_usable(depth, None), depth, 0)
    rows, columns = (np.arange(goal) * have // goal for goal, have in zip(size, depth.shape, strict=True))
    small = depth[rows[:, None], columns].astype(np.float32)
    y, x = np.nonzero(depth)
    target = (y * size[0] // depth.shape[0], x * size[1] // depth.shape[1])
    scattered = np.zeros(size, dtype=np.float32)
    scattered[target] = depth[y, x]
    return np.where(small > 0, small, scattered)


def _usable(depth: Depth, valid: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    usable = np.isfinite(depth) & (depth > 0)
    return usable if valid is None else usable & valid


def shown_range(depth: Depth, usable: npt.NDArray[np.bool_], colors: ColorScale) -> tuple[float, float]:
    """The depths of the first and the last color of a map, of which ``usable`` pixels have a value."""
    minimum, maximum = colors.minimum, colors.maximum
    if minimum is None or maximum is None:
        low, high = robust_range(depth, usable)
        minimum = low if minimum is None else minimum
        maximum = high if maximum is None else maximum
    if not minimum < maximum:
        raise UsageError(f"the range to show must go from near to far, got {minimum:g} to {maximum:g}")
    return minimum, maximum


@lru_cache(maxsize=8)
def palette(colormap: str) -> Pixels:
    """(256, 3) uint8."""
    name = colormap.removesuffix("_r")
    with np.load(Path(__file__).with_name("colormaps.npz")) as stored:
        if name in stored:
            kept: Pixels = stored[name]
            return kept[::-1] if colormap.endswith("_r") else kept
    found: Pixels = colormaps()[colormap](np.linspace(0, 1, 256), bytes=True)[:, :3]
    return found


def _places(values: Sequence[float], low: float, high: float, logarithmic: bool) -> npt.NDArray[np.float64]:
    """Where values lie between low (0) and high (1)."""
    if logarithmic:
        return np.asarray(np.log(np.divide(values, low)) / math.log(high / low))
    return np.subtract(values, low) / (high - low)


def _ticks(low: float, high: float, logarithmic: bool, most: float) -> list[float]:
    """As many round values as there is room for, ``most`` side by side."""
    choices: Iterable[Any] = (
        (np.outer(10.0 ** np.arange(-3, 5), steps).ravel() for steps in ((1, 2, 5), (1, 3), (1,)))
        if logarithmic
        else (_multiples(low, high, bins) for bins in range(8, 0, -1))
    )
    for values in choices:
        ticks = [tick for tick in values if low <= tick <= high]
        if min(np.diff(_places(ticks, low, high, logarithmic)), default=1) * most >= 1:
            break
    return ticks


def _multiples(low: float, high: float, most: int) -> npt.NDArray[np.floating[Any]]:
    """Multiples of the smallest round step (1, 2, 2.5 or 5 times a power of ten) of which ``most`` span the range."""
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least)
    steps = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return np.multiply(steps, step).round(9).clip(low, high)


def _legend(
    height: int,
    font_size: int,
    low: float,
    high: float,
    colormap: str,
    unit: str,
    width: int | None = None,
    logarithmic: bool = False,
    note: str = "",
) -> Pixels:
    """A white strip of the given height with a bar of colors, ``low`` at the top, and labels at round values.

    ``note``: one line below them.
    """
    font = ImageFont.load_default(font_size)
    top, bottom = font_size, height - font_size * (3 if note else 1)  # half a label sticks out at either end
    ticks = _ticks(low, high, logarithmic, (bottom - top) / (_LABEL_SPACING * font_size))
    places = _places(ticks, low, high, logarithmic)
    step = min(np.diff(ticks), default=high - low)
    decimals = next(n for n in range(10) if n == 9 or abs(round(step, n) - step) < 1e-3 * step)
    labels = [f"{f'{tick:g}' if logarithmic else f'{tick:.{decimals}f}'} {unit}".rstrip() for tick in ticks]
    bar_left, bar_width = font_size // 2, font_size
    label_left = bar_left + bar_width + font_size // 2
    if width is None:
        width = label_left + max((int(font.getlength(label)) for label in labels), default=0) + font_size // 2 + 1
        width = max(width, int(font.getlength(note)) + font_size)

    strip = np.full((height, width, 3), 255, dtype=np.uint8)
    index = np.linspace(0, 255, bottom - top).astype(np.uint8)
    strip[top:bottom, bar_left : bar_left + bar_width] = palette(colormap)[index][:, None]
    image = Image.fromarray(strip)
    draw = ImageDraw.Draw(image)
    line = max(1, font_size // 12)
    draw.rectangle((bar_left, top, bar_left + bar_width, bottom), outline="black", width=line)
    for place, label in zip(places, labels, strict=True):
        y = top + float(place) * (bottom - top)
        draw.line((bar_left + bar_width, y, bar_left + bar_width + font_size // 4, y), fill="black", width=line)
        draw.text((label_left, y), label, fill="black", font=font, anchor="lm")
    if note:
        draw.text((font_size // 2, height - font_size), note, fill="black", font=font, anchor="lm")
    return np.asarray(image)


def text_strip(width: int, texts: dict[int, str], height: int = 20) -> Pixels:
    """A white strip with each text at its x."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for x, text in texts.items():
        draw.text((x + 4, height / 2), text, fill="black", font=ImageFont.load_default(13), anchor="lm")
    return np.asarray(image)
