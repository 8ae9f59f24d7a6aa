"""Lenses: against OpenCV where it is installed, and against themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.lenses import Lens

EUROC = Lens(coefficients=(-0.28340811, 0.07395907, 0.00019359, 1.76e-05))
RATIONAL = Lens(coefficients=(0.3, -0.2, 0.001, -0.002, 0.05, 0.6, -0.1, 0.02))
PRISM = Lens(coefficients=(-0.2, 0.05, 0.001, -0.002, 0.01, 0.0, 0.0, 0.0, 0.002, -0.001, 0.003, 0.001))
FISHEYE = Lens(model="equidistant", coefficients=(0.0034823894, 0.0007150348, -0.0020532361, 0.00020293673))
LENSES = [EUROC, RATIONAL, PRISM, FISHEYE]
ANGLE = math.radians(3)
TURN = (math.cos(ANGLE), 0.0, math.sin(ANGLE), 0.0, 1.0, 0.0, -math.sin(ANGLE), 0.0, math.cos(ANGLE))


def camera(lens: Lens | None, focal: float = 90.0) -> Camera:
    return Camera(fx=focal, fy=focal * 1.1, cx=62.0, cy=50.5, width=128, height=96, lens=lens)


def rays() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-0.5:0.5:21j, -0.7:0.7:21j]
    return x, y


@pytest.mark.parametrize("lens", LENSES)
def test_points_appear_where_opencv_has_them(lens: Lens) -> None:
    cv2 = pytest.importorskip("cv2")
    x, y = rays()
    points = np.stack((x, y, np.ones_like(x)), -1).reshape(-1, 1, 3)
    project = cv2.fisheye.projectPoints if lens.model == "equidistant" else cv2.projectPoints
    arguments: dict[str, Any] = {"K" if lens.model == "equidistant" else "cameraMatrix": camera(lens).matrix}
    arguments["D" if lens.model == "equidistant" else "distCoeffs"] = np.array(lens.coefficients)
    expected, _ = project(points, rvec=np.zeros(3), tvec=np.zeros(3), **arguments)
    found = camera(lens).project(points[:, 0])
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-6)


@pytest.mark.parametrize("lens", [EUROC, replace(EUROC, rotation=TURN, straight=(80.0, 82.0, 60.0, 47.0)), FISHEYE])
def test_images_are_straightened_as_by_opencv(lens: Lens) -> None:
    cv2 = pytest.importorskip("cv2")
    v, u = np.mgrid[:96, :128]
    image = np.stack((u * 2, v * 2, (u + v) % 256), -1).astype(np.uint8)  # what changes slowly is sampled alike
    bent = camera(lens)
    way = bent.straightening()
    assert way is not None
    found, inside = way.image(image)
    flat, turn = bent.straight(way).matrix, np.reshape(lens.rotation or np.eye(3), (3, 3))
    init = cv2.fisheye.initUndistortRectifyMap if lens.model == "equidistant" else cv2.initUndistortRectifyMap
    maps = init(bent.matrix, np.array(lens.coefficients), turn, flat, (128, 96), cv2.CV_32FC1)
    expected = cv2.remap(image, *maps, cv2.INTER_LINEAR)
    safe = inside & (np.abs(maps[0] - 63.5) < 62) & (np.abs(maps[1] - 47.5) < 46)
    assert safe.mean() > 0.5
    assert np.abs(found[safe].astype(int) - expected[safe])[..., :2].max() <= 2  # its steps are 1/32 of a pixel


@pytest.mark.parametrize("lens", LENSES)
def test_undistort_is_the_way_back(lens: Lens) -> None:
    x, y = rays()
    np.testing.assert_allclose(lens.undistort(*lens.distort(x, y)), (x, y), atol=1e-9)
    np.testing.assert_array_equal(lens.undistort(np.zeros(1), np.zeros(1)), np.zeros((2, 1)))


def test_beyond_its_reach_a_lens_shows_nothing() -> None:
    barrel = Lens(coefficients=(-0.3,))  # r (1 - 0.3 r^2) falls from r = 1.054 on
    x = np.array([0.5, 1.05, 1.1, 1.7])
    seen, _ = barrel.distort(x, np.zeros(4))
    np.testing.assert_array_equal(np.isnan(seen), [False, False, True, True])
    back, _ = barrel.undistort(np.array([0.69, 0.71]), np.zeros(2))  # it ends at 0.7027
    np.testing.assert_array_equal(np.isnan(back), [False, True])
    with pytest.raises(UsageError, match="inside out"):
        Lens(coefficients=(-1e9,)).distort(x, x)


@pytest.mark.parametrize("lens", LENSES)
def test_points_in_space_follow_the_lens(lens: Lens) -> None:
    bent, depth = camera(lens), np.random.default_rng(0).uniform(1, 5, (96, 128)).astype(np.float32)
    points = bent.unproject(depth)
    v, u = np.mgrid[:96, :128]
    known = np.isfinite(points).all(-1)
    assert known.mean() > 0.9
    np.testing.assert_allclose(bent.project(points)[known], np.stack((u, v), -1)[known], atol=1e-4)
    assert np.abs(points - camera(None).unproject(depth))[known].max() > 0.02


@pytest.mark.parametrize("turn", [(), TURN])
@pytest.mark.parametrize("lens", [EUROC, FISHEYE])
def test_a_plane_survives_both_ways(lens: Lens, turn: tuple[float, ...]) -> None:
    """The depth of a wall in the straightened image, bent back, is that wall in the camera's own image."""
    bent = camera(replace(lens, rotation=turn))
    way = bent.straightening(whole=True)
    assert way is not None
    normal, distance = np.array([0.3, -0.2, 1.0]), 3.0  # points p of the camera's frame with p . normal = distance
    turned = np.reshape(turn or np.eye(3), (3, 3)) @ normal

    def depth_of(camera: Camera, normal: np.ndarray) -> np.ndarray:
        rays = camera.unproject(np.ones((96, 128)))
        return (distance / (rays @ normal)).astype(np.float32)

    found = way.bent(depth_of(bent.straight(way), turned))
    expected = depth_of(bent, normal)
    known = found > 0
    assert known.mean() > 0.97
    np.testing.assert_allclose(found[known], expected[known], rtol=2e-3)
    inverse = way.bent(1 / depth_of(bent.straight(way), turned), inverse=True)
    np.testing.assert_allclose(1 / inverse[known], expected[known], rtol=2e-3)


