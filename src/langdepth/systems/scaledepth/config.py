"""Options of ScaleDepth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from langdepth.backbones.clip import CLIP_MEAN, CLIP_STD
from langdepth.systems.official import set_quirks
from langdepth.text.scenes import SCENES


@dataclass(frozen=True, kw_only=True)
class ScaleDepthConfig:
    """Options of all variants. ``reference_exact`` sets what QUIRKS lists."""

    QUIRKS: ClassVar[dict[str, Any]] = {"scale_bias": 0.0, "scene_mean_over_all": True}

    encoder: str = "convnext_large"
    """Name of the trunk: timm's of a ConvNeXt, swin-large, efficientnet-lite0 ..."""
    frozen: int = 0
    """Stages of an EfficientNet-Lite that keep their ImageNet weights."""
    start: Literal["clip", "imagenet"] = "clip"
    """Where the encoder's weights come from when training starts."""
    clip: str = "convnext_large_d_320"
    """open_clip's name of the model that encodes the scenes, with embeddings as wide as the scale queries in a row."""
    clip_tag: str = "laion2b_s29b_b131k_ft_soup"
    """open_clip's name of its weights."""
    quick_gelu: bool = False
    """Whether these were trained with QuickGELU (OpenAI's were)."""
    drop_path: float = 0.1
    """Share of dropped branches in the encoder's last block in training."""
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    area: int | None = 480 * 640
    """Pixels inside the network, in the image's shape; null: the image's own size."""
    channels: int = 256
    """Of memories, mask features and queries; a multiple of 32."""
    pixel_layers: int = 6
    pixel_hidden: int = 1024
    decoder_layers: int = 9
    """A multiple of 3."""
    decoder_hidden: int = 2048
    bins: int = 64
    scale_queries: int = 3
    scenes: int = len(SCENES)
    """Rows of the scene table, the first of text.scenes.SCENES; 0: no scenes (published for KITTI alone)."""
    scene_similarity: Literal["product", "cosine"] = "product"
    """100 x scale queries x scenes' features (published), or that of vectors of length 1."""
    scene_loss: Literal["probabilities", "logits"] = "probabilities"
    """What the scenes' cross-entropy gets; probabilities (softmax twice, tiny gradients) are published."""
    scene_loss_weight: float = 0.01
    scene_mean_over_all: bool = False
    """Whether images of unknown scene count as 0 in the mean of the scene loss."""
    chamfer_weight: float = 0.0
    """Of the distance between bins, in metres, and depths; 0.1 in the official code, which does not use it."""
    loss_max_depth: float | None = None
    """Metres; farther ground truth is left out."""
    scale_bias: float = 2.0
    """Start of the scale layer's bias; from 0, as published, half of the starts have scale 0.1 m and no gradient."""
    scene_share: float = 0.5
    """How far a named scene moves the logarithm of the scale: from 0, not at all, to 1, to that scene's usual depth."""
    gradient_checkpointing: bool = False
    """Less memory and more time in training: only the inputs of the layers of decoders, ConvNeXt and Swin are kept."""
    reference_exact: bool = False
    """The official code's numbers in training, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)
        if not 0 <= self.scenes <= len(SCENES):
            raise ValueError(f"scenes must be between 0 and {len(SCENES)}, got {self.scenes}")
        if self.channels < 32 or self.channels % 32:
            raise ValueError(f"channels must be a multiple of 32, got {self.channels}")
        if self.decoder_layers < 3 or self.decoder_layers % 3:
            raise ValueError(f"decoder_layers must be a multiple of 3, got {self.decoder_layers}")
