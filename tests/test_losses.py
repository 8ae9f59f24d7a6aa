"""Losses against hand computations in float64; what the mask hides never matters, not even to the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from langdepth import losses
from langdepth.errors import UsageError
from tests.parity import unused_losses


def sig_plus(relative: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """ScaleDepth's loss, every image at its own scale."""
    return losses.sig_plus(relative, torch.linspace(1, 1.5, len(relative)).to(relative), target, mask)


DEPTH_LOSSES: dict[str, Callable[..., Tensor]] = {
    "silog": losses.silog,
    "sig_plus": sig_plus,
    "log_l1": losses.log_l1,
    "gradient": losses.gradient,
    "edges": losses.edges,
    "l1": losses.l1,
    "l2": losses.l2,
    "berhu": unused_losses.berhu,
    "sobel_gradient": unused_losses.sobel_gradient,
}


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and mask (3, 1, 9, 11) float64; the second image has no valid pixel."""
    random = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 3, 1, 9, 11, generator=random, dtype=torch.float64) * 9 + 0.5
    mask = torch.rand(3, 1, 9, 11, generator=random) > 0.4
    mask[1] = False
    return prediction, target, mask


# Hand computations


@pytest.mark.parametrize(("focus", "weight"), [(0.85, 10.0), (0.0, 1.0), (1.0, 2.0)])
def test_silog_by_hand(case: tuple[Tensor, Tensor, Tensor], focus: float, weight: float) -> None:
    prediction, target, mask = (t.numpy() for t in case)
    d = np.log(prediction[mask]) - np.log(target[mask])
    expected = weight * np.sqrt(np.mean(d**2) - focus * np.mean(d) ** 2 + 1e-8)
    found = losses.silog(*case, variance_focus=focus, weight=weight)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_sig_plus_by_hand(case: tuple[Tensor, Tensor, Tensor]) -> None:
    relative, target, mask = case
    scale = torch.tensor([2.0, 9.0, 0.5], dtype=torch.float64)
    within = (mask & (target <= 5)).numpy()
    depth = (relative * scale.view(3, 1, 1, 1)).numpy()
    g = np.log(depth[within] + 1e-3) - np.log(target.numpy()[within] + 1e-3)
    found = losses.sig_plus(relative, scale, target, mask, max_depth=5.0)
    assert found.item() == pytest.approx(10 * np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2), rel=1e-9)
    first = losses.sig_plus(relative, scale, target, mask, max_depth=5.0, warm_up=True)
    assert first.item() == pytest.approx(10 * np.sqrt(0.15) * abs(g.mean()), rel=1e-6)


def test_log_l1_counts_every_image_the_same(case: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, mask = (t.numpy() for t in case)
    means = [
        np.mean(np.abs(np.log(p[m]) - np.log(t[m])))
        for p, t, m in zip(prediction, target, mask, strict=True)
        if m.any()
    ]
    assert len(means) == 2
    assert losses.log_l1(*case).item() == pytest.approx(np.mean(means), rel=1e-12)


def test_gradient_by_hand() -> None:
    # ln prediction = 0 0 1 3 / 0 0 1 3, ln target = 0; the last pixel of the first row is not known.
    prediction = torch.tensor([[0.0, 0, 1, 3], [0, 0, 1, 3]], dtype=torch.float64).exp()[None, None]
    mask = torch.ones(1, 1, 2, 4, dtype=torch.bool)
    mask[..., 0, 3] = False
    across = (0 + 1 + 0 + 1 + 2) / 5  # stride 1, left to right: two pairs in the first row, three in the second
    down = 0.0
    wide = 1.0  # stride 2: the pixels 0 and 2 of the first row
    found = losses.gradient(prediction, torch.ones_like(prediction), mask, scales=2)
    assert found.item() == pytest.approx((across + down + wide) / 2, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_scene_cross_entropy_by_hand(smoothing: float) -> None:
    logits = torch.tensor([[1.0, 2, 3], [0, 0, 5], [9, 9, -9]], dtype=torch.float64, requires_grad=True)
    scene = torch.tensor([2, 0, -1])
    logs = torch.log_softmax(logits.detach(), -1)
    per_row = [-(1 - smoothing) * logs[i, s] - smoothing * logs[i].mean() for i, s in ((0, 2), (1, 0))]
    found = losses.scene_cross_entropy(logits, scene, label_smoothing=smoothing)
    assert found.item() == pytest.approx(float(sum(per_row)) / 2, rel=1e-12)
    found.backward()
    assert logits.grad is not None
    assert (logits.grad[2] == 0).all()  # the unknown one
    assert (logits.grad[:2] != 0).any()


def test_scene_cross_entropy_in_the_published_form() -> None:
    logits = torch.tensor([[1.0, 2, 3], [9, 9, -9]], dtype=torch.float64)
    scene = torch.tensor([2, -1])
    twice = -torch.log_softmax(torch.softmax(logits, -1), -1)[0, 2].item()
    assert losses.scene_cross_entropy(logits, scene, form="probabilities").item() == pytest.approx(twice, rel=1e-12)
    shared = losses.scene_cross_entropy(logits, scene, form="probabilities", mean_over_all=True)
    assert shared.item() == pytest.approx(twice / 2, rel=1e-12)


def test_unknown_scenes_alone_cost_nothing() -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = losses.scene_cross_entropy(logits, torch.tensor([-1, -1]), label_smoothing=0.1)
    found.backward()
    assert found.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


# Masks


@pytest.mark.parametrize("name", DEPTH_LOSSES)
@pytest.mark.parametrize("hidden", [torch.nan, torch.inf, 0.0, -1.0])
@pytest.mark.parametrize("where", ["target", "prediction"])
def test_masked_pixels_never_matter(case: tuple[Tensor, Tensor, Tensor], name: str, hidden: float, where: str) -> None:
    prediction, target, mask = case
    clean = prediction.clone().requires_grad_()
    expected = DEPTH_LOSSES[name](clean, target, mask)
    expected.backward()
    spoilt = torch.where(mask, prediction, hidden) if where == "prediction" else prediction.clone()
    spoilt.requires_grad_()
    found = DEPTH_LOSSES[name](spoilt, torch.where(mask, target, hidden) if where == "target" else target, mask)
    found.backward()
    assert found.item() == expected.item()
    assert clean.grad is not None
    assert spoilt.grad is not None
    assert (spoilt.grad[~mask] == 0).all()
    assert (spoilt.grad[mask] != 0).any()
    torch.testing.assert_close(spoilt.grad, clean.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", DEPTH_LOSSES)
def test_without_valid_pixels_the_loss_is_0_and_its_gradient_finite(name: str) -> None:
    prediction = torch.ones(2, 1, 5, 6, requires_grad=True)
    target = torch.full((2, 1, 5, 6), torch.nan)
    found = DEPTH_LOSSES[name](prediction, target, torch.zeros(2, 1, 5, 6, dtype=torch.bool))
    found.backward()
    assert found.item() == 0
    assert prediction.grad is not None
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("name", DEPTH_LOSSES)
def test_a_perfect_prediction_has_almost_no_loss_and_a_finite_gradient(name: str) -> None:
    prediction = torch.linspace(1, 5, 30).view(1, 1, 5, 6).requires_grad_()
    found = DEPTH_LOSSES[name](prediction, prediction.detach(), torch.ones(1, 1, 5, 6, dtype=torch.bool))
    found.backward()
    assert 0 <= found.item() < 2e-3
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("name", DEPTH_LOSSES)
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_predictions_that_are_not_positive_stay_finite(name: str, value: float) -> None:
    prediction = torch.full((1, 1, 4, 4), value)
    prediction[..., 0] = 2.0
    prediction.requires_grad_()
    target = torch.ones(1, 1, 4, 4)
    target[..., 1] = 2.0
    found = DEPTH_LOSSES[name](prediction, target, torch.ones(1, 1, 4, 4, dtype=torch.bool))
    found.backward()
    assert torch.isfinite(found)
    assert found.item() > 0.5
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_gradient_of_narrow_images_is_finite(shape: tuple[int, int]) -> None:
    prediction = torch.full((1, 1, *shape), 2.0)
    found = losses.gradient(prediction, torch.ones(1, 1, *shape), torch.ones(1, 1, *shape, dtype=torch.bool))
    assert found.item() == 0


# Invariance


def test_silog_with_full_focus_ignores_the_scale(case: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, mask = case
    at_scale = [losses.silog(prediction * f, target, mask, variance_focus=1.0).item() for f in (1.0, 3.0, 0.2)]
    assert at_scale[1:] == pytest.approx([at_scale[0]] * 2, rel=1e-12)
    partly = [losses.silog(prediction * f, target, mask).item() for f in (1.0, 3.0)]
    assert partly[1] > partly[0] * 1.05


def test_gradient_ignores_the_scale_and_sees_edges(case: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, mask = case
    assert losses.gradient(prediction * 7, target, mask).item() == pytest.approx(
        losses.gradient(prediction, target, mask).item(), rel=1e-9
    )
    assert losses.gradient(target * 7, target, mask).item() == pytest.approx(0, abs=1e-12)


def test_the_usual_silog_is_that_of_bts() -> None:
    """10 sqrt(mean d^2 - 0.85 (mean d)^2), the default of the systems that train with it."""
    target = torch.full((1, 1, 2, 2), 2.0)
    prediction = target * torch.tensor([1.0, 1.5, 2.0, 1.0]).view(1, 1, 2, 2)
    d = [0, math.log(1.5), math.log(2), 0]
    mean, squares = sum(d) / 4, sum(x * x for x in d) / 4
    found = losses.silog(prediction, target, target > 0)
    assert float(found) == pytest.approx(10 * math.sqrt(squares - 0.85 * mean**2), rel=1e-5)


def test_silog_of_adabins_has_an_unbiased_variance() -> None:
    target = torch.tensor([1.0, 2.0, 4.0, 0.0]).view(1, 1, 2, 2)
    prediction = torch.tensor([2.0, 2.0, 2.0, 9.0]).view(1, 1, 2, 2)
    d = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64).log()
    expected = 10 * (d.var(correction=1) + 0.15 * d.mean() ** 2).sqrt()
    found = losses.silog(prediction, target, target > 0, unbiased=True)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    one = torch.tensor([True, False, False, False]).view(1, 1, 2, 2)
    assert losses.silog(prediction, target, one, unbiased=True).isfinite()


def test_silog_by_image_overlooks_a_thousandth() -> None:
    """Differences of logarithms up to 0.001 count as none; the loss is times the share of valid pixels."""
    target = torch.ones(2, 1, 1, 4)
    prediction = torch.tensor([0.0009, 0.0009, 0.5, 0.0, 0.0009, -0.0009, 0.0, 0.0]).exp().view(2, 1, 1, 4)
    found = losses.silog_by_image(prediction, target, target > 0)
    assert found.tolist() == pytest.approx([0.25 / 4 - 0.85 * (0.5 / 4) ** 2, 0.0], rel=1e-4, abs=1e-9)
    half = torch.tensor([True, False, True, False]).view(1, 1, 1, 4).expand(2, -1, -1, -1)
    found = losses.silog_by_image(prediction, target, half)
    assert float(found[0]) == pytest.approx(0.5 * (0.25 / 2 - 0.85 * (0.5 / 2) ** 2), rel=1e-4)


@pytest.mark.parametrize("name", ["silog", "log_l1", "gradient", "l1", "l2"])
def test_shapes_that_differ_are_refused(name: str) -> None:
    depth = torch.rand(2, 1, 8, 8) + 1
    with pytest.raises(UsageError, match=r"one shape, got \(2, 1, 8, 8\) and \(2, 8, 8\)"):
        DEPTH_LOSSES[name](depth, depth[:, 0], depth > 0)


def test_edges_by_hand() -> None:
    """Of three steps of a row one is an edge, between 1 and 2 metres; the masked pixel is on neither side of one."""
    target = torch.tensor([1.0, 1.05, 2.1, 2.1, 9.0]).view(1, 1, 1, 5)
    prediction = torch.tensor([1.0, 1.0, 1.5, 2.0, 1.0]).view(1, 1, 1, 5)
    mask = torch.tensor([True, True, True, True, False]).view(1, 1, 1, 5)
    found = losses.edges(prediction, target, mask, distances=(1, 2))
    one = math.log(2) - math.log(1.5)
    two = (math.log(2.1) - math.log(1.5) + math.log(2) - math.log(2)) / 2
    assert float(found) == pytest.approx((one + two) / 4)  # the column has none at either distance
