"""SPACE-CLIP: depth from the layers of a frozen CLIP image tower, without any language.

Cho, Kim, Choi, "SPACE-CLIP: Spatial Perception via Adaptive CLIP Embeddings for Monocular Depth Estimation", 2026.

Data flow (B images of 224 x 224; ViT-B/16: hidden states 0 ... 12 of 768 channels on a grid of 14 x 14)

    image -> tower, frozen -> hidden states 12, 9, 6, 3 (semantic), 2, 1, 0 (structural); embedding e (B, 768)

    semantic layers    S_i = project(gamma_i(e) * layer + beta_i(e))   (B, 256 | 128 | 64 | 32, 14, 14), i = 0 ... 3
    structural layers  T_i = project(layer)                            (B, 256 | 128 | 64, 14, 14),      i = 0 ... 2

    x = S_0, y = layer 2 as it is; then stage i = 0 ... 3, each of which doubles height and width:
        y = StructuralBlock(y, T_i)               (B, 256 | 128 | 64, 28 | 56 | 112, ...); the last stage has none
        x = SemanticBlock(x, S_i, y)              (B, 256 | 128 | 64 | 32, 28 | 56 | 112 | 224, ...); S_i and y gated

    depth = max(head(x), 1e-7) (B, 1, 224, 224), metres -> bilinear, pixel centres on pixel centres -> image size
    a gate is 1 + sigmoid(convolution of the doubled x)
    in training also auxiliary depth from x after stages 0, 1, 2

Loss: 0.5 SILog + 0.5 (1 - SSIM) + 0.10 SILog(auxiliary 0) + 0.05 SILog(auxiliary 1). What learns is the decoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langdepth.backbones.clip import CLIP_MEAN, CLIP_STD
from langdepth.backbones.clip_files import check_file, read_tensors
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.errors import CheckpointError, UsageError
from langdepth.prediction.arrays import as_float, resized_image
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import ConvertsOfficial, HasFrozenTrunk, Scene, Text, Trainable
from langdepth.systems.official import rename, set_quirks
from langdepth.systems.space_clip import losses
from langdepth.systems.space_clip.blocks import SemanticBlock, StructuralBlock, depth_head, film, modulated, resized
from langdepth.systems.space_clip.official import TOWER, decoder_name, tower_tensors
from langdepth.systems.space_clip.tower import ImageTower, TowerSizes
from langdepth.utils.files import expanded
from langdepth.utils.reading import file_sha256
from langdepth.weights.files import fill


@dataclass(frozen=True, kw_only=True)
class SpaceClipLosses:
    """Weights of the losses."""

    ssim: float = 0.5
    """Of 1 - SSIM; that of SILog is the rest to 1."""
    auxiliary: tuple[float, ...] = (0.1, 0.05, 0.0)
    """Of the auxiliary depths' SILog, coarse to fine; the last one holds for all further ones. 0: it never learns."""
    gradient: float = 0.0
    """Of the difference of depth's slopes."""

    def __post_init__(self) -> None:
        if not self.auxiliary or min(self.auxiliary) < 0:
            raise ValueError(f"losses.auxiliary must be one or more weights from 0 on, got {list(self.auxiliary)}")
        if not 0 <= self.ssim <= 1:
            raise ValueError(f"losses.ssim must be from 0 to 1, got {self.ssim}")
        if self.gradient < 0:
            raise ValueError(f"losses.gradient must be 0 or more, got {self.gradient}")


