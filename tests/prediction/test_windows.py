"""Depth through overlapping windows, and by way of another size."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.predictions import Predictions
from langdepth.prediction.network import infer
from langdepth.prediction.predictor import predict_images
from langdepth.prediction.results import DepthResult
from langdepth.records import DepthOutput, InputSpec, Sample
from langdepth.systems.base import System
from tests.helpers import ramp


class Seer(System):
    """Depth follows the image, the place in it and the text; at half the size of what it sees."""

    name = "seer"
    scenes = ("near", "far")

    def __init__(self, spec: InputSpec | None = None) -> None:
        super().__init__(None, spec or InputSpec(multiple_of=1))
        self.batches: list[tuple[int, ...]] = []

    def inference_copy(self) -> Seer:
        return self

    def forward(self, image: Tensor, text: Any = None, scene: Any = None) -> DepthOutput:
        self.batches.append(tuple(image.shape))
        height, width = (side // 2 for side in image.shape[-2:])
        place = torch.linspace(1, 2, height)[:, None] + torch.linspace(0, 3, width)
        depth = place * (1 + F.adaptive_avg_pool2d(image.mean(1, keepdim=True), (height, width)))
        if text is not None:
            depth = depth * torch.tensor([float(len(t)) for t in text]).view(-1, 1, 1, 1)
        bright = image.mean((1, 2, 3))
        return DepthOutput(depth=depth, scene_probs=torch.stack((bright, 1 - bright), 1))


def photos(*size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


def by_hand(image: Tensor, rows: list[int], columns: list[int], side: tuple[int, int], **options: Any) -> Tensor:
    """Mean over the windows at the given places, one window at a time."""
    total, seen = torch.zeros_like(image[:, :1]), torch.zeros_like(image[:1, :1])
    for top in rows:
        for left in columns:
            place = (..., slice(top, top + side[0]), slice(left, left + side[1]))
            total[place] += infer(Seer(), image[place].contiguous(), **options).depth
            seen[place] += 1
    return total / seen


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((96, 170), [0, 32], [0, 32, 64, 74]),  # the last ones are moved back to the border
        ((64, 96), [0], [0]),
        ((65, 97), [0, 1], [0, 1]),
        ((64, 128), [0], [0, 32]),
    ],
)
def test_windows_are_averaged_where_they_overlap(
    size: tuple[int, int], rows: list[int], columns: list[int], flip: bool
) -> None:
    image = photos(*size)
    found = infer(Seer(), image, ["a", "abc"], flip=flip, window=(64, 96), stride=(32, 32))
    expected = by_hand(image, rows, columns, (64, 96), text=["a", "abc"], flip=flip)
    torch.testing.assert_close(found.depth, expected)
    assert found.scene_probs is not None
    torch.testing.assert_close(found.scene_probs.sum(1), torch.ones(2))


@pytest.mark.parametrize("size", [(40, 60), (40, 200), (200, 60)])
def test_a_smaller_side_is_one_window_without_padding(size: tuple[int, int]) -> None:
    system, image = Seer(), photos(*size, count=1)
    depth = infer(system, image, window=(64, 96), stride=(64, 96)).depth
    assert {batch[-2:] for batch in system.batches} == {(min(size[0], 64), min(size[1], 96))}
    if size == (40, 60):
        torch.testing.assert_close(depth, infer(Seer(), image).depth)


@pytest.mark.parametrize(
    ("size", "batches"),
    [((480, 640), [1, 1, 1, 1]), ((352, 1216), [2, 2, 2])],
)
def test_published_windows_in_no_more_memory_than_the_whole_image(size: tuple[int, int], batches: list[int]) -> None:
    system = Seer()
    infer(system, photos(*size, count=1), window=(352, 512), stride=(160, 160))
    assert system.batches == [(n, 3, 352, 512) for n in batches]


@pytest.mark.parametrize(
    ("spec", "seen"),
    [(InputSpec(size=(32, 32)), (32, 32)), (InputSpec(area=4000, multiple_of=32), (64, 96))],
)
def test_windows_are_resized_only_for_networks_of_one_size(spec: InputSpec, seen: tuple[int, int]) -> None:
    system = Seer(spec)
    depth = infer(system, photos(80, 120), window=(64, 96), stride=(16, 24)).depth
    assert depth.shape == (2, 1, 80, 120)
    assert {batch[-2:] for batch in system.batches} == {seen}


def test_predict_uses_the_same_windows() -> None:
    photo = ramp(100, 70)
    result = predict_images(Seer(), photo, text="ab", flip=True, window=(48, 64), stride=(24, 32))
    assert isinstance(result, DepthResult)
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    expected = infer(Seer(), image, ["ab"], flip=True, window=(48, 64), stride=(24, 32)).depth
    np.testing.assert_allclose(result.depth, expected[0, 0].numpy(), rtol=1e-6)
    assert (result.provenance["window"], result.provenance["stride"]) == ((48, 64), (24, 32))


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(UsageError, match="windows of 48x64 pixels every 48x65 do not cover"):
        predict_images(Seer(), ramp(100, 70), window=(48, 64), stride=(48, 65))
    with pytest.raises(UsageError, match="a stride is given without a window"):
        predict_images(Seer(), ramp(100, 70), stride=(48, 65))


# What protocols make of it


def kitti() -> Sample:
    depth = torch.full((1, 375, 1242), 10.0)
    return Sample(image=photos(375, 1242, count=1)[0], depth=depth, mask=depth > 0, path="kitti.png")


def test_a_protocol_uses_its_windows() -> None:
    sample, protocol = kitti(), protocols.get("scaledepth-nk-kitti-reference")
    evaluated = evaluate_batch(Seer(), [sample], protocol)
    cut = sample.image[None, :, 23:375, 13:1229]
    expected = infer(Seer(), cut, flip=True, window=(352, 512), stride=(160, 160)).depth
    torch.testing.assert_close(evaluated.prediction, expected.clamp(0.001, 80))


def test_the_depth_of_a_kitti_image_is_resized_twice_when_asked() -> None:
    sample = kitti()
    evaluated = evaluate_batch(Seer(), [sample], protocols.get("scaledepth-k-reference"))
    half = Seer()(sample.image[None, :, 23:375, 13:1229]).depth
    twice = F.interpolate(F.interpolate(half, (375, 1242), mode="bilinear"), (352, 1216), mode="bilinear")
    torch.testing.assert_close(evaluated.prediction, twice)
    once = evaluate_batch(Seer(), [sample], protocols.get("scaledepth-k-reference").override(resize="bilinear"))
    assert (once.prediction - evaluated.prediction).abs().max() > 1e-3


class Streets:
    """Two images of KITTI's sizes with sparse ground truth, up to beyond 80 m and down to 0."""

    name = "streets"
    sizes = ((375, 1242), (370, 1224))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(index)
        depth = 90 * torch.rand(1, *self.sizes[index], generator=generator)
        depth[torch.rand(depth.shape, generator=generator) < 0.9] = 0
        image = torch.rand(3, *self.sizes[index], generator=generator)
        return Sample(image=image, depth=depth, mask=depth > 0, path=f"{index}.png")


