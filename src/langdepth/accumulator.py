"""The depth metrics as a torchmetrics accumulator, for training and evaluation loops of one's own.

Apart from ``metrics``, because torchmetrics takes seconds to import; ``evaluate`` does without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from langdepth.metrics import ALL_METRICS, SUMS, error_sums, metrics_from_sums


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
        self.add_state("image_sums", torch.zeros(len(ALL_METRICS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixel_sums", torch.zeros(SUMS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("skipped", torch.tensor(0), dist_reduce_fx="sum")
        self.last: dict[str, Tensor] = {}

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
        """Add a batch: prediction and target (B, 1, H, W) metres, mask (B, 1, H, W) bool."""
        sums = error_sums(prediction, target, mask)
        self.last = metrics_from_sums(sums)
        used = sums[:, 0] > 0
        per_image = torch.stack([self.last[name] for name in ALL_METRICS], dim=1)
        self.image_sums += torch.where(used[:, None], per_image, 0).sum(0)
        self.pixel_sums += sums.sum(0)
        self.images += used.sum()
        self.skipped += (~used).sum()

    def compute(self) -> dict[str, Any]:
        """The means so far, over all processes."""
        return {
            "image_mean": dict(zip(ALL_METRICS, (self.image_sums / self.images).unbind(), strict=True)),
            "pixel_mean": metrics_from_sums(self.pixel_sums),
            "images": self.images,
            "skipped": self.skipped,
        }
