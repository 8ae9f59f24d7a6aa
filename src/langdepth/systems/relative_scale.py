"""What the systems that give metres to relative maps share: the base, the words, depth from scale and shift.

    image (B, 3, H, W) -> base, frozen -> inverse depth up to factor and shift (B, 1, H, W), at the image's own size
    words, image -> CLIP features, not brought to norm 1 -> the system's head -> scale, shift (B, 1, 1, 1), above 0
    depth = 1 / (scale * relative + shift), metres

The base is a depth model of any kind (``use_base``), or its maps come with the images as their overlay. Base and CLIP
are no part of a weights file, which holds the head alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from torch import Tensor, nn

from langdepth.backbones.clip import ClipImageTower, model_config
from langdepth.data.relative import relative_maps
from langdepth.errors import UsageError
from langdepth.evaluation.protocols import ScaleKind
from langdepth.prediction.arrays import resized_map
from langdepth.prediction.network import Views, to_network_size
from langdepth.records import Batch, DepthOutput, InputSpec
from langdepth.systems.base import System, require_fractions
from langdepth.systems.capabilities import (
    DepthSystem,
    HasFrozenTrunk,
    HasMembers,
    ReadsWithClip,
    Scene,
    TakesBase,
    Text,
    Trainable,
    require_text_for_each,
)
from langdepth.systems.official import rename
from langdepth.text.caption_features import Captions, open_captions
from langdepth.text.captions import ClipSentences

FARTHEST = 1000.0  # metres; nothing is farther, also where scale * relative + shift is not above 0
UNRECORDED = {"normalise": "none (the base's numbers as they are) or range (each map brought to 0 to 1)"}
NORM_1 = 0.02  # how near to 1 the norm of a feature is that somebody has divided by it


@dataclass(frozen=True, kw_only=True)
class RelativeScaleConfig:
    """Options of every system that gives metres to relative maps."""

    architecture: str = "RN50"
    """open_clip's name of the CLIP model whose features the head takes."""
    normalise: Literal["none", "range"] = "none"
    """Whether the base's numbers are taken as they are, or each map is brought to the range from 0 to 1."""
    area: int | None = None
    """Pixels that images of any shape are resized to before base and CLIP get them; null: their own size."""
    max_depth: float = 10.0
    """Metres; farther ground truth is left out of the loss."""

    def __post_init__(self) -> None:
        if not self.max_depth > 0:
            raise ValueError(f"max_depth must be above 0, got {self.max_depth}")


@dataclass
class Outside:
    """What a system uses without owning it; copies of the system share it."""

    base: DepthSystem | None = None
    clip: ClipSentences | None = None
    tower: ClipImageTower | None = None
    lock: Lock = field(default_factory=Lock)

    def __deepcopy__(self, _: Any) -> Outside:
        return self

    def __reduce__(self) -> Any:  # a lock is of one process
        return Outside, (self.base, self.clip, self.tower)


