"""`mde-clip`, `mde-clip-unet`: the pixels of CLIP's feature pyramid attend to seven distance words.

"Harnessing Cross-Attention for Visual Perception with CLIP" (DME-CLIP, May 2024). Specification and numbers:
docs/systems/mde-clip.md.

Data flow (published size; RN50, frozen)

    image (B, 3, 480, 640) -> CLIP's ResNet -> F1 (B, 256, 120, 160), F2 (B, 512, 60, 80), F3 (B, 1024, 30, 40),
    F4 (B, 2048, 15, 20); "This object is giant", "... extremely close", ... -> text matrix T (7, 1024)

    every pixel of every F_i attends to the rows of T -> A_i, shaped like F_i
    A4 -> twice the size; three times: A_i concatenated, two 3x3 convolutions, twice the size -> D1 (B, 128, 240, 320)
    mde-clip       D1 -> bins that follow the image -> depth (B, 1, 240, 320)
    mde-clip-unet  D1 -> convolutions, twice the size -> 10 m x sigmoid -> depth (B, 1, 480, 640)

Loss, the mean over images, d = ln(prediction / target): mean d^2 - 0.5 (mean d)^2 + 0.5 l1 + SSIM dissimilarity, with
bins + 0.1 chamfer.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from langdepth import losses
from langdepth.errors import CheckpointError, UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.records import Batch, DepthOutput
from langdepth.systems.capabilities import Scene, Text
from langdepth.systems.clip_pyramid import PyramidClip, PyramidConfig
from langdepth.systems.mde_clip.blocks import AdaptiveBins, WidthNorm, WordDecoder
from langdepth.systems.mde_clip.official import ATTENTION, BINS_HEAD, DECODER, POSITIONS, UNET_HEAD, split_multihead
from langdepth.systems.official import rename


@dataclass(frozen=True, kw_only=True)
class MdeLosses:
    """Weights of the other losses; the silog loss has weight 1."""

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


class CrossAttentionClip(PyramidClip):
    """What `mde-clip` and `mde-clip-unet` share. Subclasses set ``head`` and write ``depth_of``."""

    OFFICIAL_HEAD: ClassVar[dict[str, str]]
    """The authors' names of the head's tensors -> ours."""

    def __init__(self, config: CrossAttentionConfig) -> None:
        super().__init__(config)
        self.decoder = WordDecoder(self.channels, self.tower.embed_dim)

    def forward(
        self, image: Tensor, text: Text = None, scene: Scene = None, features: dict[str, Tensor] | None = None
    ) -> DepthOutput:
        words, _ = self.words(image.shape[0], text, scene)
        decoded = self.decoder(self.maps(image, features), words)
        return self.depth_of(decoded)

    def depth_of(self, decoded: Tensor) -> DepthOutput:
        """The head's depth from the decoder's map (B, C_1 / 2, h / 2, w / 2)."""
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
        """Replace the words. Raises UsageError for bins: the words have no distances here."""
        before = self.config.prompts
        if before.changed(prompts).bin_centers != before.bin_centers:
            raise UsageError(f"the words of '{self.name}' stand for no fixed distances; leave the bins out")
        super().use_prompts(prompts, clip_weights)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names: CLIP's image tower is ``model.``; attention projections may be in one tensor or in three.

        The words' features are in no checkpoint: they must have been loaded (``load_foundation``). Raises
        CheckpointError.
        """
        absent = next((f"{old}in_proj_bias" for old in ATTENTION if f"{old}in_proj_bias" not in state_dict), None)
        if absent is not None:
            raise CheckpointError(f"the checkpoint is not one of '{self.name}' (no tensor '{absent}')")
        if not bool(self.word_bins.text.any()):
            raise CheckpointError(
                f"checkpoints of '{self.name}' hold no features of the words; give the CLIP weights "
                f"({self.config.architecture}) that encode them with --clip-weights"
            )
        tensors, report = rename(state_dict, DECODER | self.OFFICIAL_HEAD, self.state_dict())
        tensors["word_bins.text"] = self.word_bins.text.clone()
        try:
            for old, new in ATTENTION.items():
                tensors |= {new + name: value for name, value in split_multihead(state_dict, old).items()}
        except KeyError as error:
            raise CheckpointError(f"the checkpoint has no tensor {error}") from None
        attention = [key for key in report["ignored"] if key.startswith(tuple(ATTENTION))]
        report["used"] += attention
        report["ignored"] = [key for key in report["ignored"] if key not in set(attention)]
        report["missing"] = [key for key in report["missing"] if key not in tensors]
        return tensors, report


class MdeClip(CrossAttentionClip):
    """The published system: bins that follow the image."""

    Config = MdeClipConfig
    OFFICIAL_HEAD = BINS_HEAD

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
        if POSITIONS not in state_dict:
            warnings.warn(
                f"the checkpoint has no position table '{POSITIONS}': on a GPU the official program neither "
                "trained nor saved it; random numbers stand in, as they do there at every start (here with seed 0)",
                stacklevel=2,
            )
            own = self.head.transformer.positions
            tensors["head.transformer.positions"] = torch.rand(own.shape, generator=torch.Generator().manual_seed(0))
            report["missing"].remove("head.transformer.positions")
        return tensors, report


class MdeClipUnet(CrossAttentionClip):
    """The ablation with a regression head."""

    Config = CrossAttentionConfig
    OFFICIAL_HEAD = UNET_HEAD

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


def image_losses(prediction: Tensor, target: Tensor, mask: Tensor, *, masked_ssim: bool = False) -> dict[str, Tensor]:
    """silog, l1 and ssim of every image, (B,) each; prediction, target, mask (B, 1, H, W), target 0 where unknown."""

    def of_one(prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {
            "silog": losses.silog(prediction, target, mask, 0.5, 1.0, root=False),
            "l1": losses.l1(prediction, target, mask),
            "ssim": losses.ssim_dissimilarity(
                prediction, target, mask if masked_ssim else None, gaussian=True, data_range=10.0
            ),
        }

    found: dict[str, Tensor] = torch.vmap(of_one)(prediction[:, None], target[:, None], mask[:, None])
    return found
