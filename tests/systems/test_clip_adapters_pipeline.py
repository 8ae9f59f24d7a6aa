"""The CLIP adapters' images: windows, draws, corrected and published."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.errors import ImageError, UsageError
from langdepth.records import Sample
from langdepth.systems.clip_adapters.pipeline import (
    NyuAdapterTransform,
    NyuImage,
    SelfSupervisedDraws,
    SupervisedDraws,
    evaluation_sample,
    self_supervised_sample,
    supervised_sample,
)
from langdepth.systems.clip_adapters.view_warp import warp_view


@pytest.fixture(scope="module")
def image() -> NyuImage:
    """Smooth colors, depth that tells its pixel: 1000 + row in millimetres, with a hole."""
    y, x = np.mgrid[:480, :640]
    waves = [127 + 100 * np.sin(x / 19 + i) * np.cos(y / 23 - i) for i in range(3)]
    depth = (1000 + y).astype(np.uint16)
    holes = depth.copy()
    holes[200:220, 300:330] = 0
    rgb = np.stack(waves, -1).astype(np.uint8)
    return NyuImage(rgb=rgb, depth_mm=holes, dense_mm=depth, overlay=rgb[::2, ::2].copy())


def test_evaluation_shows_the_inner_window(image: NyuImage) -> None:
    sample = evaluation_sample(image)
    assert sample.image.shape == (3, 416, 544)
    assert torch.equal(sample.image * 255, torch.from_numpy(image.rgb[56:472, 60:604]).permute(2, 0, 1).float())
    assert float(sample.depth[0, 0, 0]) == pytest.approx(1.056)
    assert not sample.mask[0, 200 - 56, 300 - 60]
    assert int((~sample.mask).sum()) == 20 * 30
    assert evaluation_sample(image, dense=True).mask.all()
    assert sample.overlay is not None
    assert sample.overlay.shape == (3, 416, 544)


def test_supervised_learns_from_the_filled_depth_and_the_published_program_from_the_raw_one(
    image: NyuImage,
) -> None:
    draws = SupervisedDraws(x=3, y=7)
    assert supervised_sample(image, draws).mask.all()
    published = supervised_sample(image, draws, reference_exact=True)
    assert int((~published.mask).sum()) == 20 * 30
    assert float(published.depth[0, 0, 0]) == pytest.approx(1.045 + 0.007)
    without = replace(image, dense_mm=None)
    assert torch.equal(supervised_sample(without, draws).depth, published.depth)


def test_everything_is_mirrored_alike(image: NyuImage) -> None:
    draws = SupervisedDraws(angle=1.5, x=0, y=0)
    plain, mirrored = supervised_sample(image, draws), supervised_sample(image, replace(draws, mirror=True))
    for name in ("image", "depth", "mask", "overlay"):
        assert torch.equal(getattr(mirrored, name), getattr(plain, name).flip(-1)), name


def test_colors_stay_in_range_unless_published(image: NyuImage) -> None:
    draws = SupervisedDraws(gain=1.2, overlay_gain=0.8)
    sample = supervised_sample(image, draws)
    plain = supervised_sample(image, SupervisedDraws())
    assert float(sample.image.max()) == 1
    assert float(supervised_sample(image, draws, reference_exact=True).image.max()) > 1.05
    assert sample.overlay is not None
    assert plain.overlay is not None
    torch.testing.assert_close(sample.overlay, 0.8 * plain.overlay)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_pose_takes_the_source_to_the_image(image: NyuImage, mirror: bool) -> None:
    draws = SelfSupervisedDraws(angle=4.0, shift_x=6.2, shift_y=-7.7, mirror=mirror)
    errors = {}
    for exact in (False, True):
        sample = self_supervised_sample(image, draws, reference_exact=exact)
        assert sample.source_image is not None
        assert sample.pose is not None
        assert sample.intrinsics is not None
        # In double precision: the published focal length blows coordinates up.
        one_metre = torch.ones(1, 1, 416, 544, dtype=torch.float64)
        warped, valid = warp_view(
            sample.source_image[None].double(), one_metre, sample.pose[None].double(), sample.intrinsics.double()
        )
        assert valid.float().mean() > 0.8
        known = valid & (sample.image.sum(0) > 0)  # turning leaves black corners
        errors[exact] = float((warped - sample.image).abs().mean(1, keepdim=True)[known].mean())
    assert errors[False] < 0.01
    assert errors[True] > 5 * errors[False]


def test_the_published_overlay_is_normalised_in_self_supervision_only(image: NyuImage) -> None:
    corrected = self_supervised_sample(image, SelfSupervisedDraws())
    published = self_supervised_sample(image, SelfSupervisedDraws(), reference_exact=True)
    assert corrected.overlay is not None
    assert published.overlay is not None
    assert float(corrected.overlay.min()) >= 0
    assert float(published.overlay.min()) < -1
    assert torch.equal(corrected.image, published.image)


def test_draws_follow_the_generator_and_their_ranges() -> None:
    def many(seed: int) -> list[SupervisedDraws]:
        random = np.random.default_rng(seed)
        return [SupervisedDraws.draw(random) for _ in range(300)]

    drawn = many(0)
    assert drawn == many(0)
    assert drawn != many(1)
    assert {d.x for d in drawn} == set(range(21))
    assert {d.y for d in drawn} == set(range(11))
    assert 0.4 < np.mean([d.mirror for d in drawn]) < 0.6
    assert 2 < max(abs(d.angle) for d in drawn) <= 2.5
    random = np.random.default_rng(0)
    views = [SelfSupervisedDraws.draw(random) for _ in range(300)]
    assert 8 < max(abs(v.shift_x) for v in views) <= 10
    assert 8 < max(abs(v.angle) for v in views) <= 10


def test_another_size_is_refused(image: NyuImage) -> None:
    with pytest.raises(ImageError, match=r"a.jpg: image is 320x240, these crops need 640x480"):
        replace(image, rgb=image.rgb[::2, ::2], path="a.jpg")


def stored(photo: NyuImage) -> Sample:
    """The photo as an indexed folder gives it."""
    assert photo.dense_mm is not None
    depth = torch.from_numpy(photo.dense_mm.astype(np.float32) / 1000)[None]
    image = torch.from_numpy(photo.rgb).permute(2, 0, 1) / 255
    facts: dict[str, Any] = {"scene": 3, "text": "a room", "path": "a.jpg", "source": "nyu"}
    return Sample(image=image, depth=depth, mask=depth > 0, overlay=image.flip(-1), **facts)


@pytest.mark.parametrize("two_views", [False, True])
def test_stored_images_follow_torchs_generator(image: NyuImage, two_views: bool) -> None:
    transform = NyuAdapterTransform(two_views=two_views)

    def make(seed: int) -> Sample:
        torch.manual_seed(seed)
        return transform(stored(image))

    one, again, other = make(0), make(0), make(1)
    assert (one.scene, one.text, one.path, one.source) == (3, "a room", "a.jpg", "nyu")
    for name in ("image", "depth", "mask", "overlay", *(("source_image", "pose") if two_views else ())):
        value = getattr(one, name)
        assert torch.equal(value, getattr(again, name)), name
        if name not in ("mask", "source_image"):  # the second view is turned in no other way than mirrored
            assert not torch.equal(value, getattr(other, name)), name
        assert value.shape[-2:] == ((3, 4) if name == "pose" else (416, 544))
    assert (one.source_image is None) == (one.intrinsics is None) == (not two_views)
    assert one.depth.max() <= 1.479


def test_stored_images_lose_nothing(image: NyuImage) -> None:
    """Back from floats they are the decoded arrays: the source view is a window of the photo, mirrored or not."""
    torch.manual_seed(0)
    sample = NyuAdapterTransform(two_views=True)(stored(image))
    plain = self_supervised_sample(image, SelfSupervisedDraws()).source_image
    mirrored = self_supervised_sample(image, SelfSupervisedDraws(mirror=True)).source_image
    assert sample.source_image is not None
    assert plain is not None
    assert mirrored is not None
    assert torch.equal(sample.source_image, plain) or torch.equal(sample.source_image, mirrored)


def test_a_network_of_another_size_is_refused() -> None:
    with pytest.raises(UsageError, match=r"are 544x416, but the network takes 640x480, 96x64; change"):
        NyuAdapterTransform([(480, 640), (416, 544), (64, 96)])


def test_images_of_another_size_with_the_shape_are_enlarged_first() -> None:
    small = np.random.default_rng(3).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    metres = np.linspace(1, 4, 240 * 320, dtype=np.float32).reshape(240, 320)
    large = np.asarray(Image.fromarray(small).resize((640, 480), Image.Resampling.BILINEAR))
    made = []
    for pixels, depth in ((small, metres), (large, metres.repeat(2, 0).repeat(2, 1))):
        torch.manual_seed(5)
        stored = Sample(
            image=torch.tensor(pixels).permute(2, 0, 1),
            depth=torch.from_numpy(depth)[None],
            mask=torch.from_numpy(depth)[None] > 0,
        )
        made.append(NyuAdapterTransform()(stored))
    assert made[0].image.shape == (3, 416, 544)
    assert torch.equal(made[0].image, made[1].image)
    assert torch.equal(made[0].depth, made[1].depth)
