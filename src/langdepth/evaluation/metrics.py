"""The standard depth metrics of an image, the sums that they are made of, and the alignments done before them.

All functions take ``prediction`` and ``target`` in metres, of any floating type, and ``mask``, True where a pixel
counts; all three (B, 1, H, W), (B, H, W) or, for one image, (H, W). What stands in masked-out places, NaN included,
never matters. Sums are float64. A prediction at or below 0 is beyond every threshold of delta. It has no logarithm, so
that the means of d (rmse_log, log10, silog, msle) are those of the pixels whose prediction is above 0, and NaN where
there is none; the other metrics count it as it is.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from langdepth.errors import UsageError
from langdepth.evaluation.protocols import Alignment

METRICS = {
    "abs_rel": "mean( |p - t| / t )",
    "sq_rel": "mean( (p - t)^2 / t ), metres",
    "rmse": "sqrt( mean( (p - t)^2 ) ), metres",
    "rmse_log": "sqrt( mean( d^2 ) ), natural logarithm",
    "log10": "mean( |log10 p - log10 t| )",
    "silog": "100 sqrt( mean(d^2) - mean(d)^2 )",
    "delta1": "share of pixels with max(p / t, t / p) < 1.25 (strict)",
    "delta2": "share of pixels with max(p / t, t / p) < 1.25^2",
    "delta3": "share of pixels with max(p / t, t / p) < 1.25^3",
}
"""Each with its formula: p is the prediction, t the target, d = ln p - ln t, over the valid pixels."""
EXTRA_METRICS = {
    "abs_diff": "mean( |p - t| ), metres",
    "delta0.5": "share of pixels with max(p / t, t / p) < 1.25^0.5",
    "msle": "mean( d^2 ), which some papers print as RMSE log or RMSL, without a root",
}
"""Of some papers; reports hold them where their protocol asks for them."""
ALL_METRICS = (*METRICS, *EXTRA_METRICS)
HIGHER_IS_BETTER = {name: name.startswith("delta") for name in ALL_METRICS}
DEFINITIONS = 2
"""Goes up by one whenever a number of a report gets another definition: no matrix mixes old ones with new ones."""

_FARTHEST = 1000.0  # metres
_WITHIN = (1.25**3, 1.25**2, 1.25, 1.25**0.5)
SUMS = 13  # columns of error_sums

RANGES = (0, 1, 2, 3, 5, 10, 20, 40, 80, math.inf)
"""Metres between which a report gives the metrics of each range; the lower end belongs to a range."""
_BLOCK = 1 << 15  # pixels at once, so that they do not leave the cache

EDGE_RATIOS = (1.05, 1.10, 1.15, 1.20, 1.25)
"""Two neighbours are an edge where one is farther than the other times this."""

Values = npt.NDArray[np.float32]


def error_sums(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What all metrics are made of: ``range_sums`` of each image, added over the ranges.

    Sums of several images may be added: the metrics of the total are those of all their pixels together. They do not
    depend on the number of threads.

    Args:
        prediction: Metres. Where a valid one is NaN or infinite, so are sums of its image.
        target: Metres, above 0 and finite where ``mask`` is True.
        mask: True where a pixel counts.

    Returns:
        (B, 13) float64.

    Raises:
        UsageError: The shapes differ, or a valid target is not above 0.
    """
    sums = []
    for number, (p, t, known) in enumerate(zip(*map(_array, images(prediction, target, mask)), strict=True)):
        true = t[known]
        if not (true.min(initial=1) > 0 and true.max(initial=1) < math.inf):  # also true for NaN
            raise UsageError(
                f"image {number} of the batch: its target must be above 0 and finite where the mask is set"
            )
        sums.append(range_sums(p[known], true).sum(0))
    return torch.from_numpy(np.array(sums).reshape(-1, SUMS)).to(prediction.device)