def bts_metrics(prediction: Any, truth: Any) -> dict[str, float]:
    """By BTS's rule for KITTI: ``prediction`` (352, 1216) is pasted into zeros, both are compared at the full size."""
    height, width = truth.shape
    top, left = height - 352, int((width - 1216) / 2)
    full = np.zeros_like(truth)
    full[top : top + 352, left : left + 1216] = prediction
    full = full.clip(1e-3, 80)
    valid = (truth > 1e-3) & (truth < 80)
    window = np.zeros(truth.shape, bool)
    rows = int(0.40810811 * height), int(0.99189189 * height)
    columns = int(0.03594771 * width), int(0.96405229 * width)
    window[rows[0] : rows[1], columns[0] : columns[1]] = True
    p, t = full[valid & window].astype(np.float64), truth[valid & window].astype(np.float64)
    logs = np.log(p) - np.log(t)
    return {
        "abs_rel": float((abs(p - t) / t).mean()),
        "sq_rel": float(((p - t) ** 2 / t).mean()),
        "rmse": float(np.sqrt(((p - t) ** 2).mean())),
        "rmse_log": float(np.sqrt((logs**2).mean())),
        "log10": float((abs(logs) / np.log(10)).mean()),
        "silog": float(100 * np.sqrt((logs**2).mean() - logs.mean() ** 2)),
        "delta1": float((np.maximum(p / t, t / p) < 1.25).mean()),
        "delta2": float((np.maximum(p / t, t / p) < 1.25**2).mean()),
        "delta3": float((np.maximum(p / t, t / p) < 1.25**3).mean()),
    }


