"""Bins and the feature pyramid: ranges, order, shapes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from langdepth.systems.tiny.blocks import ConvexUpsampling, FeaturePyramid, RelativeBins, depth_steps


def bins_as_trained(spread: float) -> RelativeBins:
    """Bins whose widths depend on the image, as after training."""
    torch.manual_seed(0)
    bins = RelativeBins(5, 4, bins=16)
    torch.nn.init.normal_(bins.widths.weight, std=spread)
    return bins


@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0])
def test_bins_are_ordered_and_depth_stays_between_them(spread: float) -> None:
    bins = bins_as_trained(spread)
    pixels, image = torch.randn(3, 5, 6, 7) * 3, torch.randn(3, 4)
    relative, spread, centers, probs = bins(pixels, image)
    assert relative.shape == (3, 1, 6, 7)
    assert centers.shape == (3, 16)
    assert probs.shape == (3, 16, 6, 7)
    assert (centers.diff(dim=1) > 0).all()
    assert (centers > 0).all()
    assert (centers < 1).all()
    torch.testing.assert_close(probs.sum(1), torch.ones(3, 6, 7))
    assert (probs >= 0).all()
    assert (relative[:, 0] >= centers[:, 0, None, None] * 0.9999).all()
    assert (relative[:, 0] <= centers[:, -1, None, None] * 1.0001).all()
    torch.testing.assert_close(relative[:, 0], (probs * centers[..., None, None]).sum(1))
    apart = centers[..., None, None] - relative
    torch.testing.assert_close(spread[:, 0], (probs * apart**2).sum(1).sqrt(), atol=1e-4, rtol=1e-3)


def test_bins_start_geometric_whatever_the_image() -> None:
    bins = RelativeBins(5, 4, bins=16, nearest=0.02)
    _, _, centers, _ = bins(torch.randn(2, 5, 1, 1), torch.randn(2, 4))
    edges = torch.tensor([0.0, *(0.02 ** (1 - i / 16) for i in range(1, 17))])
    torch.testing.assert_close(centers, ((edges[1:] + edges[:-1]) / 2).expand(2, 16))


def test_a_certain_pixel_takes_its_bin() -> None:
    bins = RelativeBins(3, 2, bins=3)
    with torch.no_grad():
        bins.logits.weight.copy_(torch.eye(3)[..., None, None])
    pixels = 100 * torch.eye(3).view(1, 3, 1, 3)  # pixel i votes for bin i
    relative, spread, centers, _ = bins(pixels, torch.zeros(1, 2))
    torch.testing.assert_close(relative.flatten(), centers.flatten())
    assert spread.max() < 1e-3


def test_bins_keep_float32_under_autocast() -> None:
    bins = bins_as_trained(0.3)
    pixels, image = torch.randn(1, 5, 4, 4), torch.randn(1, 4)
    plain = bins(pixels, image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = bins(pixels, image)
    for one, other in zip(plain, mixed, strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.01)
    assert math.isclose(mixed[3].sum(1).max().item(), 1, rel_tol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        [(16, 24), (8, 12), (4, 6), (2, 3)],
        [(17, 23), (9, 12), (5, 6), (3, 3)],  # odd sizes, rounded up as strided convolutions do
        [(15, 9), (7, 4), (3, 2), (1, 1)],  # and rounded down
        [(8, 8), (8, 8), (8, 8), (8, 8)],
    ],
)
def test_the_pyramid_ends_at_the_finest_size(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid((3, 5, 7, 11), (8, 12, 16, 24)).eval()
    features = [torch.randn(2, c, *size) for c, size in zip((3, 5, 7, 11), sizes, strict=True)]
    assert pyramid(features).shape == (2, 8, *sizes[0])
    assert pyramid(features, torch.randn(2, 24)).shape == (2, 8, *sizes[0])


def test_every_level_and_the_top_reach_the_result() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid((3, 5, 7), (8, 12, 16)).eval()
    features = [torch.randn(1, c, 8 // 2**i, 8 // 2**i, requires_grad=True) for i, c in enumerate((3, 5, 7))]
    top = torch.randn(1, 16, requires_grad=True)
    pyramid(features, top).square().sum().backward()
    for tensor in (*features, top):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_a_level_without_width_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        FeaturePyramid((3, 5, 7), (8, 12))


def test_upsampling_begins_as_bilinear_interpolation() -> None:
    upsampling = ConvexUpsampling(5, 3, 8).eval()
    coarse = torch.rand(2, 1, 6, 7)
    weights = upsampling(torch.rand(2, 3, 24, 28), torch.rand(2, 3, 12, 14), torch.rand(2, 5, 6, 7))
    assert weights.shape == (2, 9, 16, 6, 7)
    assert (weights > 0).all()
    expected = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampling.enlarge(coarse, weights), expected, atol=0.01, rtol=0)


def test_the_pixels_of_a_cell_are_channels_of_the_upsampling() -> None:
    upsampling = ConvexUpsampling(5, 3, 8).eval()
    image, fine, pixels = torch.rand(2, 3, 24, 28), torch.rand(2, 3, 12, 14), torch.rand(2, 5, 6, 7)
    upsampling.logits.weight.data *= 1e3
    maps = [pixels, F.pixel_unshuffle(fine, 2), F.pixel_unshuffle(image, 4)]
    expected = upsampling.logits(upsampling.hidden(torch.cat(maps, 1))).exp().view(2, 9, 16, 6, 7)
    torch.testing.assert_close(upsampling(image, fine, pixels), expected)


def test_a_pixel_takes_the_cell_that_its_weights_name() -> None:
    """Cells and pixels row by row; beyond the border lies the cell at the border. Weights are shares of their sum."""
    coarse = torch.arange(6.0).view(1, 1, 2, 3)
    weights = torch.zeros(1, 9, 16, 2, 3)
    weights[:, 4] = 1
    weights[0, :, 6, 0, 0] = torch.eye(9)[5]  # row 1, column 2 of cell (0, 0): its right neighbour
    weights[0, :, 15, 0, 0] = torch.eye(9)[0]  # row 3, column 3: up and left, beyond both borders
    weights[0, :, 0, 1, 2] = torch.eye(9)[1]  # the cell above
    expected = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    expected[0, 0, 1, 2], expected[0, 0, 4, 8] = 1, 2
    assert torch.equal(ConvexUpsampling.enlarge(coarse, 2 * weights), expected)


def test_depth_changes_in_one_step_at_an_edge() -> None:
    """The cell midway between 1 and 2 metres is nearer to 2 in log scale."""
    row = torch.tensor([1.0] * 4 + [1.5] + [2.0] * 4)
    depth, edge = depth_steps(row.expand(1, 1, 8, 9))
    torch.testing.assert_close(depth[0, 0], torch.where(row > 1, 2.0, 1.0).expand(8, 9))
    beside = [(math.log(ratio) / math.log(2) - 0.45) / 0.25 for ratio in (1.5, 2 / 1.5)]
    assert edge[0, 0, 4].tolist() == pytest.approx([0, 0, 0, beside[0], 1, max(0, beside[1]), 0, 0, 0])


@pytest.mark.parametrize("ratio", [1.02, 1.2, 1.5])
def test_a_slope_has_no_edge_however_steep(ratio: float) -> None:
    """A road far away: between its cells depth changes by as much as at an edge, but evenly."""
    slope = (ratio ** torch.arange(12.0))[:, None].expand(1, 1, 12, 9)
    depth, edge = depth_steps(slope)
    torch.testing.assert_close(depth[..., 3:-3, :], slope[..., 3:-3, :])
    assert not edge[..., 3:-3, :].any()


def test_half_an_edge_is_half_a_step() -> None:
    low, high = 1.0, math.sqrt(1.1 * 1.35)
    depth, edge = depth_steps(torch.tensor([low, 1.15, high]).expand(1, 1, 3, 3))
    assert float(edge[0, 0, 1, 1]) == pytest.approx(0.5)
    assert float(depth[0, 0, 1, 1]) == pytest.approx(math.sqrt(1.15 * high))


def test_a_pixel_at_an_edge_is_more_decided() -> None:
    upsampling = ConvexUpsampling(5, 3, 8).eval()
    maps = torch.rand(2, 3, 24, 28), torch.rand(2, 3, 12, 14), torch.rand(2, 5, 6, 7)
    edge = torch.zeros(2, 1, 6, 7)
    edge[0, 0, 1, 2] = 1
    plain, decided = upsampling(*maps), upsampling(*maps, edge)
    torch.testing.assert_close(decided[0, ..., 1, 2], plain[0, ..., 1, 2] ** ConvexUpsampling.DECIDED)
    away = edge[:, 0] == 0
    torch.testing.assert_close(decided.movedim((1, 2), (-2, -1))[away], plain.movedim((1, 2), (-2, -1))[away])
