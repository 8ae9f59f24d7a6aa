"""The moving average of the weights, which is what a run evaluates and saves."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Exponential moving average of a module's parameters and buffers with a warm-up.

    The first update copies the module. Update n + 1 keeps the share ``decay_after(n, decay)`` of the average, which
    rises to ``decay``: a short run ends near its last weights, where a constant decay would leave it near its first.
    Integer buffers (counts) are copied. (Lightning's EMAWeightAveraging fits less well: it has no warm-up, takes part
    in Lightning's own validation loop only and averages after steps that were left out, too.)
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, multi_avg_fn=partial(_update, decay=decay), use_buffers=True)
        self.requires_grad_(False)


def decay_after(updates: int, decay: float) -> float:
    """What the average keeps of itself after so many updates: (1 + n) / (10 + n), at most ``decay``."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def _update(average: list[Tensor], current: list[Tensor], updates: Tensor, *, decay: float) -> None:
    """One update of tensors of one type, in place."""
    if average[0].is_floating_point():
        torch._foreach_lerp_(average, current, 1 - decay_after(int(updates), decay))
    else:
        torch._foreach_copy_(average, current)