class RelativeScale(System, Trainable, HasFrozenTrunk, TakesBase, ReadsWithClip):
    """``text``: sentences, or CLIP features as the text tower gives them, (B, D), not of norm 1.

    Without words the mean of the captions that training started from stands in. Subclasses write ``scale_and_shift``
    and ``loss_of``.
    """

    exports = False
    reads_sentences = True
    neutral_text: Tensor

    def __init__(self, config: RelativeScaleConfig) -> None:
        super().__init__(config, InputSpec(area=config.area, multiple_of=1))
        self.features: int = model_config(config.architecture, quick_gelu=True)["embed_dim"]
        self.outside = Outside()
        self.takes_overlay = True
        self.overlay_kind = relative_maps("disparity")
        self.register_buffer("neutral_text", torch.zeros(self.features))

    # -- the base --------------------------------------------------------------------------------------------------

    def use_base(self, base: DepthSystem | None, numbers: ScaleKind = "disparity") -> None:
        if isinstance(base, HasMembers):
            raise UsageError(f"'{base.name}': the base of '{self.name}' is one system, not several")
        if base is not None:
            base.requires_grad_(False).eval()
        self.outside = Outside(base, self.outside.clip, self.outside.tower)
        self.takes_overlay = base is None
        self.overlay_kind = relative_maps(numbers, self.provenance.get("base"))
        self._inference_copy = None

    @torch.no_grad()
    def relative(self, image: Tensor, overlay: Tensor | None = None) -> Tensor:
        """Inverse depth up to factor and shift (B, 1, H, W) of (B, 3, H, W) RGB images in [0, 1]; NaN: no value."""
        require_fractions(image)
        base = self.outside.base
        if base is None:
            if overlay is None:
                kind = self.overlay_kind
                raise UsageError(f"the system '{self.name}' needs {kind.one} of every image; {kind.advice}")
            return self._normalised(overlay)
        with torch.autocast(image.device.type, enabled=False):
            pixels = image.float().mul(255).round().byte()  # as a file holds them
            found = Views(image=to_network_size(base, pixels)).forward(base.to(image.device)).depth
        if base.scale_kind != "disparity":
            found = torch.where(found > 0, 1 / found.clamp_min(1 / FARTHEST), torch.nan)
        return self._normalised(resized_map(found, image.shape[-2:], base.input_spec.enlarge))

    def _normalised(self, relative: Tensor) -> Tensor:
        if self.config.normalise == "none":
            return relative
        known = relative.isfinite()
        least = torch.where(known, relative, torch.inf).amin((2, 3), keepdim=True)
        most = torch.where(known, relative, -torch.inf).amax((2, 3), keepdim=True)
        return (relative - least) / (most - least).clamp_min(1e-6)

    # -- words -----------------------------------------------------------------------------------------------------

    def read_with_clip(self, clip_weights: str | Path | None) -> None:
        self.outside.clip, self.outside.tower = ClipSentences(clip_weights, self.config.architecture, raw=True), None

    def clip(self) -> ClipSentences:
        """CLIP's towers; without weights named, open_clip downloads them."""
        with self.outside.lock:
            if self.outside.clip is None:
                self.read_with_clip(None)
        assert self.outside.clip is not None
        return self.outside.clip

    def text_features(self, count: int, text: Text = None, scene: Scene = None) -> Tensor:
        """Features (B, D) of the words about ``count`` images; an empty sentence says nothing. Raises UsageError."""
        if scene is not None:
            raise UsageError(f"the system '{self.name}' takes no scene; name it in a sentence, as text")
        if text is not None:
            require_text_for_each(text, count)
        if isinstance(text, Tensor):
            return self._checked(text, count)
        known = self.neutral_text.expand(count, -1)
        spoken = [index for index, sentence in enumerate(text or ()) if sentence.strip()]
        if len(spoken) < count and not torch.compiler.is_compiling() and not self.neutral_text.any():
            raise UsageError(f"the system '{self.name}' needs a sentence about each image: --text, or --captions")
        if spoken and text is not None:
            known = known.clone()
            known[spoken] = self.clip().encode([text[index] for index in spoken]).to(known)
        return known

    def _checked(self, text: Tensor, count: int) -> Tensor:
        if text.shape != (count, self.features):
            wanted = (count, self.features)
            raise UsageError(f"text features have shape {tuple(text.shape)}; '{self.name}' takes a row each, {wanted}")
        text = text.to(self.neutral_text)
        if not torch.compiler.is_compiling() and bool(((text.norm(dim=1) - 1).abs() <= NORM_1).any()):
            raise UsageError(
                f"text features have norm 1; '{self.name}' takes them as CLIP's text tower gives them, not divided by "
                "their norm: give sentences instead"
            )
        return text

    # -- depth -----------------------------------------------------------------------------------------------------

    def head_input(self, features: dict[str, Tensor], count: int, text: Text = None, scene: Scene = None) -> Tensor:
        """What the head takes, (B, ...), of the frozen features of ``count`` images and their words."""
        return self.text_features(count, text, scene)

    def scale_and_shift(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Both (B, 1, 1, 1), above 0, for the head's inputs (B, ...)."""
        raise NotImplementedError

    @staticmethod
    def metres(relative: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Depth (B, 1, H, W); 0 where the map has no value."""
        inverse = (scale * relative + shift).clamp_min(1 / FARTHEST)
        return torch.where(inverse.isfinite(), 1 / inverse, 0.0)

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        base = self.outside.base
        if base is None:
            return None
        return base, {"base": base.name, "numbers": base.scale_kind, "normalise": self.config.normalise}

    def frozen_features(self, image: Tensor, overlay: Tensor | None = None) -> dict[str, Tensor]:
        """The relative map."""
        return {"relative": self.relative(image, overlay)}

    def forward(
        self, image: Tensor, text: Text = None, scene: Scene = None, overlay: Tensor | None = None
    ) -> DepthOutput:
        features = self.frozen_features(image, overlay)
        with torch.autocast(image.device.type, enabled=False):
            scale, shift = self.scale_and_shift(self.head_input(features, len(image), text, scene).float())
            return DepthOutput(depth=self.metres(features["relative"].float(), scale, shift))

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``loss_of``; relative maps and CLIP's features of the images are computed where they are not known."""
        features = batch.features or self.frozen_features(batch.image, batch.overlay)
        text: Text = [sentence or "" for sentence in batch.text] if self.reads_sentences else None
        with torch.autocast(batch.image.device.type, enabled=False):
            return self.loss_of(batch, features["relative"].float(), self.head_input(features, len(batch.path), text))

    def loss_of(self, batch: Batch, relative: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        """The losses of a batch with its relative maps (B, 1, H, W) and the head's inputs."""
        raise NotImplementedError

    def counted(self, batch: Batch, relative: Tensor) -> Tensor:
        """The pixels (B, 1, H, W) that the loss counts."""
        return batch.mask & (batch.depth > 1e-3) & (batch.depth < self.config.max_depth) & relative.isfinite()

    def prepare_training(
        self,
        base: str | None = None,
        depth_kind: ScaleKind | None = None,
        clip_weights: str | None = None,
        text_features: str | Captions | None = None,
    ) -> None:
        """Load the base and CLIP, and encode the captions, whose mean stands in for images without words.

        Args:
            base: What ``langdepth.load`` takes; without it the maps come with the images (data.overlay).
            depth_kind: What the base's numbers are, where nothing else says it.
            clip_weights: A file, or "random"; without it open_clip downloads them.
            text_features: The captions; their features, of norm 1, are not used.
        """
        from langdepth.weights.checkpoint import load

        if base is not None:
            self.use_base(load(base, depth_kind=depth_kind))
            self.provenance["base"] = Path(base).name if Path(base).exists() else base  # no path of this machine
        else:
            self.use_base(None, depth_kind or "disparity")
        if clip_weights is not None:
            self.read_with_clip(clip_weights)
        if text_features is not None and not self.neutral_text.any():
            sentences = open_captions(text_features, sentences_alone=True).sentences()
            self.neutral_text.copy_(self.clip().encode(sentences).mean(0))

    def converted(
        self, state_dict: dict[str, Tensor], names: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """The authors' tensors under our names, as ``convert_official`` gives them; without the mean caption."""
        tensors, report = rename(state_dict, names, dict(self.named_parameters()))
        return tensors | {"neutral_text": self.neutral_text.clone()}, report


def layers(widths: Sequence[int], activation: type[nn.Module] = nn.LeakyReLU) -> nn.Sequential:
    """Linear layers of these widths with activations between them."""
    parts: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        parts += [nn.Linear(wide, narrow), activation()]
    return nn.Sequential(*parts[:-1])
