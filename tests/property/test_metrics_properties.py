"""Metrics against a plain float64 reference, for any values and masks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from langdepth.evaluation.accumulator import DepthMetrics
from langdepth.evaluation.metrics import METRICS, align, depth_metrics

DEPTH = st.floats(min_value=0.001953125, max_value=1000, width=32)


def reference(p: npt.NDArray[np.float64], t: npt.NDArray[np.float64]) -> dict[str, float]:
    """The definitions, written plainly, on the valid pixels of one image."""
    d = np.log(p) - np.log(t)
    worst = np.maximum(p / t, t / p)
    return {
        "abs_rel": float(np.mean(np.abs(p - t) / t)),
        "sq_rel": float(np.mean((p - t) ** 2 / t)),
        "rmse": math.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": math.sqrt(np.mean(d**2)),
        "log10": float(np.mean(np.abs(np.log10(p) - np.log10(t)))),
        "silog": 100 * float(np.std(d)),
        "delta1": float(np.mean(worst < 1.25)),
        "delta2": float(np.mean(worst < 1.25**2)),
        "delta3": float(np.mean(worst < 1.25**3)),
        "abs_diff": float(np.mean(np.abs(p - t))),
        "msle": float(np.mean(d**2)),
    }


@st.composite
def images(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    shape = (draw(st.integers(1, 3)), 1, draw(st.integers(1, 4)), draw(st.integers(1, 5)))
    depth = arrays(np.float32, shape, elements=DEPTH)
    return draw(depth), draw(depth), draw(arrays(np.bool_, shape))


def near(value: Any, name: str) -> Any:
    # silog subtracts two nearly equal means, so near 0 it shows the root of float64's rounding, times 100
    return pytest.approx(value, rel=1e-9, abs=2e-4 if name == "silog" else 1e-12, nan_ok=True)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(images())
def test_per_image_and_means_match_the_reference(
    case: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]],
) -> None:
    prediction, target, mask = case
    hidden = torch.from_numpy(np.where(mask, target, np.nan))
    tensors = torch.from_numpy(np.where(mask, prediction, np.nan)), hidden, torch.from_numpy(mask)
    found = depth_metrics(*tensors)
    metrics = DepthMetrics()
    metrics.update(*tensors)
    result = metrics.compute()
    expected = [
        reference(p[m].astype(np.float64), t[m].astype(np.float64))
        for p, t, m in zip(prediction, target, mask, strict=True)
        if m.any()
    ]
    used = mask.any((1, 2, 3))
    assert int(result["images"]) == used.sum()
    assert int(result["skipped"]) == (~used).sum()
    if not expected:
        return
    pooled = reference(prediction[mask].astype(np.float64), target[mask].astype(np.float64))
    for name in METRICS:
        values = [case[name] for case in expected]
        assert found[name].numpy()[used].tolist() == near(values, name), name
        assert float(result[name]) == near(np.mean(values), name), name
        assert float(result[f"pixel_{name}"]) == near(pooled[name], name), name


@settings(max_examples=50, deadline=None, derandomize=True)
@given(images(), st.integers(0, 3))
def test_how_images_are_batched_does_not_matter(
    case: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]], cut: int
) -> None:
    tensors = [torch.from_numpy(array) for array in case]
    together, apart = DepthMetrics(), DepthMetrics()
    together.update(*tensors)
    for part in (slice(None, cut), slice(cut, None)):
        apart.update(*(tensor[part] for tensor in tensors))
    for name, value in together.compute().items():
        assert float(value) == near(float(apart.compute()[name]), name.removeprefix("pixel_")), name


@settings(max_examples=50, deadline=None, derandomize=True)
@given(images(), st.floats(0.01, 100))
def test_median_alignment_undoes_any_factor(
    case: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]], factor: float
) -> None:
    _, target, mask = (torch.from_numpy(array) for array in case)
    fitted = align((target.double() * factor).float(), target, mask, "median")
    assert torch.allclose(fitted[mask], target[mask], rtol=1e-5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(images())
def test_least_squares_agrees_with_numpy(
    case: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]],
) -> None:
    prediction, target, mask = case
    tensors = [torch.from_numpy(array) for array in case]
    fitted = align(tensors[0], tensors[1], tensors[2], "least_squares").numpy()
    for f, p, t, m in zip(fitted, prediction, target, mask, strict=True):
        if not m.any():
            continue
        x, y = p[m].astype(np.float64), t[m].astype(np.float64)
        design = np.stack([x - x.mean(), np.ones_like(x)], axis=1)
        best = design @ np.linalg.lstsq(design, y, rcond=1e-6)[0]
        assert np.mean((f[m] - y) ** 2) <= np.mean((best - y) ** 2) + 1e-6 * np.mean(y**2)
