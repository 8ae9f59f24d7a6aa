"""Cases of other sizes, options, values and words than the committed ones; expectations are worked out in NumPy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.text.clip_text import ClipTextTower, tokenize
from tests.parity.cases_scaledepth_functions import unit_features
from tests.parity.runner import DATA, Report, run_case

Array = np.ndarray[Any, Any]


def run(case: str, folder: Path, arrays: dict[str, Any]) -> Report:
    np.savez(folder / f"{case}.npz", **arrays)
    return run_case(case, folder / f"{case}.npz")


def missed(report: Report) -> list[str]:
    return [str(row) for row in report.rows if not row.good]


def published_metrics(p: Array, t: Array, names: list[str]) -> list[float]:
    """The definitions of the specification over the pixels of one image, float64."""
    d, worst = np.log(p) - np.log(t), np.maximum(p / t, t / p)
    found = {f"d{k:g}": float((worst < 1.25**k).mean()) for k in (0.5, 1, 2, 3)} | {
        "abs_rel": np.mean(np.abs(p - t) / t),
        "sq_rel": np.mean((p - t) ** 2 / t),
        "rmse": np.sqrt(np.mean((p - t) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(d)) / np.log(10),
        "silog": 100 * np.std(d),
    }
    return [float(found[name]) for name in names]


@pytest.mark.parametrize(
    "options",
    [
        {},  # no limit of depth
        {"max_depth_eval": 40.0, "crop_type": "garg_crop"},
        {"min_depth_eval": 0.5, "depth_clamp": True},
        {"max_depth_eval": 20.0, "focal_length_rescale": True},
    ],
)
def test_scaledepth_metrics_under_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    shape, per_metre = (3, 70, 92), 256.0
    target = random.integers(0, 100 * 256, shape).astype(np.uint16)  # up to 100 m, single pixels unknown
    target[0, :5] = 0
    predicted = (target * random.uniform(0.6, 1.5, shape) + 1).clip(1, 65535).astype(np.uint16)
    focal = np.array([400.0, 519.163756, 700.0])
    names = ["d1", "d0.5", "rmse", "abs_rel", "silog", "rmse_log", "log10", "sq_rel", "d3", "d2"]
    low, high = options.get("min_depth_eval", 0.001), options.get("max_depth_eval", np.inf)
    p, t = predicted / per_metre, target / per_metre
    if options.get("focal_length_rescale"):
        p = p * (focal / 519.163756)[:, None, None]
    if options.get("depth_clamp"):
        p = p.clip(low, high)
    rows = columns = slice(None)
    if options.get("crop_type") == "garg_crop":
        rows, columns = slice(28, 69), slice(3, 88)  # 0.408 and 0.992 of 70 = 28.57 and 69.4, 0.036 and 0.964 of 92
    window = np.s_[:, rows, columns]
    used = (t[window] > low) & (t[window] < high)
    each = [published_metrics(*pair, names) for pair in zip(*(_masked(x[window], used) for x in (p, t)), strict=True)]
    arrays = {
        "none.options_json": json.dumps(options),
        "none.code_per_metre": per_metre,
        "none.focal": focal,
        "none.names": np.array(names),
        "none.gt_code": target,
        "none.pred_code": predicted,
        "none.per_image": np.array(each),
        "none.mean": np.mean(each, 0),
        "none.n_valid": used.sum((1, 2)),
    }
    report = run("scaledepth_metrics_twin", tmp_path, arrays)
    assert missed(report) == []
    assert {row.name for row in report.rows} == {"none.per_image", "none.mean", "none.n_valid"}


def _masked(values: Array, used: Array) -> list[Array]:
    return [image[here] for image, here in zip(values, used, strict=True)]


def test_prompt_metrics_limit_no_prediction(tmp_path: Path) -> None:
    """Beyond 10 m a prediction counts as it is: the published limit comes before, on what the network gives."""
    committed = dict(np.load(DATA / "prompt_losses_metrics.npz"))
    random = np.random.default_rng(5)
    prediction = random.uniform(0.5, 30, (2, 1, 15, 20)).astype(np.float32)
    target = np.where(random.random((2, 1, 480, 640)) < 0.3, 0, random.uniform(0.2, 12, (2, 1, 480, 640)))
    target = target.astype(np.float32)
    large = F.interpolate(torch.from_numpy(prediction), (480, 640), mode="bilinear", align_corners=True).numpy()
    used = (target > 1e-3) & (target <= 10)
    inside = np.zeros_like(used)
    inside[..., 45:471, 41:601] = True
    used &= inside
    names = ["abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "d1", "d2", "d3"]
    p, t = (x.astype(np.float64) for x in (large, target))
    images = [published_metrics(p[i][used[i]], t[i][used[i]], names) for i in range(2)]
    running = np.mean([[v**2 if n == "rmse_log" else v for n, v in zip(names, m, strict=True)] for m in images], 0)
    arrays = {
        "nyu_gt": target,
        "nyu_pred": prediction,
        "nyu_mask_count": used.sum((1, 2, 3)),
        "nyu_pre_mean": np.array([p.mean()]),
        "nyu_pixelwise": np.array(published_metrics(p[used], t[used], names)),
        "nyu_running": running,
    }
    assert set(arrays) < set(committed)
    report = run("prompt_losses_metrics_twin", tmp_path, arrays)
    assert missed(report) == []
    assert len(report.rows) == 4


def test_depth_mix_rounds_down_like_a_cast(tmp_path: Path) -> None:
    """Of the millimetres that float32 metres give back, some lie just below a whole number."""
    arrays = dict(np.load(DATA / "scaledepth_data.npz"))
    millimetres = np.arange(1, 10001, dtype=np.float32)
    metres = millimetres * np.float32(0.001)
    below = millimetres[np.trunc(metres / np.float32(0.001)) < millimetres]
    assert len(below) >= 50
    height, width = arrays["depth_mix.gt_metres"].shape
    stored = np.resize(below, (height, width)) * np.float32(0.001)
    out = arrays["depth_mix.image"].copy()
    _, left, share = arrays["depth_mix.uniform_draws_prob_left_width"].tolist()
    first = int(width * left)
    end = first + int(max(1, (width - first) * 0.75 * share))
    grey = (stored / np.float32(0.001)).astype(np.int64) % 256
    out[:, first:end] = grey[:, first:end, None]
    wanted = np.pad(np.resize(below, (height, width)) * np.float32(0.001), ((0, 20 - height), (0, 30 - width)))
    image = np.pad(arrays["depth_mix.image"].transpose(2, 0, 1), ((0, 0), (0, 20 - height), (0, 30 - width)))
    changed = {
        "depth_mix.gt_metres": stored,
        "depth_mix.out": out,
        "pad.gt": wanted[None],
        "pad.image": image[None].astype(np.float32),
    }
    kept = ("nyu.file", "nyu.depth_file", "nyu.category_id", "depth_mix.image")
    draws = "depth_mix.uniform_draws_prob_left_width"
    report = run("scaledepth_data_twin", tmp_path, {name: arrays[name] for name in (*kept, draws)} | changed)
    assert missed(report) == []
    assert {row.name for row in report.rows} >= set(changed) - {"depth_mix.gt_metres"}


@pytest.mark.parametrize("prompts", [["a photo of a living room"], ["A kitchen, seen from the door", "outdoors"]])
def test_scene_sentences_in_any_wording(prompts: list[str]) -> None:
    with pytest.warns(UserWarning, match="RANDOM"):
        weights = find_clip_weights("random", "ViT-small", quick_gelu=False)
    with torch.no_grad():
        raw = ClipTextTower.from_weights(weights)(tokenize(prompts))
    assert torch.allclose(unit_features(weights, prompts), raw / raw.norm(dim=1, keepdim=True), atol=1e-6)
