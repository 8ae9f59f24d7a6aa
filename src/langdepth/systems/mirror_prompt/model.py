"""`mirror-prompt`, `mirror-prompt-kitti`: a prompt without words, learned as a matrix.

After the abstract of arXiv 2402.03251 ("CLIP Can Understand Depth"); neither code nor full text was available. What is
the paper's and what is ours: docs/systems/mirror-prompt.md.

Data flow (B images of 416 x 544; ViT-B/16, frozen)

    image -> CLIP's image tower -> cells (B, 512, 26, 34)
    mirror (64, 512), learned -> in the place of word embeddings (plus CLIP's positions), through its frozen text tower
    -> feature of the last position (1, 512), the condition -> a linear layer -> scale and shift of every channel
    cells x (1 + scale) + shift -> three deconvolutions, each twice the size -> (B, 32, 208, 272)
    -> 3x3 convolution -> 10 m x sigmoid -> depth (B, 1, 208, 272)

Loss, over the valid pixels of the batch, d = ln(prediction / target): 10 sqrt(mean d^2 - 0.85 (mean d)^2).

Trained are the mirror, the layer and the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from langdepth import losses
from langdepth.backbones.clip import CLIP_MEAN, CLIP_STD
from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.capabilities import HasFrozenTrunk, Scene, Text, Trainable
from langdepth.systems.clip_towers import ClipTowers


@dataclass(frozen=True, kw_only=True)
class MirrorPromptConfig:
    """Options of `mirror-prompt`."""

    architecture: str = "ViT-B-16"
    """open_clip's name of the CLIP model, or "RN-small", "ViT-small"."""
    quick_gelu: bool = True
    """Whether the weights were trained with QuickGELU (OpenAI's were); refused when the file disagrees."""
    tokens: int = 64
    """Rows of the learned matrix."""
    widths: tuple[int, ...] = (128, 64, 32)
    """Channels of the deconvolutions, multiples of 4; each doubles the size."""
    max_depth: float = 10.0
    """Metres."""
    area: int = 416 * 544
    """Pixels inside the network; the image's shape is kept."""

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 4 or any(width % 4 for width in self.widths):
            raise ValueError(f"widths must be one or more multiples of 4, got {list(self.widths)}")
        if not 0 < self.max_depth < float("inf"):
            raise ValueError(f"max_depth must be above 0, got {self.max_depth}")


class MirrorPrompt(ClipTowers, Trainable, HasFrozenTrunk):
    """Cells of CLIP, conditioned by what its text tower makes of a learned matrix, through deconvolutions to depth."""

    Config = MirrorPromptConfig

    def __init__(self, config: MirrorPromptConfig) -> None:
        spec = InputSpec(
            mean=CLIP_MEAN,
            std=CLIP_STD,
            area=config.area,
            enlarge="bilinear-aligned",
        )
        super().__init__(config, spec, config.tokens, embeds_words=False)
        self.tower.requires_grad_(False)
        self.text_tower.requires_grad_(False)
        channels = self.tower.output_channels("stage")
        self.mirror = nn.Parameter(0.02 * torch.randn(config.tokens, self.text_tower.transformer.width))
        self.film = nn.Linear(self.text_tower.embed_dim, 2 * channels)
        stages = []
        for before, width in zip((channels, *config.widths), config.widths, strict=False):
            stages += [nn.ConvTranspose2d(before, width, 4, stride=2, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
        self.decoder = nn.Sequential(*stages, nn.Conv2d(config.widths[-1], 1, 3, padding=1))

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        if text is not None or scene is not None:
            raise UsageError(f"the prompt of '{self.name}' is learned; it takes no words and no scene, leave them out")
        return DepthOutput(depth=self.depth_of(self.frozen_features(image)["cells"]))

    def condition(self) -> Tensor:
        """The mirror as CLIP's text tower reads it, (1, D): the feature of its last position, not normalised."""
        last = torch.tensor([len(self.mirror) - 1], device=self.mirror.device)
        return self.text_tower.encode(self.mirror[None], last)

    def depth_of(self, cells: Tensor) -> Tensor:
        """Depth (B, 1, 8 h, 8 w), metres, of cells (B, C, h, w)."""
        scale, shift = self.film(self.condition())[:, :, None, None].chunk(2, dim=1)
        logit: Tensor = self.decoder(cells * (1 + scale) + shift).float()
        return self.config.max_depth * logit.sigmoid()

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        return self.tower, {"architecture": self.config.architecture, "quick_gelu": self.config.quick_gelu}

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"cells": self.tower(self.normalise(image))}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """SILog of the depth enlarged to the size of the ground truth, as "total"."""
        features = batch.features or self.frozen_features(batch.image)
        depth = resize_aligned(self.depth_of(features["cells"]), batch.depth.shape[-2:])
        return {"total": losses.silog(depth, batch.depth, batch.mask)}
