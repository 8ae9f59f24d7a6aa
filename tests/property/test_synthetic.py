"""Ray-cast scenes: the depth is that of the geometry, to the last bits of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langdepth.camera import Camera
from langdepth.data.tools.raycast import Box, Material, Pose, Sphere, render
from langdepth.data.tools.scenes import ROOMS, STREET, room, street
from langdepth.errors import UsageError
from langdepth.text.scenes import SCENES

MATERIAL = Material.draw(np.random.default_rng(0), hue=0.3)
CAMERA = Camera.from_fov(60, 48, 32)


def plane_residual(points: np.ndarray) -> float:
    """Largest distance of (N, 3) points from their best plane, in metres."""
    points = points.astype(np.float64)
    centred = points - points.mean(0)
    normal = np.linalg.svd(centred, full_matrices=False)[2][-1]
    return float(np.abs(centred @ normal).max())


@settings(max_examples=25)
@given(distance=st.floats(1, 50), yaw=st.floats(-0.5, 0.5), pitch=st.floats(-0.3, 0.3), roll=st.floats(-0.3, 0.3))
def test_wall_is_where_the_formula_says(distance: float, yaw: float, pitch: float, roll: float) -> None:
    """A camera inside a huge room sees the wall z = distance; its depth has a closed form."""
    wall = Box(centre=(0, 0, distance - 500), size=(1000, 1000, 1000), material=MATERIAL, inside=True)
    pose = Pose(position=(0, 0, 0), yaw=yaw, pitch=pitch, roll=roll)
    _, depth = render([wall], CAMERA, pose, light=(0, 0, 0))
    u, v = np.meshgrid((np.arange(48) - CAMERA.cx) / CAMERA.fx, (np.arange(32) - CAMERA.cy) / CAMERA.fy)
    rays = np.stack((u, v, np.ones_like(u)), -1)
    forward = pose.rotation[2]  # the world's z as the camera sees it
    np.testing.assert_allclose(depth, distance / (rays @ forward), rtol=1e-6)
    assert plane_residual(CAMERA.unproject(depth).reshape(-1, 3)) < 1e-5 * distance


@pytest.mark.parametrize("yaw", [0.0, 0.7])
@pytest.mark.parametrize("shape", ["box", "sphere"])
def test_turning_the_world_with_the_camera_changes_nothing(yaw: float, shape: str) -> None:
    """Straight ahead, 4 m away, stands the front of the thing, whichever way everything is turned."""
    ahead = (5 * math.sin(yaw), 0.0, 5 * math.cos(yaw))
    thing = (
        Box(centre=ahead, size=(2, 2, 2), yaw=yaw, material=MATERIAL)
        if shape == "box"
        else Sphere(centre=ahead, radius=1, material=MATERIAL)
    )
    camera = Camera(fx=40, fy=40, cx=24, cy=16, width=48, height=32)
    _, depth = render([thing], camera, Pose(position=(0, 0, 0), yaw=yaw), light=(0, -5, 0))
    assert depth[16, 24] == pytest.approx(4.0)
    assert depth[0, 0] == 0  # beside it is nothing
    points = camera.unproject(depth)[depth > 0]
    if shape == "box":
        np.testing.assert_allclose(points[:, 2], 4.0, rtol=1e-6)  # only the front face is seen
    else:
        np.testing.assert_allclose(np.linalg.norm(points - [0, 0, 5], axis=-1), 1.0, rtol=1e-5)


def test_camera_turns_the_way_its_words_say() -> None:
    """Yaw to the right moves things left in the image; pitch upwards moves them down."""
    ball = Sphere(centre=(0, 0, 5), radius=0.5, material=MATERIAL)

    def centre(**turn: float) -> np.ndarray:
        depth = render([ball], CAMERA, Pose(position=(0, 0, 0), **turn), light=(0, 0, 0))[1]
        return np.argwhere(depth > 0).mean(0)

    row, column = centre()
    assert centre(yaw=0.2)[1] < column - 2
    assert centre(pitch=0.2)[0] > row + 2


def test_nearer_things_hide_farther_ones() -> None:
    near, far = (Sphere(centre=(0, 0, z), radius=1, material=MATERIAL) for z in (4, 8))
    pose = Pose(position=(0, 0, 0))
    both = render([far, near], CAMERA, pose, light=(0, 0, 0))[1]
    alone = render([near], CAMERA, pose, light=(0, 0, 0))[1]
    np.testing.assert_array_equal(both[alone > 0], alone[alone > 0])


@pytest.mark.parametrize("index", range(12))
def test_rooms_are_closed_and_of_their_size(index: int) -> None:
    rendering = room(index, height=48, width=64)
    side, tall, _ = ROOMS[rendering.scene]
    assert rendering.scene in SCENES
    assert rendering.image.shape == (48, 64, 3)
    assert rendering.depth.shape == (48, 64)
    assert rendering.depth.min() > 0.2
    assert rendering.depth.max() < math.hypot(side[1], side[1], tall)
    assert rendering.image.std() > 10  # textured and lit: there is something to learn from


@pytest.mark.parametrize("index", range(4))
def test_street_has_a_flat_ground_and_a_sky_without_depth(index: int) -> None:
    rendering = street(index, height=64, width=96)
    assert rendering.scene == STREET
    assert (rendering.depth[-1] > 0).all()
    assert 0.02 < (rendering.depth == 0).mean() < 0.5
    ground = rendering.camera.unproject(rendering.depth)[-6:, 40:56].reshape(-1, 3)
    assert plane_residual(ground) < 1e-4
    assert np.abs(ground[:, 1] - 1.65).max() < 0.6  # a camera at 1.65 m, tilted a little


@pytest.mark.parametrize("draw", [room, street])
def test_same_index_and_seed_same_image(draw: object) -> None:
    def make(index: int, seed: int) -> tuple[bytes, bytes]:
        rendering = draw(index, height=40, width=48, seed=seed)  # type: ignore[operator]
        return rendering.image.tobytes(), rendering.depth.tobytes()

    assert make(3, 1) == make(3, 1)
    assert make(3, 1) != make(4, 1)
    assert make(3, 1) != make(3, 2)


@pytest.mark.parametrize("draw", [room, street])
def test_size_does_not_change_the_scene(draw: object) -> None:
    """The same index at twice the size is the same scene seen by a finer sensor."""
    small = draw(5, height=32, width=48)  # type: ignore[operator]
    large = draw(5, height=96, width=144)  # type: ignore[operator]
    centres = large.depth[1::3, 1::3]  # an odd factor: centres of pixels fall on centres
    agree = np.isclose(small.depth, centres, rtol=1e-5)
    assert agree.mean() > 0.999  # rounding may decide a ray that grazes an edge
    assert large.camera.fx == pytest.approx(3 * small.camera.fx)


@pytest.mark.parametrize("size", [(31, 64), (64, 2049)])
def test_impossible_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="between 32 and 2048"):
        room(0, height=size[0], width=size[1])
