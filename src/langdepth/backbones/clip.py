"""CLIP image towers (open_clip) as dense feature extractors, for images of any size.

    image (B, 3, H, W), normalised -> stages -> cells (B, C, h, w), h = H // stride, w = W // stride

Three families: ModifiedResNet ("RN50"), VisionTransformer ("ViT-B-16") and ConvNeXt ("convnext_large_d_320"). How the
cells of the last map become features is the dense mode:

| mode       | ModifiedResNet                     | VisionTransformer                   | ConvNeXt              |
|------------|------------------------------------|-------------------------------------|-----------------------|
| `stage`    | raw last map                       | final norm and projection           | raw last map          |
| `attnpool` | cells query cells and their mean   | -                                   | -                     |
| `value`    | value and output projection        | last block attends to own cell only | -                     |
| `proj`     | output projection alone            | as `stage`                          | norm and projection   |

CLIP: Radford et al. 2021 (arXiv 2103.00020). `stage` of ModifiedResNet and VisionTransformer are DepthCLIP's features
(arXiv 2207.01077), `attnpool` its unused all-token pool; `value` is the path of MaskCLIP (arXiv 2112.01071).
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import UsageError, nearest
from langdepth.parts.folding import conv_norm_relu

DenseMode = Literal["stage", "attnpool", "value", "proj"]
PositionResize = Literal["2d", "linear1d"]
# Mean and deviation of the colors that CLIP was trained with
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
# For tests and modest machines. RN-small keeps RN50's ratio of stage channels to features, 2.
SMALL_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "RN-small": {
        "embed_dim": 256,
        "vision_cfg": {"image_size": 224, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": _SMALL_TEXT,
    },
    "ViT-small": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": _SMALL_TEXT,
    },
}


def model_config(architecture: str, quick_gelu: bool | None = None) -> dict[str, Any]:
    """open_clip's configuration of ``architecture``: embed_dim, vision_cfg, text_cfg.

    Raises UsageError for a name that is not known, for one whose tower or tokenizer is of another kind than CLIP's own,
    and for a ``quick_gelu`` that the name contradicts ("ViT-B-16-quickgelu" without).
    """
    import open_clip

    known = [*SMALL_ARCHITECTURES, *open_clip.list_models()]
    if architecture not in known:
        raise UsageError(f"unknown CLIP architecture '{architecture}': {nearest(architecture, known)}")
    config = copy.deepcopy(SMALL_ARCHITECTURES.get(architecture)) or open_clip.get_model_config(architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    other_tower = not vision.get("timm_model_name", "convnext").startswith(("convnext", "test_convnext"))
    if other_tower or config.get("custom_text") or any(key.startswith("hf_") for key in text):
        raise UsageError(
            f"CLIP architecture '{architecture}' is not supported; supported are open_clip's RN*, ViT-* and convnext_* "
            "with CLIP's own text tower"
        )
    if config.get("quick_gelu") and quick_gelu is False:
        raise UsageError(f"CLIP architecture '{architecture}' has QuickGELU, but GELU was asked for")
    if "timm_drop_path" in vision:
        vision["timm_drop_path"] = 0.0  # a frozen tower gives the same features in training
    return config


class ClipImageTower(nn.Module):
    """Dense features of an image tower; weights are random until loaded.

    ``architecture``: an open_clip name, or "RN-small", "ViT-small". ``quick_gelu``: the activation the weights were
    trained with (ViT; ResNet and ConvNeXt have none or their own). ``position_resize``: how a ViT's position table
    meets other grids, "2d" (class row apart, bicubic) or "linear1d" (the whole table as one sequence, as the official
    DepthCLIP does). Tensors are named as in open_clip's ``visual.*``, without that prefix.

    ``embed_dim``: channels of the joint space. ``channels``, ``strides``: of the pyramid's maps. ``stride``: of the
    last map. ``modes``: the dense modes this family has. BatchNorm stays in eval mode during training; set
    ``batch_norm_trains`` before ``train()`` for the official quirk. Raises UsageError for unknown names.
    """

    def __init__(self, architecture: str, *, quick_gelu: bool, position_resize: PositionResize = "2d") -> None:
        from open_clip.model import _build_vision_tower

        super().__init__()
        if position_resize not in get_args(PositionResize):
            known = nearest(position_resize, get_args(PositionResize))
            raise UsageError(f"unknown position_resize '{position_resize}': {known}")
        config = model_config(architecture, quick_gelu)
        self.architecture = architecture
        self.position_resize = position_resize
        self.batch_norm_trains = False
        self.embed_dim: int = config["embed_dim"]
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu)
        for name, parameter in visual.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, module in visual.named_children():
            self.add_module(name, module)
        self._family = _family_of(visual)
        self.modes = self._family.modes
        self.channels = self._family.channels
        self.strides = self._family.strides
        self.stride = self.strides[-1]

    def train(self, mode: bool = True) -> ClipImageTower:
        super().train(mode)
        if not self.batch_norm_trains:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def output_channels(self, mode: str) -> int:
        """Channels of ``forward(image, mode)``. Raises UsageError for a mode this tower does not have."""
        self._check_mode(mode)
        raw = mode == "stage" and not isinstance(self._family, _VisionTransformer)
        return self.channels[-1] if raw else self.embed_dim

    def forward(self, image: Tensor, mode: DenseMode = "stage") -> Tensor:
        """Features (B, C, H // stride, W // stride) of normalised images (B, 3, H, W).

        Raises UsageError for an unknown mode and for images smaller than one cell.
        """
        self._check_mode(mode)
        self._check_image(image)
        trunk: Any = self._family.trunk(self, image)
        return self._family.cells(self, trunk, mode)

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Maps of normalised images (B, 3, H, W), finest first, with ``channels`` at ``strides``.

        ModifiedResNet: the stem after its third ReLU, before the average pool (stride 2), and the four stages (4 to
        32). ConvNeXt: the four stages. VisionTransformer: patch tokens after four evenly spaced blocks, all at the
        stride of a patch. Raises UsageError for images smaller than one cell.
        """
        self._check_image(image)
        return list(self._family.maps(self, image))

    def dense_and_embedding(self, image: Tensor, mode: DenseMode = "stage") -> tuple[Tensor, Tensor]:
        """The result of ``forward``, and the embedding (B, embed_dim) of whole images, not normalised, from one pass.

        At the pre-training size the embedding is CLIP's own.
        """
        self._check_mode(mode)
        self._check_image(image)
        trunk: Any = self._family.trunk(self, image)
        return self._family.cells(self, trunk, mode), self._family.embedding(self, trunk)

    def pool(self, last: Tensor, *, align_corners: bool) -> Tensor:
        """The attention pool of the pyramid's last map (B, C, h, w): (B, 1 + h * w, embed_dim), not normalised.

        Every token is a query: the mean of the cells, which gives the embedding of the image, and the cells row by row.
        ``align_corners``: how positions are resized. Raises UsageError for towers without an attention pool.
        """
        self._check_mode("attnpool")
        attention: Any = self.attnpool
        tokens = _ModifiedResNet.pool_tokens(attention, last, align_corners)
        pooled: Tensor = attention.c_proj(_attend(attention, tokens, tokens))
        return pooled

    def _check_mode(self, mode: str) -> None:
        if mode not in self.modes:
            raise UsageError(f"unknown dense mode '{mode}' for {self.architecture}: {nearest(mode, self.modes)}")

    def _check_image(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3:
            raise UsageError(f"{self.architecture} takes images (B, 3, H, W), got {tuple(image.shape)}")
        height, width = image.shape[2:]
        if min(height, width) < self.stride:
            raise UsageError(
                f"{self.architecture} needs images of at least {self.stride} x {self.stride} pixels (one cell), "
                f"got {height} x {width}"
            )


class _ModifiedResNet:
    modes: tuple[DenseMode, ...] = ("stage", "attnpool", "value", "proj")
    strides = (2, 4, 8, 16, 32)

    def __init__(self, visual: Any) -> None:
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        self.channels = (visual.conv3.out_channels, *(stage[-1].conv3.out_channels for stage in stages))

    def maps(self, tower: Any, image: Tensor) -> Iterator[Tensor]:
        x = conv_norm_relu(tower.conv1, tower.bn1, image)
        x = conv_norm_relu(tower.conv2, tower.bn2, x)
        x = conv_norm_relu(tower.conv3, tower.bn3, x)
        yield x
        x = tower.avgpool(x)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            for block in stage:
                x = self._bottleneck(block, x)
            yield x

    @staticmethod
    def _bottleneck(block: Any, x: Tensor) -> Tensor:
        """open_clip's block. Without a projection it overwrites its input; the first of a stage has one."""
        out = conv_norm_relu(block.conv1, block.bn1, x)
        out = block.avgpool(conv_norm_relu(block.conv2, block.bn2, out))
        shortcut = x if block.downsample is None else block.downsample(x)
        return conv_norm_relu(block.conv3, block.bn3, out, shortcut)

    def trunk(self, tower: Any, image: Tensor) -> Tensor:
        """The features that cells and embedding follow from."""
        return _last(self.maps(tower, image))

    def cells(self, tower: Any, last: Tensor, mode: str) -> Tensor:
        if mode == "stage":
            return last
        pool, cells = tower.attnpool, _as_tokens(last)
        if mode == "attnpool":
            tokens = self.pool_tokens(pool, last)
            cells = _attend(pool, tokens[:, 1:], tokens)
        elif mode == "value":
            cells = pool.v_proj(cells)
        return _as_map(pool.c_proj(cells), last)

    def embedding(self, tower: Any, last: Tensor) -> Tensor:
        tokens = self.pool_tokens(tower.attnpool, last)
        pooled: Tensor = tower.attnpool.c_proj(_attend(tower.attnpool, tokens[:, :1], tokens)[:, 0])
        return pooled

    @staticmethod
    def pool_tokens(pool: Any, last: Tensor, align_corners: bool = True) -> Tensor:
        """(B, 1 + h * w, C): the mean and the cells, with positions resized bilinearly."""
        cells = _as_tokens(last)
        table = pool.positional_embedding
        resized = resize_square(table[1:], last.shape[2:], mode="bilinear", align_corners=align_corners)
        positions = torch.cat([table[:1], resized]).to(last.dtype)
        tokens = torch.cat([cells.mean(1, keepdim=True), cells], 1)
        return tokens + positions.expand_as(tokens)


class _VisionTransformer:
    modes: tuple[DenseMode, ...] = ("stage", "value", "proj")

    def __init__(self, visual: Any) -> None:
        layers = len(visual.transformer.resblocks)
        # After which blocks the pyramid's maps are taken; fewer than four in towers of fewer blocks.
        self.taken = sorted({-(-layers * quarter // 4) for quarter in (1, 2, 3, 4)})
        self.channels = (visual.conv1.out_channels,) * len(self.taken)
        self.strides = (visual.patch_size[0],) * len(self.taken)

    def maps(self, tower: Any, image: Tensor) -> Iterator[Tensor]:
        patches, tokens = self._tokens(tower, image)
        for number, block in enumerate(tower.transformer.resblocks, start=1):
            tokens = block(tokens)
            if number in self.taken:
                yield _as_map(tokens[:, 1:], patches)

    def trunk(self, tower: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """The patches, whose size is the grid's, and the tokens before the last block."""
        patches, tokens = self._tokens(tower, image)
        for block in tower.transformer.resblocks[:-1]:
            tokens = block(tokens)
        return patches, tokens

    def cells(self, tower: Any, trunk: tuple[Tensor, Tensor], mode: str) -> Tensor:
        patches, tokens = trunk
        last = tower.transformer.resblocks[-1]
        tokens = self._value_block(last, tokens) if mode == "value" else last(tokens)
        return _as_map(tower.ln_post(tokens[:, 1:]) @ tower.proj, patches)

    def embedding(self, tower: Any, trunk: tuple[Tensor, Tensor]) -> Tensor:
        tokens = tower.transformer.resblocks[-1](trunk[1])
        embedding: Tensor = tower.ln_post(tokens[:, 0]) @ tower.proj
        return embedding

    def _tokens(self, tower: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """The patches (B, C, h, w), whose size is the grid's, and the blocks' input (B, 1 + h * w, C)."""
        patches = tower.conv1(image)
        first = tower.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        positions = self._positions(tower.positional_embedding, patches.shape[2:], tower.position_resize)
        tokens = torch.cat([first, _as_tokens(patches)], 1)
        # Expanded, as a trace would take the grid's size for the only one.
        return patches, tower.ln_pre(tokens + positions.to(patches.dtype).expand_as(tokens))

    @staticmethod
    def _positions(table: Tensor, grid: torch.Size, resize: PositionResize) -> Tensor:
        """(1 + h * w, C) of the table (1 + n * n, C)."""
        if resize == "linear1d":
            rows = 1 + grid[0] * grid[1]
            return F.interpolate(table.T[None], rows, mode="linear", align_corners=False)[0].T
        return torch.cat([table[:1], resize_square(table[1:], grid, mode="bicubic", align_corners=False)])

    @staticmethod
    def _value_block(block: Any, tokens: Tensor) -> Tensor:
        """The block when each token attends to itself alone: the result of attention is then its own value."""
        value_weight, value_bias = block.attn.in_proj_weight.chunk(3)[2], block.attn.in_proj_bias.chunk(3)[2]
        value = F.linear(block.ln_1(tokens), value_weight, value_bias)
        tokens = tokens + block.ls_1(block.attn.out_proj(value))
        mixed: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return mixed


class _ConvNeXt:
    modes: tuple[DenseMode, ...] = ("stage", "proj")
    strides = (4, 8, 16, 32)

    def __init__(self, visual: Any) -> None:
        self.channels = tuple(info["num_chs"] for info in visual.trunk.feature_info)

    def maps(self, tower: Any, image: Tensor) -> Iterator[Tensor]:
        x = tower.trunk.stem(image)
        for stage in tower.trunk.stages:
            x = stage(x)
            yield x

    def trunk(self, tower: Any, image: Tensor) -> Tensor:
        return _last(self.maps(tower, image))

    def cells(self, tower: Any, last: Tensor, mode: str) -> Tensor:
        if mode == "stage":
            return last
        cells = _as_tokens(tower.trunk.head.norm(tower.trunk.norm_pre(last)))
        return _as_map(tower.head(cells), last)

    def embedding(self, tower: Any, last: Tensor) -> Tensor:
        embedding: Tensor = tower.head(tower.trunk.forward_head(tower.trunk.norm_pre(last)))
        return embedding


_Family = _ModifiedResNet | _VisionTransformer | _ConvNeXt
"""Dense modes, channels and strides of the towers of one family, and their parts; the tensors are the tower's."""


def _family_of(visual: nn.Module) -> _Family:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet):
        return _ModifiedResNet(visual)
    if isinstance(visual, VisionTransformer):
        return _VisionTransformer(visual)
    return _ConvNeXt(visual)


def _last(maps: Iterator[Tensor]) -> Tensor:
    """The last of the maps; the others are let go as soon as possible."""
    kept = deque(maps, maxlen=1)
    return kept.pop()


def _as_tokens(cells: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), without a copy for channels-last maps."""
    return cells.flatten(2).transpose(1, 2)


def _as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w) with h and w of ``like``; a channels-last view."""
    return tokens.transpose(1, 2).unflatten(2, like.shape[2:])


def resize_square(table: Tensor, grid: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    """The rows (n * n, C) of a square grid, resized to (h * w, C)."""
    side = round(len(table) ** 0.5)
    if (side, side) == tuple(grid):
        return table
    square = table.T.unflatten(1, (side, side))[None]
    return F.interpolate(square, tuple(grid), mode=mode, align_corners=align_corners)[0].flatten(1).T


def _attend(pool: Any, queries: Tensor, tokens: Tensor) -> Tensor:
    """The attention pool's heads, before its output projection: (B, M, C) and (B, N, C) -> (B, M, C)."""
    query, key, value = (
        project(x).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for project, x in ((pool.q_proj, queries), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
