"""What only VGLD needs: the domains, and the scale and shift that bring a map nearest to its ground truth."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import least_squares
from torch import Tensor

from langdepth.text.scenes import SCENES

DOMAINS = ("indoor", "outdoor")
OUTDOOR = SCENES.index("outdoor_scene")
ROOM = 10.0  # metres; an image without scene label that shows more is outdoors
_MOST_PIXELS = 4096  # of an image that the fit takes, evenly spread


def domains_of(scene: Tensor, depth: Tensor) -> Tensor:
    """Index into DOMAINS (B,): by the scene's label, and for -1, unknown, by the farthest true depth (B, 1, H, W)."""
    far = depth.flatten(1).amax(1) > ROOM
    return torch.where(scene >= 0, scene == OUTDOOR, far).long()


def fitted(relative: Tensor, depth: Tensor, counted: Tensor) -> Tensor:
    """Logarithms of scale and shift (B, 2) with which 1 / (scale * relative + shift) is nearest to the depth.

    Two-parameter least squares in metres by Levenberg and Marquardt, from (0, 0); NaN for images of fewer than two
    counted pixels. All are (B, 1, H, W).
    """
    found = []
    for one, target, mask in zip(relative, depth, counted, strict=True):
        pair = torch.stack((one[mask], target[mask])).double().cpu().numpy()
        pair = pair[:, :: 1 + pair.shape[1] // _MOST_PIXELS]
        found.append(_fit(*pair) if pair.shape[1] > 1 else np.full(2, np.nan))
    return torch.from_numpy(np.stack(found)).to(relative)


def _fit(relative: npt.NDArray[np.float64], depth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    def errors(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return 1 / (np.exp(logs[0]) * relative + np.exp(logs[1])) - depth

    def slopes(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scale, shift = np.exp(logs)
        return (
            -np.stack((scale * relative, np.full_like(relative, shift)), 1) / (scale * relative + shift)[:, None] ** 2
        )

    with np.errstate(all="ignore"):
        logs: npt.NDArray[np.float64] = least_squares(errors, (0.0, 0.0), slopes, method="lm").x
    return logs