def test_kitti_by_the_rule_of_bts(tmp_path: Path) -> None:
    """Of a network and of finished maps of the cut frame; the window of the cut frame gives other numbers."""
    rules, by_hand = protocols.get("kitti-eigen-garg-bts"), []
    for index in range(2):
        sample = Streets()[index]
        height, width = sample.depth.shape[1:]
        left = (width - 1216) // 2
        cut = sample.image[None, :, height - 352 :, left : left + 1216]
        prediction = infer(Seer(), cut).depth[0, 0].numpy()
        np.save(tmp_path / f"{index}.npy", prediction)
        by_hand.append(bts_metrics(prediction, sample.depth[0].numpy()))
    expected = {name: pytest.approx(np.mean([one[name] for one in by_hand]), rel=1e-5) for name in by_hand[0]}
    assert evaluate(Seer(), Streets(), rules, progress=False)["image_mean"] == expected
    assert evaluate(Predictions(tmp_path, "."), Streets(), rules, progress=False)["image_mean"] == expected
    cut_window = rules.override(frame="kb")
    assert cut_window.hash == protocols.get("kitti-eigen-garg").override(flip=False).hash
    assert evaluate(Seer(), Streets(), cut_window, progress=False)["image_mean"] != expected


def test_what_the_network_does_not_see_has_no_depth() -> None:
    sample = Sample(
        image=photos(400, 1242, count=1)[0], depth=torch.ones(1, 400, 1242), mask=torch.ones(1, 400, 1242) > 0
    )
    evaluated = evaluate_batch(Seer(), [sample], protocols.get("kitti-eigen-garg-bts").override(crop="none"))
    assert evaluated.valid.all()
    seen = torch.zeros(400, 1242, dtype=torch.bool)
    seen[48:, 13:1229] = True
    assert (evaluated.prediction[0, 0][~seen] == 0.001).all()
    assert (evaluated.prediction[0, 0][seen] > 0.5).all()


def test_depth_follows_the_focal_length_when_asked() -> None:
    protocol = protocols.get("full").override(training_focal=500.0)
    plain = kitti()
    with pytest.raises(UsageError, match=r"kitti\.png: the protocol needs its focal length"):
        evaluate_batch(Seer(), [plain], protocol)
    camera = Camera(fx=750.0, fy=700.0, cx=0.0, cy=0.0, width=1242, height=375)
    found = evaluate_batch(Seer(), [replace(plain, camera=camera)], protocol).prediction
    torch.testing.assert_close(found, 1.5 * evaluate_batch(Seer(), [plain], protocols.get("full")).prediction)
    minded, known = Seer(InputSpec(multiple_of=1, focal=0.5)), [replace(plain, camera=camera)]
    once = evaluate_batch(minded, known, protocols.get("full")).prediction
    torch.testing.assert_close(evaluate_batch(minded, known, protocol).prediction, once)


@pytest.mark.parametrize(("window", "stride"), [((1, 1), (1, 1)), ((64, 64), (1, 1))])
def test_more_windows_than_anybody_waits_for_are_refused(window: tuple[int, int], stride: tuple[int, int]) -> None:
    for predict in (
        lambda: infer(Seer(), photos(300, 200), window=window, stride=stride),
        lambda: predict_images(Seer(), ramp(200, 300), window=window, stride=stride),
    ):
        with pytest.raises(UsageError, match=r"^\d+ windows in an image of 200x300 pixels are more than the limit"):
            predict()


def test_windows_that_grow_inside_the_network_do_not_fill_the_memory() -> None:
    seer = Seer(InputSpec(size=(64, 64)))
    infer(seer, photos(64, 128, count=1), window=(8, 8))
    assert max(shape[0] for shape in seer.batches) == 2


# Cameras


