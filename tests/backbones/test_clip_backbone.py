"""CLIP image towers: open_clip's numbers, any size, every dense mode, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip import ClipImageTower, _VisionTransformer, model_config
from langdepth.errors import UsageError


def tower(architecture: str, seed: int = 0, **options: object) -> ClipImageTower:
    torch.manual_seed(seed)
    made = ClipImageTower(architecture, quick_gelu=True, **options).eval()  # type: ignore[arg-type]
    for name, parameter in made.named_parameters():
        if name.endswith("bn3.weight"):  # open_clip starts residual branches at zero
            torch.nn.init.ones_(parameter)
    return made


def photo(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("architecture", ["RN-small", "ViT-small", "convnext_tiny"])
@torch.no_grad()
def test_names_and_whole_image_embedding_are_those_of_open_clip(architecture: str) -> None:
    from open_clip.model import _build_vision_tower

    config = model_config(architecture)
    ours = tower(architecture)
    theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu=True).eval()
    theirs.load_state_dict(ours.state_dict())
    size = 64 if architecture == "convnext_tiny" else 224
    torch.testing.assert_close(
        ours.dense_and_embedding(photo(size, size))[1], theirs(photo(size, size)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("architecture", "strides", "channels"),
    [
        ("RN-small", (2, 4, 8, 16, 32), (16, 64, 128, 256, 512)),
        ("ViT-small", (16, 16), (128, 128)),
        ("convnext_tiny", (4, 8, 16, 32), (96, 192, 384, 768)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (77, 130)])
@torch.no_grad()
def test_shapes_at_any_size(
    architecture: str, strides: tuple[int, ...], channels: tuple[int, ...], size: tuple[int, int]
) -> None:
    made = tower(architecture)
    assert (made.strides, made.channels, made.stride) == (strides, channels, strides[-1])
    grid = tuple(side // made.stride for side in size)
    for mode in made.modes:
        assert made(photo(*size, batch=2), mode).shape == (2, made.output_channels(mode), *grid)
    maps = made.pyramid(photo(*size, batch=2))
    assert [m.shape[1] for m in maps] == list(channels)
    for stride, one in zip(strides, maps, strict=True):
        # ModifiedResNet's first convolution rounds up.
        assert one.shape[2:] in (tuple(s // stride for s in size), tuple(-(-s // stride) for s in size))
    assert made.dense_and_embedding(photo(*size, batch=2))[1].shape == (2, made.embed_dim)


@pytest.mark.parametrize("architecture", ["RN-small", "ViT-small", "convnext_tiny"])
@torch.no_grad()
def test_one_pass_gives_cells_and_embedding(architecture: str) -> None:
    made, image = tower(architecture), photo(64, 96, batch=2)
    for mode in made.modes:
        cells, embedding = made.dense_and_embedding(image, mode)
        assert torch.equal(cells, made(image, mode))
        assert torch.equal(embedding, made.dense_and_embedding(image)[1])


@torch.no_grad()
def test_the_raw_map_of_a_resnet_is_the_last_of_its_pyramid() -> None:
    made = tower("RN-small")
    assert torch.equal(made(photo(64, 96), "stage"), made.pyramid(photo(64, 96))[-1])


@pytest.mark.parametrize("architecture", ["RN-small", "ViT-small"])
@torch.no_grad()
def test_a_batch_equals_its_singles_in_either_memory_format(architecture: str) -> None:
    made, batch = tower(architecture), photo(64, 96, batch=3)
    for mode in made.modes:
        together = made(batch.contiguous(memory_format=torch.channels_last), mode)
        alone = torch.cat([made(one[None], mode) for one in batch])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_resnet_value_is_attention_to_the_own_cell() -> None:
    made: Any = tower("RN-small")
    cells = made(photo(64, 96), "stage")
    pool = made.attnpool
    value = F.conv2d(cells, pool.v_proj.weight[..., None, None], pool.v_proj.bias)
    value = F.conv2d(value, pool.c_proj.weight[..., None, None], pool.c_proj.bias)
    torch.testing.assert_close(made(photo(64, 96), "value"), value, rtol=1e-4, atol=1e-5)
    # One cell, no positions: the cell and the mean are the same token, so all ways through the pool agree.
    pool.positional_embedding.zero_()
    one = photo(32, 32)
    torch.testing.assert_close(made(one, "attnpool"), made(one, "value"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(one, "attnpool")[..., 0, 0], made.dense_and_embedding(one)[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_vit_value_is_the_last_block_with_attention_to_the_own_cell() -> None:
    made: Any = tower("ViT-small")
    entered: list[Tensor] = []
    last = made.transformer.resblocks[-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    made(photo(32, 48), "stage")
    handle.remove()
    own = torch.full((7, 7), float("-inf")).fill_diagonal_(0)
    tokens = made.ln_post(last(entered[0], attn_mask=own)[:, 1:]) @ made.proj
    expected = tokens.transpose(1, 2).reshape(1, 64, 2, 3)
    torch.testing.assert_close(made(photo(32, 48), "value"), expected, rtol=1e-4, atol=1e-5)


def test_positions_are_resized_in_two_dimensions_with_the_class_row_apart() -> None:
    rows = torch.arange(14.0).repeat_interleave(14)
    table = torch.cat([torch.tensor([1000.0]), rows])[:, None]
    resized = _VisionTransformer._positions(table, torch.Size((28, 10)), "2d")
    assert resized[0] == 1000
    grid = resized[1:].view(28, 10)
    torch.testing.assert_close(grid, grid[:, :1].expand(28, 10))  # nothing moves along a row
    assert bool((grid[1:-1, 0].diff() > 0).all())
    assert -0.5 < float(grid.min()) < float(grid.max()) < 13.5
    sequence = _VisionTransformer._positions(table, torch.Size((28, 10)), "linear1d")
    assert float(sequence[1]) > 100  # the official way: the class row runs into the first cells


def test_a_grid_of_as_many_cells_but_another_shape_is_resized() -> None:
    table = torch.randn(197, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_VisionTransformer._positions(table, torch.Size((14, 14)), "2d"), table)
    assert not torch.allclose(_VisionTransformer._positions(table, torch.Size((7, 28)), "2d"), table)


@torch.no_grad()
def test_position_resize_changes_other_sizes_only() -> None:
    plain, official = tower("ViT-small"), tower("ViT-small", position_resize="linear1d")
    assert torch.equal(plain(photo(224, 224)), official(photo(224, 224)))
    assert not torch.allclose(plain(photo(64, 96)), official(photo(64, 96)), atol=1e-3)


def test_batch_norm_stays_in_eval_mode_by_default() -> None:
    made: Any = tower("RN-small")
    before = {name: value.clone() for name, value in made.named_buffers()}
    made.train()
    assert made.training
    made(photo(64, 64, batch=2))
    assert all(torch.equal(value, before[name]) for name, value in made.named_buffers())
    made.batch_norm_trains = True
    made.train()
    made(photo(64, 64, batch=2))
    assert not torch.equal(made.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize(
    ("architecture", "mode", "names"),
    [
        ("RN-small", "attnpool", ["conv1.weight", "attnpool.positional_embedding", "attnpool.q_proj.weight"]),
        ("ViT-small", "stage", ["conv1.weight", "positional_embedding", "proj"]),
        ("convnext_tiny", "proj", ["trunk.stem.0.weight", "head.proj.weight"]),
    ],
)
def test_gradients_reach_the_tower(architecture: str, mode: str, names: list[str]) -> None:
    made = tower(architecture)
    made(photo(64, 96), mode).square().mean().backward()
    for name in names:
        gradient = made.get_parameter(name).grad
        assert gradient is not None
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("architecture", ["RN-small", "ViT-small"])
@torch.no_grad()
def test_bfloat16_is_close(architecture: str) -> None:
    made = tower(architecture)
    exact = made(photo(64, 96))
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(photo(64, 96)).float()
    assert float(F.cosine_similarity(exact, rough, dim=1).min()) > 0.99
    whole = made.to(torch.bfloat16)(photo(64, 96).bfloat16())
    assert whole.dtype == torch.bfloat16
    assert float(F.cosine_similarity(exact, whole.float(), dim=1).min()) > 0.99


@torch.no_grad()
def test_the_activation_matters() -> None:
    quick = tower("ViT-small")
    plain = ClipImageTower("ViT-small", quick_gelu=False).eval()
    plain.load_state_dict(quick.state_dict())
    assert not torch.allclose(quick(photo(32, 32)), plain(photo(32, 32)), atol=1e-4)


def test_channels_of_a_mode_are_known_without_a_image() -> None:
    made = tower("RN-small")
    assert (made.output_channels("stage"), made.output_channels("proj")) == (512, 256)
    assert tower("ViT-small").output_channels("stage") == 64


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("RN5O", "unknown CLIP architecture 'RN5O': did you mean 'RN50'?"),
        ("ViT-B-16-SigLIP", "'ViT-B-16-SigLIP' is not supported"),
        ("roberta-ViT-B-32", "'roberta-ViT-B-32' is not supported"),
        ("swin_base_patch4_window7_224", "is not supported"),
        ("hf-hub:somebody/something", "unknown CLIP architecture"),
    ],
)
def test_other_architectures_are_refused(architecture: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        ClipImageTower(architecture, quick_gelu=True)
    assert message in str(refused.value)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="has QuickGELU, but GELU was asked for"):
        ClipImageTower("ViT-B-16-quickgelu", quick_gelu=False)
    with pytest.raises(UsageError, match="unknown position_resize 'linear'"):
        ClipImageTower("ViT-small", quick_gelu=True, position_resize="linear")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("architecture", "mode", "shape", "message"),
    [
        ("RN-small", "atnpool", (1, 3, 64, 64), "unknown dense mode 'atnpool' for RN-small: did you mean 'attnpool'?"),
        ("ViT-small", "attnpool", (1, 3, 64, 64), "unknown dense mode 'attnpool' for ViT-small"),
        ("RN-small", "stage", (1, 3, 31, 64), "at least 32 x 32 pixels (one cell), got 31 x 64"),
        ("ViT-small", "stage", (1, 3, 64, 15), "at least 16 x 16 pixels (one cell), got 64 x 15"),
        ("RN-small", "stage", (1, 1, 64, 64), "takes images (B, 3, H, W), got (1, 1, 64, 64)"),
        ("RN-small", "stage", (3, 64, 64), "takes images (B, 3, H, W), got (3, 64, 64)"),
    ],
)
def test_wrong_input_is_refused(architecture: str, mode: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        tower(architecture)(torch.zeros(shape), mode)
    assert message in str(refused.value)