def images(prediction: Tensor, target: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three maps as (B, 1, H, W), half precision as float32. Raises UsageError for other shapes and masks."""
    maps = (prediction, target, mask)
    if not all(isinstance(one, Tensor) for one in maps):
        kinds = ", ".join(type(one).__name__ for one in maps)
        raise UsageError(f"prediction, target and mask must be tensors (torch.from_numpy makes them), found {kinds}")
    shape = prediction.shape
    known = len(shape) in (2, 3) or (len(shape) == 4 and shape[1] == 1)
    if not known or any(one.shape != shape for one in maps):
        raise UsageError(
            "prediction, target and mask must have one shape, (B, 1, H, W), (B, H, W) or, for one image, (H, W); "
            f"found {', '.join(str(tuple(one.shape)) for one in maps)}"
        )
    if any(one.layout != torch.strided or one.is_meta for one in maps):
        raise UsageError("prediction, target and mask must be dense tensors with content")
    if mask.dtype != torch.bool:
        raise UsageError(f"the mask must be of bool, True where a pixel counts, found {mask.dtype}")
    for name, depth in (("prediction", prediction), ("target", target)):
        if not depth.is_floating_point():
            raise UsageError(f"{name} must be of a floating type, in metres, found {depth.dtype}")
    maps = (_single(prediction), _single(target), mask)
    return maps if len(shape) == 4 else tuple(one.reshape(-1, 1, *shape[-2:]) for one in maps)  # type: ignore[return-value]


def _single(values: Tensor) -> Tensor:
    """Numbers of 8 and 16 bits as float32, which NumPy knows and which is exact."""
    return values.float() if values.element_size() < 4 else values


def range_sums(p: Values, t: Values) -> npt.NDArray[np.float64]:
    """Sums over the pixels (N,) in each of ``RANGES`` of true depth, (R, 13).

    The columns: the number of pixels, of those within 1.25^3, 1.25^2, 1.25 and 1.25^0.5, then the sums of |p - t| / t,
    (p - t)^2 / t, (p - t)^2, d^2, |d|, d and |p - t|, and the number of pixels that the sums of d are over: those with
    p above 0.
    """
    sums = np.zeros((len(RANGES) - 1, SUMS))
    nearest, farthest = t.min(initial=math.inf), t.max(initial=0)
    for total, (low, high) in zip(sums, itertools.pairwise(RANGES), strict=True):
        if nearest < high and farthest >= low:
            inside = (t >= low) & (t < high)
            p_inside, t_inside = p[inside], t[inside]
            for block in (slice(start, start + _BLOCK) for start in range(0, len(t_inside), _BLOCK)):
                total += _sums(p_inside[block].astype(np.float64), t_inside[block].astype(np.float64))
    return sums


def _sums(p: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> list[float]:
    """The columns of ``range_sums`` for all pixels (N,) together."""
    error = p - t
    absolute = np.abs(error)
    relative = absolute / t
    if not p.min(initial=1) > 0:  # also true for NaN, whose sums stay NaN
        positive = ~(p <= 0)
        p, t = p[positive], t[positive]
    ratio = p / t
    d, worst = np.log(ratio), np.maximum(ratio, t / p)
    within = (int(np.count_nonzero(worst < limit)) for limit in _WITHIN)
    columns = (relative, relative * absolute, error * error, d * d, np.abs(d), d, absolute)
    return [len(error), *within, *(float(column.sum()) for column in columns), len(d)]


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """For work that NumPy does several times as fast as torch on one core."""
    return tensor.detach().cpu().numpy()


def metrics_from_sums(sums: Tensor) -> dict[str, Tensor]:
    """The metrics that ``error_sums`` (..., 13) amount to, each (...) float64; NaN where there is no valid pixel."""
    means = sums[..., 1:-1] / sums[..., :1]
    delta3, delta2, delta1, half, abs_rel, sq_rel, squared, *_, abs_diff = means.unbind(-1)
    d_squared, d_abs, d = (sums[..., 8:11] / sums[..., -1:]).unbind(-1)
    silog = 100 * (d_squared - d.square()).clamp(min=0).sqrt()
    standard = (abs_rel, sq_rel, squared.sqrt(), d_squared.sqrt(), d_abs / math.log(10), silog, delta1, delta2, delta3)
    return dict(zip(ALL_METRICS, (*standard, abs_diff, half, d_squared), strict=True))


def depth_metrics(prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """``METRICS`` and ``EXTRA_METRICS`` for each image, (B,) float64; NaN for an image without a valid pixel."""
    return metrics_from_sums(error_sums(prediction, target, mask))


def align(prediction: Tensor, target: Tensor, mask: Tensor, kind: Alignment, *, disparity: bool = False) -> Tensor:
    """The prediction fitted to the target's valid pixels, image by image; float32 in the shape of ``prediction``.

    "none": unchanged. "median": times median(target) / median(prediction); NaN where the latter is not above 0.
    "least_squares": scale * prediction + shift with the scale and shift that make the sum of squared differences in
    depth (not in disparity) smallest; a constant prediction gets scale 0 and the mean of the target. "disparity":
    the same fit, of 1 / prediction to 1 / target, then inverted; what comes out not above 1 / 1000 m is put at 1000 m.
    ``disparity``: the prediction is disparity already, known up to scale and shift; only the kind "disparity" makes
    depth of it. Without a valid pixel the prediction stays as it is. The result may be negative after "least_squares":
    clamp it. Raises ValueError for another kind, UsageError for shapes that differ.
    """
    if kind not in get_args(Alignment):
        raise ValueError(f"alignment '{kind}' is none of {', '.join(get_args(Alignment))}")
    if disparity and kind != "disparity":
        raise ValueError(f"disparity is no depth; align it with the kind 'disparity', not '{kind}'")
    if kind == "none":
        return prediction
    maps, shape = images(prediction, target, mask), prediction.shape
    prediction, target, mask = maps
    if kind == "disparity":
        given = prediction if disparity else 1 / prediction.clamp(min=1 / _FARTHEST)
        fitted = align(given, 1 / torch.where(mask, target, 1), mask, "least_squares")
        return (1 / fitted.clamp(min=1 / _FARTHEST)).view(shape)
    p, t, valid = (x.flatten(1) for x in (prediction, target, mask))
    count = valid.sum(1, keepdim=True)
    if kind == "median":
        middle = _median(p, valid, count)
        scale = torch.where(middle > 0, _median(t, valid, count) / middle, math.nan)
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
    return (prediction.double() * scale[..., None, None] + shift[..., None, None]).float().view(shape)


def _median(values: Tensor, valid: Tensor, count: Tensor) -> Tensor:
    """Median of each row's valid values, (B, 1) float64; the mean of the two middle ones when their number is even."""
    ordered = torch.where(valid, values, math.inf).sort(1).values
    middle = torch.cat([(count - 1).clamp(min=0) // 2, (count // 2).clamp(max=values.shape[1] - 1)], dim=1)
    return ordered.gather(1, middle).double().mean(1, keepdim=True)


DEPTH_EDGES = np.geomspace(2.0**-5, 2.0**10, 15 * 4 + 1)
"""Metres between the cells of ``error_histogram``, each 19 % wide."""
ERROR_EDGES = np.geomspace(2.0**-14, 2.0**4, 18 * 16 + 1)
"""abs_rel between its cells, each 4 % wide."""


def error_histogram(p: Values, t: Values) -> npt.NDArray[np.int64]:
    """How abs_rel spreads at each true depth: numbers of pixels (D, E), of ``p`` and ``t`` (N,)."""
    shape = len(DEPTH_EDGES) - 1, len(ERROR_EDGES) - 1
    cell = _cells(t, DEPTH_EDGES) * shape[1] + _cells(np.abs(p - t) / t, ERROR_EDGES)
    return np.bincount(cell, minlength=math.prod(shape)).reshape(shape)


def _cells(values: Values, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """The cell of each value between ``edges``, whose logarithms are evenly spaced; the outermost for those outside."""
    low, high = np.log2(edges[[0, -1]]).tolist()
    count = len(edges) - 1
    place = np.log2(values.clip(edges[0], edges[-1])) - np.float32(low)
    place *= np.float32(count / (high - low))
    return place.astype(np.int32).clip(max=count - 1)


def error_quartiles(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Quartiles (3, D) of abs_rel in an ``error_histogram``, exact to one cell, NaN where there is no pixel."""
    count = counts.sum(1)
    share = counts.cumsum(1) / np.maximum(count, 1)[:, None]
    middles = (ERROR_EDGES[1:] + ERROR_EDGES[:-1]) / 2
    quartiles = [middles[np.minimum((share < q).sum(1), len(middles) - 1)] for q in (0.25, 0.5, 0.75)]
    return np.where(count > 0, quartiles, np.nan)


def edge_counts(prediction: Tensor, target: Tensor, mask: Tensor) -> npt.NDArray[np.int64]:
    """Neighbours that are an edge: in the target, in the prediction, in both, (T, 3); see ``edge_scores``.

    Neighbours are next to each other in a row or a column, and both valid. They are an edge of threshold ``r`` in
    ``EDGE_RATIOS`` where one is farther than r times the other; target and prediction agree where both have an edge and
    the same side is the farther one. ``prediction`` and ``target`` must be above 0 where ``mask`` is True.
    """
    counts = np.zeros((len(EDGE_RATIOS), 3), dtype=np.int64)
    prediction, target, mask = images(prediction, target, mask)
    known = _array(mask)
    rows, columns = (np.flatnonzero(known.any(axis=others)) for others in ((0, 1, 3), (0, 1, 2)))
    if not len(rows):
        return counts
    window = np.s_[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    with np.errstate(invalid="ignore", divide="ignore"):  # whatever stands where nothing is known
        p, t = (np.log(_array(depth)[window]) for depth in (prediction, target))
        t[~known[window]] = np.nan
        limits = np.log(EDGE_RATIOS).astype(t.dtype)
        for axis in (-1, -2):
            true, found = (np.diff(depth, axis=axis) for depth in (t, p))
            large = np.flatnonzero(np.maximum(np.abs(true), np.abs(found)) > limits[0])  # not where the target is NaN
            true, found = true.take(large), found.take(large)
            agree, true, found = true * found > 0, np.abs(true), np.abs(found)
            for total, limit in zip(counts, limits, strict=True):
                in_target, in_prediction = true > limit, found > limit
                both = in_target & in_prediction & agree
                total += [np.count_nonzero(edges) for edges in (in_target, in_prediction, both)]
    return counts


def edge_scores(counts: npt.NDArray[np.int64]) -> dict[str, float] | None:
    """Precision, recall and F1 of edges, each the plain mean over ``EDGE_RATIOS``; None where the target has no edge.

    ``counts`` (T, 3): ``edge_counts``, added over images. Precision is 0 where nothing was predicted. Neighbouring
    pixels whose depths differ by a ratio, and several thresholds of it, are the idea of Depth Pro (Bochkovskii et al.,
    2024), which averages over images and weighs high thresholds more.
    """
    true, found, both = counts.T
    if not true.all():
        return None
    scores = {"precision": both / np.maximum(found, 1), "recall": both / true, "f1": 2 * both / (true + found)}
    return {name: float(values.mean()) for name, values in scores.items()}
