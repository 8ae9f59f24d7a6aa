"""Swin Transformer as detection and depth networks use it (Liu et al., ICCV 2021, arXiv 2103.14030).

Differences from timm's: maps are padded before the cyclic shift, so any size goes through; every stage's output has its
own LayerNorm; a learned absolute position table may be added. Tensors have the names of the Swin release.

    image (B, 3, H, W), normalised -> a token per 4 x 4 pixels -> four stages of window attention, between them four
    tokens are merged into one -> (B, C, H/4, W/4), (B, 2C, H/8, W/8), (B, 4C, H/16, W/16), (B, 8C, H/32, W/32)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from langdepth.errors import CheckpointError

PATCH = 4
_FOREIGN = -100.0  # added to the logits of tokens that the cyclic shift brought together


class SwinSize(NamedTuple):
    """Channels of the first stage, blocks and heads of every stage, side of a window in tokens."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


SIZES = {
    "swin-large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
    "swin-tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin-mini": SwinSize(24, (2, 1, 1, 1), (1, 2, 4, 8), 4),  # ours, for tests: no published weights
}


class Swin(nn.Module):
    """Maps at strides 4, 8, 16, 32 of a normalised (B, 3, H, W) image; ``channels`` says how wide they are.

    ``position``: (height, width) in pixels of the images that the absolute position table is made for (images of
    other sizes get it resized), None for no table. ``drop_path``: share of dropped residual branches in the last block,
    rising linearly from 0 in the first.
    """

    def __init__(self, size: SwinSize, *, position: tuple[int, int] | None = None, drop_path: float = 0.2) -> None:
        super().__init__()
        self.channels = tuple(size.width * 2**stage for stage in range(4))
        self.patch_embed = PatchEmbedding(size.width)
        self.absolute_pos_embed: nn.Parameter | None = None
        if position is not None:
            self.absolute_pos_embed = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(1, size.width, *(side // PATCH for side in position)), std=0.02)
            )
        blocks = sum(size.depths)
        rates = iter([drop_path * i / (blocks - 1) for i in range(blocks)])
        self.layers = nn.ModuleList(
            Stage(width, heads, size.window, list(islice(rates, depth)), merge=stage < 3)
            for stage, (width, heads, depth) in enumerate(zip(self.channels, size.heads, size.depths, strict=True))
        )
        for stage, width in enumerate(self.channels):
            self.add_module(f"norm{stage}", nn.LayerNorm(width))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        if self.absolute_pos_embed is not None:
            # Expanded, as a trace would take the table's size for the only one.
            x = x + _resized(self.absolute_pos_embed, x.shape[1:3]).permute(0, 2, 3, 1).expand_as(x)
        maps = []
        for stage, layer in enumerate(self.layers):
            output, x = layer(x)
            maps.append(self.get_submodule(f"norm{stage}")(output).permute(0, 3, 1, 2))
        return maps

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Keep only the blocks' inputs for the backward pass."""
        for stage in self.layers.children():
            assert isinstance(stage, Stage)
            stage.gradient_checkpointing = on

    def fitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` with the tables that depend on a size brought to this encoder's.

        The position table (also one stored as (1, tokens, C)) and the relative biases of another window are resized
        bicubically. Tables that are computed here anyway are left out.
        """
        own = self.state_dict()
        fitted = {key: value for key, value in tensors.items() if not key.endswith(_COMPUTED)}
        for key, value in fitted.items():
            if key not in own or value.shape == own[key].shape:
                continue
            if key == "absolute_pos_embed":
                if value.ndim == 3 and value.shape[1] == own[key].shape[2:].numel():
                    fitted[key] = value.mT.reshape(own[key].shape)
                elif value.ndim == 4 and value.shape[1] == own[key].shape[1]:
                    fitted[key] = _resized(value, own[key].shape[2:])
            elif key.endswith("relative_position_bias_table") and value.shape[1:] == own[key].shape[1:]:
                old, new = (round(len(table) ** 0.5) for table in (value, own[key]))
                grid = value.T.reshape(1, -1, old, old)
                fitted[key] = _resized(grid, (new, new)).reshape(-1, new * new).T
        return fitted

    def load_release(self, tensors: Mapping[str, Tensor]) -> None:
        """Weights of a classifier of the Swin release, from which norms of the stages and positions are missing.

        Raises CheckpointError for those of another network.
        """
        if min(tensors, default="").startswith("encoder"):  # a self-supervised file holds more than the encoder
            tensors = {key.removeprefix("encoder."): v for key, v in tensors.items() if key.startswith("encoder")}
        own = self.state_dict()
        fitted = {key: value for key, value in self.fitted(tensors).items() if key in own}
        for key in own:
            if key not in fitted and not key.startswith(("norm", "absolute_pos_embed")):
                raise CheckpointError(f"the encoder's weights lack '{key}'; they are of another network")
            if key in fitted and fitted[key].shape != own[key].shape:
                found, wanted = tuple(fitted[key].shape), tuple(own[key].shape)
                raise CheckpointError(f"the encoder's weights have '{key}' of shape {found}, expected {wanted}")
        self.load_state_dict(fitted, strict=False)


_COMPUTED = ("relative_position_index", "attn_mask")


class PatchEmbedding(nn.Module):
    """(B, 3, H, W) to (B, h, w, C), a token for 4 x 4 pixels; zeros are added on the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        height, width = map(int, image.shape[-2:])
        if height % PATCH or width % PATCH:
            image = F.pad(image, (0, -width % PATCH, 0, -height % PATCH))
        tokens: Tensor = self.norm(self.proj(image).permute(0, 2, 3, 1))
        return tokens


class PatchMerging(nn.Module):
    """(B, h, w, C) to (B, h / 2, w / 2, 2 C), from four tokens each; zeros are added on the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        height, width = map(int, x.shape[1:3])
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        pairs = x.reshape(-1, -(-height // 2), 2, -(-width // 2), 2, self.width)
        merged: Tensor = self.reduction(self.norm(pairs.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # columns, then rows
        return merged


class Stage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows; gives their output and the next stage's input.

    Both (B, h, w, C); the latter is the output itself where nothing is merged.
    """

    def __init__(self, width: int, heads: int, window: int, drops: Sequence[float], *, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, window, shift=window // 2 if i % 2 else 0, drop_path=rate)
            for i, rate in enumerate(drops)
        )
        self.downsample = PatchMerging(width) if merge else None
        self.gradient_checkpointing = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        again = self.gradient_checkpointing and self.training
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x, x if self.downsample is None else self.downsample(x)


class Block(nn.Module):
    """Window attention and a two-layer network, each after a LayerNorm and added to its input; (B, h, w, C)."""

    def __init__(self, width: int, heads: int, window: int, shift: int, drop_path: float) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        layers = {"fc1": nn.Linear(width, 4 * width), "act": nn.GELU(), "fc2": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x)))
        output: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return output

    def attend(self, x: Tensor) -> Tensor:
        """Attention inside each window of the map that was padded and then shifted; (B, h, w, C)."""
        # A traced program must hold the layout, and the cache no tensor of a trace.
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        layout = window_layout.__wrapped__ if traced else window_layout
        height, width = map(int, x.shape[1:3])  # a traced program is for one size
        windows = layout(height, width, self.window, self.shift, x.device)
        attended: Tensor = self.attn(x.flatten(1, 2), windows)
        return attended.view_as(x)


class WindowAttention(nn.Module):
    """Self-attention of the tokens of a window, with a learned bias for every relative position and head."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02)
        )
        row, column = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
        rows, columns = (axis[:, None] - axis + window - 1 for axis in (row, column))
        self.register_buffer("relative_position_index", rows * (2 * window - 1) + columns, persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, windows: Windows) -> Tensor:
        """Tokens (B, h * w, C) to the same; what is linear knows no windows and runs without the padding."""
        batch, channels = x.shape[0], self.proj.in_features
        count, tokens = map(int, windows.token.shape)
        qkv = self.qkv(F.pad(x, (0, 0, 0, 1)))  # a token of zeros stands for all padding
        qkv = qkv.index_select(1, windows.token.flatten())
        qkv = qkv.view(-1, tokens, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None].to(query.dtype)
        if windows.mask is not None:
            bias = bias + windows.mask[:, None].to(query.dtype)
            bias = bias.expand(batch, *bias.shape).flatten(0, 1)
        attended = F.scaled_dot_product_attention(query, key, value, bias)
        attended = attended.transpose(1, 2).reshape(-1, count * tokens, channels)
        output: Tensor = self.proj(attended.index_select(1, windows.place))
        return output


class Windows(NamedTuple):
    """How the h * w tokens of a map lie in windows.

    ``token`` (windows, tokens): which token is at a place, h * w for padding; ``place`` (h * w): where each token is;
    ``mask`` (windows, tokens, tokens): added to the logits, None where windows are not shifted.
    """

    token: Tensor
    place: Tensor
    mask: Tensor | None


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # training may use what prediction put into the cache
def window_layout(height: int, width: int, window: int, shift: int, device: torch.device) -> Windows:
    """The windows of a map that is padded on the right and below, then shifted."""
    rows, columns = -(-height // window), -(-width // window)
    grid = torch.arange(height * width, device=device).view(height, width)
    grid = F.pad(grid, (0, -width % window, 0, -height % window), value=height * width).roll((-shift, -shift), (0, 1))
    token = grid.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window**2)
    place = token.flatten().argsort()[: height * width]
    return Windows(token, place, shifted_window_mask(rows, columns, window, shift, device) if shift else None)


def shifted_window_mask(rows: int, columns: int, window: int, shift: int, device: torch.device) -> Tensor:
    """For ``rows`` x ``columns`` shifted windows, (windows, tokens, tokens): 0 between neighbours, else -100."""

    def regions(windows: int) -> Tensor:
        """Which of three stretches each position belongs to: before the last window, and its two parts."""
        position = torch.arange(windows * window, device=device)
        return (position >= (windows - 1) * window).int() + (position >= windows * window - shift).int()

    region = 3 * regions(rows)[:, None] + regions(columns)
    tokens = region.view(rows, window, columns, window).transpose(1, 2).reshape(rows * columns, window**2)
    return torch.where(tokens[:, None] == tokens[..., None], 0.0, _FOREIGN)


def _resized(table: Tensor, size: Sequence[int]) -> Tensor:
    """(1, C, h, w) at another size, bicubic, corners not aligned."""
    if tuple(table.shape[-2:]) == tuple(size):
        return table
    return F.interpolate(table, size=tuple(size), mode="bicubic", align_corners=False)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
