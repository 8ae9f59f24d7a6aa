"""`msa`, `msa-sam`: the Multi-Scale Adapter, a U-Net decoder over CLIP's feature pyramid (pinying567, June 2023).

Data flow (B images of 416 x 544, RN50)

    image -> CLIP's ResNet -> maps (B, 64, 208, 272) ... (B, 2048, 13, 17) at strides 2, 4, 8, 16, 32
    msa-sam: overlay (B, 3, 416, 544), the image with SAM's masks drawn over it -> two 3x3 blocks, concatenated with
    the image
    bridge on the coarsest map -> five times: enlarge, finer map concatenated, two 3x3 blocks -> 1x1
    -> delta (B, 1, 416, 544)
    clip_weight 0 (published): depth = delta
    clip_weight a > 0:         depth = a * words' depth (systems/clip_system.py) + (2 sigmoid(delta) - 1)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.systems.capabilities import ConvertsOfficial
from langdepth.systems.clip_adapters.blocks import ConvBlock, MultiScaleDecoder
from langdepth.systems.clip_adapters.losses import AdapterLosses
from langdepth.systems.clip_adapters.mirror_training import Features, MirrorTraining, RawDepth, TextAndScene
from langdepth.systems.clip_adapters.model import AdapterConfig
from langdepth.systems.clip_adapters.official import MULTI_SCALE_NAMES
from langdepth.systems.clip_system import ClipSystem


@dataclass(frozen=True, kw_only=True)
class MultiScaleConfig(AdapterConfig):
    """Options of `msa` and `msa-sam`."""

    overlay: bool = False
    """Whether the image with masks drawn over it is a second input."""
    clip_weight: float = 0.0
    """Weight of the words' depth; the decoder then moves it by at most 1 m."""
    logit_scale: float = 1000.0
    losses: AdapterLosses = field(default_factory=lambda: AdapterLosses(smoothness=0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip_weight < 0:
            raise ValueError(f"clip_weight must be at least 0, got {self.clip_weight}")


class MultiScaleAdapter(MirrorTraining, ClipSystem, ConvertsOfficial):
    """Decoder over the frozen pyramid; ``text``: a (K, D) matrix instead of the words' features."""

    Config = MultiScaleConfig

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__(config)
        self.takes_overlay = config.overlay
        if tuple(self.tower.strides) != (2, 4, 8, 16, 32):
            raise UsageError(
                f"architecture '{config.architecture}' has no maps at strides 2, 4, 8, 16 and 32; take a ResNet (RN50)"
            )
        self.decoder = MultiScaleDecoder((6 if config.overlay else 3, *self.tower.channels))
        if config.clip_weight > 0 and self.decoder.out.bias is not None:  # a residual starts at none
            nn.init.zeros_(self.decoder.out.bias)
        self.overlay_encoder = nn.Sequential(ConvBlock(3, 3), ConvBlock(3, 3)) if config.overlay else None

    def network(self, image: Tensor, features: Features, words: TextAndScene, overlay: Tensor | None) -> RawDepth:
        normalised = self.normalise(image)
        maps = [features[f"stride_{stride}"] for stride in self.tower.strides]
        matrix, centers = self.words(image.shape[0], *words)
        if self.overlay_encoder is not None:
            normalised = torch.cat([normalised, self.overlay_encoder(self._checked(overlay, image))], dim=1)
        delta = self.decoder([normalised, *maps]).float()
        weight = self.config.clip_weight
        if weight == 0:
            return RawDepth(delta)
        initial = self.word_bins(maps[-1], matrix, centers).depth.clamp(max=self.config.losses.max_depth)
        return RawDepth(weight * resize_aligned(initial, delta.shape[-2:]) + 2 * delta.sigmoid() - 1)

    def graph_inputs(self) -> dict[str, Tensor]:
        return super().graph_inputs() if self.config.clip_weight else {}

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        maps = self.tower.pyramid(self.normalise(image))
        return {f"stride_{stride}": level for stride, level in zip(self.tower.strides, maps, strict=True)}

    def _checked(self, overlay: Tensor | None, image: Tensor) -> Tensor:
        if overlay is None:
            raise UsageError(
                f"'{self.name}' needs an overlay beside every image, the image with SAM's masks drawn over it; "
                "make them with 'langdepth data sam'"
            )
        if overlay.shape != image.shape:
            raise UsageError(f"overlays have shape {tuple(overlay.shape)}, their images {tuple(image.shape)}")
        return overlay

    def official_names(self) -> dict[str, str]:
        return MULTI_SCALE_NAMES
