"""`few-shot-clip`: DepthCLIP with bins of each scene, learned from a few images of it.

After the abstract of Hu et al. (WACV 2024, arXiv 2311.01034); neither code nor full text was available.

Data flow (B images of 416 x 544; RN50; S scenes, 7 words)

    image -> CLIP's embedding (B, 1024), against the scenes' (S, 1024) -> one scene, or shares of all -> (B, S)
    codebook (S, 7) metres -> bins of the image (B, 7)
    "<|prompt_0|> ... <|prompt_3|> This object is giant" ... -> text tower -> text matrix (7, 1024)
    cells (B, 2048, 13, 17) against the words, as in DepthCLIP -> probs (B, 7, 13, 17); depth = sum of probs x bins

Loss, over the valid pixels of the batch, d = ln(prediction / target): 10 sqrt(mean d^2 - 0.85 (mean d)^2), plus
``l1`` x mean |prediction - target|.

Trained are the codebook, S x 7 numbers, and the context, 4 x 512. Without context, and before training, it is
`depthclip`. What is the paper's and what is ours: docs/systems/few-shot-clip.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth import losses
from langdepth.backbones.clip_weights import ClipWeights
from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.parts.word_bins import words_output
from langdepth.records import Batch, DepthOutput
from langdepth.systems.capabilities import Scene, Text, Trainable
from langdepth.systems.clip_system import ClipConfig
from langdepth.systems.learned_words import LearnedWords
from langdepth.text.clip_text import encode_sentences
from langdepth.text.prompts import PromptSet
from langdepth.text.scenes import SCENES


@dataclass(frozen=True, kw_only=True)
class FewShotClipConfig(ClipConfig):
    """Options of `few-shot-clip`."""

    context: int = 4
    """Learned vectors in front of every sentence; 0 leaves the words as they are."""
    scenes: tuple[str, ...] = SCENES[:-1]
    """The codebook's rows; the default are the scene types of NYU Depth V2's training images."""
    selector: Literal["text", "image", "oracle"] = "text"
    """What selects an image's scene: the scenes' names, the mean embedding of their training images, or the caller."""
    soft: bool = False
    """Bins mixed by the scenes' probabilities, instead of those of the likeliest scene."""
    scene_template: str = "a photo of a {}"
    sort_bins: bool = True
    """Whether each row is put in order, so that words stay ordered from near to far."""
    l1: float = 0.0
    """Weight of the mean absolute difference beside SILog; 0.1 is a good start."""
    context_lr: float = 0.357
    """Rate of the context, as a share of the codebook's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 0:
            raise ValueError(f"context must be at least 0, got {self.context}")
        if not self.scenes or len(set(self.scenes)) < len(self.scenes):
            raise ValueError("scenes must be one or more names, each once")


class FewShotClip(LearnedWords, Trainable):
    """``scene``: one name of ``config.scenes`` per image, instead of the selector's choice."""

    Config = FewShotClipConfig
    log_factors: nn.Parameter
    label_rows: Tensor
    scene_keys: Tensor

    def __init__(self, config: FewShotClipConfig) -> None:
        super().__init__(config)
        known = [scene.replace("_", " ") for scene in config.scenes]
        rows = [known.index(name) if (name := label.replace("_", " ")) in known else -1 for label in SCENES]
        self.register_buffer("label_rows", torch.tensor(rows), persistent=False)
        # What images are compared with: the names' features, or the sum of the training images' embeddings.
        self.register_buffer("scene_keys", torch.zeros(len(config.scenes), self.tower.embed_dim))

    def _set_prompts(self, prompts: PromptSet) -> None:
        if prompts.scenes:
            raise ValueError("prompts.scenes: bins of scenes are learned here; leave them out")
        super()._set_prompts(prompts)
        self.scenes = self.config.scenes
        shape = (len(self.scenes), len(prompts.words))
        if not hasattr(self, "log_factors") or self.log_factors.shape != shape:
            self.log_factors = nn.Parameter(torch.zeros(shape, device=self.device))

    def sentences(self, prompts: PromptSet) -> list[str]:
        context = "".join(f"<|prompt_{i}|> " for i in range(self.config.context))
        return [context + sentence for sentence in super().sentences(prompts)]

    # -- scenes ----------------------------------------------------------------------------------------------------

    def frozen_features(self, image: Tensor) -> dict[str, Tensor]:
        """Cells, and CLIP's embedding (B, D) for the selector."""
        cells, embedding = self.tower.dense_and_embedding(self.normalise(image), self.mode)
        return {"cells": cells, "embedding": embedding}

    def codebook(self) -> Tensor:
        """Bins of every scene, (S, K) metres: the prompts' times learned factors, which are above 0."""
        bins = self.word_bins.bin_centers * self.log_factors.float().exp()
        return bins.sort(1).values if self.config.sort_bins else bins

    def scene_probs(self, embedding: Tensor) -> Tensor:
        """(B, S) for CLIP's (B, D): softmax over 100 x cosine similarity; scenes without images count as opposite."""
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = F.normalize(embedding.float(), dim=-1) @ F.normalize(self.scene_keys, dim=-1).T
        return torch.where((self.scene_keys != 0).any(1), cosine, -1.0).mul(100).softmax(-1)

    def select(self, embedding: Tensor) -> Tensor:
        """Shares (B, S) of the codebook's rows, with sum 1, for images of CLIP's embedding (B, D)."""
        probs = self.scene_probs(embedding)
        return probs if self.config.soft else self._one_hot(probs.argmax(-1))

    def _one_hot(self, rows: Tensor) -> Tensor:
        return F.one_hot(rows, len(self.scenes)).float()

    def bins_of(self, shares: Tensor) -> Tensor:
        """Bins (B, K) of shares (B, S); products and sums, which no autocast makes coarser."""
        return (shares[..., None] * self.codebook()).sum(1)

    def forward(self, image: Tensor, text: Text = None, scene: Scene = None) -> DepthOutput:
        matrix, _ = self.words(image.shape[0], text)
        rows = None if scene is None else self.scene_indices(scene, image.shape[0])
        if self.config.selector == "oracle" and (rows is None or bool((rows < 0).any())):
            raise UsageError(
                f"selector oracle of '{self.name}' needs the scene of every image; give it, or take another selector"
            )
        if rows is not None and not isinstance(scene, Tensor):
            cells, shares = self.dense(image), self._one_hot(rows)
        else:
            features = self.frozen_features(image)
            cells, shares = features["cells"], self.select(features["embedding"])
            if rows is not None:
                shares = torch.where((rows >= 0)[:, None], self._one_hot(rows.clamp_min(0)), shares)
        bins = self.bins_of(shares)
        output = words_output(self.word_bins(cells, matrix, bins).probs, bins, image.shape[-2:])
        output.scene_probs = shares
        return output

    # -- training --------------------------------------------------------------------------------------------------

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """SILog and absolute difference, with the bins of the labelled scene; the selector's where there is none."""
        rows = torch.where(batch.scene >= 0, self.label_rows[batch.scene], -1)
        known = rows >= 0
        unlabelled = (~known).nonzero().flatten().tolist()
        if unlabelled and self.config.selector == "oracle":
            path = batch.path[unlabelled[0]]
            raise UsageError(f"{path}: its scene_type is none of the codebook's scenes; label it or leave it out")
        learned_keys = self.training and self.config.selector == "image"
        if batch.features is not None:
            features = batch.features
        elif unlabelled or learned_keys:
            features = self.frozen_features(batch.image)
        else:
            features = {"cells": self.dense(batch.image)}
        labels = self._one_hot(rows.clamp_min(0))
        shares = torch.where(known[:, None], labels, self.select(features["embedding"])) if unlabelled else labels
        if learned_keys:
            with torch.no_grad():
                embedding = F.normalize(features["embedding"].float(), dim=-1)
                self.scene_keys += (labels * known[:, None]).T @ embedding
        text = self.words(len(batch.image))[0] if self.learned is None else self.encode()
        depth = self.word_bins(features["cells"], text, self.bins_of(shares)).depth
        depth = resize_aligned(depth, batch.depth.shape[-2:])
        terms = {"silog": losses.silog(depth, batch.depth, batch.mask)}
        if self.config.l1 > 0:
            terms["l1"] = losses.l1(depth, batch.depth, batch.mask)
        return terms | {"total": terms["silog"] + self.config.l1 * terms.get("l1", 0.0)}

    def parameter_groups(self, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        groups = [{"params": [self.log_factors], "lr": lr, "weight_decay": 0.0}]
        if self.learned is not None:
            rate = lr * self.config.context_lr
            groups.append({"params": [self.learned.vectors], "lr": rate, "weight_decay": weight_decay})
        return groups

    def _encode_words(self, weights: ClipWeights) -> None:
        super()._encode_words(weights)
        if self.config.selector == "text":
            names = [scene.replace("_", " ") for scene in self.scenes]
            self.scene_keys.copy_(encode_sentences(names, weights, templates=(self.config.scene_template,)))
