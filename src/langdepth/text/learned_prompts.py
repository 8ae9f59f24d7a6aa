"""Sentences of words and learned vectors, in any order, through a frozen CLIP text tower.

    "This object appears to be <|depth_0|>" -> tokens (N, L) with added ids from 49408 on
    -> word embeddings, the added ids' vectors in their places -> text tower -> unit vectors (N, D)

Auty & Mikolajczyk 2023 (docs/systems/prompt-clip.md); context vectors in front of words are CoOp's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.errors import UsageError, nearest
from langdepth.text.clip_text import CONTEXT_LENGTH, END_OF_TEXT, VOCABULARY, ClipTextTower, byte_pairs

# In the order of their ids. "imgf" is no parameter: its vectors come from the image.
GROUPS = ("prompt", "depth", "object", "imgf")
_ADDED = re.compile(r"<\|(.*?)_(\d+)\|>")


def count_added(sentences: Sequence[str]) -> dict[str, int]:
    """How many tokens of each group the sentences use, in the order of GROUPS; groups without any are left out.

    Raises UsageError for an unknown group, and for numbers that are not 0, 1, 2 and so on.
    """
    used: dict[str, set[int]] = {}
    for group, number in _ADDED.findall(" ".join(sentences)):
        used.setdefault(group, set()).add(int(number))
    for group, numbers in used.items():
        if group not in GROUPS:
            raise UsageError(f"unknown learned token '<|{group}_{min(numbers)}|>': {nearest(group, GROUPS)}")
        if max(numbers) >= len(numbers):
            missing = min(set(range(max(numbers))) - numbers)
            raise UsageError(f"learned tokens '{group}' are numbered from 0; '<|{group}_{missing}|>' is not used")
    return {group: len(used[group]) for group in GROUPS if group in used}


class PromptTokenizer:
    """CLIP's tokenizer with added tokens ``<|name_i|>``; ``counts``: name -> how many, in the order of their ids."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        names = [f"<|{name}_{i}|>" for name, count in counts.items() for i in range(count)]
        self.ids = {name: VOCABULARY + place for place, name in enumerate(names)}

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """Tokens (N, 77) int64, zero after the end of text. Raises UsageError for a sentence that is too long."""
        rows = torch.zeros(len(sentences), CONTEXT_LENGTH, dtype=torch.int64)
        for row, sentence in zip(rows, sentences, strict=True):
            tokens = [byte_pairs().sot_token_id, *self._inner(sentence), END_OF_TEXT]
            if len(tokens) > CONTEXT_LENGTH:
                raise UsageError(
                    f"the sentence '{sentence[:60]}...' has {len(tokens)} tokens with its start and end, but CLIP "
                    f"takes {CONTEXT_LENGTH}; shorten it"
                )
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def _inner(self, sentence: str) -> list[int]:
        tokens: list[int] = []
        place = 0
        for found in _ADDED.finditer(sentence):
            tokens += [*byte_pairs().encode(sentence[place : found.start()]), self.ids[found[0]]]
            place = found.end()
        return [*tokens, *byte_pairs().encode(sentence[place:])]


class LearnedPrompts(nn.Module):
    """The learned vectors of N sentences, (V, ``width``), in the order of GROUPS; they start as N(0, 0.02).

    ``encoded`` holds the vectors whose features were stored last. Raises UsageError for sentences of more than 77
    tokens or with unknown learned tokens.
    """

    tokens: Tensor
    encoded: Tensor

    def __init__(self, sentences: Sequence[str], width: int) -> None:
        super().__init__()
        self.counts = count_added(sentences)
        self.from_image = self.counts.get("imgf", 0)
        with torch.device("cpu"):  # their number counts, also where the network is built without content
            tokens = PromptTokenizer(self.counts)(sentences)
        longest = int((tokens == END_OF_TEXT).nonzero()[:, 1].max()) + 1
        self.register_buffer("tokens", tokens[:, :longest].clone(), persistent=False)
        learned = sum(self.counts.values()) - self.from_image
        self.vectors = nn.Parameter(0.02 * torch.randn(learned, width), requires_grad=learned > 0)
        self.register_buffer("encoded", self.vectors.detach().clone())

    def forward(self, tower: ClipTextTower, vectors: Tensor | None = None) -> Tensor:
        """Unit vectors (..., N, D) float32.

        ``vectors`` (..., V, width): others instead of the learned ones, followed by those from the image.
        """
        features: Tensor = tower(self.tokens, self.vectors if vectors is None else vectors)
        return F.normalize(features.float(), dim=-1)
