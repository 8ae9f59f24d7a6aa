"""The standard depth metrics, per picture and accumulated over a data set, and the alignments done before them.

All functions take ``prediction`` and ``target`` (B, 1, H, W) in metres and ``mask`` (B, 1, H, W) bool, True where a
pixel counts. What stands in masked-out places, NaN included, never matters. Sums are float64. With p the prediction, t
the truth and d = ln p - ln t, over the valid pixels:

    abs_rel   mean |p - t| / t                       log10    mean |log10 p - log10 t|
    sq_rel    mean (p - t)^2 / t                     silog    100 sqrt(mean d^2 - (mean d)^2)
    rmse      sqrt(mean (p - t)^2)                   delta_k  share of pixels with max(p / t, t / p) < 1.25^k
    rmse_log  sqrt(mean d^2), natural logarithm      abs_diff mean |p - t|
    msle      mean d^2, which some papers print as "RMSE log"; delta0.5 is of 1.25^0.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from langdepth.protocols import Alignment

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
EXTRA_METRICS = ("abs_diff", "delta0.5", "msle")  # of some papers; reports hold them where their protocol asks for them
_ALL = (*METRICS, *EXTRA_METRICS)

_FARTHEST = 1000.0  # metres
_SUMS = 12  # columns of error_sums

RANGES = (0, 1, 2, 3, 5, 10, 20, 40, 80, math.inf)
"""Metres between which a report tells the metrics of each range; the lower end belongs to a range."""
_LAST_METRE = 80
_BLOCK = 1 << 15  # pixels at once; what does not leave the cache takes a fifth of the time
_RANGE_OF_METRE = np.searchsorted(RANGES, np.arange(_LAST_METRE + 1), side="right").astype(np.uint8) - 1

EDGE_RATIOS = (1.05, 1.10, 1.15, 1.20, 1.25)
"""Two neighbours are an edge where one is farther than the other times this."""


def error_sums(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What all metrics are made of, (B, 12) float64: the number of valid pixels, then the sums over them of
    |p - t| / t, (p - t)^2 / t, (p - t)^2, d^2, |d| / ln 10, d, the numbers of pixels within 1.25^1, 2 and 3, |p - t|,
    and those within 1.25^0.5.

    ``prediction`` and ``target`` must be above 0 where ``mask`` is True. Sums of several pictures may be added: the
    metrics of the total are those of all their pixels together.
    """
    return range_sums(prediction, target, mask).sum(1)


