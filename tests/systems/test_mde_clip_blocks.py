"""Cross-attention of pixels with words, and bins that follow the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from langdepth.errors import UsageError
from langdepth.systems.mde_clip.blocks import AdaptiveBins, CrossAttention, MiniViT
from langdepth.systems.mde_clip.official import split_multihead


@pytest.mark.parametrize("text_channels", [8, 12])  # PyTorch's two layouts: projections in one tensor, or in three
def test_it_is_multihead_attention_with_one_head(text_channels: int) -> None:
    torch.manual_seed(0)
    usual = nn.MultiheadAttention(8, 1, kdim=text_channels, vdim=text_channels, batch_first=True)
    for bias in (usual.in_proj_bias, usual.out_proj.bias):
        nn.init.normal_(bias)
    official = {f"layer.{name}": value for name, value in usual.state_dict().items()}
    assert ("layer.in_proj_weight" in official) == (text_channels == 8)
    ours = CrossAttention(8, text_channels)
    ours.load_state_dict(split_multihead(official, "layer."))
    features, text = torch.randn(2, 8, 3, 5), torch.randn(2, 7, text_channels)
    expected = usual(features.flatten(2).mT, text, text)[0].mT.unflatten(2, (3, 5))
    torch.testing.assert_close(ours(features, text), expected)
    alone = ours(features, text[:1])  # one set of words for all images
    torch.testing.assert_close(alone[0], expected[0])
    torch.testing.assert_close(alone, ours(features, text[:1].expand(2, -1, -1)))


def test_a_missing_projection_is_named() -> None:
    with pytest.raises(KeyError, match=r"layer\.q_proj_weight"):
        split_multihead({"layer.in_proj_bias": torch.zeros(3)}, "layer.")


def test_a_large_map_needs_no_matrix_of_pixels_by_pixels() -> None:
    # 512 * 512 pixels by as many would be 256 GiB.
    with torch.no_grad():
        assert CrossAttention(4, 6)(torch.randn(1, 4, 512, 512), torch.randn(1, 7, 6)).shape == (1, 4, 512, 512)


def small_bins(**options: Any) -> AdaptiveBins:
    torch.manual_seed(0)
    return AdaptiveBins(8, 10, 0.5, 4.0, queries=5, patch=2, **options).eval()


@pytest.mark.parametrize("widths", ["linear", "softmax", "sigmoid"])
def test_bins_fill_the_range_in_order_and_follow_the_image(widths: Any) -> None:
    head = small_bins(widths=widths)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2)
        found = head(torch.randn(3, 8, 6, 8))
    assert found.edges.shape == (3, 11)
    assert (found.edges.diff(dim=1) > 0).all()
    torch.testing.assert_close(found.edges[:, 0], torch.full((3,), 0.5))
    torch.testing.assert_close(found.edges[:, -1], torch.full((3,), 4.0))
    torch.testing.assert_close(found.centers, (found.edges[:, 1:] + found.edges[:, :-1]) / 2)
    assert (found.edges[0] - found.edges[1]).abs().max() > 1e-3
    assert found.probs.shape == (3, 10, 6, 8)
    torch.testing.assert_close(found.probs.sum(1), torch.ones(3, 6, 8))
    torch.testing.assert_close(found.depth[:, 0], (found.probs * found.centers[..., None, None]).sum(1))


def test_widths_by_hand() -> None:
    vit: Any = MiniViT(8, 3, queries=1, patch=2).eval()
    with torch.no_grad():
        vit.regressor[-1].weight.zero_()
        vit.regressor[-1].bias.copy_(torch.tensor([-1.0, 0.0, 0.7]))
        widths, _ = vit(torch.randn(1, 8, 4, 4))
    torch.testing.assert_close(widths, torch.tensor([[0.1, 0.1, 0.8]]))


def test_positions_matter_and_queries_come_after_the_first_token() -> None:
    head = small_bins()
    features = torch.randn(1, 8, 6, 8)
    with torch.no_grad():
        tokens = head.transformer.tokens(features)
        _, maps = head.transformer(features)
        expected = (head.transformer.conv(features) * tokens[:, 1, :, None, None]).sum(1)
        torch.testing.assert_close(maps[:, 0], expected)
        head.transformer.positions.copy_(head.transformer.positions.flip(0))
        assert not torch.allclose(head.transformer.tokens(features), tokens)


@pytest.mark.parametrize(("size", "count"), [((2, 10), 5), ((60, 40), 600)])
def test_maps_of_too_few_or_too_many_patches_are_refused(size: tuple[int, int], count: int) -> None:
    with pytest.raises(UsageError, match=f"6 to 500 patches of 2 x 2 cells; .* cells are {count}") as caught:
        small_bins()(torch.zeros(1, 8, *size))
    assert "\n" not in str(caught.value)
