"""`prompt-clip` and its variants: DepthCLIP with learned words (Auty & Mikolajczyk, OpenSUN3D at ICCV 2023).

Data flow (the published row; NYU Depth V2)

    image (B, 3, 480, 640) -> last stage of CLIP's ResNet -> each cell to length 1, every second channel kept
    -> (B, 1024, 15, 20) -> feature stage (identity)
    "This object appears to be <|depth_0|>" ... <|depth_6|>, seven learned vectors (7, 512) -> text tower -> (7, 1024)
    1000 / sqrt(7) x similarity -> logits (B, 7, 15, 20) -> logit stage (identity)
    -> softmax over the words -> sum of probs x (0.72, 2.14, ... 9.29 m) -> depth (B, 1, 15, 20), on purpose that coarse

Loss, over the valid pixels of the batch, d = ln(prediction / target): 10 sqrt(mean d^2 - 0.85 (mean d)^2).

Only the learned vectors train, and the decoders of the stages. Variants: other templates, objects, words and bins;
words that depend on the image (`image_dependent`) or on each cell (`object_word: patch`); stages that enlarge. The
presets are in the registry. Specification and numbers: docs/systems/prompt-clip.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.errors import CheckpointError
from langdepth.parts.upsample import resize_aligned
from langdepth.parts.word_bins import WordDepth, thin_channels
from langdepth.records import Batch, DepthOutput
from langdepth.systems.capabilities import ConvertsOfficial, Scene, Text, Trainable
from langdepth.systems.clip_system import ClipConfig
from langdepth.systems.learned_words import LearnedWords, token_text
from langdepth.systems.prompt_clip.blocks import Enlargement, StageKind
from langdepth.systems.prompt_clip.official import OFFICIAL_NAMES, model_tensors, split_tokens
from langdepth.text.prompts import PromptSet, compose_prompts


@dataclass(frozen=True, kw_only=True)
class PromptClipConfig(ClipConfig):
    """Options of `prompt-clip`; every combination is allowed."""

    QUIRKS: ClassVar[dict[str, Any]] = {**ClipConfig.QUIRKS, "text_norm": "batch", "clip_bn": "train"}

    template: str = "paper-v1"
    """A name of text/prompts.py, TEMPLATES, or a sentence with {object} and {depth}."""
    object_word: str = "object"
    """A word; "learned", one learned token; "patch", each cell's own feature."""
    depth_words: str = "learned-7"
    """"learned-K" or a name of DEPTH_WORDS: paper, depth, size, colour, random."""
    bins: str = "even-7"
    """even-K, log-K (over depth_range), log80-K (from 0.001 to 80 m) or paper."""
    depth_range: tuple[float, float] = (0.001, 10.0)
    """Of the data set, metres."""
    prompts: PromptSet | str = ""
    """The set that the five options above make; if given, they are ignored."""
    image_dependent: bool = False
    """Whether the image's mean feature goes into every learned token."""
    feature_stage: StageKind = "none"
    """Enlarges cells before they meet words: to half or the full size of the image, by a factor, or by a decoder."""
    logit_stage: StageKind = "none"
    """The same for the logits."""
    text_norm: Literal["sample", "batch"] = "sample"
    """Over what the norm of the words runs that the similarity is divided by. Published is "batch": where words depend
    on the image, the depth then depends on how many images there are at once, and on their size."""
    clip_bn: Literal["eval", "train"] = "eval"
    """Whether CLIP's BatchNorm keeps its statistics in training; the official code changes them."""
    area: int = 480 * 640

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts == "":
            parts = (self.template, self.object_word, self.depth_words, self.bins, self.depth_range)
            object.__setattr__(self, "prompts", compose_prompts(*parts))


