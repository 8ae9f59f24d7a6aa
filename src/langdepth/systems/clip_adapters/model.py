"""`clip-adapter`, `clip-coarse-refined`, `eigen`: depth from CLIP with little to train (pinying567, June 2023).

Data flow (published size; B images of 416 x 544; initial depth: see systems/clip_system.py)

    clip-adapter         cells (B, 2048, 13, 17) and words (7, 1024), each through its bottleneck of 8 units
                         -> similarity x 10 -> softmax -> depth (B, 1, 13, 17)
    clip-coarse-refined  initial depth (B, 1, 13, 17) -> 221 numbers -> 4096 -> coarse (B, 1, 104, 136)
                         image -> 9x9 convolution -> (B, 63, 104, 136), coarse concatenated
                         -> two 5x5 convolutions -> depth (B, 1, 104, 136)
    eigen                image -> four convolutions -> (B, 256, 13, 17) -> 56 576 numbers -> 4096
                         -> coarse (B, 1, 104, 136), then refined in the same way (Eigen et al. 2014; no language)

all -> bilinear, corners aligned -> (B, 1, 416, 544). The two-stage systems are trained one stage after the other.

Loss, on the mean of the depths of image and mirrored image: mean |depth - target| (two-stage systems: its square)
+ 0.001 x edge-aware smoothness; weights and further terms: ``losses.AdapterLosses``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from langdepth.errors import CheckpointError, UsageError
from langdepth.records import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from langdepth.systems.capabilities import ConvertsOfficial, Scene, Text
from langdepth.systems.clip_adapters.blocks import BottleneckAdapter, CoarseMap, EigenRefiner
from langdepth.systems.clip_adapters.losses import AdapterLosses
from langdepth.systems.clip_adapters.mirror_training import (
    Features,
    MirrorTraining,
    MirrorTrainingConfig,
    RawDepth,
    TextAndScene,
)
from langdepth.systems.clip_adapters.official import ADAPTER_NAMES, COARSE_NAMES, EIGEN_NAMES, both_stages
from langdepth.systems.clip_system import ClipConfig, ClipSystem
from langdepth.systems.official import rename, set_quirks


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(MirrorTrainingConfig, ClipConfig):
    """Options of every trained system on a CLIP trunk."""

    QUIRKS: ClassVar[dict[str, Any]] = {**ClipConfig.QUIRKS, **MirrorTrainingConfig.QUIRKS, "clip_bn": "train"}

    normalise: Literal["before", "after"] = "after"
    logit_scale: float = 10.0
    """1 / temperature."""
    clip_bn: Literal["eval", "train"] = "eval"
    """Whether CLIP's BatchNorm keeps its statistics in training; the official code changes them."""


@dataclass(frozen=True, kw_only=True)
class ClipAdapterConfig(AdapterConfig):
    """Options of `clip-adapter`."""

    image_reduction: int = 256
    text_reduction: int = 128
    mix: float = 0.2
    """Share of the adapted features in the new ones."""


