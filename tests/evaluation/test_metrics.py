"""Metrics on cases worked out by hand, alignment, accumulation, masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from langdepth.errors import UsageError
from langdepth.evaluation.accumulator import DepthMetrics
from langdepth.evaluation.metrics import (
    DEPTH_EDGES,
    ERROR_EDGES,
    EXTRA_METRICS,
    METRICS,
    align,
    depth_metrics,
    edge_counts,
    edge_scores,
    error_histogram,
    error_quartiles,
    error_sums,
    range_sums,
)
from langdepth.evaluation.protocols import Alignment


def maps(*rows: list[float]) -> torch.Tensor:
    """One image per row: (B, 1, 1, W)."""
    return torch.tensor(rows)[:, None, None, :]


def everywhere(like: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(like, dtype=torch.bool)


def test_two_pixels_by_hand() -> None:
    prediction, target = maps([2.0, 3.0]), maps([1.0, 4.0])
    values = {name: float(v) for name, v in depth_metrics(prediction, target, everywhere(target)).items()}
    d = [math.log(2), math.log(0.75)]
    assert values == pytest.approx(
        {
            "abs_rel": (1 + 0.25) / 2,
            "sq_rel": (1 + 0.25) / 2,
            "rmse": 1.0,
            "rmse_log": math.sqrt((d[0] ** 2 + d[1] ** 2) / 2),
            "log10": (abs(d[0]) + abs(d[1])) / 2 / math.log(10),
            "silog": 100 * (d[0] - d[1]) / 2,
            "delta1": 0.0,  # 4 / 3 is above 1.25
            "delta2": 0.5,
            "delta3": 0.5,  # 2 is above 1.953
            "abs_diff": 1.0,
            "delta0.5": 0.0,
            "msle": (d[0] ** 2 + d[1] ** 2) / 2,
        },
        rel=1e-12,
    )
    assert tuple(values) == (*METRICS, *EXTRA_METRICS)


def test_delta_threshold_is_strict() -> None:
    target = maps([4.0, 4.0, 4.0, 4.0])
    values = depth_metrics(maps([5.0, 3.2, 4.99, 6.25]), target, everywhere(target))
    assert float(values["delta1"]) == pytest.approx(0.5)  # 5 / 4 is not below 1.25; 4 / 3.2 in float32 is
    assert float(values["delta2"]) == pytest.approx(0.75)  # 6.25 / 4 is not below 1.5625


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1.0, 0.0])
def test_masked_pixels_never_matter(junk: float) -> None:
    prediction, target = maps([2.0, junk, 3.0]), maps([1.0, junk, 4.0])
    mask = maps([1.0, 0.0, 1.0]).bool()
    whole = depth_metrics(maps([2.0, 3.0]), maps([1.0, 4.0]), everywhere(maps([1.0, 4.0])))
    for name, value in depth_metrics(prediction, target, mask).items():
        assert float(value) == float(whole[name]), name
    for kind in ("median", "least_squares"):
        fitted = align(prediction, target, mask, kind)
        assert torch.equal(fitted[mask], align(maps([2.0, 3.0]), maps([1.0, 4.0]), mask[..., [0, 2]], kind).flatten())


def test_silog_ignores_a_constant_factor_and_its_rounding() -> None:
    target = torch.rand(1, 1, 50, 60, generator=torch.Generator().manual_seed(0)) + 1
    values = depth_metrics(3 * target, target, everywhere(target))
    assert float(values["silog"]) < 1e-3
    assert float(values["rmse_log"]) == pytest.approx(math.log(3), rel=1e-6)


def test_image_mean_and_pixel_mean_differ_as_they_should() -> None:
    # one image with one pixel and error 1 m, one with three pixels and error 2 m
    prediction, target = maps([2.0, 9.0, 9.0], [3.0, 3.0, 3.0]), maps([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    mask = maps([1.0, 0.0, 0.0], [1.0, 1.0, 1.0]).bool()
    metrics = DepthMetrics()
    metrics.update(prediction, target, mask)
    result = metrics.compute()
    assert float(result["rmse"]) == pytest.approx(1.5)
    assert float(result["pixel_rmse"]) == pytest.approx(math.sqrt((1 + 3 * 4) / 4))
    d = torch.tensor([2.0, 3.0, 3.0, 3.0]).double().log()
    assert float(result["pixel_silog"]) == pytest.approx(100 * float(d.std(correction=0)))
    assert float(result["silog"]) == pytest.approx(0, abs=1e-4)


def test_images_without_valid_pixels_are_counted_not_averaged() -> None:
    prediction, target = maps([2.0, 2.0], [5.0, 5.0]), maps([1.0, 1.0], [0.0, 0.0])
    mask = target > 0
    metrics = DepthMetrics()
    metrics.update(prediction, target, mask)
    result = metrics.compute()
    assert (int(result["images"]), int(result["skipped"])) == (1, 1)
    assert float(result["abs_rel"]) == float(result["pixel_abs_rel"]) == 1
    assert metrics.last["abs_rel"].isnan().tolist() == [False, True]


def test_nothing_valid_is_nan_not_zero() -> None:
    target = maps([0.0])
    metrics = DepthMetrics()
    metrics.update(target, target, target > 0)
    found = metrics.compute()
    assert all(found[name].isnan() and found[f"pixel_{name}"].isnan() for name in METRICS)
    assert int(found["skipped"]) == 1


def test_sums_stay_exact_over_many_large_values() -> None:
    # float32 sums of this size are off by far more than the tolerance
    target = torch.full((1, 1, 1000, 2000), 1000.1)
    prediction = target + 0.1
    value = depth_metrics(prediction, target, everywhere(target))["rmse"]
    assert float(value) == pytest.approx(
        float(prediction[0, 0, 0, 0].double() - target[0, 0, 0, 0].double()), rel=1e-12
    )


def test_median_alignment_takes_the_mean_of_the_middle_two() -> None:
    prediction, target = maps([1.0, 2.0, 4.0, 9.0], [1.0, 2.0, 3.0, 0.5]), maps([10.0, 20.0, 40.0, 70.0], [6.0] * 4)
    mask = maps([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]).bool()
    fitted = align(prediction, target, mask, "median")
    assert torch.allclose(fitted, maps([10.0, 20.0, 40.0, 90.0], [3.0, 6.0, 9.0, 1.5]))


def test_least_squares_recovers_scale_and_shift_per_image() -> None:
    prediction = torch.rand(3, 1, 7, 9, generator=torch.Generator().manual_seed(1)) + 0.5
    scale, shift = torch.tensor([2.0, 0.3, -1.5]), torch.tensor([0.5, -0.1, 9.0])
    target = prediction * scale[:, None, None, None] + shift[:, None, None, None]
    mask = torch.rand(3, 1, 7, 9, generator=torch.Generator().manual_seed(2)) < 0.7
    assert torch.allclose(align(prediction, target, mask, "least_squares"), target, atol=1e-5)


def test_least_squares_of_a_constant_prediction_is_the_mean() -> None:
    target = maps([1.0, 2.0, 6.0])
    assert torch.equal(align(maps([0.1, 0.1, 0.1]), target, everywhere(target), "least_squares"), maps([3.0] * 3))


@pytest.mark.parametrize("kind", ["none", "median", "least_squares"])
def test_alignment_leaves_an_image_without_target_alone(kind: Alignment) -> None:
    prediction = maps([1.0, 2.0])
    assert torch.equal(align(prediction, maps([0.0, 0.0]), maps([0.0, 0.0]).bool(), kind), prediction)


def test_unknown_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean' is none of none, median, least_squares"):
        align(maps([1.0]), maps([1.0]), maps([1.0]).bool(), "mean")  # type: ignore[arg-type]


def test_quartiles_of_the_error_at_each_depth() -> None:
    target = np.array([1.01] * 100 + [50.0] * 300, np.float32)
    relative = np.concatenate([np.linspace(0.1, 0.3, 100), np.full(300, 0.02)]).astype(np.float32)
    errors = error_histogram(target * (1 + relative), target)
    near, far = np.searchsorted(DEPTH_EDGES, [1.01, 50.0], side="right") - 1
    assert (errors[near].sum(), errors[far].sum(), errors.sum()) == (100, 300, 400)
    quartiles = error_quartiles(errors)
    assert quartiles[:, near].tolist() == pytest.approx([0.15, 0.2, 0.25], rel=0.06)
    assert quartiles[:, far].tolist() == pytest.approx([0.02] * 3, rel=0.06)
    assert np.isnan(quartiles).sum() == 3 * (len(errors) - 2)


def test_depths_and_errors_are_counted_where_the_edges_say() -> None:
    depth = np.random.default_rng(0).uniform(0.04, 900, 10_000).astype(np.float32)
    counts = error_histogram(depth * np.float32(1.1), depth).sum(1)
    assert np.abs(counts - np.histogram(depth, DEPTH_EDGES)[0]).sum() <= 4  # on an edge rounding decides
    assert DEPTH_EDGES[1:] / DEPTH_EDGES[:-1] == pytest.approx(2**0.25)
    assert ERROR_EDGES[1:] / ERROR_EDGES[:-1] == pytest.approx(2 ** (1 / 16))


def test_the_histogram_keeps_values_beyond_its_ends() -> None:
    target = np.array([0.001, 5000.0, 1.0], np.float32)
    counts = error_histogram(np.array([1000.0, 5000.0, 1.0], np.float32), target)
    assert counts.sum() == 3
    assert (counts[0, -1], counts[-1, 0]) == (1, 1)


def test_sums_of_ranges_are_those_of_their_pixels_alone() -> None:
    random = torch.Generator().manual_seed(0)
    target = 90 * torch.rand(160_000, generator=random).square() + 0.1  # more than one block in a range
    target[:4] = torch.tensor([1.0, 2.0, 3.0, 300.0])  # on the border: part of the farther range
    prediction = target * (0.7 + 0.6 * torch.rand(target.shape, generator=random))
    sums = range_sums(prediction.numpy(), target.numpy())
    assert sums.shape == (9, 13)
    maps = (prediction.view(1, 1, 400, 400), target.view(1, 1, 400, 400))
    p, t = prediction.double(), target.double()
    for number, (low, high) in enumerate(itertools.pairwise((0, 1, 2, 3, 5, 10, 20, 40, 80, np.inf))):
        inside = (maps[1] >= low) & (maps[1] < high)
        assert sums[number] == pytest.approx(error_sums(*maps, inside)[0].numpy(), rel=1e-12)
        here = inside.flatten()
        assert sums[number, 0] == int(inside.sum())
        assert sums[number, 3] == int((torch.maximum(p / t, t / p)[here] < 1.25).sum())
        assert sums[number, 6] == pytest.approx(float(((p - t).square() / t)[here].sum()), rel=1e-12)


def test_sums_do_not_depend_on_the_number_of_threads() -> None:
    target = torch.rand(1, 1, 480, 640, generator=torch.Generator().manual_seed(0)) + 1
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = error_sums(target * 1.1, target, everywhere(target))
        torch.set_num_threads(4)
        assert torch.equal(error_sums(target * 1.1, target, everywhere(target)), one)
    finally:
        torch.set_num_threads(threads)


def test_edges_of_a_step() -> None:
    step = torch.ones(1, 1, 8, 10)
    step[..., 5:] = 1.3  # one edge a row, above all thresholds
    counts = edge_counts(step, step, everywhere(step))
    assert counts.tolist() == [[8, 8, 8]] * 5
    assert edge_scores(counts) == {"precision": 1, "recall": 1, "f1": 1}
    # Half as high: found for the thresholds below 1.15 only
    lower = torch.where(step > 1, 1.15 - 1e-3, 1.0)
    assert edge_counts(lower, step, everywhere(step))[:, 1].tolist() == [8, 8, 0, 0, 0]
    lower_scores = edge_scores(edge_counts(lower, step, everywhere(step)))
    assert lower_scores is not None
    assert lower_scores["recall"] == pytest.approx(2 / 5)
    # A pixel aside it is another edge, the other way round it is a wrong one; up and down counts like left and right
    aside_scores = edge_scores(edge_counts(step.roll(1, -1), step, everywhere(step)))
    assert aside_scores is not None
    assert aside_scores["f1"] == 0
    assert edge_counts(1 / step, step, everywhere(step)).tolist() == [[8, 8, 0]] * 5
    assert edge_counts(step.mT, step.mT, everywhere(step.mT)).tolist() == [[8, 8, 8]] * 5


@pytest.mark.parametrize(("place", "ratio"), enumerate((1.05, 1.10, 1.15, 1.20, 1.25)))
def test_thresholds_of_edges(place: int, ratio: float) -> None:
    step = torch.ones(1, 1, 2, 10)
    for factor, edges in ((0.999, place), (1.001, place + 1)):
        step[..., 5:] = ratio * factor
        assert edge_counts(step, step, everywhere(step))[:, 0].tolist() == [2] * edges + [0] * (5 - edges)


def test_edges_need_two_known_neighbours() -> None:
    step = torch.ones(1, 1, 8, 10)
    step[..., 5:] = 2
    known = everywhere(step)
    known[0, 0, :3, 5] = False
    unknown = torch.where(known, step, torch.nan)
    assert edge_counts(step, unknown, known).tolist() == [[5, 5, 5]] * 5
    flat = torch.ones_like(step)
    assert edge_scores(edge_counts(step, flat, known)) is None
    assert edge_scores(edge_counts(flat, step, known)) == {"precision": 0, "recall": 0, "f1": 0}


def test_disparity_is_fitted_in_disparity() -> None:
    target = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(0)) * 9 + 1
    mask = everywhere(target)
    disparity = 40 * (1 / target) - 7  # known up to scale and shift, partly below 0
    assert torch.allclose(align(disparity, target, mask, "disparity", disparity=True), target, rtol=1e-4)
    assert not torch.allclose(align(disparity, target, mask, "least_squares"), target, rtol=0.1)
    assert torch.allclose(align(1 / (3 / target + 1), target, mask, "disparity"), target, rtol=1e-4)  # from depth
    far = align(torch.where(target < 5, disparity, -1e3), target, target < 5, "disparity", disparity=True)
    assert float(far.max()) == pytest.approx(1000)
    with pytest.raises(ValueError, match="disparity is no depth"):
        align(disparity, target, mask, "median", disparity=True)


def test_a_prediction_that_is_not_above_0_is_beyond_every_threshold() -> None:
    prediction, target = maps([-1.0, 0.0, 2.0, 1.0]), maps([1.0, 1.0, 2.0, 2.0])
    values = {name: float(v) for name, v in depth_metrics(prediction, target, everywhere(target)).items()}
    assert [values[name] for name in ("delta0.5", "delta1", "delta2", "delta3")] == [0.25] * 4
    # (|-1 - 1| / 1 + |0 - 1| / 1 + 0 + |1 - 2| / 2) / 4: these two pixels are wrong like any other
    assert values["abs_rel"] == pytest.approx(3.5 / 4)
    assert values["rmse"] == pytest.approx(math.sqrt((4 + 1 + 0 + 1) / 4))
    # The logarithms are those of the last two pixels: d = 0 and ln 1/2
    assert values["rmse_log"] == pytest.approx(math.log(2) / math.sqrt(2))
    assert values["log10"] == pytest.approx(math.log10(2) / 2)
    assert values["silog"] == pytest.approx(100 * math.log(2) / 2)
    alone = depth_metrics(maps([-1.0]), maps([1.0]), everywhere(maps([1.0])))
    assert float(alone["delta1"]) == 0
    assert all(math.isnan(float(alone[name])) for name in ("rmse_log", "log10", "silog", "msle"))


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32, torch.float64]
)
def test_predictions_of_any_precision(dtype: torch.dtype) -> None:
    target = maps([1.0, 4.0, 8.0])
    prediction = maps([1.5, 3.0, 8.0]).to(dtype)  # exact in all of them
    metrics = DepthMetrics()
    metrics.update(prediction, target, everywhere(target))
    assert float(metrics.compute()["abs_rel"]) == pytest.approx((0.5 + 0.25) / 3)
    for kind in ("median", "least_squares", "disparity"):
        wanted = align(prediction.float(), target, everywhere(target), kind)
        assert torch.equal(align(prediction, target, everywhere(target), kind), wanted)
    assert edge_counts(prediction, target, everywhere(target))[-1].tolist() == [2, 2, 2]


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8)])
def test_height_and_width_alone_are_one_image(shape: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(1, 1, 6, 8, generator=random) + 0.5 for _ in range(2))
    mask = target > 0.7
    flat = [one.view(shape) for one in (prediction, target, mask)]
    found, wanted = depth_metrics(*flat), depth_metrics(prediction, target, mask)
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in wanted.items()}
    for kind in ("median", "least_squares", "disparity"):
        assert torch.equal(align(*flat, kind), align(prediction, target, mask, kind).view(shape))
    assert edge_counts(*flat).tolist() == edge_counts(prediction, target, mask).tolist()
    metrics = DepthMetrics()
    metrics.update(*flat)
    assert int(metrics.compute()["images"]) == 1


@pytest.mark.parametrize(
    ("prediction", "target", "mask", "message"),
    [
        (torch.ones(2, 2), torch.ones(1, 1, 2, 2), torch.ones(2, 2).bool(), "one shape"),
        (torch.ones(2, 2).int(), torch.ones(2, 2), torch.ones(2, 2).bool(), "prediction must be of a floating type"),
        (torch.ones(2, 2), torch.ones(2, 2).long(), torch.ones(2, 2).bool(), "target must be of a floating type"),
        (torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2).bool(), "one shape"),
        (torch.ones(2, 2), torch.ones(2, 2), torch.ones(2, 2), "of bool"),  # NumPy would take 0 and 1 as places
        (
            np.ones((2, 2)),
            torch.ones(2, 2),
            torch.ones(2, 2).bool(),
            "found ndarray, Tensor, Tensor",
        ),
        (torch.ones(2, 2), torch.zeros(2, 2), torch.ones(2, 2).bool(), "image 0 of the batch: its target"),
        (torch.ones(2, 2), torch.full((2, 2), torch.nan), torch.ones(2, 2).bool(), "its target must be above 0"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        error_sums(prediction, target, mask)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_is_named_and_in_no_mean(bad: float) -> None:
    prediction, target = maps([2.0, 2.0], [bad, 1.0], [1.0, bad]), maps([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])
    mask = maps([1.0, 1.0], [1.0, 1.0], [1.0, 0.0]).bool()  # what stands outside does not matter
    metrics = DepthMetrics()
    with pytest.warns(UserWarning, match=r"^b\.png: its predicted depth is not finite") as warned:
        metrics.update(prediction, target, mask, ["a.png", "b.png", "c.png"])
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=r"^image 1 of the batch: "):
        metrics.update(prediction, target, mask)
    found = metrics.compute()
    assert [int(found[name]) for name in ("images", "skipped", "not_finite")] == [4, 0, 2]
    assert float(found["abs_rel"]) == 0.5  # (1 + 0) / 2
    assert float(found["pixel_abs_rel"]) == pytest.approx(2 / 3)  # (1 + 1 + 0) / 3


def test_image_means_of_logarithms_are_of_the_images_that_have_them() -> None:
    prediction, target = maps([-1.0], [2.0]), maps([1.0], [1.0])
    metrics = DepthMetrics()
    metrics.update(prediction, target, everywhere(target))
    found = metrics.compute()
    assert float(found["rmse_log"]) == float(found["pixel_rmse_log"]) == pytest.approx(math.log(2))
    assert float(found["delta3"]) == 0
    assert float(found["abs_rel"]) == pytest.approx((2 + 1) / 2)


def test_the_accumulator_follows_torchmetrics() -> None:
    target = maps([1.0, 2.0])
    metrics = DepthMetrics(prefix="val/")
    batch = metrics(target * 1.1, target, everywhere(target))  # forward: the batch alone, and added
    found = metrics.compute()
    assert batch == found
    assert all(name.startswith("val/") and value.ndim == 0 for name, value in found.items())  # what log_dict takes
    assert set(metrics.higher_is_better) == set(found) - {"val/images", "val/skipped", "val/not_finite"}
    assert (metrics.higher_is_better["val/pixel_delta1"], metrics.higher_is_better["val/rmse"]) == (True, False)
    assert set(MetricCollection({"depth": DepthMetrics()})(target, target, everywhere(target))) >= {"abs_rel", "rmse"}
    assert metrics.last
    metrics.reset()
    assert metrics.last == {}
    assert int(metrics.compute()["val/images"]) == 0


def test_arrays_are_not_aligned() -> None:
    ones: Any = np.ones((2, 2))
    with pytest.raises(UsageError, match=r"torch.from_numpy makes them"):
        align(ones, ones, ones > 0, "median")
