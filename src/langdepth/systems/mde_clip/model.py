"""`mde-clip`, `mde-clip-unet`, `refine-clip`: CLIP's feature pyramid and seven distance words, decoded together.

"Harnessing Cross-Attention for Visual Perception with CLIP" (DME-CLIP, May 2024) and its predecessor RefineDepthCLIP
(March 2024). Specification and numbers: docs/systems/mde-clip.md.

Data flow (published size; RN50, frozen)

    image (B, 3, 480, 640) -> CLIP's ResNet -> F1 (B, 256, 120, 160), F2 (B, 512, 60, 80), F3 (B, 1024, 30, 40),
    F4 (B, 2048, 15, 20); "This object is giant", "... extremely close", ... -> text matrix T (7, 1024)

    mde-clip, mde-clip-unet
    every pixel of every F_i attends to the rows of T -> A_i, shaped like F_i       (parts/cross_attention.py)
    A4 -> twice the size; three times: A_i beside it, two 3x3 convolutions, twice the size -> D1 (B, 128, 240, 320)
    mde-clip       D1 -> bins that follow the image -> depth (B, 1, 240, 320)     (parts/adaptive_bins.py)
    mde-clip-unet  D1 -> convolutions, twice the size -> 10 m x sigmoid -> depth (B, 1, 480, 640)

    refine-clip
    T through a layer per F_i; similarity of every pixel to the words -> S_i (B, 7, h_i, w_i)
    S4 -> three times: enlarge, S_i beside it, 3x3 convolution -> softmax over words -> sum of probs x word's distance
    -> depth (B, 1, 480, 640)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.errors import CheckpointError, UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.parts.word_bins import words_output
from langdepth.records import Batch, DepthOutput
from langdepth.systems.capabilities import ConvertsOfficial, Trainable
from langdepth.systems.clip_system import ClipConfig, ClipSystem
from langdepth.systems.mde_clip.adaptive_bins import AdaptiveBins, WidthNorm
from langdepth.systems.mde_clip.cross_attention import CrossAttention, split_multihead
from langdepth.systems.official import rename


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(ClipConfig):
    """Options of all three."""

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

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config, config.size)
        self.tower.batch_norm_trains = config.clip_bn == "train"
        self.channels = self.tower.channels[-4:]
        if tuple(self.tower.strides[-4:]) != STRIDES:
            raise UsageError(
                f"architecture '{config.architecture}' has no maps at strides 4, 8, 16 and 32; take a ResNet (RN50)"
            )

    TRUNK_OPTIONS = (*ClipSystem.TRUNK_OPTIONS, "size", "clip_half")

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """CLIP's maps of images that were brought to ``config.size`` first."""
        if self.config.size is not None:
            image = resize_aligned(image, self.config.size)
        half = self.config.clip_half and image.is_cuda
        with torch.autocast("cuda", torch.float16) if half else nullcontext():
            maps = self.tower.pyramid(self.normalise(image))[-4:]
        return {f"stride_{s}": level.float() if half else level for s, level in zip(STRIDES, maps, strict=True)}

    def maps(self, image: Tensor, features: dict[str, Tensor] | None = None) -> list[Tensor]:
        """CLIP's maps of (B, 3, H, W) RGB in [0, 1], finest first, (B, C_i, h, w).

        ``features``: what ``frozen_features`` gives, where it is known already.
        """
        features = features or self.frozen_features(image)
        return [features[f"stride_{stride}"] for stride in STRIDES]


# mde-clip and mde-clip-unet


@dataclass(frozen=True, kw_only=True)
class MdeLosses:
    """Weights beside the silog loss, which counts once (spec, section 6)."""

    l1: float = 0.5
    ssim: float = 1.0
    chamfer: float = 0.1
    """Of bins and depths; `mde-clip` only."""
    masked_ssim: bool = False
    """Whether SSIM leaves pixels without depth out; in the published system they are 0 m away."""


@dataclass(frozen=True, kw_only=True)
class CrossAttentionConfig(PyramidConfig):
    """Options of `mde-clip-unet`."""

    QUIRKS: ClassVar[dict[str, Any]] = {**PyramidConfig.QUIRKS, "independent_flip": True}

    max_depth: float = 10.0
    """Metres."""
    losses: MdeLosses = field(default_factory=MdeLosses)
    independent_flip: bool = False
    """Whether training mirrors the depth without its image in half of the cases. On pairs that were mirrored together
    at random this is the official code's mistake of drawing twice."""


