"""Losses of DepthCLIP and the CLIP adapters, by hand and by what must hold; the adapters' sum of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from langdepth import losses
from langdepth.systems.clip_adapters.losses import AdapterLosses, SourceView, adapter_losses, merge_views
from tests.parity import unused_losses

CENTERS = torch.tensor([1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 5 + 0.5


def some(*shape: int) -> Tensor:
    """A mask with two holes in its middle."""
    mask = torch.ones(*shape, dtype=torch.bool)
    mask[..., 3:5, 4:7] = False
    mask[..., -1, -1] = False
    return mask


MASKED: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "silog": losses.silog,
    "l1": losses.l1,
    "l2": losses.l2,
    "berhu": unused_losses.berhu,
    "sobel_gradient": unused_losses.sobel_gradient,
    "sobel_gradient, outside one tenth": lambda p, t, m: unused_losses.sobel_gradient(p, t, m, outside_weight=0.1),
    "ssim_dissimilarity": losses.ssim_dissimilarity,
    "photometric": losses.photometric,
    "bin_cross_entropy": lambda p, t, m: losses.bin_cross_entropy(p.repeat(1, 7, 1, 1), t, CENTERS.double(), m),
}


@pytest.mark.parametrize("name", MASKED)
def test_no_mask_is_a_full_mask(name: str) -> None:
    a, b = random(2, 1, 9, 11), random(2, 1, 9, 11, seed=1)
    torch.testing.assert_close(MASKED[name](a, b, None), MASKED[name](a, b, torch.ones_like(a, dtype=torch.bool)))


@pytest.mark.parametrize("name", sorted(MASKED.keys() - {"sobel_gradient, outside one tenth"}))
def test_what_is_masked_never_counts(name: str) -> None:
    a, b, mask = random(2, 1, 9, 11), random(2, 1, 9, 11, seed=1), some(2, 1, 9, 11)
    spoilt_a, spoilt_b = (torch.where(mask, x, 77.0).requires_grad_() for x in (a, b))
    found = MASKED[name](spoilt_a, spoilt_b, mask)
    torch.testing.assert_close(found, MASKED[name](a, b, mask))
    found.backward()
    assert spoilt_a.grad is not None
    assert (spoilt_a.grad[~mask] == 0).all()
    assert (spoilt_a.grad[mask] != 0).any()


def test_berhu_by_hand() -> None:
    prediction = torch.tensor([0.5, 1.0, 2.0, 10.0])[None, None, None].requires_grad_()
    found = unused_losses.berhu(prediction, torch.zeros(1, 1, 1, 4))  # c = 2
    assert found.item() == pytest.approx((0.5 + 1 + 2 + (100 + 4) / 4) / 4)
    found.backward()
    assert prediction.grad is not None
    assert prediction.grad.flatten().tolist() == pytest.approx([0.25, 0.25, 0.25, 10 / 2 / 4])  # none through c


def test_sobel_by_scipy() -> None:
    image = random(2, 3, 7, 9)
    vertical, horizontal = unused_losses.sobel(image)
    kernel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]])
    for found, used in ((vertical, kernel.T), (horizontal, kernel)):
        expected = [correlate(grey, used, mode="constant") for grey in image.mean(1).numpy()]
        assert found[:, 0].numpy() == pytest.approx(np.stack(expected))


def test_outside_of_the_mask_counts_one_tenth() -> None:
    prediction, target, mask = random(2, 1, 9, 11), random(2, 1, 9, 11, seed=1), some(2, 1, 9, 11)
    inside = unused_losses.sobel_gradient(prediction, target, mask, outside_weight=0.0)
    outside = unused_losses.sobel_gradient(prediction, target, ~mask, outside_weight=0.0)
    found = unused_losses.sobel_gradient(prediction, target, mask, outside_weight=0.1)
    torch.testing.assert_close(found, inside + 0.1 * outside)


def test_depth_midway_between_bins_goes_to_the_lower_one() -> None:
    edges = (CENTERS[1:] + CENTERS[:-1]) / 2
    assert edges.tolist() == [1.25, 1.75, 2.125, 2.375, 2.625, 2.875]
    assert losses.bin_index(edges, CENTERS).tolist() == [0, 1, 2, 3, 4, 5]
    assert losses.bin_index(edges + 1e-3, CENTERS).tolist() == [1, 2, 3, 4, 5, 6]
    assert losses.bin_index(torch.tensor([0.0, 99.0]), CENTERS).tolist() == [0, 6]


def test_bin_cross_entropy_by_hand() -> None:
    logits = torch.zeros(1, 7, 1, 2)
    logits[0, 2, 0, 0] = 3.0
    found = losses.bin_cross_entropy(logits, torch.tensor([2.0, 2.0])[None, None, None], CENTERS)
    assert found.item() == pytest.approx((math.log(math.exp(3) + 6) - 3 + math.log(7)) / 2)


def test_known_depth_is_inside_the_region_and_the_union_is_the_published_one() -> None:
    depth = torch.tensor([0.0, 0.001, 2.0, 3.0])
    region = torch.tensor([True, False, True, False])
    assert unused_losses.known_depth(depth).tolist() == [False, False, True, True]
    assert unused_losses.known_depth(depth, region).tolist() == [False, False, True, False]
    assert unused_losses.known_depth(depth, region, union=True).tolist() == [True, False, True, True]


def test_smoothness_forgives_slopes_at_edges_of_the_image() -> None:
    depth = torch.ones(1, 1, 4, 6)
    depth[..., 3:] = 3.0
    edge = torch.zeros(1, 3, 4, 6)
    edge[..., 3:] = 2.0
    assert losses.smoothness(depth, torch.zeros(1, 3, 4, 6)).item() == pytest.approx(2 / 5)
    assert losses.smoothness(depth, edge).item() == pytest.approx(2 * math.exp(-2) / 5)
    assert losses.smoothness(torch.ones(1, 1, 4, 6), edge).item() == 0


def test_symmetry_pulls_both_views() -> None:
    one, other = torch.tensor([[[[1.0]]]], requires_grad=True), torch.tensor([[[[4.0]]]], requires_grad=True)
    found = losses.symmetry(one, other)
    found.backward()
    assert found.item() == 18
    assert one.grad is not None
    assert other.grad is not None
    assert (one.grad.item(), other.grad.item()) == (-6, 6)


def test_photometric_loss_wants_equal_images_only_with_the_corrected_sign() -> None:
    image, other = random(1, 3, 12, 12) / 6, random(1, 3, 12, 12, seed=1) / 6
    assert losses.ssim_dissimilarity(image, image).item() == pytest.approx(0, abs=1e-12)
    assert losses.photometric(image, image).item() == pytest.approx(0, abs=1e-12)
    assert losses.photometric(image, image, reference_exact=True).item() == pytest.approx(0.85 / 2)
    assert losses.photometric(image, other).item() > 0.4
    s, l1 = losses.ssim_dissimilarity(image, other), losses.l1(image, other)
    assert losses.photometric(image, other).item() == pytest.approx((0.85 * s + 0.15 * l1).item())
    published = losses.photometric(image, other, reference_exact=True)
    assert published.item() == pytest.approx((0.85 * (1 - s) / 2 + 0.15 * l1).item())


# The adapters' sum

SETTINGS = AdapterLosses(symmetry=0.3, smoothness=0.01, bins=0.05, photometric=0.7)


def views(count: int = 2) -> dict[str, Any]:
    image = random(count, 3, 16, 24, seed=3)
    return {
        "depth": random(count, 1, 4, 6).requires_grad_(),
        "mirrored": random(count, 1, 4, 6, seed=1).requires_grad_(),
        "image": image,
        "target": random(count, 1, 16, 24, seed=2),
        "logits": random(count, 7, 4, 6, seed=4).requires_grad_(),
        "bin_centers": CENTERS.double(),
    }


def source(count: int = 2) -> SourceView:
    motion = torch.eye(3, 4, dtype=torch.float64).repeat(count, 1, 1)
    intrinsics = torch.tensor([[20.0, 0, 12], [0, 20, 8], [0, 0, 1]], dtype=torch.float64)
    return SourceView(image=random(count, 3, 16, 24, seed=3), transform=motion, intrinsics=intrinsics)


def test_total_is_the_weighted_sum_and_reaches_every_input() -> None:
    inputs = views()
    found = adapter_losses(SETTINGS, mask=None, source=source(), **inputs)
    assert list(found) == ["symmetry", "smoothness", "depth", "bins", "photometric", "total"]
    expected = sum(getattr(SETTINGS, name) * value for name, value in found.items() if name != "total")
    torch.testing.assert_close(found["total"], expected)
    assert found["photometric"].item() == pytest.approx(0, abs=1e-9)  # the same image from the same place
    found["total"].backward()
    for name in ("depth", "mirrored", "logits"):
        gradient = inputs[name].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


def test_a_loss_without_weight_is_logged_but_not_minimised() -> None:
    inputs = views()
    found = adapter_losses(replace(SETTINGS, depth=0.0, photometric=0.0), mask=None, **inputs)
    assert found["depth"] > 0
    assert "photometric" not in found
    part = 0.3 * found["symmetry"] + 0.01 * found["smoothness"] + 0.05 * found["bins"]
    torch.testing.assert_close(found["total"], part)


@pytest.mark.parametrize("shrink", [1, 4])
def test_holes_of_the_target_never_count_with_a_mask(shrink: int) -> None:
    settings = replace(SETTINGS, photometric=0.0, shrink=shrink)
    inputs, mask = views(), some(2, 1, 16, 24)
    holes = inputs | {"target": torch.where(mask, inputs["target"], 0.0)}
    spoilt = inputs | {"target": torch.where(mask, inputs["target"], 55.0)}
    masked = adapter_losses(settings, mask=mask, **holes)
    for name, value in adapter_losses(settings, mask=mask, **spoilt).items():
        assert value.item() == masked[name].item(), name
    published = adapter_losses(settings, mask=None, **holes)  # holes are learned as 0 m
    assert published["depth"].item() != pytest.approx(masked["depth"].item(), rel=1e-3)


def test_shrinking_keeps_an_even_depth_whatever_the_holes() -> None:
    inputs = views() | {"target": torch.full((2, 1, 16, 24), 2.0, dtype=torch.float64)}
    inputs["depth"] = inputs["mirrored"] = torch.full((2, 1, 4, 6), 2.0, dtype=torch.float64)
    mask = some(2, 1, 16, 24)
    inputs["target"] = torch.where(mask, inputs["target"], 0.0)
    settings = AdapterLosses(shrink=4)
    assert adapter_losses(settings, mask=mask, **inputs)["depth"].item() == pytest.approx(0, abs=1e-12)
    assert adapter_losses(settings, mask=None, **inputs)["depth"].item() > 1e-3


def test_views_are_limited_before_they_are_averaged() -> None:
    depth, mirrored, mean = merge_views(torch.tensor([-1.0, 4.0, 30.0]), torch.tensor([2.0, 6.0, 8.0]), 10.0)
    assert depth.tolist() == [0, 4, 10]
    assert mirrored.tolist() == [2, 6, 8]
    assert mean.tolist() == [1, 5, 9]


def test_a_photometric_loss_needs_a_source() -> None:
    with pytest.raises(ValueError, match="needs a source view"):
        adapter_losses(SETTINGS, mask=None, **views())
