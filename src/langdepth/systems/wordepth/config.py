"""Options of WorDepth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langdepth.backbones.swin import PATCH

MULTIPLE = 32
LEAST_DEPTH = 0.1  # metres; nearer ground truth is left out of the loss


@dataclass(frozen=True, kw_only=True)
class WorDepthConfig:
    """Options of every WorDepth."""

    encoder: Literal["swin-large", "swin-tiny", "swin-mini", "efficientnet-lite0", "efficientnet-lite2"] = "swin-large"
    frozen: int = 0
    """First stages of an EfficientNet-Lite that keep their ImageNet weights."""
    encoder_lr: float = 1.0
    """Learning rate of the encoder as a share of the rest's."""
    drop_path: float = 0.2
    """Share of dropped residual branches in the last block of a Swin, rising from 0."""
    resolution: tuple[int, int] = (480, 640)
    """Height and width of training images: a Swin's position table is made for them, and other images are resized
    to the same number of pixels in their own shape."""
    widths: tuple[int, int, int] = (512, 256, 64)
    """Decoder channels at strides 16, 8 and 4."""
    latent: int = 128
    """Dimensions of the Gaussian over scenes."""
    text_features: int = 1024
    """Length of a caption's feature."""
    vocabulary: tuple[str, ...] = ()
    """Of the sentence encoder; filled in by training."""
    skip_mode: Literal["never", "image_only", "always"] = "never"
    """When the decoder gets the encoder's maps: never, in image steps (as published), or in text steps, too."""
    noise: Literal["cell", "image"] = "cell"
    """Whether a text step draws noise for every cell (the authors' code) or one vector for the image (the paper)."""
    prior_mean: float = 1.54
    """Added to the logarithm of depth: 1.54 starts at 4.66 m (NYU), 2.54 at 12.68 m (KITTI)."""
    max_depth: float = 10.0
    """Metres; farther ground truth is left out of the loss."""
    alter_prob: float = 0.5
    """Share of text steps in training."""
    weight_kld: float = 1e-3
    variance_focus: float = 0.85
    silog: Literal["sum", "mean"] = "sum"
    """Whether the silog losses of a batch's images are added (as published) or averaged."""

    def __post_init__(self) -> None:
        if min(self.resolution) < MULTIPLE or any(side % PATCH for side in self.resolution):
            found = " x ".join(map(str, self.resolution))
            raise ValueError(f"resolution must be multiples of {PATCH}, at least {MULTIPLE}, got {found}")
        if not self.max_depth > LEAST_DEPTH:
            raise ValueError(f"max_depth must be above {LEAST_DEPTH}, got {self.max_depth}")
        for name in ("alter_prob", "encoder_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