@dataclass(frozen=True, kw_only=True)
class SpaceClipConfig:
    """Options of SPACE-CLIP. ``reference_exact`` sets all of the class's ``QUIRKS``."""

    QUIRKS: ClassVar[dict[str, Any]] = {"masked_ssim": False, "initial_depth": None, "decay_vectors": True}

    tower: TowerSizes = field(default_factory=TowerSizes)
    """The frozen image tower."""
    architecture: str = "ViT-B-16"
    """open_clip's name of the CLIP model whose tower it is, for its weights."""
    size: tuple[int, int] | None = (224, 224)
    """Height and width inside the network, whatever the image's shape; null: ``area`` pixels in the image's shape."""
    area: int = 224 * 224
    """Pixels inside the network where there is no ``size``."""
    interpolate_positions: bool = False
    """Whether the tower's position table is resized for images of other sizes than its own."""
    semantic_layers: tuple[int, ...] = (12, 9, 6, 3)
    """Hidden states of the semantic path, one for each stage."""
    structural_layers: tuple[int, ...] = (2, 1, 0)
    """Hidden states of the structural path, for the first stages; none: there is no such path."""
    channels: tuple[int, ...] = (256, 128, 64, 32)
    """Of the decoder, stage by stage."""
    film: bool = True
    """Whether the image's embedding modulates the semantic layers."""
    film_width: int = 256
    gates: bool = True
    """Whether the decoder gates what it joins; without, maps are joined as they are."""
    auxiliary: bool = True
    """Whether there are auxiliary depths after all stages but the last."""
    dropout: float = 0.1
    losses: SpaceClipLosses = field(default_factory=SpaceClipLosses)
    min_depth: float = 0.001
    """Learn where the ground truth is above this, metres."""
    max_depth: float = 10.0
    """Learn where the ground truth is below this, metres; it does not limit depth."""
    masked_ssim: bool = True
    """Whether SSIM takes both maps with holes where nothing is known; officially only the ground truth has them."""
    initial_depth: float | None = 2.0
    """Depth that training starts from, metres; null: whatever the random start gives, which may be 0 everywhere."""
    decay_vectors: bool = False
    """Whether weight decay acts on vectors, too."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    reference_exact: bool = False
    """The official code's numbers, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)
        last, patch = self.tower.layers, self.tower.patch
        for name in ("semantic_layers", "structural_layers"):
            beyond = [layer for layer in getattr(self, name) if not 0 <= layer <= last]
            if beyond:
                raise ValueError(f"{name}: the tower has hidden states 0 to {last}, not {beyond[0]}")
        if not self.channels or len(self.semantic_layers) != len(self.channels):
            raise ValueError(
                f"semantic_layers must be as many as channels, got {len(self.semantic_layers)} and {len(self.channels)}"
            )
        if len(self.structural_layers) > len(self.channels):
            raise ValueError(f"structural_layers must be at most {len(self.channels)}, as many as channels")
        if self.size is not None and (min(self.size) < patch or any(side % patch for side in self.size)):
            raise ValueError(f"size must be multiples of the patch, {patch}, got {self.size[0]} x {self.size[1]}")
        own = self.tower.image_size
        if self.size != (own, own) and not self.interpolate_positions:
            given = "any size" if self.size is None else f"{self.size[0]} x {self.size[1]}"
            raise ValueError(f"size: the tower takes {own} x {own} pixels, not {given}; set interpolate_positions")
        if self.initial_depth is not None and not 0 < self.initial_depth < float("inf"):
            raise ValueError(f"initial_depth must be above 0, got {self.initial_depth}")
        if min(self.channels) < 2 or self.film_width < 1 or not 0 <= self.dropout < 1:
            raise ValueError("channels must be 2 or more, film_width 1 or more and dropout from 0 to below 1")
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"0 < min_depth < max_depth is needed, got {self.min_depth} and {self.max_depth}")


