"""WorDepth's training images: what is cut, and what a seed repeats. The numbers are in the case wordepth_data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from langdepth.data.bts import BtsAugmentation, BtsTransform, training_sample
from langdepth.errors import ImageError
from langdepth.records import Sample
from langdepth.systems.wordepth.pipeline import RULES
from langdepth.training.run import _transform
from langdepth.training.sections import DataSection
from tests.helpers import FakeSystem

NYU, KITTI = RULES["wordepth-nyu"], RULES["wordepth-kitti"]


def stored(height: int, width: int) -> Sample:
    """Red counts columns, green counts rows; depth is the sum of both, in millimetres."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([columns % 256, rows % 256, torch.full_like(rows, 100)]).float() / 255
    depth = (rows + columns + 1)[None].float() / 1000
    features = torch.ones(4) / 2
    return Sample(image=image, depth=depth, mask=depth > 0, text="words", text_features=features, scene=3, path="x.png")


def test_plain_nyu_images_are_whole_and_lose_the_depth_of_the_border() -> None:
    sample = stored(480, 640)
    made = training_sample(sample, (480, 640), NYU, BtsAugmentation())
    assert torch.equal(made.image, sample.image)
    inner = (..., slice(45, 472), slice(43, 608))  # the published crop
    assert torch.equal(made.depth[inner], sample.depth[inner])
    assert int(made.mask.sum()) == 427 * 565
    assert (made.text, made.scene, made.text_features is sample.text_features) == ("words", 3, True)


def test_smaller_nyu_images_come_from_the_inner_frame() -> None:
    sample = stored(480, 640)
    for share, top, left in ((0.0, 45, 43), (0.999, 45 + 11, 43 + 21)):
        made = training_sample(sample, (416, 544), NYU, BtsAugmentation(x=share, y=share))
        assert torch.equal(made.image, sample.image[:, top : top + 416, left : left + 544])
        assert bool(made.mask.all())


def test_kitti_images_are_the_benchmark_frame() -> None:
    sample = stored(375, 1242)
    made = training_sample(sample, (352, 1216), KITTI, BtsAugmentation())
    assert torch.equal(made.image, sample.image[:, 23:, 13:1229])
    assert torch.equal(made.depth, sample.depth[:, 23:, 13:1229])


def test_mirror_and_colors() -> None:
    sample = stored(352, 1216)
    draws = BtsAugmentation(mirror=True, gamma=1.1, brightness=1.2, colors=(0.9, 1.0, 1.1))
    made = training_sample(sample, (352, 1216), KITTI, draws)
    assert torch.equal(made.depth, sample.depth.flip(-1))
    assert made.mirrored
    factors = 1.2 * torch.tensor([0.9, 1.0, 1.1]).view(3, 1, 1)
    torch.testing.assert_close(made.image, (sample.image.flip(-1) ** 1.1 * factors).clamp(0, 1))


def test_image_and_depth_turn_together() -> None:
    sample = stored(480, 640)
    made = training_sample(sample, (480, 640), NYU, BtsAugmentation(angle=2.5))
    columns = (made.image[0, 240] * 255).round()[100:250]  # nothing wraps round there
    rows = (made.image[1, 240] * 255).round()[100:250]
    assert not torch.equal(rows, torch.full_like(rows, 240))
    difference = made.depth[0, 240, 100:250] * 1000 - 1 - columns - rows
    assert float(difference.abs().max()) <= 2  # nearest against bilinear


def test_draws_follow_the_published_distributions() -> None:
    random = np.random.default_rng(0)
    drawn = [BtsAugmentation.draw(NYU, random) for _ in range(2000)]
    angles = np.array([draws.angle for draws in drawn])
    assert -2.5 <= angles.min() < -2.4
    assert 2.4 < angles.max() <= 2.5
    assert np.mean([draws.mirror for draws in drawn]) == pytest.approx(0.5, abs=0.04)
    colored = [draws for draws in drawn if draws.gamma != 1]
    assert len(colored) / len(drawn) == pytest.approx(0.5, abs=0.04)
    assert 1.2 < max(draws.brightness for draws in colored) <= 1.25
    assert {draws.angle for draws in (BtsAugmentation.draw(KITTI, random) for _ in range(20))} == {0.0}


def test_a_seed_repeats_a_image() -> None:
    transform = _transform(DataSection(root="x", pipeline="wordepth-nyu"), FakeSystem(), [(480, 640)])  # type: ignore[arg-type]
    assert isinstance(transform, BtsTransform)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(transform(stored(480, 640), (480, 640)))
    assert torch.equal(made[0].image, made[1].image)
    assert not torch.equal(made[0].image, made[2].image)


def test_wrong_sizes() -> None:
    with pytest.raises(ImageError, match=r"x\.png: is 600x480, NYU's images are 640x480"):
        training_sample(stored(480, 600), (480, 640), NYU, BtsAugmentation())
    with pytest.raises(ImageError, match=r"x\.png: 1000x352 is too small for training at 1216x352"):
        training_sample(stored(370, 1000), (352, 1216), KITTI, BtsAugmentation())
    with pytest.raises(ValueError, match="reference_exact must be false with the wordepth-nyu pipeline"):
        DataSection(root="x", pipeline="wordepth-nyu", reference_exact=True)  # type: ignore[arg-type]
