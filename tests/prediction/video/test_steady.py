"""Steady depth: flicker goes, what changes in the scene stays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from langdepth.prediction.video.motion import Motion, small_grey
from langdepth.prediction.video.steady import Steady

RATE = 30
PHOTO = Path(__file__).parents[3] / "examples" / "desk.jpg"
Pixels = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.asarray(Image.open(PHOTO).convert("RGB"))


def moved(photo: Pixels, step: int, count: int) -> list[Pixels]:
    """A camera that pans over the photo, ``step`` pixels to the right with each frame."""
    return [np.ascontiguousarray(photo[60:420, 40 + i * step : 520 + i * step]) for i in range(count)]


def slope(number: int = 0, step: int = 0) -> Depth:
    """A wall that is farther at the right, seen by the panning camera."""
    row = 1 + (np.arange(480, dtype=np.float32) + number * step) / 240
    return np.broadcast_to(row, (360, 480)).copy()


def flicker(depths: list[Depth], step: int = 0) -> float:
    """Median relative change of a place from one frame to the next, warped by the true motion."""
    pairs = pairwise(depths)
    return float(np.mean([np.median(np.abs(np.log(b[:, : 480 - step] / a[:, step:]))) for a, b in pairs]))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (3, 0), (0, -5), (-12, 8), (30, 0)])
def test_motion_is_found(x: int, y: int, photo: Pixels) -> None:
    """Pixels of the photo; a fifth as many where motion is found."""
    before = small_grey(np.ascontiguousarray(photo[60:420, 60:540]))
    after = small_grey(np.ascontiguousarray(photo[60 + y : 420 + y, 60 + x : 540 + x]))
    motion = Motion(before, after)
    rows, columns = np.indices(after.shape, np.float32)
    found_x, found_y = motion.along(columns) - columns, motion.along(rows) - rows
    inside = (slice(12, -12), slice(12, -12))
    assert motion.alike.mean() > 0.6
    assert abs(np.median(found_x[inside]) - x / 5) < 0.15
    assert abs(np.median(found_y[inside]) - y / 5) < 0.15


def test_a_brighter_image_is_the_same_place(photo: Pixels) -> None:
    before = small_grey(photo)
    assert Motion(before, before * 0.8 + 0.1).alike.mean() > 0.8
    assert Motion(before, before[::-1].copy()).alike.mean() < 0.25


@pytest.mark.parametrize("along_motion", [True, False])
def test_jumps_of_the_scale_go(along_motion: bool, photo: Pixels) -> None:
    scales = 1 + 0.1 * np.random.default_rng(0).standard_normal(40)
    steady, raw, found = Steady(along_motion=along_motion), [], []
    for number, (pixels, scale) in enumerate(zip(moved(photo, 2, 40), scales, strict=True)):
        raw.append(slope(number, 2) * np.float32(scale))
        found.append(raw[-1] * steady(pixels, raw[-1], number / RATE))
    assert flicker(found, 2) < 0.35 * flicker(raw, 2)
    last = [depth / slope(number, 2) for number, depth in enumerate(found)][-10:]
    assert abs(np.median(last) - 1) < 0.06


def test_places_that_tremble_are_calm_along_the_motion(photo: Pixels) -> None:
    random = np.random.default_rng(0)
    noise = [np.kron(random.normal(0, 0.05, (9, 12)), np.ones((40, 40))).astype(np.float32) for _ in range(30)]
    raw = [slope(number, 2) * np.exp(one) for number, one in enumerate(noise)]
    found = {}
    for along_motion in (True, False):
        steady = Steady(along_motion=along_motion)
        frames = enumerate(zip(moved(photo, 2, 30), raw, strict=True))
        found[along_motion] = [depth * steady(pixels, depth, number / RATE) for number, (pixels, depth) in frames]
    assert flicker(found[True], 2) < 0.45 * flicker(raw, 2)
    assert flicker(found[False], 2) > 0.8 * flicker(raw, 2)
    errors = [np.abs(np.log(one[-1] / slope(29, 2))).mean() for one in (found[True], raw)]
    assert errors[0] < 0.7 * errors[1]


def test_a_camera_that_walks_on_is_followed(photo: Pixels) -> None:
    """1 % nearer with each frame: after the half second of the window the depth is a few frames late, not more."""
    steady, pixels = Steady(), moved(photo, 0, 1)[0]
    for number in range(60):
        depth = slope() * np.float32(0.99**number)
        found = depth * steady(pixels, depth, number / RATE)
    assert 0.99 < np.median(found / depth) < 1.12


def test_what_moves_keeps_its_own_depth(photo: Pixels) -> None:
    """A near thing that comes into view is near at once."""
    frames, steady = moved(photo, 0, 20), Steady()
    for number in range(20):
        pixels, depth = frames[number].copy(), slope() * 2
        if number >= 15:
            pixels[100:260, 160:320] = np.random.default_rng(1).integers(0, 255, (160, 160, 3))
            depth[100:260, 160:320] = 0.7
        found = depth * steady(pixels, depth, number / RATE)
    assert abs(np.median(found[140:220, 200:280]) / 0.7 - 1) < 0.05


def test_a_cut_begins_anew(photo: Pixels) -> None:
    steady = Steady()
    for number, pixels in enumerate(moved(photo, 1, 10)):
        steady(pixels, slope(), number / RATE)
    other = np.random.default_rng(2).integers(0, 255, (360, 480, 3), np.uint8)
    other = np.asarray(Image.fromarray(other[::40, ::40]).resize((480, 360)))
    assert np.all(steady(other, slope() * 7, 10 / RATE) == 1)


def test_slow_frames_are_not_smeared(photo: Pixels) -> None:
    """Two frames a second have nothing to remember; the scale is that of each."""
    steady = Steady()
    for number, pixels in enumerate(moved(photo, 2, 12)):
        depth = slope(number, 2) * np.float32(1.05**number)
        factor = steady(pixels, depth, number / 2)
    assert 0.93 < np.median(factor) < 1.03


def test_pixels_without_value_change_nothing(photo: Pixels) -> None:
    steady = Steady()
    for number, pixels in enumerate(moved(photo, 2, 8)):
        depth = slope(number, 2)
        depth[:, number * 30 : 200 + number * 30] = 0
        factor = steady(pixels, depth, number / RATE)
        assert np.isfinite(factor).all()
    assert np.abs(np.log(factor[:, 450:])).max() < 0.06
    assert np.isfinite(steady(pixels, np.zeros_like(depth), 1.0)).all()


def test_it_goes_on_from_its_state(photo: Pixels) -> None:
    whole, first, scales = Steady(), Steady(), np.random.default_rng(0).uniform(0.8, 1.2, 20)
    frames = moved(photo, 2, 20)
    wanted = [whole(p, slope() * np.float32(s), n / RATE) for n, (p, s) in enumerate(zip(frames, scales, strict=True))]
    for number in range(11):
        first(frames[number], slope() * np.float32(scales[number]), number / RATE)
    second = Steady().restored(first.state())
    for number in range(11, 20):
        factor = second(frames[number], slope() * np.float32(scales[number]), number / RATE)
        np.testing.assert_array_equal(factor, wanted[number])


@pytest.mark.parametrize("size", [(32, 3200), (3200, 32)])
def test_pictures_of_any_shape(size: tuple[int, int]) -> None:
    """Of a line camera, or a strip of a panorama."""
    steady = Steady()
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    for number in range(3):
        factor = steady(pixels, np.full(size, 2 + number, np.float32), number / 25)
    assert factor.shape == size
    assert np.isfinite(factor).all()