class PromptClip(LearnedWords, Trainable, ConvertsOfficial):
    """``text``: a (K, D) matrix of unit rows instead of the words' features."""

    Config = PromptClipConfig

    def __init__(self, config: PromptClipConfig) -> None:
        super().__init__(config)
        width = 0 if self.text_tower is None else self.text_tower.transformer.width
        if config.image_dependent and (self.learned is None or not len(self.learned.vectors)):
            raise ValueError("image_dependent needs learned tokens; the sentences have none")
        if self.learned is not None and self.learned.from_image > 1:
            raise ValueError("a sentence can hold one token from the image, <|imgf_0|>")
        self.image_words = bool(config.image_dependent or (self.learned and self.learned.from_image))
        if self.image_words and self.scenes:
            raise ValueError("prompts.scenes: words cannot depend on the scene and on the image at once")
        self.conditioner: nn.Sequential | None = None
        if config.image_dependent:
            self.conditioner = nn.Sequential(
                nn.Linear(self.cell_channels + width, width), nn.Tanh(), nn.Linear(width, width)
            )
        words = len(self.config.prompts.words)
        self.feature_stage = Enlargement(config.feature_stage, self.tower.embed_dim)
        self.logit_stage = Enlargement(config.logit_stage, words)

    def _set_prompts(self, prompts: PromptSet) -> None:
        super()._set_prompts(prompts)
        # Published: the text matrix, whose rows have length 1, divided by its Frobenius norm.
        self.word_bins.logit_scale = self.config.logit_scale / math.sqrt(len(prompts.words))

    def graph_inputs(self) -> dict[str, Tensor]:
        return {} if self.image_words else super().graph_inputs()  # no matrix stands for those of each image

    def vectors(self, features: Tensor | None) -> Tensor:
        """Learned vectors (V, W); (B, V, W) or (B, h * w, V, W) with the image's part, which None leaves out."""
        assert self.learned is not None
        vectors: Tensor = self.learned.vectors
        if not self.image_words:
            return vectors
        if features is None:
            features = vectors.new_zeros(1, self.cell_channels, 1, 1)
        features = F.normalize(features.float(), dim=1)
        if self.conditioner is not None:
            mean = features.mean((2, 3))[:, None].expand(-1, len(vectors), -1)
            pairs = torch.cat([mean, vectors.expand(features.shape[0], -1, -1)], -1)
            vectors = self.conditioner(pairs)
        if self.learned.from_image:
            cells = thin_channels(features, vectors.shape[-1]).flatten(2).transpose(1, 2)[:, :, None]
            vectors = vectors.unsqueeze(-3).expand(*cells.shape[:2], -1, -1)
            vectors = torch.cat([vectors, cells], -2)
        return vectors

    def encode(self, features: Tensor | None = None) -> Tensor:
        text = super().encode(features)
        if not self.image_words:
            return text
        text = text[..., 0, :, :]  # no scenes
        if features is None:
            return text.flatten(0, -3)
        if self.config.text_norm == "batch":
            text = text / math.sqrt(math.prod(text.shape[:-2]))
        return text

    def compare_with(self, features: Tensor, text: Tensor, centers: Tensor, image: torch.Size) -> WordDepth:
        """Cell features (B, C, h, w), words (N, K, D) or (B, h * w, K, D) and bins (N, K) to depth."""
        cells = self.feature_stage(self.word_bins.cells(features), image)
        logits = self.logit_stage(self.word_bins.logits(cells, text), image)
        return self.word_bins.expect(logits, centers)

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        features = self.dense(image)
        matrix, centers = self.words(image.shape[0], text, scene)
        if text is None and self.image_words:
            matrix = self.encode(features)
        found = self.compare_with(features, matrix, centers, image.shape[-2:])
        return DepthOutput(depth=found.depth, bin_centers=centers.expand(image.shape[0], -1), bin_probs=found.probs)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """SILog of the depth enlarged to the size of the ground truth, as published."""
        features = (batch.features or self.frozen_features(batch.image))["cells"]
        text, centers = self.words(len(features))
        if self.learned is not None:
            text = self.encode(features)[: None if self.image_words else 1]
        depth = self.compare_with(features, text, centers, batch.image.shape[-2:]).depth
        silog = losses.silog(resize_aligned(depth, batch.depth.shape[-2:]), batch.depth, batch.mask)
        return {"silog": silog, "total": silog}

    def convert_official(self, state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """A Lightning checkpoint (prefix ``model.``) or the model's own tensors.

        Raises CheckpointError when learned tokens, decoders or the CLIP model are not this variant's.
        """
        state_dict = model_tensors(state_dict)
        plain, stacked = split_tokens(state_dict)
        counts = {group: len(rows) for group, rows in stacked.items()}
        own = {} if self.learned is None else {g: n for g, n in self.learned.counts.items() if g != "imgf"}
        if counts != own and "clip.token_embedding.weight" in plain:  # else it is of another kind altogether
            raise CheckpointError(
                f"the checkpoint has learned tokens {token_text(counts)}, '{self.name}' has {token_text(own)}; "
                "use the matching --system variant"
            )
        vectors = None
        if self.learned is not None and counts:
            vectors = torch.cat(list(stacked.values()))
            if vectors.shape != self.learned.vectors.shape:
                raise CheckpointError(
                    f"the checkpoint's learned tokens have width {vectors.shape[-1]}, those of '{self.name}' have "
                    f"{self.learned.vectors.shape[-1]}; choose another architecture"
                )
            self.learned.vectors.data.copy_(vectors)
        tensors, report = super().convert_official(plain)
        if report["ignored"]:
            raise CheckpointError(
                f"'{self.name}' has no place for the checkpoint's '{report['ignored'][0]}'"
                + (f" and {len(report['ignored']) - 1} more" if len(report["ignored"]) > 1 else "")
                + "; use the matching --system variant"
            )
        if self.learned is not None:
            tensors |= dict.fromkeys(("learned.vectors", "learned.encoded"), self.learned.vectors.detach().clone())
            report["missing"] = [key for key in report["missing"] if key not in tensors]
        report["used"] += [key for key in state_dict if key not in plain]
        return tensors, report

    def official_names(self) -> dict[str, str]:
        return OFFICIAL_NAMES


class PromptClipWords(PromptClip):
    """The variants without anything learned."""

    zero_shot = True
