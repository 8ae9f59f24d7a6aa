"""`refine-clip`: similarity of CLIP's feature pyramid to distance words, refined from coarse to fine.

RefineDepthCLIP (March 2024), the predecessor of MDE-CLIP. Specification and numbers: docs/systems/mde-clip.md.

Data flow (published size; RN50, frozen)

    image (B, 3, 480, 640) -> CLIP's ResNet -> F1 (B, 256, 120, 160), F2 (B, 512, 60, 80), F3 (B, 1024, 30, 40),
    F4 (B, 2048, 15, 20); "This object is giant", "... extremely close", ... -> text matrix T (7, 1024)

    T through a layer per F_i; similarity of every pixel to the words -> S_i (B, 7, h_i, w_i)
    S4 -> three times: enlarge, S_i concatenated, 3x3 convolution -> softmax over words
    -> sum of probs x word's distance -> depth (B, 1, 480, 640)

Loss, over the valid pixels of the batch, d = ln(prediction / target): mean d^2 - 0.5 (mean d)^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.errors import CheckpointError, UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.parts.word_bins import words_output
from langdepth.records import Batch, DepthOutput
from langdepth.systems.capabilities import Scene, Text
from langdepth.systems.clip_pyramid import PyramidClip, PyramidConfig
from langdepth.systems.refine_clip.official import OFFICIAL_NAMES


class RefineClip(PyramidClip):
    """Similarity to the words on four levels, refined from coarse to fine."""

    Config = PyramidConfig

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config)
        words = len(self.config.prompts.words)
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Linear(self.tower.embed_dim, width), nn.ReLU()) for width in self.channels
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * words, words, 3, padding=1), nn.BatchNorm2d(words), nn.ReLU()) for _ in range(3)
        )

    def similarities(self, image: Tensor, text: Tensor, features: dict[str, Tensor] | None = None) -> list[Tensor]:
        """Of every pixel to the words ``text`` (N, K, D): (B, K, h, w) on each level, finest first."""
        levels = zip(self.maps(image, features), self.adapters, strict=True)
        return [self.word_bins.logits(F.normalize(level.float(), dim=1), adapter(text)) for level, adapter in levels]

    def forward(
        self, image: Tensor, text: Text = None, scene: Scene = None, features: dict[str, Tensor] | None = None
    ) -> DepthOutput:
        matrix, centers = self.words(image.shape[0], text, scene)
        *finer, x = self.similarities(image, matrix, features)
        for block, level in zip(self.blocks, reversed(finer), strict=True):
            x = block(torch.cat([resize_aligned(x, level.shape[-2:]), level], dim=1))
        return words_output(x.float().softmax(1), centers, self.config.size or image.shape[-2:])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The silog loss of the whole batch, without its square root, as "total"."""
        depth = resize_aligned(self(batch.image, features=batch.features).depth, batch.depth.shape[-2:])
        return {"total": losses.silog(depth, batch.depth, batch.mask, 0.5, 1.0, root=False)}

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Replace words or bins. Raises UsageError for another number of words."""
        before = self.config.prompts
        if len(before.changed(prompts).words) != len(before.words):
            raise UsageError(f"the convolutions of '{self.name}' were made for {len(before.words)} words; give as many")
        super().use_prompts(prompts, clip_weights)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names, see ``ClipSystem``. Raises CheckpointError for a checkpoint of CLIP alone."""
        if not any(key.startswith("conv_block.") for key in state_dict):
            raise CheckpointError(
                "the checkpoint has no decoder (no tensor 'conv_block.0.conv.0.weight'): the official program neither "
                f"trains nor saves it; train '{self.name}' with 'langdepth train'"
            )
        return super().convert_official(state_dict)

    def official_names(self) -> dict[str, str]:
        return OFFICIAL_NAMES
