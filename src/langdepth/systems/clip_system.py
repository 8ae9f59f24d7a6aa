"""What the systems on a CLIP trunk share: a frozen image tower, distance words as a text matrix, depth from both.

Data flow (published size)

    image (B, 3, 416, 544) -> CLIP image tower, dense -> (B, C, h, w), RN50: (B, 2048, 13, 17)
    words x templates -> CLIP text tower, once -> text matrix (K, D), kept in the weights file
    both -> parts/word_bins.py -> logits (B, K, h, w) -> depth (B, 1, h, w)
    -> bilinear, corners aligned (as published) -> (B, 1, 416, 544)

The text tower is no part of the system: it is loaded where words have to be turned into their matrix, and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from langdepth.backbones.clip import ClipImageTower, DenseMode
from langdepth.backbones.clip_weights import ClipWeights, find_clip_weights
from langdepth.errors import UsageError
from langdepth.parts.word_bins import WordBins, WordDepth
from langdepth.records import IMAGENET_MEAN, IMAGENET_STD, InputSpec
from langdepth.systems.base import System
from langdepth.systems.capabilities import HasFrozenTrunk, Scene, StandsOnClip, TakesPrompts, Text
from langdepth.systems.official import clip_in_checkpoint, rename, set_quirks
from langdepth.text.clip_text import encode_sentences
from langdepth.text.prompts import PromptSet, find_prompts


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Options of every system on a CLIP trunk. ``reference_exact`` sets all of the class's ``QUIRKS``."""

    QUIRKS: ClassVar[dict[str, Any]] = {"position_resize": "linear1d"}

    architecture: str = "RN50"
    """open_clip's name of the CLIP model, or "RN-small", "ViT-small"."""
    quick_gelu: bool = True
    """Whether the weights were trained with QuickGELU (OpenAI's were); refused when the file disagrees."""
    prompts: PromptSet | str = "depthclip"
    """Words, templates and bins, or the name of a published set (text/prompts.py)."""
    dense_mode: Literal["decimate", "attnpool", "value", "proj"] = "decimate"
    """Cell features: the last stage's map, channels thinned out to the text's number (published); every cell as a query
    of the attention pool; the pool's value path; its projection."""
    logit_scale: float = 1000.0
    """Factor on the cosine similarity: DepthCLIP's 100 / 0.1; the adapters' 1 / temperature."""
    normalise: Literal["before", "after"] = "before"
    """Whether cells get length 1 before their channels are thinned out (DepthCLIP), or cells and words after it."""
    position_resize: Literal["2d", "linear1d"] = "2d"
    """How a ViT's position table is resized; linear1d is the official code's, which mixes rows."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """ImageNet's, as published; CLIP's own is 0.4815, 0.4578, 0.4082."""
    std: tuple[float, float, float] = IMAGENET_STD
    area: int = 416 * 544
    """Pixels inside the network; the image's shape is kept."""
    reference_exact: bool = False
    """The official code's numbers, its mistakes included."""

    def __post_init__(self) -> None:
        set_quirks(self)


