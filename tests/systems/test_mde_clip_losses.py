"""Losses of MDE-CLIP, against plain computations of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from langdepth import losses
from langdepth.systems.mde_clip.model import image_losses


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5 + 0.5


def test_silog_without_its_root_by_hand() -> None:
    prediction, target = (
        torch.tensor([1.0, 2.0, 8.0])[None, None, None],
        torch.tensor([2.0, 2.0, 0.0])[None, None, None],
    )
    d = np.log([0.5, 1.0])
    found = losses.silog(prediction, target, target > 0, 0.5, 1.0, root=False)
    assert found.item() == pytest.approx((d**2).mean() - 0.5 * d.mean() ** 2)


@pytest.mark.parametrize("masked", [False, True])
def test_chamfer_against_all_pairs(masked: bool) -> None:
    centers = random(3, 7).sort(1).values.requires_grad_()
    target = random(3, 1, 5, 6, seed=1)
    mask = random(3, 1, 5, 6, seed=2) < 3 if masked else None
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        depths = target[i][mask[i]] if mask is not None else target[i].flatten()
        pairs = (centers[i, :, None] - depths).square()
        expected = expected + (pairs.amin(1).mean() + pairs.amin(0).mean()) / 3
    found = losses.bin_chamfer(centers, target, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, centers)[0] for value in (found, expected)))


def test_chamfer_without_depth_is_nothing_and_has_no_gradient() -> None:
    centers = random(2, 7).sort(1).values.requires_grad_()
    target, mask = random(2, 1, 5, 6), torch.ones(2, 1, 5, 6, dtype=torch.bool)
    mask[1] = False
    losses.bin_chamfer(centers, target, mask).backward()
    assert centers.grad is not None
    assert (centers.grad[1] == 0).all()
    assert (centers.grad[0] != 0).any()
    none = losses.bin_chamfer(centers.detach(), target, torch.zeros_like(mask))
    assert none.item() == 0


def test_gaussian_ssim_by_scipy() -> None:
    a, b = random(1, 1, 12, 15), random(1, 1, 12, 15, seed=1)

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=3, mode="mirror")

    x, y = a[0, 0].numpy(), b[0, 0].numpy()
    mean_x, mean_y = blur(x), blur(y)
    c1, c2 = 0.1**2, 0.3**2
    above = (2 * mean_x * mean_y + c1) * (2 * (blur(x * y) - mean_x * mean_y) + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2 + c2)
    expected = np.clip((1 - above / below) / 2, 0, 1).mean()
    assert losses.ssim_dissimilarity(a, b, gaussian=True, data_range=10.0).item() == pytest.approx(expected)


def test_masked_gaussian_ssim_counts_whole_windows_only() -> None:
    a, b = random(2, 1, 20, 22).requires_grad_(), random(2, 1, 20, 22, seed=1)
    mask = torch.ones(2, 1, 20, 22, dtype=torch.bool)
    mask[..., 9:11, 8:12] = False
    found = losses.ssim_dissimilarity(a, b, mask, gaussian=True)
    spoilt = losses.ssim_dissimilarity(torch.where(mask, a, 77.0), b, mask, gaussian=True)
    torch.testing.assert_close(spoilt, found)
    found.backward()
    assert a.grad is not None
    assert (a.grad[~mask] == 0).all()
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(
        losses.ssim_dissimilarity(a, b, everywhere, gaussian=True), losses.ssim_dissimilarity(a, b, gaussian=True)
    )


@pytest.mark.parametrize("masked_ssim", [False, True])
def test_every_image_counts_alone(masked_ssim: bool) -> None:
    prediction, target = random(3, 1, 12, 15), random(3, 1, 12, 15, seed=1)
    mask = random(3, 1, 12, 15, seed=2) < 5.4
    target = torch.where(mask, target, 0)
    together = image_losses(prediction, target, mask, masked_ssim=masked_ssim)
    assert list(together) == ["silog", "l1", "ssim"]
    for i in range(3):
        one = slice(i, i + 1)
        alone = image_losses(prediction[one], target[one], mask[one], masked_ssim=masked_ssim)
        for name, value in together.items():
            assert value.shape == (3,)
            torch.testing.assert_close(value[one], alone[name])
    torch.testing.assert_close(together["l1"][0], (prediction - target)[0][mask[0]].abs().mean())