class ClipAdapter(MirrorTraining, ClipSystem, ConvertsOfficial):
    """A bottleneck on the cells, another on the words; ``text``: a (K, D) matrix instead of the words' features."""

    Config = ClipAdapterConfig

    def __init__(self, config: ClipAdapterConfig) -> None:
        super().__init__(config)
        self.image_adapter = BottleneckAdapter(self.cell_channels, config.image_reduction, config.mix)
        self.text_adapter = BottleneckAdapter(self.tower.embed_dim, config.text_reduction, config.mix)

    def adapt(self, features: Tensor) -> Tensor:
        """Cell features (B, C, h, w) through the image adapter."""
        adapted: Tensor = self.image_adapter(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return adapted

    def compare(self, features: Tensor, text: Text = None, scene: Scene = None) -> Any:
        """Cells and words through their adapters, then compared."""
        matrix, centers = self.words(features.shape[0], text, scene)
        return self.word_bins(self.adapt(features), self.text_adapter(matrix), centers)

    def network(self, image: Tensor, features: Features, words: TextAndScene, overlay: Tensor | None) -> RawDepth:
        found = self.compare(features["cells"], *words)
        return RawDepth(found.depth, found.logits, self.word_bins.bin_centers[0])

    def official_names(self) -> dict[str, str]:
        return ADAPTER_NAMES


class CoarseToFine(MirrorTraining, ConvertsOfficial):
    """A coarse map at a quarter of the image's size, trained first; then, on the frozen one, its refinement."""

    coarse: CoarseMap
    refiner: EigenRefiner | None

    def _build_maps(self, inputs: int, dropout: float | None) -> None:
        config = self.config
        height, width = config.size
        if height % 32 or width % 32 or min(height, width) < 32:
            raise ValueError(f"size must be multiples of 32, got {height} x {width}")
        self.coarse = CoarseMap(inputs, config.hidden, (height // 4, width // 4), dropout)
        self.refiner = None
        if config.stage == "refined":
            self.requires_grad_(False)
            self.refiner = EigenRefiner()

    def coarse_depth(self, image: Tensor, features: Features, words: TextAndScene = (None, None)) -> Tensor:
        """(B, 3, *config.size) to (B, 1, h / 4, w / 4) metres."""
        raise NotImplementedError

    def network(self, image: Tensor, features: Features, words: TextAndScene, overlay: Tensor | None) -> RawDepth:
        if tuple(image.shape[-2:]) != self.config.size:
            raise UsageError(
                f"'{self.name}' was made for images of {self.config.size[1]}x{self.config.size[0]} pixels inside the "
                f"network, got {image.shape[-1]}x{image.shape[-2]}"
            )
        depth = self.coarse_depth(image, features, words)
        if self.refiner is not None:
            depth = self.refiner(self.normalise(image), depth)
        return RawDepth(depth.float())

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if self.refiner is not None:  # the first stage is trained already: no dropout there
            self.coarse.eval()
        return self

    def _official_tensors(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Official names of both stages alike; the refined one's checkpoint holds its coarse stage."""
        if self.refiner is not None:
            self.provenance["coarse"] = "the same checkpoint"
        return both_stages(state_dict)

    def load_coarse(self, coarse: str | Path | None) -> None:
        """For the second stage, the trained first one from a file; nothing if that is done. Raises UsageError."""
        if self.refiner is None or "coarse" in self.provenance:
            return
        if coarse is None:
            raise UsageError(
                f"'{self.name}' refines a trained coarse stage; name its weights in system.prepare.coarse, or set "
                "system.options.stage to coarse"
            )
        from langdepth.weights.checkpoint import load

        first = load(coarse)
        own = {key for key in self.state_dict() if not key.startswith("refiner.")}
        if type(first) is not type(self) or first.state_dict().keys() != own:
            raise CheckpointError(f"{coarse}: is not the coarse stage of '{self.name}'")
        try:
            self.load_state_dict(first.state_dict(), strict=False)
        except RuntimeError:
            raise CheckpointError(f"{coarse}: its coarse stage has another size than system.options ask for") from None
        self.provenance["coarse"] = str(coarse)


@dataclass(frozen=True, kw_only=True)
class CoarseRefinedConfig(AdapterConfig):
    """Options of `clip-coarse-refined`."""

    stage: Literal["coarse", "refined"] = "refined"
    size: tuple[int, int] = (416, 544)
    """Height and width inside the network, which the layers are made for."""
    hidden: int = 4096
    losses: AdapterLosses = field(default_factory=lambda: AdapterLosses(depth_norm="l2", shrink=4))


class CoarseRefined(CoarseToFine, ClipSystem):
    """The words' depth, then two linear layers, then the refiner."""

    Config = CoarseRefinedConfig

    def __init__(self, config: CoarseRefinedConfig) -> None:
        super().__init__(config, config.size)
        rows, columns = (side // self.tower.stride for side in config.size)
        self._build_maps(rows * columns, dropout=None)

    def coarse_depth(self, image: Tensor, features: Features, words: TextAndScene = (None, None)) -> Tensor:
        depth: Tensor = self.coarse(self.compare(features["cells"], *words).depth.flatten(2))
        return depth

    def prepare_training(self, clip_weights: str | None = None, coarse: str | None = None) -> None:
        """CLIP weights for the coarse stage; for the refined one the trained coarse stage, which holds them."""
        if self.refiner is None:
            super().prepare_training(clip_weights)
        else:
            self.load_coarse(coarse)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        return super().convert_official(self._official_tensors(state_dict))

    def official_names(self) -> dict[str, str]:
        return COARSE_NAMES


@dataclass(frozen=True, kw_only=True)
class EigenConfig(MirrorTrainingConfig):
    """Options of `eigen`."""

    QUIRKS: ClassVar[dict[str, Any]] = {**MirrorTrainingConfig.QUIRKS, "per_channel": True}

    stage: Literal["coarse", "refined"] = "refined"
    size: tuple[int, int] = (416, 544)
    hidden: int = 4096
    """Units of the first linear layer, which has 56 576 inputs at the published size."""
    dropout: float = 0.5
    per_channel: bool = False
    """The official linear layers, applied to each of the 256 channels, without activation; their mean is the depth."""
    losses: AdapterLosses = field(default_factory=lambda: AdapterLosses(depth_norm="l2"))
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    reference_exact: bool = False
    """The official code's numbers, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)


class Eigen(CoarseToFine):
    """The baseline without language: convolutions instead of CLIP and words."""

    Config = EigenConfig

    def __init__(self, config: EigenConfig) -> None:
        spec = InputSpec(mean=config.mean, std=config.std, size=config.size, enlarge="bilinear-aligned")
        super().__init__(config, spec)
        self.convs = nn.Sequential(
            nn.Conv2d(3, 96, 11, stride=4, padding=6),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(96, 256, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        cells = (config.size[0] // 32) * (config.size[1] // 32)
        if config.per_channel:
            self._build_maps(cells, dropout=None)
        else:
            self._build_maps(256 * cells, config.dropout)

    def coarse_depth(self, image: Tensor, features: Features, words: TextAndScene = (None, None)) -> Tensor:
        if words != (None, None):
            raise UsageError(f"the system '{self.name}' takes no text or scene; leave it out")
        found = self.convs(self.normalise(image))
        if self.config.per_channel:
            maps: Tensor = self.coarse(found.flatten(2))
            return maps.mean(1, keepdim=True)
        depth: Tensor = self.coarse(found.flatten(1))
        return depth.unsqueeze(1)

    def prepare_training(self, coarse: str | None = None) -> None:
        """For the refined stage the trained coarse one; nothing else is needed."""
        self.load_coarse(coarse)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names; the CLIP model in the checkpoint has no part in the depth and is ignored."""
        return rename(self._official_tensors(state_dict), EIGEN_NAMES, self.state_dict())