class ClipSystem(System, StandsOnClip, TakesPrompts, HasFrozenTrunk):
    """Image tower, words, bins. Subclasses write ``forward``; they may put a network between the three."""

    Config = ClipConfig
    text_per_image = False
    TRUNK_OPTIONS: tuple[str, ...] = ("architecture", "quick_gelu", "dense_mode", "position_resize", "mean", "std")
    config: Any

    def __init__(self, config: ClipConfig, size: tuple[int, int] | None = None) -> None:
        """``size``: the one (height, width) that the system takes; otherwise ``config.area`` in any shape."""
        area = size[0] * size[1] if size else config.area
        prompts = find_prompts(config.prompts)
        tower = ClipImageTower(
            config.architecture, quick_gelu=config.quick_gelu, position_resize=config.position_resize
        )
        multiple = 32 if 32 % tower.stride == 0 else tower.stride
        spec = InputSpec(mean=config.mean, std=config.std, size=size, area=area, multiple_of=multiple)
        super().__init__(replace(config, prompts=prompts), replace(spec, enlarge="bilinear-aligned"))
        self.tower = tower.requires_grad_(False)
        self.tower.batch_norm_trains = getattr(config, "clip_bn", "eval") == "train"
        self.mode: DenseMode = "stage" if config.dense_mode == "decimate" else config.dense_mode
        self.cell_channels = tower.output_channels(self.mode)
        self._set_prompts(prompts)

    # -- words -----------------------------------------------------------------------------------------------------

    def _set_prompts(self, prompts: PromptSet) -> None:
        self.config = replace(self.config, prompts=prompts)
        self.scenes = tuple(prompts.scenes)
        centers = [centers for _, centers in prompts.variants()]
        self.word_bins = WordBins(centers, self.tower.embed_dim, self.config.logit_scale, self.config.normalise)
        self.word_bins.to(self.device)

    def _encode_words(self, weights: ClipWeights) -> None:
        """Fill the text matrix, (V, K, D): the set's own words, then each scene's."""
        prompts = self.config.prompts
        sentences = [word for words, _ in prompts.variants() for word in words]
        features = encode_sentences(sentences, weights, templates=prompts.templates)
        self.word_bins.text.copy_(features.view_as(self.word_bins.text))

    def load_foundation(self, clip_weights: str | Path | None = None, prompts: Mapping[str, Any] | None = None) -> None:
        """Fill tower and text matrix from CLIP weights: a file, None for open_clip's download, or "random".

        ``prompts``: fields of a PromptSet that replace the system's own. Raises UsageError and CheckpointError.
        """
        if prompts:
            self._set_prompts(self.config.prompts.changed(prompts))
        weights = self._clip_weights(clip_weights)
        self.tower.load_state_dict(weights.visual())
        self._encode_words(weights)
        source = f"CLIP {self.config.architecture}: {weights.source}"
        self.provenance |= {"source": source, "clip_sha256": weights.sha256}

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Replace words, templates or bins; new sentences need CLIP weights."""
        before, after = self.config.prompts, self.config.prompts.changed(prompts)
        known = {words: row for (words, _), row in zip(before.variants(), self.word_bins.text, strict=True)}
        wanted = [words for words, _ in after.variants()]
        self._set_prompts(after)
        if before.templates == after.templates and all(words in known for words in wanted):
            self.word_bins.text.copy_(torch.stack([known[words] for words in wanted]))
        else:
            self._encode_words(self._clip_weights(clip_weights))

    def _clip_weights(self, source: str | Path | None) -> ClipWeights:
        return find_clip_weights(source, self.config.architecture, self.config.quick_gelu)

    def words(self, count: int, text: Text = None, scene: Scene = None) -> tuple[Tensor, Tensor]:
        """Text matrix (N, K, D) and bin centres (N, K) for ``count`` images, N = 1 or, with scenes, ``count``.

        ``text``: a (K, D) matrix instead of the system's own words, and of the scenes'.
        """
        matrix, centers = self.word_bins.text, self.word_bins.bin_centers
        if scene is None:
            matrix, centers = matrix[:1], centers[:1]
        else:
            if not self.scenes:
                raise UsageError(f"the system '{self.name}' takes no scene; leave it out, or give prompts with scenes")
            rows = 1 + self.scene_indices(scene, count)
            matrix, centers = matrix[rows], centers[rows]
        if text is None:
            return matrix, centers
        if not isinstance(text, Tensor):
            raise UsageError(
                f"the system '{self.name}' takes no sentence about the image; its words are set by a prompt set "
                "(--words, --bins, --prompts)"
            )
        if text.shape != matrix.shape[1:]:
            raise UsageError(
                f"text features have shape {tuple(text.shape)}; '{self.name}' takes one row per word, "
                f"{tuple(matrix.shape[1:])}"
            )
        given = text[None].to(matrix)
        if isinstance(scene, Tensor):  # as in exported graphs, where the system's own words stand for none
            given = torch.where((given != self.word_bins.text[:1]).any(), given, matrix)
        return given, centers

    def graph_inputs(self) -> dict[str, Tensor]:
        scene = {"scene": torch.tensor([-1])} if self.scenes else {}
        return {"text": self.word_bins.text[0], **scene}

    # -- image ---------------------------------------------------------------------------------------------------

    def normalise(self, image: Tensor) -> Tensor:
        image = super().normalise(image)
        # A CPU sums the statistics of channels-last maps less exactly, which training then shows.
        return image.contiguous() if self.tower.batch_norm_trains else image

    def dense(self, image: Tensor) -> Tensor:
        """Cell features (B, C, h, w) of (B, 3, H, W) RGB in [0, 1]."""
        features: Tensor = self.tower(self.normalise(image), self.mode)
        return features

    def frozen_trunk(self) -> tuple[nn.Module, dict[str, Any]] | None:
        """The image tower, unless its BatchNorm follows the training images."""
        if self.tower.batch_norm_trains:
            return None
        return self.tower, {name: getattr(self.config, name) for name in self.TRUNK_OPTIONS}

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"cells": self.dense(image)}

    def compare(self, features: Tensor, text: Text = None, scene: Scene = None) -> WordDepth:
        """Cell features (B, C, h, w) against the words, see ``words``."""
        found: WordDepth = self.word_bins(features, *self.words(features.shape[0], text, scene))
        return found

    # -- files -----------------------------------------------------------------------------------------------------

    def prepare_training(self, clip_weights: str | None = None) -> None:
        """CLIP weights for tower and words, unless the system has them already (it continues from trained weights)."""
        if not bool(self.word_bins.text.any()):
            self.load_foundation(clip_weights)

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Official names: ``clip.`` is a whole CLIP model, whose words become the text matrix; see ``official_names``.

        Raises CheckpointError for a checkpoint without a CLIP model, and for one with another architecture.
        """
        tensors, report = rename(state_dict, {"clip.visual.": "tower.", **self.official_names()}, self.state_dict())
        self._encode_words(clip_in_checkpoint(state_dict, self.config.architecture, self.config.quick_gelu))
        tensors["word_bins.text"] = self.word_bins.text.clone()
        text = [key for key in report["ignored"] if key.startswith("clip.") and not key.startswith("clip.visual.")]
        report["used"] += text
        report["ignored"] = [key for key in report["ignored"] if key not in set(text)]
        report["missing"] = [key for key in report["missing"] if key != "word_bins.text"]
        return tensors, report

    def official_names(self) -> dict[str, str]:
        """Prefixes of the authors' tensors -> ours, beside CLIP's."""
        return {}