class SpaceClip(System, Trainable, HasFrozenTrunk, ConvertsOfficial):
    """Decoder with a semantic and a structural path over a frozen tower."""

    Config = SpaceClipConfig
    config: SpaceClipConfig

    def __init__(self, config: SpaceClipConfig) -> None:
        spec = InputSpec(
            mean=config.mean,
            std=config.std,
            size=config.size,
            area=config.area,
            multiple_of=config.tower.patch,
            shrink="bicubic",
        )
        super().__init__(config, spec)
        width, channels, structural = config.tower.width, config.channels, len(config.structural_layers)
        self.tower = ImageTower(config.tower, interpolates=config.interpolate_positions).requires_grad_(False)
        self.film = nn.ModuleList(film(width, config.film_width) for _ in channels if config.film)
        self.semantic_projections = nn.ModuleList(nn.Conv2d(width, out, 1) for out in channels)
        self.structural_projections = nn.ModuleList(nn.Conv2d(width, out, 1) for out in channels[:structural])
        self.structural_blocks = nn.ModuleList(
            StructuralBlock(before, out) for before, out in zip((width, *channels), channels[:structural], strict=False)
        )
        self.semantic_blocks = nn.ModuleList(
            SemanticBlock(before, out, structural=i < structural, gates=config.gates, dropout=config.dropout)
            for i, (before, out) in enumerate(zip((channels[0], *channels), channels, strict=False))
        )
        self.head = depth_head(channels[-1], channels[-1] // 2, kernel=3)
        self.auxiliary_heads = nn.ModuleList(
            depth_head(out, max(out // 2, 16), kernel=1) for out in channels[:-1] if config.auxiliary
        )
        if config.initial_depth is not None:
            for head in (self.head, *self.auxiliary_heads):
                nn.init.constant_(head[-1].bias, config.initial_depth)

    # -- the network -----------------------------------------------------------------------------------------------

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        if text is not None or scene is not None:
            raise UsageError(f"the system '{self.name}' takes no text or scene; leave it out")
        stages = self.decode(self.frozen_features(image))
        return DepthOutput(depth=_metres(self.head(stages[-1])))

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """Hidden states of images as maps (B, D, gh, gw), "layer_12" ..., and their "embedding" (B, D).

        Images are first brought to ``config.size``, in grey levels that are rounded down, as the official program does.
        """
        if self.config.size is not None and tuple(image.shape[-2:]) != self.config.size:
            image = as_float(resized_image(image.mul(255).clamp(0, 255).byte(), self.config.size, "bicubic"))
        layers = {*self.config.semantic_layers, *self.config.structural_layers}
        states, embedding = self.tower(self.normalise(image), layers)
        maps = {f"layer_{layer}": self.tower.patch_map(tokens, image) for layer, tokens in states.items()}
        return maps | {"embedding": embedding}

    def decode(self, features: dict[str, Tensor]) -> list[Tensor]:
        """The semantic path's map after every stage, coarse to fine."""
        semantic = [features[f"layer_{layer}"] for layer in self.config.semantic_layers]
        structural = [features[f"layer_{layer}"] for layer in self.config.structural_layers]
        if self.config.film:
            embedding = features["embedding"]
            semantic = [modulated(x, make(embedding)) for x, make in zip(semantic, self.film, strict=True)]
        semantic = [project(x) for project, x in zip(self.semantic_projections, semantic, strict=True)]
        skips = [project(x) for project, x in zip(self.structural_projections, structural, strict=True)]

        x, y = semantic[0], structural[0] if structural else None
        stages = []
        for i, block in enumerate(self.semantic_blocks):
            y = self.structural_blocks[i](y, skips[i]) if i < len(skips) else None
            x = block(x, semantic[i], y)
            stages.append(x)
        return stages

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """silog, ssim, gradient and auxiliary over ground truth between the limits; "total", their weighted sum."""
        stages = self.decode(batch.features or self.frozen_features(batch.image))
        heads = [self.head(stages[-1]), *(head(x) for head, x in zip(self.auxiliary_heads, stages, strict=False))]
        weights, mask = self.config.losses, batch.mask
        with torch.autocast(batch.depth.device.type, enabled=False):
            mask = mask & (batch.depth > self.config.min_depth) & (batch.depth < self.config.max_depth)
            target = torch.where(batch.mask, batch.depth, 0)  # beyond the limits, too: SSIM without a mask sees that
            depth, *auxiliary = (resized(_metres(map_), target.shape[-2:]) for map_ in heads)
            terms = {
                "silog": losses.silog(depth, target, mask),
                "ssim": losses.ssim(depth, target, mask, masked=self.config.masked_ssim),
            }
            total = (1 - weights.ssim) * terms["silog"] + weights.ssim * terms["ssim"]
            if weights.gradient > 0:
                terms["gradient"] = losses.gradient(depth, target, mask)
                total = total + weights.gradient * terms["gradient"]
            shares = [*weights.auxiliary, *weights.auxiliary[-1:] * len(auxiliary)]
            parts = [
                share * losses.silog(one, target, mask)
                for one, share in zip(auxiliary, shares, strict=False)
                if share > 0
            ]
            if parts:
                terms["auxiliary"] = torch.stack(parts).sum()
                total = total + terms["auxiliary"]
        return terms | {"total": total}

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        if not self.config.decay_vectors:
            return super().parameter_groups(lr, weight_decay)
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": learned, "lr": lr, "weight_decay": weight_decay}]

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]]:
        options = ("tower", "size", "interpolate_positions", "semantic_layers", "structural_layers", "mean", "std")
        return self.tower, {name: repr(getattr(self.config, name)) for name in options}

    # -- weights ---------------------------------------------------------------------------------------------------

    def prepare_training(self, clip_weights: str | Path | None = None) -> None:
        """Fill the tower, unless the system continues from trained weights.

        Args:
            clip_weights: A file of CLIP or, for its tower, of SigLIP (transformers' names); None for open_clip's
                download of CLIP; "random" for tests, with a warning.

        Raises:
            CheckpointError: For a file that cannot be read or holds another tower.
        """
        if self.was_loaded:
            return
        if clip_weights == "random":
            warnings.warn("the tower has RANDOM weights, which stay as they are", stacklevel=2)
            self.provenance |= {"tower": "random"}
            return
        if self.config.tower.kind == "clip":
            found = find_clip_weights(clip_weights, self.config.architecture, quick_gelu=True)
            tensors, source, sha256 = found.tensors, found.source, found.sha256
        else:
            if clip_weights is None:
                raise UsageError(f"'{self.name}' needs a file of SigLIP's weights: system.prepare.clip_weights")
            path = expanded(clip_weights)
            limit = check_file(path, "SigLIP", 8 * sum(p.numel() for p in self.tower.parameters()))
            tensors, source, sha256 = read_tensors(path, "SigLIP", limit), path.name, file_sha256(path)
        self.fill_tower(tower_tensors(tensors, source), source)
        self.provenance |= {"tower": source, "clip_sha256": sha256}

    def fill_tower(self, tensors: dict[str, Tensor], source: str) -> None:
        """Raises CheckpointError for tensors of another tower."""
        own = self.tower.state_dict()
        wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        extra = [name for name in tensors if name not in own]
        if wrong or extra:
            name = (wrong or extra)[0]
            found = str(tuple(tensors[name].shape)) if name in tensors else "missing"
            raise CheckpointError(
                f"{source}: holds another tower than {self.config.tower} ('{name}' is {found}); set "
                "the option 'tower' to its sizes"
            )
        fill(self.tower, tensors, source, self.name)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Raises CheckpointError for a checkpoint without the decoder, and for one with another tower."""
        if not any(name.startswith("depth_prediction_head.") for name in state_dict):
            raise CheckpointError(f"the checkpoint is not one of '{self.name}' (no 'depth_prediction_head.*')")
        inside = {name: value for name, value in state_dict.items() if name.startswith(TOWER)}
        others = {name: value for name, value in state_dict.items() if name not in inside}
        tower = tower_tensors({name.removeprefix(TOWER): value for name, value in inside.items()}, "the checkpoint")
        self.fill_tower(tower, "the checkpoint")
        tensors, report = rename(others, decoder_name, self.state_dict())
        tensors |= {f"tower.{name}": value for name, value in tower.items()}
        missing = [name for name in report["missing"] if name not in tensors]
        return tensors, {**report, "used": [*inside, *report["used"]], "missing": missing}


def _metres(head: Tensor) -> Tensor:
    """Depth of a head's output: at least ``losses.NEAREST``; where it is less, there is no gradient."""
    return head.float().clamp_min(losses.NEAREST)
