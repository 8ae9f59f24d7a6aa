"""Depth boundary errors: their values where they are known by thought, and the edge detector."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from langdepth.evaluation.boundaries import boundary_errors, canny

Depth = npt.NDArray[np.float32]
SIZE = (40, 60)
FARTHEST = 10  # pixels, in the paper of iBims-1


EXPECTED = [
    "................................",
    "................................",
    ".##.............................",
    "...#............................",
    "....#######.....................",
    "....#......##...................",
    ".##.#........#..................",
    ".#.#.........##.................",
    "...##.........##................",
    "....#..........#................",
    "....#..###.....#####............",
    "....#....##...#....###..........",
    "....#.........#......###........",
    "....##......####.......###......",
    ".....#######....##.......###....",
    ".................###.......###..",
    "...................###.......##.",
    ".....................###........",
    ".......................###......",
    ".........................###....",
    "...........................###..",
    "..............................#.",
    "................................",
    "................................",
]


def step(column: int) -> Depth:
    """1 m to the left of ``column``, 3 m to its right, 2 m in it."""
    metres = np.ones(SIZE, np.float32)
    metres[:, column] = 2
    metres[:, column + 1 :] = 3
    return metres


def line(column: int) -> npt.NDArray[np.bool_]:
    edges = np.zeros(SIZE, np.bool_)
    edges[1:-1, column] = True
    return edges


def test_a_step_is_found_where_it_is() -> None:
    np.testing.assert_array_equal(canny(step(30) / np.float32(3), math.sqrt(2), 0.15, 0.3), line(30))


@pytest.mark.parametrize("shift", [0, 1, 4, 10])
def test_a_step_is_as_wrong_as_it_is_shifted(shift: int) -> None:
    assert boundary_errors(step(30 + shift), line(30)) == (shift, shift)


def test_what_is_farther_than_ten_pixels_is_no_match() -> None:
    assert boundary_errors(step(31), line(20)) == (FARTHEST, FARTHEST)
    assert boundary_errors(step(30), line(20)) == (FARTHEST, FARTHEST)  # not nearer than ten
    assert boundary_errors(step(29), line(20)) == (9, 9)


def test_completeness_counts_the_edges_of_both() -> None:
    """Lines of equal length: the mean over them of their distance to the other kind, at most ten."""
    missed = boundary_errors(step(50), line(20) | line(48))
    assert missed == pytest.approx((2, (2 + FARTHEST + 2) / 3))  # predicted; true and missed; true and found
    stray = boundary_errors(step(15) + step(45), line(18))
    assert stray == pytest.approx((3, (3 + FARTHEST + 3) / 3))  # predicted; predicted for nothing; true


def test_without_edges() -> None:
    assert all(map(math.isnan, boundary_errors(step(30), np.zeros(SIZE, np.bool_))))
    assert boundary_errors(np.full(SIZE, 2, np.float32), line(30)) == (FARTHEST, FARTHEST)
    assert boundary_errors(np.tile(np.linspace(1, 2, SIZE[1], dtype=np.float32), (SIZE[0], 1)), line(30)) == (
        FARTHEST,
        FARTHEST,
    )


def test_the_unit_of_depth_does_not_matter() -> None:
    metres = step(30) + np.random.default_rng(0).normal(0, 0.02, SIZE).astype(np.float32)
    assert boundary_errors(1000 * metres - 7, line(33)) == pytest.approx(boundary_errors(metres, line(33)))


def test_weak_edges_count_where_they_lead_to_strong_ones() -> None:
    """A wall that rises from nothing along the image, and one as low that stays alone."""
    image = np.zeros(SIZE, np.float32)
    image[:, 20:] = np.linspace(0, 0.5, SIZE[0], dtype=np.float32)[:, None]
    found = canny(image, 1.0, 0.15, 0.9)
    high = canny(image, 1.0, 0.9, 0.9)
    assert high.any()
    assert not high[:20].any()
    assert found[8:20, 19:21].any(axis=1).all()
    image[:, 20:] = 0.08
    assert canny(image, 1.0, 0.15, 0.15).any()
    assert not canny(image, 1.0, 0.15, 0.9).any()


def test_it_finds_what_scikit_image_finds() -> None:
    """A disc and a bar at an angle; the edges were computed by skimage.feature.canny 0.26 with these numbers."""
    y, x = np.mgrid[:24, :32].astype(np.float64)
    image = 0.5 * ((y - 9) ** 2 + (x - 9) ** 2 < 36) + 0.4 * (np.abs(2 * y - x - 7) < 5) + 0.003 * x * y / 10
    found = canny(image.astype(np.float32), math.sqrt(2), 0.15, 0.3)
    assert ["".join(".#"[pixel] for pixel in row) for row in found.astype(int)] == EXPECTED
