"""Losses, metrics, data pipeline and schedules of DepthCLIP and of the CLIP adapters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from langdepth import losses
from tests.parity.runner import Compared, Tolerance

CLOSE = Tolerance(rtol=1e-5)
EXACT = Tolerance()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array)


def losses_depthclip(arrays: dict[str, np.ndarray], weights: dict[str, Tensor] | None, case: str) -> Compared:
    """The training helpers of the DepthCLIP repository."""
    prediction, target, image = (_tensor(arrays[name]) for name in ("pred", "gt", "image"))
    mask = _tensor(arrays["mask"]).bool()
    vertical, horizontal = losses.sobel(image)
    yield "imgrad_y", vertical, Tolerance(rtol=1e-4, atol=1e-6)
    yield "imgrad_x", horizontal, Tolerance(rtol=1e-4, atol=1e-6)
    yield "imgrad_loss", losses.sobel_gradient(prediction, target), Tolerance(rtol=1e-4)
    masked = losses.sobel_gradient(prediction, target, mask, outside_weight=0.1)
    yield "imgrad_loss_masked", masked, Tolerance(rtol=1e-4)
    for suffix, chosen in (("", mask), ("_all", None)):
        yield f"berhu_loss{suffix}", losses.berhu(prediction, target, chosen), CLOSE
        yield f"scale_invariant_loss{suffix}", losses.silog(prediction, target, chosen), CLOSE
    depth = torch.where(mask, target, 0)
    region = torch.zeros_like(mask)
    region[..., mask.shape[-2] // 2 :, :] = True
    for dataset, final in (
        ("KITTI", losses.known_depth(depth, region, union=True)),
        ("NYU", losses.known_depth(depth)),
    ):
        yield f"make_mask_valid_{dataset}", losses.known_depth(depth), EXACT
        yield f"make_mask_final_{dataset}", final, EXACT
