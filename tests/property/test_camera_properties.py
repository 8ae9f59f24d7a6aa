"""Unprojecting and projecting again is the identity, for any camera, at any size."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from langdepth.camera import Camera


@st.composite
def cameras(draw: st.DrawFn) -> Camera:
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    return Camera(
        fx=draw(st.floats(0.2, 5)) * width,
        fy=draw(st.floats(0.2, 5)) * height,
        cx=draw(st.floats(-0.5, 1.5)) * width,
        cy=draw(st.floats(-0.5, 1.5)) * height,
        width=width,
        height=height,
    )


@given(camera=cameras(), seed=st.integers(0, 2**32 - 1))
def test_project_undoes_unproject(camera: Camera, seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0.1, 100, (camera.height, camera.width)).astype(np.float32)
    points = camera.unproject(depth)
    np.testing.assert_array_equal(points[..., 2], depth)
    v, u = np.mgrid[: camera.height, : camera.width]
    np.testing.assert_allclose(camera.project(points), np.stack((u, v), axis=-1), atol=1e-4)


@given(camera=cameras(), width=st.integers(1, 200), height=st.integers(1, 200))
def test_scaling_forth_and_back(camera: Camera, width: int, height: int) -> None:
    there = camera.scaled(width, height)
    assert (there.width, there.height) == (width, height)
    np.testing.assert_allclose(there.scaled(camera.width, camera.height).matrix, camera.matrix, rtol=1e-9, atol=1e-9)


@given(camera=cameras(), orientation=st.integers(1, 8))
def test_orientations_have_an_inverse(camera: Camera, orientation: int) -> None:
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # all others are their own
    back = camera.oriented(orientation).oriented(inverse)
    assert (back.width, back.height) == (camera.width, camera.height)
    np.testing.assert_allclose(back.matrix, camera.matrix, rtol=1e-9, atol=1e-9)
