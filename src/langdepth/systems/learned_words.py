"""What the systems share whose sentences hold learned vectors: text tower and vectors beside tower and words.

In training, the frozen text tower turns sentences into the text matrix at every step. Afterwards the matrix is fixed:
whenever the system goes to eval mode or is saved, it is computed again if the vectors have changed, and prediction uses
it as in any system on CLIP. The weights file keeps the text tower, so that training can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip_weights import ClipWeights
from langdepth.errors import UsageError
from langdepth.systems.clip_system import ClipSystem
from langdepth.text.clip_text import ClipTextTower
from langdepth.text.learned_prompts import LearnedPrompts, count_added
from langdepth.text.prompts import PromptSet


class LearnedWords(ClipSystem):
    """``learned`` and ``text_tower`` are None where the sentences are words alone."""

    learned: LearnedPrompts | None
    text_tower: ClipTextTower | None

    def _set_prompts(self, prompts: PromptSet) -> None:
        super()._set_prompts(prompts)
        sentences, old = self.sentences(prompts), getattr(self, "learned", None)
        self.text_tower = getattr(self, "text_tower", None)
        self.learned = None
        counts = count_added(sentences)
        if not counts:
            self.text_tower = None
            return
        if self.text_tower is None:
            tower = ClipTextTower(self.config.architecture, quick_gelu=self.config.quick_gelu)
            tower.require_argmax(self.config.architecture)
            self.text_tower = tower.requires_grad_(False)
        self.learned = LearnedPrompts(sentences, self.text_tower.transformer.width)
        if old is not None and old.counts == counts:
            self.learned.vectors = old.vectors
        self.to(self.device)

    def sentences(self, prompts: PromptSet) -> list[str]:
        """Every word in every template: templates x (the set, its scenes) x words."""
        words = [word for words, _ in prompts.variants() for word in words]
        return [template.replace("{}", word) for template in prompts.templates for word in words]

    def encode(self, features: Tensor | None = None) -> Tensor:
        """Text matrix of the current vectors, unit rows: (V, K, D).

        Where sentences depend on the image, (B, K, D) or (B, h * w, K, D) for its ``features`` (B, C, h, w).
        """
        assert self.learned is not None
        prompts = self.config.prompts
        rows: Tensor = self.learned(self.text_tower, self.vectors(features))
        rows = rows.unflatten(-2, (len(prompts.templates), len(prompts.scenes) + 1, len(prompts.words)))
        if len(prompts.templates) == 1:
            return rows[..., 0, :, :, :]
        return F.normalize(rows.mean(-4), dim=-1)

    def vectors(self, features: Tensor | None) -> Tensor:
        """Vectors of the added tokens, (..., V, width): the learned ones."""
        assert self.learned is not None
        return self.learned.vectors

    @torch.no_grad()
    def store_words(self) -> None:
        """Compute and store the text matrix of the learned vectors."""
        assert self.learned is not None
        self.word_bins.text.copy_(self.encode())
        self.learned.encoded.copy_(self.learned.vectors)

    def _store_changed_words(self) -> None:
        if self.learned is not None and not torch.equal(self.learned.vectors, self.learned.encoded):
            self.store_words()

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if not mode:
            self._store_changed_words()
        return self

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As every module's, with the text matrix of the current vectors."""
        self._store_changed_words()
        return super().state_dict(*arguments, **options)

    def _encode_words(self, weights: ClipWeights) -> None:
        if self.text_tower is None:
            super()._encode_words(weights)
        else:
            self.text_tower.load_weights(weights)
            self.store_words()

    def use_prompts(self, prompts: Mapping[str, Any], clip_weights: str | Path | None = None) -> None:
        """Replace words, templates or bins around the same learned tokens."""
        if self.learned is None:
            super().use_prompts(prompts, clip_weights)
            return
        after = self.config.prompts.changed(prompts)
        counts = count_added(self.sentences(after))
        if counts != self.learned.counts:
            raise UsageError(
                f"'{self.name}' has learned tokens ({token_text(self.learned.counts)}), the new sentences use others "
                f"({token_text(counts)}); change the bins only, or the words between learned tokens"
            )
        self._set_prompts(after)
        self.store_words()


def token_text(counts: Mapping[str, int]) -> str:
    """Numbers of learned tokens in words."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
