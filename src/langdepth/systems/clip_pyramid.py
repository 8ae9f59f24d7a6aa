"""The trunk of MDE-CLIP and RefineDepthCLIP: four maps of CLIP's frozen ResNet beside the distance words.

image (B, 3, 480, 640) -> CLIP's ResNet -> (B, 256, 120, 160), (B, 512, 60, 80), (B, 1024, 30, 40), (B, 2048, 15, 20)
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.systems.capabilities import ConvertsOfficial, Trainable
from langdepth.systems.clip_system import ClipConfig, ClipSystem


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(ClipConfig):
    """Options of `mde-clip`, `mde-clip-unet` and `refine-clip`."""

    QUIRKS: ClassVar[dict[str, Any]] = {**ClipConfig.QUIRKS, "clip_bn": "train", "clip_half": True}

    size: tuple[int, int] | None = (480, 640)
    """Height and width inside the network, multiples of 32; null: ``area`` pixels in the image's shape."""
    clip_bn: Literal["eval", "train"] = "eval"
    """Whether CLIP's BatchNorm keeps its statistics in training; the official code changes and saves them."""
    clip_half: bool = False
    """Whether CLIP runs in float16 on a GPU, as the official code does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and (min(self.size) < 32 or any(side % 32 for side in self.size)):
            raise ValueError(f"size must be multiples of 32, got {self.size[0]} x {self.size[1]}")


STRIDES = (4, 8, 16, 32)  # of the pyramid's maps


class PyramidClip(ClipSystem, Trainable, ConvertsOfficial):
    """Four maps of a frozen CLIP tower beside the words. ``text``: a (K, D) matrix instead of the words' features."""

    TRUNK_OPTIONS = (*ClipSystem.TRUNK_OPTIONS, "size", "clip_half")

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config, config.size)
        self.channels = self.tower.channels[-4:]
        if tuple(self.tower.strides[-4:]) != STRIDES:
            raise UsageError(
                f"architecture '{config.architecture}' has no maps at strides 4, 8, 16 and 32; take a ResNet (RN50)"
            )

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """CLIP's maps of images, which are resized to ``config.size`` first."""
        if self.config.size is not None:
            image = resize_aligned(image, self.config.size)
        half = self.config.clip_half and image.is_cuda
        with torch.autocast("cuda", torch.float16) if half else nullcontext():
            maps = self.tower.pyramid(self.normalise(image))[-4:]
        return {f"stride_{s}": level.float() if half else level for s, level in zip(STRIDES, maps, strict=True)}

    def maps(self, image: Tensor, features: dict[str, Tensor] | None = None) -> list[Tensor]:
        """CLIP's maps of (B, 3, H, W) RGB in [0, 1], finest first, (B, C_i, h, w).

        ``features``: the result of ``frozen_features``, where it is known already.
        """
        features = features or self.frozen_features(image)
        return [features[f"stride_{stride}"] for stride in STRIDES]
