"""What is known about a batch once it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EvaluatedBatch:
    """A batch under a protocol, cut to its frame, on the CPU.

    Attributes:
        image: (B, 3, H, W), bytes or floats in [0, 1], as in the samples.
        prediction: (B, 1, H, W) metres, after flip, alignment and clamp.
        target: (B, 1, H, W) metres.
        valid: (B, 1, H, W) bool, True where the protocol compares prediction and target.
        raw: (B, 1, H, W), the prediction before alignment and clamp.
        edges: (B, 1, H, W) bool, the true edges, where the data set states them.
    """

    image: Tensor
    prediction: Tensor
    target: Tensor
    valid: Tensor
    raw: Tensor
    edges: Tensor | None = None

    def pixels(self, place: int) -> npt.NDArray[np.uint8]:
        """An image of the batch, (H, W, 3)."""
        image = self.image[place]
        return (image if image.dtype == torch.uint8 else image.mul(255).round().byte()).permute(1, 2, 0).numpy()
