"""Depth through overlapping windows, and by way of another size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth import protocols
from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.evaluate import judge
from langdepth.inference import infer, predict_pictures
from langdepth.systems.base import System
from langdepth.types import DepthOutput, DepthResult, InputSpec, Sample
from tests.helpers import ramp


class Seer(System):
    """Depth follows the picture, the place in it and the text; at half the size of what it sees."""

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
def test_published_windows_in_no_more_memory_than_the_whole_picture(size: tuple[int, int], batches: list[int]) -> None:
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


def test_predict_looks_through_the_same_windows() -> None:
    picture = ramp(100, 70)
    result = predict_pictures(Seer(), picture, text="ab", flip=True, window=(48, 64), stride=(24, 32))
    assert isinstance(result, DepthResult)
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    expected = infer(Seer(), image, ["ab"], flip=True, window=(48, 64), stride=(24, 32)).depth
    np.testing.assert_allclose(result.depth, expected[0, 0].numpy(), rtol=1e-6)
    assert (result.provenance["window"], result.provenance["stride"]) == ((48, 64), (24, 32))


def test_windows_that_leave_gaps_are_refused() -> None:
    with pytest.raises(UsageError, match="windows of 48x64 pixels every 48x65 do not cover"):
        predict_pictures(Seer(), ramp(100, 70), window=(48, 64), stride=(48, 65))
    with pytest.raises(UsageError, match="a stride is given without a window"):
        predict_pictures(Seer(), ramp(100, 70), stride=(48, 65))


# What protocols make of it


def kitti() -> Sample:
    depth = torch.full((1, 375, 1242), 10.0)
    return Sample(image=photos(375, 1242, count=1)[0], depth=depth, mask=depth > 0, path="kitti.png")


def test_a_protocol_looks_through_its_windows() -> None:
    sample, protocol = kitti(), protocols.get("scaledepth-nk-kitti-reference")
    judged = judge(Seer(), [sample], protocol)
    cut = sample.image[None, :, 23:375, 13:1229]
    expected = infer(Seer(), cut, flip=True, window=(352, 512), stride=(160, 160)).depth
    torch.testing.assert_close(judged.prediction, expected.clamp(0.001, 80))


def test_the_depth_of_a_kitti_picture_is_resized_twice_when_asked() -> None:
    sample = kitti()
    judged = judge(Seer(), [sample], protocols.get("scaledepth-k-reference"))
    half = Seer()(sample.image[None, :, 23:375, 13:1229]).depth
    twice = F.interpolate(F.interpolate(half, (375, 1242), mode="bilinear"), (352, 1216), mode="bilinear")
    torch.testing.assert_close(judged.prediction, twice)
    once = judge(Seer(), [sample], protocols.get("scaledepth-k-reference").override(resize="bilinear"))
    assert (once.prediction - judged.prediction).abs().max() > 1e-3


def test_depth_follows_the_focal_length_when_asked() -> None:
    protocol = protocols.get("full").override(training_focal=500.0)
    plain = kitti()
    with pytest.raises(UsageError, match=r"kitti\.png: the protocol needs its focal length"):
        judge(Seer(), [plain], protocol)
    camera = Camera(fx=750.0, fy=700.0, cx=0.0, cy=0.0, width=1242, height=375)
    found = judge(Seer(), [replace(plain, camera=camera)], protocol).prediction
    torch.testing.assert_close(found, 1.5 * judge(Seer(), [plain], protocols.get("full")).prediction)
