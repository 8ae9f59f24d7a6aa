"""One view of a scene from another: inverse warping by depth, camera and motion; motions within the image plane.

Source: photometric self-supervision after Zhou et al. 2017, as in docs/systems/clip-adapters.md.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-3  # pixels that float32 may be off: so much beyond the border still counts as on it


def warp_view(
    source: Tensor, depth: Tensor, transform: Tensor, intrinsics: Tensor, *, reference_exact: bool = False
) -> tuple[Tensor, Tensor]:
    """The source image warped to the target's view.

    source (B, C, H, W); depth (B, 1, H, W) of the target, metres; transform (B, 3, 4): rotation and translation from
    target to source camera; intrinsics (3, 3) or (B, 3, 3), pixels. Returns the warped image (B, C, H, W) and where
    it is known, (B, 1, H, W) bool: in front of the source camera and between its outermost pixel centres.
    Elsewhere it is 0. ``reference_exact`` bends indices back to the border before the weights are taken, so that the
    last row and column become 0 too, and calls every pixel valid (docs/systems/clip-adapters.md).
    """
    height, width = depth.shape[-2:]
    rows = torch.arange(height, device=depth.device, dtype=depth.dtype)
    columns = torch.arange(width, device=depth.device, dtype=depth.dtype)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, N)
    points = torch.linalg.inv(intrinsics) @ pixels * depth.flatten(2)  # (B, 3, N)
    moved = intrinsics @ (transform[..., :3] @ points + transform[..., 3:])
    z = moved[:, 2]
    x, y = (moved[:, :2] / (z[:, None] + 1e-16)).view(-1, 2, height, width).unbind(1)
    if reference_exact:
        return _gather_clamped(source, x, y), torch.ones_like(depth, dtype=torch.bool)
    inside = (z.view_as(x) > 0) & ((x - (width - 1) / 2).abs() <= (width - 1) / 2 + ROUNDING)
    inside &= (y - (height - 1) / 2).abs() <= (height - 1) / 2 + ROUNDING
    valid = inside[:, None]
    grid = torch.stack([2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1], dim=-1)
    grid = torch.where(inside[..., None], grid, torch.zeros_like(grid))  # z near 0 sends points to infinity
    warped = F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return torch.where(valid, warped, torch.zeros_like(warped)), valid


def _gather_clamped(source: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear sampling whose neighbours are moved into the image first and weighted from there."""
    height, width = source.shape[-2:]
    left, top = x.floor(), y.floor()
    columns = [column.clamp(0, width - 1) for column in (left, left + 1)]
    rows = [row.clamp(0, height - 1) for row in (top, top + 1)]
    flat = source.flatten(2)
    total = torch.zeros_like(source)
    for row, row_weight in zip(rows, (rows[1] - y, y - rows[0]), strict=True):
        for column, column_weight in zip(columns, (columns[1] - x, x - columns[0]), strict=True):
            index = (row * width + column).long().flatten(1)[:, None].expand(-1, source.shape[1], -1)
            total = total + (row_weight * column_weight)[:, None] * flat.gather(2, index).view_as(source)
    return total


def in_plane_motion(
    angle: float, shift: tuple[float, float], centre: tuple[float, float], intrinsics: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """The camera motion (3, 4) that moves pixels at depth 1 by a shift and then a rotation about a point.

    ``angle`` in degrees, from x towards y; ``shift`` and ``centre`` = (x, y) in pixels; ``intrinsics`` (3, 3). The
    pixel q goes to R (q + shift - centre) + centre. This pixel map H is the homography that a plane one metre in front
    of the camera induces, K^-1 H K = R + t n^T with n the optical axis: R turns about that axis and t, which has no z,
    is in the last column. At other depths the camera's translation moves pixels by t / depth.
    """
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[c, -s], [s, c]])
    pixel_map = np.eye(3)
    pixel_map[:2, :2] = turn
    pixel_map[:2, 2] = turn @ (np.asarray(shift) - centre) + centre
    camera = np.asarray(intrinsics, np.float64)
    normalised = np.linalg.solve(camera, pixel_map @ camera)
    motion = np.eye(3, 4)
    motion[:2, :2] = turn
    motion[:2, 3] = normalised[:2, 2]
    return motion
