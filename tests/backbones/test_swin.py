"""Swin: timm's as an oracle where both pad nothing, the mask by definition, tables of other sizes, files of weights."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.backbones import swin
from langdepth.backbones.swin import SIZES, Block, PatchMerging, Swin, shifted_window_mask, window_layout
from langdepth.errors import CheckpointError

MINI = SIZES["swin-mini"]


@pytest.fixture
def encoder() -> Swin:
    torch.manual_seed(0)
    return Swin(MINI, position=(64, 96)).eval()


def timms_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours as timm calls them: it merges before a stage, not after it, and has no norms of the stages."""
    moved = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key): value
        for key, value in tensors.items()
    }
    return {key.replace("layers.", "layers_"): v for key, v in moved.items() if not re.match(r"norm\d|absolute", key)}


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_it_is_timms_where_every_grid_is_a_multiple_of_the_window(batch: int) -> None:
    torch.manual_seed(0)
    ours = Swin(MINI).eval()
    oracle = timm.create_model(
        "swin_tiny_patch4_window7_224",
        pretrained=False,
        features_only=True,
        out_indices=(0, 1, 2, 3),
        img_size=(128, 256),
        embed_dim=MINI.width,
        depths=MINI.depths,
        num_heads=MINI.heads,
        window_size=MINI.window,
        always_partition=True,
    ).eval()
    missing, unexpected = oracle.load_state_dict(timms_names(ours.state_dict()), strict=False)
    assert unexpected == []
    assert [key for key in missing if not key.endswith(("relative_position_index", "attn_mask"))] == []
    image = torch.rand(batch, 3, 128, 256)
    for stage, (our_map, its_map) in enumerate(zip(ours(image), oracle(image), strict=True)):
        norm = ours.get_submodule(f"norm{stage}")
        torch.testing.assert_close(our_map, norm(its_map).permute(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_comes_before_the_shift() -> None:
    """A shifted block, token by token: the window of a padded map that was rolled, as its definition says."""
    torch.manual_seed(0)
    block = Block(8, 2, window=4, shift=2, drop_path=0.0).eval()
    x = torch.randn(1, 6, 7, 8)
    padded = F.pad(x, (0, 0, 0, 1, 0, 2))
    found = torch.empty(8, 8, 8)
    region = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])  # of rolled rows and columns
    bias = block.attn.relative_position_bias_table[block.attn.relative_position_index].permute(2, 0, 1)
    rolled = padded[0].roll((-2, -2), (0, 1))
    for top in (0, 4):
        for left in (0, 4):
            tokens = rolled[top : top + 4, left : left + 4].reshape(16, 8)
            kinds = (3 * region[top : top + 4, None] + region[left : left + 4]).flatten()
            query, key, value = block.attn.qkv(tokens).view(16, 3, 2, 4).permute(1, 2, 0, 3)
            logits = query @ key.mT / 2 + bias - 100.0 * (kinds[:, None] != kinds)
            mixed = (logits.softmax(-1) @ value).transpose(0, 1).reshape(16, 8)
            found[top : top + 4, left : left + 4] = block.attn.proj(mixed).view(4, 4, 8)
    expected = found.roll((2, 2), (0, 1))[:6, :7]
    torch.testing.assert_close(block.attend(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_the_layout_is_made_once_per_size_and_serves_training() -> None:
    with torch.inference_mode():
        windows = window_layout(7, 12, 4, 2, torch.device("cpu"))
    assert windows is window_layout(7, 12, 4, 2, torch.device("cpu"))
    assert not any(tensor.is_inference() for tensor in windows if tensor is not None)
    assert windows.token.shape == (6, 16)
    assert windows.token.flatten()[windows.place].tolist() == list(range(7 * 12))
    assert int((windows.token == 7 * 12).sum()) == 12
    assert window_layout(7, 12, 4, 0, torch.device("cpu")).mask is None


def test_the_mask_parts_what_the_shift_brought_together() -> None:
    mask = shifted_window_mask(3, 3, 4, 2, torch.device("cpu"))
    assert set(mask.unique().tolist()) == {0.0, -100.0}
    assert float(mask[0].abs().sum()) == 0  # a window inside


def test_four_neighbours_are_merged_column_by_column() -> None:
    merging = PatchMerging(1)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])[None, ..., None]
    assert merging(x).tolist() == [[[[1, 3, 2, 4]], [[5, 0, 6, 0]]]]


@pytest.mark.parametrize("size", [(33, 47), (64, 96), (32, 160)])
@torch.no_grad()
def test_any_size_gives_four_maps(encoder: Swin, size: tuple[int, int]) -> None:
    maps = encoder(torch.rand(2, 3, *size))
    height, width = size
    for level, channels in enumerate(encoder.channels):
        stride = 4 * 2**level
        assert maps[level].shape == (2, channels, -(-height // stride), -(-width // stride))
        assert maps[level].isfinite().all()


def test_drop_path_rises_from_zero() -> None:
    rates = [module.drop_path.drop_prob for module in Swin(MINI, drop_path=0.4).modules() if isinstance(module, Block)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


class TestFiles:
    def release(self, encoder: Swin) -> dict[str, Tensor]:
        """A classifier's file: a head more, norms of the stages and positions fewer."""
        tensors = {k: v + 1 for k, v in encoder.state_dict().items() if not re.match(r"norm\d|absolute", k)}
        mask = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
        return {**tensors, **mask, "head.weight": torch.zeros(5, 192), "norm.weight": torch.ones(192)}

    @pytest.mark.parametrize("prefix", ["", "encoder."])
    def test_a_classifier_of_the_release(self, encoder: Swin, prefix: str) -> None:
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        encoder.load_release({prefix + key: value for key, value in self.release(encoder).items()})
        for key, value in encoder.state_dict().items():
            stays = re.match(r"norm\d|absolute", key)
            assert torch.equal(value, before[key] if stays else before[key] + 1), key

    def test_tables_of_another_size_are_resized(self, encoder: Swin) -> None:
        other = Swin(MINI._replace(window=6), position=(128, 160))
        fitted = encoder.fitted(other.state_dict())
        own = encoder.state_dict()
        assert {key: value.shape for key, value in fitted.items()} == {key: own[key].shape for key in fitted}
        flat = {"absolute_pos_embed": own["absolute_pos_embed"].flatten(2).mT}
        assert torch.equal(encoder.fitted(flat)["absolute_pos_embed"], own["absolute_pos_embed"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("patch_embed.proj.bias"), r"lack 'patch_embed\.proj\.bias'; they are of another network"),
            (lambda t: t.update({"patch_embed.proj.bias": torch.zeros(3)}), r"of shape \(3,\), expected \(24,\)"),
            (lambda t: t.clear(), "lack"),
        ],
    )
    def test_another_network_is_one_line(self, encoder: Swin, change: Any, message: str) -> None:
        tensors = self.release(encoder)
        change(tensors)
        with pytest.raises(CheckpointError, match=message):
            encoder.load_release(tensors)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        large = swin.Swin(SIZES["swin-large"], position=(480, 640))
    assert sum(p.numel() for p in large.parameters()) == 198_887_604
