"""`example`, `example-wide`: three convolutions on the image.

Data flow: image (B, 3, h, w) -> convolutions, stride 4 -> depth (B, 1, h / 4, w / 4)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import Trainable


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """Options of Example."""

    channels: int = 8


class Example(System, Trainable):
    """Depth from an image alone."""

    Config = ExampleConfig

    def __init__(self, config: ExampleConfig) -> None:
        super().__init__(config, InputSpec(area=48 * 64, multiple_of=16))
        self.body = nn.Sequential(
            nn.Conv2d(3, config.channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.channels, 1, 1),
        )

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        """Depth (B, 1, h / 4, w / 4) in metres of (B, 3, h, w) RGB images in [0, 1]."""
        return DepthOutput(depth=self.body(self.normalise(image)).exp())

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The mean absolute error of the logarithm."""
        depth = F.interpolate(self(batch.image).depth, size=batch.depth.shape[-2:], mode="bilinear")
        error = depth.log() - batch.depth.clamp_min(0.01).log()
        return {"total": error[batch.mask].abs().mean()}
