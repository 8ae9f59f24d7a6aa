"""The depth metrics as a torchmetrics accumulator, for training and evaluation loops of one's own.

Apart from ``metrics``, because torchmetrics takes seconds to import; ``evaluate`` does without.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from langdepth.evaluation.metrics import ALL_METRICS, HIGHER_IS_BETTER, SUMS, error_sums, metrics_from_sums
from langdepth.utils.arguments import checked

_PIXEL = "pixel_"


class DepthMetrics(Metric):
    """Image mean and pixel mean of all metrics in one pass; safe across processes (every state is a sum).

    The image mean is the plain mean of the images' metrics. The pixel mean treats all valid pixels as one large image,
    so that its rmse, rmse_log and silog come from pooled sums. Images without a valid pixel are counted in ``skipped``
    and nowhere else; those whose prediction is NaN or infinite at a valid pixel are counted in ``not_finite``, named in
    a warning and in no mean. An image without a valid prediction above 0 has no logarithmic metrics; their image means
    are those of the other images.

        metrics = DepthMetrics(prefix="val/")
        metrics.update(prediction, target, mask)  # validation_step
        self.log_dict(metrics.compute()); metrics.reset()  # on_validation_epoch_end

    Attributes:
        last: The metrics of the images of the latest update, each (B,); empty after ``reset``.
    """

    full_state_update = False
    is_differentiable = False
    image_sums: Tensor
    image_counts: Tensor
    pixel_sums: Tensor
    images: Tensor
    skipped: Tensor
    not_finite: Tensor

    @checked
    def __init__(self, prefix: str = "", **options: Any) -> None:
        """Start empty.

        Args:
            prefix: What all names begin with, for example "val/".
            options: Those of ``torchmetrics.Metric``.
        """
        super().__init__(**options)
        self.prefix = prefix
        many = len(ALL_METRICS)
        self.add_state("image_sums", torch.zeros(many, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("image_counts", torch.zeros(many, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixel_sums", torch.zeros(SUMS, dtype=torch.float64), dist_reduce_fx="sum")
        for count in ("images", "skipped", "not_finite"):
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")
        self.last: dict[str, Tensor] = {}

    @property
    def higher_is_better(self) -> dict[str, bool]:  # type: ignore[override]
        """For each mean of ``compute``, whether more is better."""
        return {
            f"{self.prefix}{mean}{name}": higher for mean in ("", _PIXEL) for name, higher in HIGHER_IS_BETTER.items()
        }

    @checked
    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, names: Sequence[str] = ()) -> None:
        """Add a batch.

        Args:
            prediction: (B, 1, H, W), (B, H, W) or, for one image, (H, W) metres, of any floating type.
            target: The same shape, metres.
            mask: The same shape, bool, True where a pixel counts.
            names: What to call the images in a warning, for example their paths.

        Raises:
            UsageError: The shapes differ, or a valid target is not above 0.
        """
        sums = error_sums(prediction, target, mask)
        self.last = metrics_from_sums(sums)
        known, finite = sums[:, 0] > 0, sums.isfinite().all(1)
        for number in (~finite).nonzero().flatten().tolist():
            name = names[number] if number < len(names) else f"image {number} of the batch"
            warnings.warn(f"{name}: its predicted depth is not finite; it is in no mean", stacklevel=3)
        used = known & finite
        per_image = torch.stack([self.last[name] for name in ALL_METRICS], dim=1)
        exists = used[:, None] & ~per_image.isnan()
        self.image_sums += torch.where(exists, per_image, 0).sum(0)
        self.image_counts += exists.sum(0)
        self.pixel_sums += sums[used].sum(0)
        self.images += used.sum()
        self.skipped += (~known).sum()
        self.not_finite += (~finite).sum()

    def compute(self) -> dict[str, Tensor]:
        """The means so far, over all processes.

        Returns:
            Image means under the names of the metrics ("abs_rel"), pixel means as "pixel_abs_rel", and the counts
            "images", "skipped" and "not_finite", each with the prefix. NaN while there is no image.
        """
        image = dict(zip(ALL_METRICS, (self.image_sums / self.image_counts).unbind(), strict=True))
        pixel = {f"{_PIXEL}{name}": value for name, value in metrics_from_sums(self.pixel_sums).items()}
        counts = {"images": self.images, "skipped": self.skipped, "not_finite": self.not_finite}
        return {f"{self.prefix}{name}": value for name, value in (image | pixel | counts).items()}

    def reset(self) -> None:
        """Start again."""
        super().reset()
        self.last = {}