@dataclass(frozen=True, kw_only=True)
class MdeClipConfig(CrossAttentionConfig):
    """Options of `mde-clip`."""

    bins: int = 100
    min_depth: float = 0.1
    """Metres; where the first bin starts."""
    queries: int = 128
    """Range attention maps, one per query token; there must be more patches than queries."""
    patch: int = 16
    """Cells of the decoder's map along the side of a patch."""
    widths: WidthNorm = "linear"
    """How numbers become bin widths."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"0 < min_depth < max_depth is needed, got {self.min_depth} and {self.max_depth}")


def image_losses(prediction: Tensor, target: Tensor, mask: Tensor, *, masked_ssim: bool = False) -> dict[str, Tensor]:
    """silog, l1 and ssim of every image, (B,) each; prediction, target, mask (B, 1, H, W), target 0 where unknown."""

    def of_one(prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        seen = mask if masked_ssim else None
        return {
            "silog": losses.silog(prediction, target, mask, 0.5, 1.0, root=False),
            "l1": losses.l1(prediction, target, mask),
            "ssim": losses.ssim_dissimilarity(prediction, target, seen, gaussian=True, data_range=10.0),
        }

    found: dict[str, Tensor] = torch.vmap(of_one)(prediction[:, None], target[:, None], mask[:, None])
    return found


class WordDecoder(nn.Module):
    """Every level of the pyramid attends to the words; convolutions go from coarse to fine.

    ``channels``: of the maps, finest first, each half of the next. Gives half of the finest's, at twice its size.
    """

    def __init__(self, channels: Sequence[int], text_channels: int) -> None:
        super().__init__()
        coarse_first = channels[::-1]
        self.attention = nn.ModuleList(CrossAttention(width, text_channels) for width in coarse_first)
        self.up = nn.ModuleList(nn.ConvTranspose2d(width, width // 2, 2, stride=2) for width in coarse_first)
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for width in coarse_first[1:]
        )

    def forward(self, maps: Sequence[Tensor], text: Tensor) -> Tensor:
        """maps[i] (B, C_i, h / 2^i, w / 2^i), finest first, and text (N, K, D) to (B, C_0 / 2, 2 h, 2 w)."""
        coarsest, *finer = (attend(level, text) for attend, level in zip(self.attention, reversed(maps), strict=True))
        x: Tensor = self.up[0](coarsest)
        for up, fuse, attended in zip(self.up[1:], self.fuse, finer, strict=True):
            x = up(fuse(torch.cat([attended, x], dim=1)))
        return x


class CrossAttentionClip(PyramidClip):
    """What `mde-clip` and `mde-clip-unet` share. Subclasses set ``head`` and write ``depth_of``."""

    HEAD: ClassVar[dict[str, str]]
    """The authors' names of the head's tensors -> ours."""

    def __init__(self, config: CrossAttentionConfig) -> None:
        super().__init__(config)
        self.decoder = WordDecoder(self.channels, self.tower.embed_dim)

    def forward(
        self,
        image: Tensor,
        text: list[str] | Tensor | None = None,
        scene: list[str] | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> DepthOutput:
        matrix, _ = self.words(len(image), text, scene)
        return self.depth_of(self.decoder(self.maps(image, features), matrix))

    def depth_of(self, decoded: Tensor) -> DepthOutput:
        """What the head makes of the decoder's map (B, C_1 / 2, h / 2, w / 2)."""
        raise NotImplementedError

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """silog, l1 and ssim, means over images; with bins their chamfer distance; "total", the weighted sum."""
        mask, target = batch.mask, torch.where(batch.mask, batch.depth, 0)
        if self.config.independent_flip:
            mirrored = torch.rand(len(mask), 1, 1, 1, device=mask.device) < 0.5
            mask, target = (torch.where(mirrored, values.flip(-1), values) for values in (mask, target))
        weights = self.config.losses
        output = self(batch.image, features=batch.features)
        with torch.autocast(target.device.type, enabled=False):  # SSIM subtracts squares of depth
            prediction = resize_aligned(output.depth, target.shape[-2:])
            each = image_losses(prediction, target, mask, masked_ssim=weights.masked_ssim)
            terms = {name: values.mean() for name, values in each.items()}
            if output.bin_centers is not None:
                terms["chamfer"] = losses.bin_chamfer(output.bin_centers, target, mask)
        weighted = (getattr(weights, name, 1.0) * value for name, value in terms.items())
        return terms | {"total": torch.stack(list(weighted)).sum()}

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Put other words in the place of the system's own. Raises UsageError for bins, which are not the words'."""
        before = self.config.prompts
        if before.changed(prompts).bin_centers != before.bin_centers:
            raise UsageError(f"the words of '{self.name}' stand for no fixed distances; leave the bins out")
        super().use_prompts(prompts, clip_weights)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names: CLIP's image tower is ``model.``; attention projections may be in one tensor or in three.

        The words' features are in no checkpoint: they must have been loaded (``load_foundation``). Raises
        CheckpointError.
        """
        prefixes = {f"cross_att_list.{level}.layer.": f"decoder.attention.{level}." for level in range(4)}
        absent = next((f"{old}in_proj_bias" for old in prefixes if f"{old}in_proj_bias" not in state_dict), None)
        if absent is not None:
            raise CheckpointError(f"the checkpoint is not one of '{self.name}' (no tensor '{absent}')")
        if not bool(self.word_bins.text.any()):
            raise CheckpointError(
                f"checkpoints of '{self.name}' hold no features of the words; give the CLIP weights "
                f"({self.config.architecture}) that encode them with --clip-weights"
            )
        names = {"model.": "tower.", "up_layer.": "decoder.up.", **self.HEAD}
        names |= {f"conv_block.{level}.layer.": f"decoder.fuse.{level}." for level in range(3)}
        tensors, report = rename(state_dict, names, self.state_dict())
        tensors["word_bins.text"] = self.word_bins.text.clone()
        try:
            for old, new in prefixes.items():
                tensors |= {new + name: value for name, value in split_multihead(state_dict, old).items()}
        except KeyError as error:
            raise CheckpointError(f"the checkpoint has no tensor {error}") from None
        attention = [key for key in report["ignored"] if key.startswith(tuple(prefixes))]
        report["used"] += attention
        report["ignored"] = [key for key in report["ignored"] if key not in set(attention)]
        report["missing"] = [key for key in report["missing"] if key not in tensors]
        return tensors, report


