"""Warping between views: identity, known motions, what is out of view; motions within the image plane."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from langdepth.systems.clip_adapters.view_warp import in_plane_motion, warp_view

INTRINSICS = torch.tensor([[30.0, 0, 12], [0, 30, 8], [0, 0, 1]])
IDENTITY = torch.eye(3, 4)[None]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def moved(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    motion = IDENTITY.clone()
    motion[0, :, 3] = torch.tensor([x, y, z])
    return motion


def test_identity_returns_the_image(image: Tensor) -> None:
    depth = torch.full((1, 1, 16, 24), 2.0)
    warped, valid = warp_view(image, depth, IDENTITY, INTRINSICS)
    assert valid.all()  # the outermost row and column too, whatever rounding does
    torch.testing.assert_close(warped, image, rtol=0, atol=1e-5)


def test_the_published_sampling_loses_the_last_row_and_column(image: Tensor) -> None:
    depth = torch.full((1, 1, 16, 24), 1.0, dtype=torch.float64)
    intrinsics = torch.eye(3, dtype=torch.float64)  # no rounding
    warped, valid = warp_view(image.double(), depth, IDENTITY.double(), intrinsics, reference_exact=True)
    assert valid.all()
    torch.testing.assert_close(warped[..., :-1, :-1], image[..., :-1, :-1].double())
    assert (warped[..., -1, :] == 0).all()
    assert (warped[..., :, -1] == 0).all()


def test_a_sideways_motion_shifts_by_focal_length_over_depth(image: Tensor) -> None:
    depth = torch.full((1, 1, 16, 24), 2.0)
    warped, valid = warp_view(image, depth, moved(x=0.2), INTRINSICS)  # 30 * 0.2 / 2 = 3 pixels
    torch.testing.assert_close(warped[..., 1:-1, :20], image[..., 1:-1, 3:23], rtol=0, atol=1e-4)
    assert not valid[..., 21:].any()  # would come from beyond the right edge
    assert (warped[..., 21:] == 0).all()


def test_what_lies_behind_the_camera_is_not_in_view(image: Tensor) -> None:
    depth = torch.full((1, 1, 16, 24), 2.0)
    for distance in (-2.0, -3.0):
        warped, valid = warp_view(image, depth, moved(z=distance), INTRINSICS)
        assert not valid.any()
        assert (warped == 0).all()


@pytest.mark.parametrize("reference_exact", [False, True])
def test_gradients_reach_depth_and_stay_finite(image: Tensor, reference_exact: bool) -> None:
    depth = (torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(1)) + 0.5).requires_grad_()
    motion = moved(x=0.05, y=-0.02, z=-0.6)  # some points end near or behind the camera
    warped, _ = warp_view(image, depth, motion, INTRINSICS, reference_exact=reference_exact)
    warped.square().sum().backward()
    assert depth.grad is not None
    assert depth.grad.isfinite().all()
    assert (depth.grad != 0).any()


def test_motion_in_the_plane_moves_pixels_as_stated() -> None:
    intrinsics = np.array([[0.5, 0, 7], [0, 0.5, 3], [0, 0, 1]])
    motion = in_plane_motion(30.0, (2.0, -1.0), (4.0, 5.0), intrinsics)
    assert motion[:, :3] @ motion[:, :3].T == pytest.approx(np.eye(3))
    pixel = np.array([9.0, 6.0, 1.0])
    found = intrinsics @ (motion[:, :3] @ np.linalg.solve(intrinsics, pixel) + motion[:, 3])
    turn = np.array([[np.sqrt(3) / 2, -0.5], [0.5, np.sqrt(3) / 2]])
    assert found / found[2] == pytest.approx([*(turn @ [9 + 2 - 4, 6 - 1 - 5] + [4, 5]), 1])