def range_sums(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """``error_sums`` of the pixels in each of ``RANGES`` of true depth, (B, R, 12) float64.

    The result does not depend on the number of threads.
    """
    pictures, ranges = len(mask), len(RANGES) - 1
    valid = _array(mask)
    p, t = (_array(depth)[valid] for depth in (prediction, target))
    first = (np.arange(pictures) * ranges).astype(np.min_scalar_type(pictures * ranges))  # small numbers sort faster
    place = np.repeat(first, valid.sum((1, 2, 3)))
    place += _RANGE_OF_METRE.take(np.minimum(t, _LAST_METRE).astype(np.uint8))
    sums = np.zeros((pictures * ranges, _SUMS))
    for block in (slice(start, start + _BLOCK) for start in range(0, len(p), _BLOCK)):
        order = place[block].argsort(kind="stable")
        cells, starts = np.unique(place[block][order], return_index=True)
        columns = _columns(p[block][order].astype(np.float64), t[block][order].astype(np.float64))
        parts = [np.add.reduceat(column, starts, dtype=np.float64) for column in columns]
        sums[cells] += np.stack(parts, axis=1)
    return torch.from_numpy(sums.reshape(pictures, ranges, _SUMS)).to(prediction.device)


def _columns(p: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[Any]]:
    """What ``error_sums`` adds up, pixel by pixel."""
    error, ratio = p - t, p / t
    absolute, squared, d = np.abs(error), error * error, np.log(ratio)
    worst = np.maximum(ratio, t / p)
    yield np.ones_like(p)
    yield from (absolute / t, squared / t, squared, d * d, np.abs(d) / math.log(10), d)
    yield from (worst < 1.25**k for k in (1, 2, 3))
    yield from (absolute, worst < 1.25**0.5)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """For work that NumPy does several times as fast as torch on one core."""
    return tensor.detach().cpu().numpy()


def metrics_from_sums(sums: Tensor) -> dict[str, Tensor]:
    """The metrics that ``error_sums`` (..., 12) amount to, each (...) float64; NaN where there is no valid pixel."""
    count = sums[..., 0]
    abs_rel, sq_rel, squared, d_squared, log10, d, *rest = (sums[..., 1:] / count.unsqueeze(-1)).unbind(-1)
    silog = 100 * (d_squared - d.square()).clamp(min=0).sqrt()
    values = (abs_rel, sq_rel, squared.sqrt(), d_squared.sqrt(), log10, silog, *rest, d_squared)
    return dict(zip(_ALL, values, strict=True))


def depth_metrics(prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``METRICS`` and ``EXTRA_METRICS`` for each picture, (B,) float64; NaN for a picture without a valid pixel."""
    return metrics_from_sums(error_sums(prediction, target, mask))


def align(prediction: Tensor, target: Tensor, mask: Tensor, kind: Alignment, *, disparity: bool = False) -> Tensor:
    """The prediction fitted to the truth's valid pixels, picture by picture; (B, 1, H, W) float32.

    "none": unchanged. "median": times median(target) / median(prediction). "least_squares": scale * prediction + shift
    with the scale and shift that make the sum of squared differences in depth (not in disparity) smallest; where the
    prediction is constant, scale 0 and the mean of the truth. "disparity": the same fit, of 1 / prediction to
    1 / target, then inverted; what comes out not above 1 / 1000 m is put at 1000 m. ``disparity``: the prediction is
    disparity already, known up to scale and shift; only the kind "disparity" makes depth of it. Without a valid pixel
    the prediction stays as it is. The result may be negative after "least_squares": clamp it. Raises ValueError for
    another kind.
    """
    if kind not in get_args(Alignment):
        raise ValueError(f"alignment '{kind}' is none of {', '.join(get_args(Alignment))}")
    if disparity and kind != "disparity":
        raise ValueError(f"disparity is no depth; align it with the kind 'disparity', not '{kind}'")
    if kind == "none":
        return prediction
    if kind == "disparity":
        given = prediction if disparity else 1 / prediction.clamp(min=1 / _FARTHEST)
        fitted = align(given, 1 / torch.where(mask, target, 1), mask, "least_squares")
        return 1 / fitted.clamp(min=1 / _FARTHEST)
    p, t, valid = (x.flatten(1) for x in (prediction, target, mask))
    count = valid.sum(1, keepdim=True)
    if kind == "median":
        scale = _median(t, valid, count) / _median(p, valid, count)
        shift = torch.zeros_like(scale)
    else:
        p, t = torch.where(valid, p, 0).double(), torch.where(valid, t, 0).double()
        p_mean, t_mean = p.sum(1, keepdim=True) / count, t.sum(1, keepdim=True) / count
        centred = torch.where(valid, p - p_mean, 0)
        variance = centred.square().sum(1, keepdim=True)
        constant = variance <= 1e-12 * count * p_mean.square()  # rounding noise is no structure to fit
        covariance = (centred * (t - t_mean)).sum(1, keepdim=True)
        scale = torch.where(constant, 0, covariance / torch.where(constant, 1, variance))
        shift = t_mean - scale * p_mean
    empty = count == 0
    scale, shift = torch.where(empty, 1, scale), torch.where(empty, 0, shift)
    return (prediction.double() * scale[..., None, None] + shift[..., None, None]).float()


def _median(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Median of each row's valid values, (B, 1) float64; the mean of the two middle ones when their number is even."""
    ordered = torch.where(valid, values, math.inf).sort(1).values
    middle = torch.cat([(count - 1).clamp(min=0) // 2, (count // 2).clamp(max=values.shape[1] - 1)], dim=1)
    return ordered.gather(1, middle).double().mean(1, keepdim=True)


class DepthMetrics(Metric):
    """Image mean and pixel mean of all metrics in one pass; safe across processes (every state is a sum).

    The image mean is the plain mean of the pictures' metrics; the pixel mean treats all valid pixels as one large
    picture, so its rmse, rmse_log and silog come from pooled sums. Pictures without a valid pixel are counted in
    ``skipped`` and nowhere else. ``compute`` returns ``{"image_mean": {...}, "pixel_mean": {...}, "images": n,
    "skipped": n}``; the means are NaN while there is no picture. ``last`` holds the metrics of the pictures of the
    latest update, each (B,).
    """

    full_state_update = False
    image_sums: Tensor
    pixel_sums: Tensor
    images: Tensor
    skipped: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("image_sums", torch.zeros(len(_ALL), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixel_sums", torch.zeros(_SUMS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("skipped", torch.tensor(0), dist_reduce_fx="sum")
        self.last: dict[str, Tensor] = {}

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and target (B, 1, H, W) metres, mask (B, 1, H, W) bool."""
        sums = error_sums(prediction, target, mask)
        self.last = metrics_from_sums(sums)
        used = sums[:, 0] > 0
        per_image = torch.stack([self.last[name] for name in _ALL], dim=1)
        self.image_sums += torch.where(used[:, None], per_image, 0).sum(0)
        self.pixel_sums += sums.sum(0)
        self.images += used.sum()
        self.skipped += (~used).sum()

    def compute(self) -> dict[str, Any]:
        """The means so far, over all processes."""
        return {
            "image_mean": dict(zip(_ALL, (self.image_sums / self.images).unbind(), strict=True)),
            "pixel_mean": metrics_from_sums(self.pixel_sums),
            "images": self.images,
            "skipped": self.skipped,
        }


class ErrorByRange(Metric):
    """How abs_rel spreads at each true depth: a two-way histogram of fixed size; safe across processes.

    Both axes are logarithmic: depth from 0.05 to 1000 m in steps of 15 %, abs_rel from 1e-4 to 10 in steps of 5 %.
    Values outside fall into the outermost cells. ``compute`` returns depth ``edges`` (R + 1,), the pixel ``count`` (R,)
    of each range and ``quartiles`` (3, R) of abs_rel, exact to one step and NaN where a range is empty.
    """

    full_state_update = False
    counts: Tensor

    _DEPTH = (math.log(0.05), math.log(1.15), math.ceil(math.log(1000 / 0.05) / math.log(1.15)))  # start, step, cells
    _ERROR = (math.log(1e-4), math.log(1.05), math.ceil(math.log(10 / 1e-4) / math.log(1.05)))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        cells = torch.zeros(self._DEPTH[2], self._ERROR[2], dtype=torch.int64)
        self.add_state("counts", cells, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and target (B, 1, H, W) metres, mask (B, 1, H, W) bool."""
        valid = _array(mask)
        p, t = _array(prediction)[valid], _array(target)[valid]
        cell = _cell(t, *self._DEPTH) * self._ERROR[2] + _cell(np.abs(p - t) / t, *self._ERROR)
        counts = torch.from_numpy(np.bincount(cell, minlength=self.counts.numel()))
        self.counts += counts.view_as(self.counts).to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Quartiles of abs_rel per depth range so far, over all processes."""
        count = self.counts.sum(1)
        share = self.counts.cumsum(1) / count[:, None]
        start, step, _ = self._ERROR
        quartiles = [torch.exp(start + step * ((share < q).sum(1) + 0.5)) for q in (0.25, 0.5, 0.75)]
        start, step, cells = self._DEPTH
        edges = torch.exp(start + step * torch.arange(cells + 1, device=count.device))
        return {
            "edges": edges,
            "count": count,
            "quartiles": torch.where(count > 0, torch.stack(quartiles), torch.nan),
        }


def _cell(values: npt.NDArray[np.floating[Any]], start: float, step: float, cells: int) -> npt.NDArray[np.intp]:
    with np.errstate(divide="ignore"):  # no error at all falls into the first cell
        place = (np.log(values) - start) / step
    return place.clip(0, cells - 1).astype(np.intp)


def edge_counts(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Neighbours that are an edge: in the truth, in the prediction, in both, (T, 3) int64; see ``edge_scores``.

    Neighbours are next to each other in a row or a column, and both valid. They are an edge of threshold ``r`` in
    ``EDGE_RATIOS`` where one is farther than r times the other; truth and prediction agree where both have an edge and
    the same side is the farther one. ``prediction`` and ``target`` must be above 0 where ``mask`` is True.
    """
    p, t = (np.log(np.where(_array(mask), _array(depth), np.nan)) for depth in (prediction, target))
    limits = np.log(EDGE_RATIOS).astype(p.dtype)[:, None]
    counts = np.zeros((len(EDGE_RATIOS), 3), dtype=np.int64)
    for axis in (-1, -2):
        steps = [np.diff(depth, axis=axis) for depth in (t, p)]  # NaN, which is no edge, unless both are valid
        large = np.maximum(np.abs(steps[0]), np.abs(steps[1])) > limits[0]
        true, found = (step[large] for step in steps)
        in_truth, in_prediction = np.abs(true) > limits, np.abs(found) > limits
        both = in_truth & in_prediction & (true * found > 0)
        counts += np.stack([edges.sum(1) for edges in (in_truth, in_prediction, both)], axis=1)
    return torch.from_numpy(counts)


def edge_scores(counts: Tensor) -> dict[str, float] | None:
    """Precision, recall and F1 of edges, each the plain mean over ``EDGE_RATIOS``; None where the truth has no edge.

    ``counts`` (T, 3): ``edge_counts``, added over pictures. Precision is 0 where nothing was predicted. Neighbouring
    pixels whose depths differ by a ratio, and several thresholds of it, are the idea of Depth Pro (Bochkovskii et al.,
    2024), which averages over pictures and weighs high thresholds more.
    """
    true, found, both = counts.double().unbind(1)
    if not bool((true > 0).all()):
        return None
    scores = {"precision": both / found.clamp(min=1), "recall": both / true, "f1": 2 * both / (true + found)}
    return {name: float(values.mean()) for name, values in scores.items()}