class MdeClip(CrossAttentionClip):
    """Cross-attention and bins that follow the image, the published system."""

    Config = MdeClipConfig
    POSITIONS = "adaptive_bins_layer.patch_transformer.positional_encodings"
    HEAD: ClassVar[dict[str, str]] = {
        POSITIONS: "head.transformer.positions",
        "adaptive_bins_layer.patch_transformer.transformer_encoder.": "head.transformer.encoder.",
        "adaptive_bins_layer.patch_transformer.embedding_convPxP.": "head.transformer.patch_embedding.",
        "adaptive_bins_layer.conv3x3.": "head.transformer.conv.",
        "adaptive_bins_layer.regressor.": "head.transformer.regressor.",
        "conv_out.0.": "head.logits.",
    }

    def __init__(self, config: MdeClipConfig) -> None:
        super().__init__(config)
        if config.size is not None:  # the network brings other sizes to its own in this way
            self.input_spec = replace(self.input_spec, shrink="bilinear-aligned")
        self.head = AdaptiveBins(
            self.channels[0] // 2,
            config.bins,
            config.min_depth,
            config.max_depth,
            queries=config.queries,
            patch=config.patch,
            widths=config.widths,
        )

    def depth_of(self, decoded: Tensor) -> DepthOutput:
        found = self.head(decoded)
        return DepthOutput(depth=found.depth, bin_centers=found.centers, bin_probs=found.probs)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """As ``CrossAttentionClip``; a missing position table is filled with random numbers, with a warning."""
        tensors, report = super().convert_official(state_dict)
        if self.POSITIONS not in state_dict:
            warnings.warn(
                f"the checkpoint has no position table '{self.POSITIONS}': on a GPU the official program neither "
                "trained nor saved it; random numbers stand in, as they do there at every start (here with seed 0)",
                stacklevel=2,
            )
            own = self.head.transformer.positions
            tensors["head.transformer.positions"] = torch.rand(own.shape, generator=torch.Generator().manual_seed(0))
            report["missing"].remove("head.transformer.positions")
        return tensors, report


class MdeClipUnet(CrossAttentionClip):
    """The same decoder with a regression head."""

    Config = CrossAttentionConfig
    HEAD: ClassVar[dict[str, str]] = {"last_layer_depth.": "head."}

    def __init__(self, config: CrossAttentionConfig) -> None:
        super().__init__(config)
        width = self.channels[0] // 2
        self.head = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, width // 2, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(width // 2, 1, 3, padding=1),
        )

    def depth_of(self, decoded: Tensor) -> DepthOutput:
        logit = self.head(decoded).float()
        return DepthOutput(depth=self.config.max_depth * logit.sigmoid())


# refine-clip


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
        """Of every pixel to the words (N, K, D), (B, K, h, w) on each level, finest first."""
        levels = zip(self.maps(image, features), self.adapters, strict=True)
        return [self.word_bins.logits(F.normalize(level.float(), dim=1), adapter(text)) for level, adapter in levels]

    def forward(
        self,
        image: Tensor,
        text: list[str] | Tensor | None = None,
        scene: list[str] | None = None,
        features: dict[str, Tensor] | None = None,
    ) -> DepthOutput:
        matrix, centers = self.words(len(image), text, scene)
        *finer, x = self.similarities(image, matrix, features)
        for block, level in zip(self.blocks, reversed(finer), strict=True):
            x = block(torch.cat([resize_aligned(x, level.shape[-2:]), level], dim=1))
        return words_output(x.float().softmax(1), centers, self.config.size or image.shape[-2:])

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The silog loss of the whole batch, without its square root, as "total"."""
        depth = resize_aligned(self(batch.image, features=batch.features).depth, batch.depth.shape[-2:])
        return {"total": losses.silog(depth, batch.depth, batch.mask, 0.5, 1.0, root=False)}

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Put other words or bins in the place of the system's own. Raises UsageError for another number of words."""
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
        blocks = {f"conv_block.{level}.conv.": f"blocks.{level}." for level in range(3)}
        return blocks | {f"adapter_list.{level}.fc.": f"adapters.{level}." for level in range(4)}
