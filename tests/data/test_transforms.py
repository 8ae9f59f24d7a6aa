"""Training transforms: image and depth stay in register, depth follows the zoom, what is off does nothing."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from langdepth.camera import Camera
from langdepth.config import from_mapping
from langdepth.data import transforms
from langdepth.data.transforms import Augmentation, TrainTransform, crop_window, resize_depth, turned
from langdepth.errors import UsageError
from langdepth.records import Sample

OFF: dict[str, Any] = {field.name: 0.0 for field in fields(Augmentation)} | {"zoom": 1.0}
HEIGHT, WIDTH = 60, 80


def only(**values: float) -> Augmentation:
    """Everything off but what is named."""
    return Augmentation(**(OFF | values))


def make_sample(image: Tensor, depth: Tensor) -> Sample:
    return Sample(image=image, depth=depth, mask=depth > 0)


def run(
    augmentation: Augmentation, sample: Sample, size: tuple[int, int], area: int | None = None, seed: int = 0
) -> Sample:
    torch.manual_seed(seed)
    return TrainTransform(augmentation, area or size[0] * size[1])(sample, size)


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Sample:
    """A random image with random depth, 1 to 5 metres."""
    random = torch.Generator().manual_seed(seed)
    image = torch.rand(3, height, width, generator=random)
    return make_sample(image, 1 + 4 * torch.rand(1, height, width, generator=random))


# Geometry


@pytest.mark.parametrize("size", [(60, 80), (45, 60), (40, 80), (64, 48), (90, 120)])
@pytest.mark.parametrize("axis", ["column", "row"])
@pytest.mark.parametrize(
    "augmentation",
    [
        only(),
        only(flip=1),
        only(zoom=1.8, zoom_probability=1),
        only(rotate=15, rotate_probability=1),
        only(flip=0.5, zoom=1.8, zoom_probability=1, rotate=15, rotate_probability=1),
    ],
    ids=["crop", "flip", "zoom", "rotate", "all"],
)
def test_image_and_depth_stay_in_register(augmentation: Augmentation, axis: str, size: tuple[int, int]) -> None:
    # Image and depth both encode the index of the column (row); a depth of 1 tells what depth is divided by.
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    index = (columns if axis == "column" else rows).float()[None]
    image, depth, ones = (index / 100).expand(3, -1, -1), 1 + index, torch.ones_like(index)
    for seed in range(4):
        found = run(augmentation, make_sample(image, depth), size, seed=seed)
        unit = run(augmentation, make_sample(image, ones), size, seed=seed)
        assert torch.equal(found.mask, unit.mask)
        assert torch.equal(found.image, unit.image)
        inside = F.avg_pool2d(found.mask.float(), 5, 1, 2) == 1  # away from rotated-in black
        assert inside.float().mean() > 0.3
        told_by_depth = (found.depth / unit.depth - 1)[inside]
        told_by_image = (found.image[:1] * 100)[inside]
        assert (told_by_depth - told_by_image).abs().max() < 2.0


def test_flip_is_an_exact_mirror() -> None:
    sample = noise()
    found = run(only(flip=1), sample, (HEIGHT, WIDTH))
    assert torch.equal(found.image, sample.image.flip(-1))
    assert torch.equal(found.depth, sample.depth.flip(-1))


def test_rotated_in_corners_are_unknown() -> None:
    found = run(only(rotate=30, rotate_probability=1), noise(), (HEIGHT, WIDTH), seed=3)
    assert 0.5 < found.mask.float().mean() < 0.99
    assert (found.depth[~found.mask] == 0).all()


@pytest.mark.parametrize("degrees", [-2.5, 1.0, 30.0, 137.0])
def test_turning_is_pillows_rotation(degrees: float) -> None:
    sample = noise()
    pixels = sample.image.permute(1, 2, 0).numpy()
    channels = [Image.fromarray(pixels[..., i].copy()).rotate(degrees, Image.Resampling.BILINEAR) for i in range(3)]
    expected = torch.from_numpy(np.stack([np.array(channel) for channel in channels]))
    millimetres = Image.fromarray((sample.depth[0] * 1000).numpy().astype(np.uint16))
    expected_depth = torch.from_numpy(np.array(millimetres.rotate(degrees)).astype(np.float32))[None] / 1000
    image, depth = turned(sample.image, sample.depth, degrees)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(depth, expected_depth, rtol=0, atol=1.1e-3)
    part = turned(sample.image, sample.depth, degrees, (7, 11, 40, 50), mirrored=True)
    for found, whole in zip(part, (image, depth), strict=True):
        torch.testing.assert_close(found, whole[:, 7:47, 11:61].flip(-1), rtol=0, atol=1e-4)


# Depth follows the size of things in the image


@pytest.mark.parametrize("zoom", [1.0, 1.25, 2.0])
def test_depth_is_divided_by_the_zoom(monkeypatch: pytest.MonkeyPatch, zoom: float) -> None:
    windows = []

    def remember(*arguments: Any, **options: Any) -> tuple[int, int, int, int]:
        windows.append(crop_window(*arguments, **options))
        return windows[-1]

    monkeypatch.setattr(transforms, "crop_window", remember)
    sample = noise()
    sample.depth = torch.full_like(sample.depth, 6.0)
    seen = set()
    for seed in range(8):
        found = run(only(zoom=zoom, zoom_probability=1), sample, (HEIGHT, WIDTH), seed=seed)
        factor = HEIGHT / windows[-1][2]
        assert 0.98 <= factor <= zoom * 1.02
        torch.testing.assert_close(found.depth, torch.full_like(found.depth, 6 / factor), rtol=1e-6, atol=0)
        seen.add(windows[-1])
    assert (len(seen) > 5) == (zoom > 1)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0])
def test_the_resolution_of_the_stored_image_does_not_matter(factor: float) -> None:
    sample = noise()
    sample.depth = torch.full_like(sample.depth, 6.0)
    found = run(only(), sample, (round(HEIGHT * factor), round(WIDTH * factor)))
    torch.testing.assert_close(found.depth, torch.full_like(found.depth, 6.0))


def test_cutting_a_piece_out_of_a_wide_image_counts_as_coming_closer() -> None:
    # The network would see the whole 40x160 image as it is, 6400 pixels; of its 40x40 piece it sees an enlargement.
    sample = noise(40, 160)
    sample.depth = torch.full_like(sample.depth, 6.0)
    found = run(only(), sample, (80, 80), area=6400)
    torch.testing.assert_close(found.depth, torch.full_like(found.depth, 3.0))


# Resizing depth


def test_dense_depth_is_never_mixed() -> None:
    depth = torch.ones(1, 40, 40)
    depth[..., 20:] = 9
    for size in ((17, 23), (40, 41), (90, 70)):
        found = resize_depth(depth, size)
        assert found.shape == (1, *size)
        assert set(found.unique().tolist()) == {1.0, 9.0}


def test_sparse_points_are_not_lost_and_the_nearest_wins() -> None:
    random = torch.Generator().manual_seed(0)
    depth = torch.rand(1, 40, 60, generator=random) * 9 + 1
    depth[torch.rand(1, 40, 60, generator=random) > 0.02] = 0
    found = resize_depth(depth, (10, 15))
    cells = depth.view(10, 4, 15, 4).transpose(1, 2).reshape(10, 15, 16)
    nearest = torch.where(cells > 0, cells, torch.inf).amin(-1)
    expected = torch.where(torch.isfinite(nearest), nearest, 0.0)[None]
    torch.testing.assert_close(found, expected)
    assert (depth > 0).sum() > (found > 0).sum() > 20
    plain = F.interpolate(depth[None], size=(10, 15), mode="nearest-exact")[0]
    assert (plain > 0).sum() < (found > 0).sum() / 4  # what would have been left


@pytest.mark.parametrize("size", [(10, 15), (37, 41), (80, 120), (20, 90)])
def test_empty_and_sparse_depth_stay_finite(size: tuple[int, int]) -> None:
    empty = torch.zeros(1, 40, 60)
    assert (resize_depth(empty, size) == 0).all()
    one = empty.clone()
    one[0, 20, 30] = 3.0
    assert set(resize_depth(one, size).unique().tolist()) <= {0.0, 3.0}


def test_depth_of_the_right_size_is_left_alone() -> None:
    depth = noise().depth
    assert resize_depth(depth, (HEIGHT, WIDTH)) is depth


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 100), (100, 7), (33, 47)])
@pytest.mark.parametrize("aspect", [0.75, 4 / 3, 3.3])
def test_crops_lie_inside_and_are_as_large_as_they_can_be(height: int, width: int, aspect: float) -> None:
    torch.manual_seed(0)
    for zoom in (1.0, 1.7, 50.0):
        for _ in range(5):
            top, left, tall, wide = crop_window(height, width, aspect, zoom)
            assert tall >= 1
            assert wide >= 1
            assert 0 <= top <= height - tall
            assert 0 <= left <= width - wide
            if zoom == 1 and min(height, width) > 1:
                assert tall == height or abs(wide - width) <= 0.5 * aspect + 0.5
                assert abs(wide - tall * aspect) <= 0.5 * aspect + 0.5


# Switches


@pytest.mark.parametrize("seed", range(3))
def test_with_everything_off_only_the_size_changes(seed: int) -> None:
    sample = noise()
    same = run(only(), sample, (HEIGHT, WIDTH), seed=seed)
    assert torch.equal(same.image, sample.image)
    assert torch.equal(same.depth, sample.depth)
    smaller = run(only(), sample, (30, 40), seed=seed)
    assert torch.equal(smaller.image, TF.resize(sample.image, [30, 40], antialias=True))


@pytest.mark.parametrize(
    "values",
    [
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.5},
        {"hue": 0.3},
        {"grey": 1.0},
        {"blur": 1.0},
    ],
)
def test_color_changes_the_image_and_never_the_depth(values: dict[str, float]) -> None:
    sample = noise()
    found = run(only(colour_probability=1, **values), sample, (HEIGHT, WIDTH), seed=1)
    assert not torch.allclose(found.image, sample.image, atol=1e-2)
    assert found.image.min() >= 0
    assert found.image.max() <= 1
    assert torch.equal(found.depth, sample.depth)


def test_without_its_probability_color_is_left_alone() -> None:
    sample = noise()
    found = run(only(brightness=1, contrast=1, saturation=1, hue=0.5), sample, (HEIGHT, WIDTH))
    assert torch.equal(found.image, sample.image)


def test_cut_depth_paints_the_depth_of_a_box() -> None:
    sample = noise()
    painted = []
    for seed in range(6):
        found = run(only(cut_depth=1), sample, (HEIGHT, WIDTH), seed=seed)
        changed = (found.image != sample.image).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        assert torch.equal(found.image[box], (sample.depth / sample.depth.max()).expand(3, -1, -1)[box])
        assert changed[box].float().mean() > 0.99
        assert torch.equal(found.depth, sample.depth)
        painted.append(box)
    assert len(set(map(str, painted))) == 6


def test_cut_depth_leaves_sparse_depth_out() -> None:
    sample = noise()
    sample.depth[:, ::2] = 0
    sample.depth[:, :, ::2] = 0
    assert torch.equal(run(only(cut_depth=1), sample, (HEIGHT, WIDTH)).image, sample.image)


def test_erase_greys_out_a_box() -> None:
    sample = noise()
    found = run(only(erase=1), sample, (HEIGHT, WIDTH), seed=1)
    changed = (found.image != sample.image).all(0)
    assert 0 < changed.float().mean() < 0.6
    torch.testing.assert_close(found.image[:, changed].unique(), sample.image.mean()[None])
    assert torch.equal(found.depth, sample.depth)


def test_the_callers_sample_is_never_written_into() -> None:
    sample = noise()
    image, depth = sample.image.clone(), sample.depth.clone()
    for seed in range(3):
        run(only(cut_depth=1, erase=1), sample, (HEIGHT, WIDTH), seed=seed)
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.depth, depth)


# Order


def flat(level: float = 0.5, metres: float = 3.0) -> Sample:
    return make_sample(torch.full((3, HEIGHT, WIDTH), level), torch.full((1, HEIGHT, WIDTH), metres))


def test_depth_is_mixed_in_before_a_part_is_cut_out() -> None:
    """A stripe of the whole image, white here, lies outside of some parts."""
    with_stripe = [
        bool(
            (
                run(
                    only(depth_mix=1, zoom=3, zoom_probability=1, random_crop=1), flat(), (HEIGHT, WIDTH), seed=seed
                ).image
                > 0.9
            ).any()
        )
        for seed in range(20)
    ]
    assert {True, False} == set(with_stripe)


def test_a_part_is_turned_after_it_is_cut_out() -> None:
    """So that its corners are unknown, although the image goes on beyond them."""
    moved = only(zoom=3, zoom_probability=1, rotate=30, rotate_probability=1)
    whole = sum(bool(run(moved, flat(), (HEIGHT, WIDTH), seed=seed).mask.all()) for seed in range(20))
    assert whole < 4  # those that are hardly turned


def test_colors_are_changed_after_turning() -> None:
    """Less contrast brings the black of the corners nearer to the mean."""
    turning = {"rotate": 30.0, "rotate_probability": 1.0}
    corners = []
    for seed in range(8):
        found = run(only(contrast=0.9, colour_probability=1, **turning), flat(), (HEIGHT, WIDTH), seed=seed)
        corners.append(float(found.image[:, ~found.mask[0]].min()))
    assert max(corners) > 0.05


def test_depth_is_painted_over_changed_colors_and_a_box_erased_last() -> None:
    """Painted depth, white here, keeps its level; the mean in the erased box counts it."""
    levels: set[int] = set()
    for seed in range(8):
        jitter = {"brightness": 0.9, "colour_probability": 1.0}
        found = run(only(cut_depth=1, erase=1, **jitter), flat(0.2), (HEIGHT, WIDTH), seed=seed).image
        assert found.max() == 1
        levels.add(len(found.unique()))
    assert levels == {3}  # the image's, depth, and the mean of both


# Randomness, types


EVERYTHING = Augmentation(rotate_probability=1, zoom_probability=1, cut_depth=0.5, erase=0.5, blur=0.5, grey=0.5)


def test_the_same_seed_gives_the_same_sample() -> None:
    one, again, other = (run(EVERYTHING, noise(), (45, 60), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.depth, again.depth)
    assert not torch.equal(one.image, other.image)
    assert not torch.equal(one.depth, other.depth)


def test_images_of_bytes_give_the_same_as_floats() -> None:
    sample = noise()
    whole = make_sample((sample.image * 255).round().byte(), sample.depth)
    sample.image = whole.image.float() / 255
    for augmentation in (only(), only(flip=1, zoom=2, zoom_probability=1, cut_depth=1, erase=1)):
        found, expected = run(augmentation, whole, (45, 60)), run(augmentation, sample, (45, 60))
        assert found.image.dtype == torch.float32
        torch.testing.assert_close(found.image, expected.image, rtol=0, atol=1.01 / 255)
        assert torch.equal(found.depth, expected.depth)


def test_the_rest_of_the_sample_is_kept_and_the_camera_dropped() -> None:
    sample = noise()
    sample.scene, sample.text, sample.path, sample.source = 3, "a room", "p.png", "s"
    found = run(EVERYTHING, sample, (45, 60))
    assert (found.scene, found.text, found.path, found.source) == (3, "a room", "p.png", "s")
    assert found.camera is None  # its intrinsics no longer hold


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"flip": 1.1}, "flip must lie between 0 and 1, got 1.1"),
        ({"zoom": 0}, "zoom must lie between 1 and 10, got 0"),
        ({"hue": 0.6}, "hue must lie between 0 and 0.5, got 0.6"),
        ({"rotate": -1}, "rotate must lie between 0 and 180, got -1"),
        ({"blur": float("inf")}, "blur must lie between 0 and 1, got inf"),
    ],
)
def test_values_outside_their_range_are_named(values: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(Augmentation, values, where="data.augmentation.")
    assert str(caught.value).startswith(f"data.augmentation: {expected}")


@pytest.mark.parametrize("zoom", [1.0, 2.0])
def test_depth_is_that_of_the_camera_which_the_network_knows(zoom: float) -> None:
    """Twice its focal length, by the lens or by a cut, is half the depth; unknown cameras follow the cut alone."""
    sample = noise()
    size, focal = (HEIGHT, WIDTH), 0.9
    sample.camera = Camera.from_focal(2 * focal * math.sqrt(HEIGHT * WIDTH), WIDTH, HEIGHT)
    augmentation = only(zoom=zoom, zoom_probability=1)

    def depth(sample: Sample, focal: float | None) -> Tensor:
        torch.manual_seed(3)
        return TrainTransform(augmentation, HEIGHT * WIDTH, focal=focal)(sample, size).depth

    plain = depth(sample, None)
    torch.testing.assert_close(depth(sample, focal), plain / 2, rtol=0.03, atol=0)  # a window has whole pixels
    sample.camera = None
    assert torch.equal(depth(sample, focal), plain)