def test_the_whole_image_is_in_the_view_that_keeps_it() -> None:
    bent = camera(Lens(coefficients=(-0.25, 0.05)), focal=70.0)
    usual, whole = bent.straightening(), bent.straightening(whole=True)
    assert usual is not None
    assert whole is not None
    depth = np.ones((96, 128), np.float32)
    assert (usual.bent(depth) == 0).mean() > 0.05  # what lies beyond the border of the usual view is lost
    assert (whole.bent(depth) > 0).all()
    assert whole.flat[0] < usual.flat[0] == 70
    assert camera(None).straightening() is None


def test_a_lens_follows_the_size_of_its_image() -> None:
    bent = camera(replace(EUROC, straight=(80.0, 82.0, 60.0, 47.0)))
    points = camera(None).unproject(np.full((96, 128), 2.0))[::7, ::7]
    np.testing.assert_allclose(bent.scaled(256, 192).project(points), (bent.project(points) + 0.5) * 2 - 0.5)
    way, twice = bent.straightening(), bent.scaled(256, 192).straightening()
    assert way is not None
    assert twice is not None
    assert twice.flat == (160, 164, 120.5, 94.5)
    with pytest.raises(UsageError, match="not turned"):
        bent.oriented(6)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"model": "polynomal"}, "did you mean 'polynomial'"),
        ({"coefficients": (0.1,) * 13}, "13 numbers as coefficients"),
        ({"model": "equidistant", "coefficients": (0.1,) * 5}, "5 numbers as coefficients"),
        ({"coefficients": (math.nan,)}, "must be finite"),
        ({"rotation": (1.0,) * 9}, "is no rotation"),
        ({"rotation": (1.0,) * 8}, "8 numbers as rotation"),
        ({"straight": (1.0, 2.0)}, "2 numbers as straight"),
    ],
)
def test_what_is_no_lens(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Lens(**facts)
