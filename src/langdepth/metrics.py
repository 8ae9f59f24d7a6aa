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
from typing import Any, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from langdepth.protocols import Alignment

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3")
EXTRA_METRICS = ("abs_diff", "delta0.5", "msle")  # of some papers; reports hold them where their protocol asks for them
_ALL = (*METRICS, *EXTRA_METRICS)

_SUMS = 12  # columns of error_sums


def error_sums(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """What all metrics are made of, (B, 12) float64: the number of valid pixels, then the sums over them of
    |p - t| / t, (p - t)^2 / t, (p - t)^2, d^2, |d| / ln 10, d, the numbers of pixels within 1.25^1, 2 and 3, |p - t|,
    and the number of pixels within 1.25^0.5.

    ``prediction`` and ``target`` must be above 0 where ``mask`` is True. Sums of several pictures may be added: the
    metrics of the total are those of all their pixels together.
    """
    p = torch.where(mask, prediction, 1).double().flatten(1)
    t = torch.where(mask, target, 1).double().flatten(1)
    valid = mask.flatten(1)
    error = p - t
    ratio = p / t
    d = ratio.log()
    worst = torch.maximum(ratio, t / p)
    squared = error.square()
    columns = [
        valid.sum(1),
        (error.abs() / t).sum(1),
        (squared / t).sum(1),
        squared.sum(1),
        d.square().sum(1),
        d.abs().sum(1) / math.log(10),
        d.sum(1),
        *(((worst < 1.25**k) & valid).sum(1) for k in (1, 2, 3)),
        error.abs().sum(1),
        ((worst < 1.25**0.5) & valid).sum(1),
    ]
    return torch.stack([column.double() for column in columns], dim=1)


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


def align(prediction: Tensor, target: Tensor, mask: Tensor, kind: Alignment) -> Tensor:
    """The prediction fitted to the truth's valid pixels, picture by picture; (B, 1, H, W) float32.

    "none": unchanged. "median": times median(target) / median(prediction). "least_squares": scale * prediction + shift
    with the scale and shift that make the sum of squared differences in depth (not in disparity) smallest; where the
    prediction is constant, scale 0 and the mean of the truth. Without a valid pixel the prediction stays as it is. The
    result may be negative after "least_squares": clamp it. Raises ValueError for another kind.
    """
    if kind not in get_args(Alignment):
        raise ValueError(f"alignment '{kind}' is none of {', '.join(get_args(Alignment))}")
    if kind == "none":
        return prediction
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
        p, t = prediction[mask], target[mask]
        row, column = _cell(t, *self._DEPTH), _cell((p - t).abs() / t, *self._ERROR)
        flat = torch.bincount(row * self._ERROR[2] + column, minlength=self.counts.numel())
        self.counts += flat.view_as(self.counts)

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


def _cell(values: Tensor, start: float, step: float, cells: int) -> Tensor:
    return ((values.log() - start) / step).clamp(0, cells - 1).long()
