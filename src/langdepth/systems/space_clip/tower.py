"""The frozen image tower: the hidden states of a Vision Transformer, CLIP's or SigLIP's.

    image (B, 3, H, W), normalised -> patches (B, D, gh, gw) -> tokens (B, [1 +] gh gw, D), with positions -> blocks

Hidden state 0 is what the first block gets, hidden state k what block k gives. CLIP's tower has a class token in front
of the patches and a norm before the blocks; the embedding of an image is its class token after the final norm. SigLIP's
tower has neither; its embedding is what attention pools from the tokens after the final norm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from langdepth.backbones.clip import resize_square
from langdepth.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """A tower; the defaults are ViT-B/16, which CLIP and SigLIP both have."""

    kind: Literal["clip", "siglip"] = "clip"
    image_size: int = 224
    """Side of the images that the position table was made for."""
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072

    def __post_init__(self) -> None:
        for one in fields(self)[1:]:
            if getattr(self, one.name) < 1:
                raise ValueError(f"tower.{one.name} must be at least 1, got {getattr(self, one.name)}")
        if self.width % self.heads:
            raise ValueError(f"tower.width {self.width} cannot be divided among {self.heads} heads")
        if self.image_size % self.patch:
            raise ValueError(f"tower.image_size {self.image_size} is no multiple of the patch, {self.patch}")

    def __str__(self) -> str:
        return f"a {self.kind} tower of {self.layers} layers, {self.width} wide, with patches of {self.patch} pixels"


class ImageTower(nn.Module):
    """Tensors are named as in open_clip's ``visual.*``, blocks ``blocks.N`` instead of ``transformer.resblocks.N``."""

    def __init__(self, sizes: TowerSizes, *, interpolates: bool) -> None:
        from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock

        super().__init__()
        clip, width = sizes.kind == "clip", sizes.width
        norm = partial(LayerNorm, eps=1e-5 if clip else 1e-6)
        activation = QuickGELU if clip else partial(nn.GELU, approximate="tanh")
        self.sizes, self.interpolates = sizes, interpolates
        self.side = sizes.image_size // sizes.patch
        self.conv1 = nn.Conv2d(3, width, sizes.patch, sizes.patch, bias=not clip)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width)) if clip else None
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(self.side**2 + clip, width))
        self.ln_pre = norm(width) if clip else nn.Identity()
        ratio = (sizes.mlp + 0.5) / width  # the block rounds down
        block = partial(ResidualAttentionBlock, width, sizes.heads, ratio, act_layer=activation, norm_layer=norm)
        self.blocks = nn.ModuleList(block() for _ in range(sizes.layers))
        self.ln_post = norm(width)
        self.pool = None if clip else _AttentionPool(width, sizes.heads, sizes.mlp)

    def forward(self, image: Tensor, layers: Collection[int]) -> tuple[dict[int, Tensor], Tensor]:
        """Hidden states ``layers`` (B, tokens, D) by their numbers, and the embedding (B, D)."""
        patches = self.conv1(image)
        tokens = patches.flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            first = self.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
            tokens = torch.cat([first, tokens], 1)
        tokens = self.ln_pre(tokens + self._positions(patches.shape[-2:]).to(tokens.dtype))
        states = {0: tokens}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            states[number] = tokens
        last = self.ln_post(tokens)
        embedding = last[:, 0] if self.pool is None else self.pool(last)
        return {number: states[number] for number in layers}, embedding

    def patch_map(self, tokens: Tensor, image: Tensor) -> Tensor:
        """The patches of a hidden state (B, tokens, D) as a map (B, D, gh, gw)."""
        grid = [side // self.sizes.patch for side in image.shape[-2:]]
        return tokens[:, int(self.pool is None) :].transpose(1, 2).unflatten(-1, grid)

    def _positions(self, grid: Sequence[int]) -> Tensor:
        """The position table for a grid of patches: bicubic, the class token's row as it is."""
        if tuple(grid) == (self.side, self.side):
            return self.positional_embedding
        if not self.interpolates:
            height, width = (int(side) * self.sizes.patch for side in grid)
            own = self.sizes.image_size
            raise UsageError(
                f"the tower takes images of {own}x{own} pixels, not {width}x{height}; set interpolate_positions"
            )
        apart = len(self.positional_embedding) - self.side**2
        resized = resize_square(self.positional_embedding[apart:], grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positional_embedding[:apart], resized])


class _AttentionPool(nn.Module):
    """SigLIP's embedding: a learned query attends to all tokens; a residual MLP."""

    def __init__(self, width: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        layers: Mapping[str, Any] = {
            "c_fc": nn.Linear(width, mlp),
            "gelu": nn.GELU(approximate="tanh"),
            "c_proj": nn.Linear(mlp, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, D) to (B, D)."""
        pooled = self.attention(self.probe.expand(tokens.shape[0], -1, -1), tokens, tokens, need_weights=False)[0]
        embedding: Tensor = (pooled + self.mlp(self.layernorm(pooled)))[:, 0]
        return embedding