def test_depth_follows_the_focal_length_where_it_is_known_and_considered() -> None:
    image, focal = photos(64, 96, count=3), torch.tensor([1.6, 0.0, 0.4])
    plain = infer(Seer(), image).depth
    assert torch.equal(infer(Seer(), image, focal=focal).depth, plain)
    minded = Seer(InputSpec(multiple_of=1, focal=0.8))
    factor = torch.tensor([2.0, 1.0, 0.5]).view(-1, 1, 1, 1)
    torch.testing.assert_close(infer(minded, image, focal=focal).depth, plain * factor)
    flipped = infer(minded, image, focal=focal, flip=True).depth
    torch.testing.assert_close(flipped, infer(Seer(), image, flip=True).depth * factor)
    assert float(infer(minded, image, focal=focal, limit=2.0).depth.max()) == 2


def test_a_window_has_the_camera_of_its_part_of_the_image() -> None:
    image, focal = photos(64, 96), torch.tensor([1.6, 0.0])
    plain = infer(Seer(), image, window=(32, 48), stride=(16, 48)).depth
    minded = Seer(InputSpec(multiple_of=1, focal=0.8))
    found = infer(minded, image, focal=focal, window=(32, 48), stride=(16, 48)).depth
    torch.testing.assert_close(found, plain * torch.tensor([4.0, 1.0]).view(-1, 1, 1, 1))


@pytest.mark.parametrize("window", [None, (24, 32)])
def test_prediction_takes_the_camera_that_is_given(window: tuple[int, int] | None) -> None:
    plain = predict_images(Seer(), ramp(64, 48), window=window)
    assert isinstance(plain, DepthResult)
    minded = Seer(InputSpec(multiple_of=1, focal=0.8))
    camera = Camera.from_focal(0.8 * math.sqrt(64 * 48) * 3, 64, 48)
    found = predict_images(minded, [ramp(64, 48), ramp(64, 48)], window=window, camera=camera)
    assert isinstance(found, list)
    part = 1 if window is None else math.sqrt(24 * 32 / (64 * 48))
    for result in found:
        np.testing.assert_allclose(result.depth, plain.depth * (3 / part), rtol=1e-5)
    without = predict_images(minded, ramp(64, 48), window=window)
    assert isinstance(without, DepthResult)
    np.testing.assert_allclose(without.depth, plain.depth / part, rtol=1e-5)
    # What the result says is what the depth was made with.
    assert without.camera is not None
    assert without.camera.source == "guess"
    stated = predict_images(minded, ramp(64, 48), window=window, camera=replace(without.camera, source="user"))
    assert isinstance(stated, DepthResult)
    np.testing.assert_array_equal(stated.depth, without.depth)


@pytest.mark.parametrize("frame", ["stored", "kb"])
def test_evaluation_tells_the_camera_of_what_the_network_sees(frame: str) -> None:
    height, width = 376, 1240
    camera = Camera.from_focal(700.0, width, height)
    depth = torch.full((1, height, width), 3.0)
    sample = Sample(image=photos(height, width)[0], depth=depth, mask=depth > 0, camera=camera)
    rules = protocols.get("full").override(frame=frame, clamp_prediction=False)
    seen = height * width if frame == "stored" else 352 * 1216
    plain = evaluate_batch(Seer(), [sample], rules).prediction
    found = evaluate_batch(Seer(InputSpec(multiple_of=1, focal=0.5)), [sample], rules).prediction
    torch.testing.assert_close(found, plain * (700 / math.sqrt(seen) / 0.5))


@pytest.mark.parametrize("switches", [{"frame": "kb"}, {"window": (200, 300)}])
def test_evaluation_takes_unknown_cameras_for_that_of_prediction(switches: dict[str, Any]) -> None:
    system, (height, width) = Seer(InputSpec(multiple_of=1, focal=0.5)), (376, 1240)
    depth = torch.full((1, height, width), 3.0)
    sample = Sample(image=photos(height, width)[0], depth=depth, mask=depth > 0)
    rules = protocols.get("full").override(clamp_prediction=False, **switches)
    unknown = evaluate_batch(system, [sample], rules).prediction
    taken = replace(sample, camera=Camera.guess(width, height, 0.5))
    torch.testing.assert_close(unknown, evaluate_batch(system, [taken], rules).prediction)
    if "window" in switches:
        found = predict_images(system, sample.image, **switches)
        assert isinstance(found, DepthResult)
        np.testing.assert_allclose(unknown[0, 0], found.depth, rtol=2e-3)  # bytes there
