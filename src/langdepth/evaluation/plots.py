"""The plots of a report, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from langdepth.evaluation.metrics import DEPTH_EDGES, error_quartiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_error_by_range(errors: npt.NDArray[np.int64], report: Mapping[str, Any]) -> Figure:
    """abs_rel and the share of pixels against true depth. ``errors``: a ``metrics.error_histogram``."""
    from matplotlib.figure import Figure

    share = 100 * errors.sum(1) / errors.sum()
    frequent = share >= 0.01  # rarer depths would stretch the axes without meaning anything
    first, last = np.flatnonzero(frequent)[[0, -1]]
    edges = DEPTH_EDGES[first : last + 2]
    low, middle, high = np.where(frequent, error_quartiles(errors), np.nan)[:, first : last + 1]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    error, pixels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error.stairs(high, edges, baseline=low, fill=True, alpha=0.3, label="quartiles")
    error.stairs(middle, edges, baseline=None, linewidth=2, label="median")
    error.axhline(report["pixel_mean"]["abs_rel"], color="0.4", linestyle="--", linewidth=1, label="mean of all pixels")
    error.set(
        ylabel="|prediction - target| / target",
        xscale="log",
        xlim=(edges[0], edges[-1]),
        ylim=(0, max(0.05, error.get_ylim()[1])),
    )
    error.set_title(
        f"{report['system']} on {report['dataset']}, {report['images']} images\n"
        f"{report['protocol']['name']} ({report['protocol']['hash']})"
    )
    error.legend(loc="upper right")
    pixels.stairs(share[first : last + 1], edges, fill=True, color="0.6")
    pixels.set(xlabel="true depth (m)", ylabel="pixels (%)", ylim=(0, None))
    pixels.xaxis.set_major_locator(_ticks(edges[0], edges[-1]))
    pixels.xaxis.set_major_formatter("{x:g}")
    pixels.minorticks_off()
    for axes in (error, pixels):
        axes.grid(alpha=0.3)
    return figure


def plot_medians(medians: npt.NDArray[np.float64]) -> Figure:
    """Median prediction against median target of every image, (N, 2) metres: whether the scale is right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    low, high = medians.min() / 1.2, medians.max() * 1.2
    axes.plot((low, high), (low, high), color="0.4", linewidth=1)
    for factor in (1.25, 1 / 1.25):
        axes.plot((low, high), (factor * low, factor * high), color="0.4", linestyle=":", linewidth=1)
    axes.scatter(medians[:, 1], medians[:, 0], s=12, alpha=0.6)
    axes.set(xlabel="median true depth (m)", ylabel="median predicted depth (m)", xscale="log", yscale="log")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title="One point an image; dotted: 25 % off")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_ticks(low, high))
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    return figure


def _ticks(low: float, high: float) -> Any:
    """Round metres: 1, 2, 5 per decade, or evenly spaced ones where these are few."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    ticks = [m * 10.0**k for k in range(-2, 4) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    if len(ticks) < 4:
        ticks = [t for t in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= t <= high]
    return FixedLocator(ticks)
