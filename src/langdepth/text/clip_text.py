"""CLIP's tokenizer and text tower (open_clip) behind one function: sentences in, unit vectors out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.backbones.clip import model_config
from langdepth.backbones.clip_weights import ClipWeights
from langdepth.errors import UsageError
from langdepth.text.cache import content_key, remembered

CONTEXT_LENGTH = 77
VOCABULARY = 49408
"""Token ids from here on are added ones, whose vectors are given."""
END_OF_TEXT = VOCABULARY - 1
_BATCH = 256  # sentences encoded at once
_ADDED_BATCH = 4096  # the same without padding


class ClipTextTower(nn.Module):
    """CLIP's text transformer; weights are random until loaded.

    ``length``: for sentences of so many tokens at most, whose positions are the first of CLIP's 77. Without
    ``embeds_words`` it holds no word embeddings, and ``encode`` is what it can do. Raises UsageError for an unknown
    architecture, and for more than CLIP takes.
    """

    def __init__(
        self, architecture: str, *, quick_gelu: bool, length: int = CONTEXT_LENGTH, embeds_words: bool = True
    ) -> None:
        from open_clip.model import _build_text_tower

        super().__init__()
        if not 0 < length <= CONTEXT_LENGTH:
            raise UsageError(
                f"prompts of {length} tokens do not fit in CLIP's text tower, which takes {CONTEXT_LENGTH}"
            )
        config = model_config(architecture, quick_gelu)
        config["text_cfg"]["context_length"] = length
        self.embed_dim: int = config["embed_dim"]
        self.transformer = _build_text_tower(config["embed_dim"], config["text_cfg"], quick_gelu)
        if not embeds_words:
            self.transformer.token_embedding = nn.Identity()

    @classmethod
    def from_weights(cls, weights: ClipWeights) -> ClipTextTower:
        """The tower of these weights, in eval mode."""
        with torch.device("meta"):  # no time spent on random weights; the mask is made again below
            tower = cls(weights.architecture, quick_gelu=weights.quick_gelu)
        tower.transformer.load_state_dict(weights.text(), assign=True)
        tower.transformer.attn_mask = tower.transformer.build_causal_mask()
        return tower.eval()

    def require_argmax(self, architecture: str) -> None:
        """Raise UsageError unless features are read at the end of text, as CLIP's own are."""
        if self.transformer.pool_type != "argmax":
            raise UsageError(f"learned tokens need CLIP's own text tower; '{architecture}' has another")

    def load_weights(self, weights: ClipWeights) -> None:
        """Take the tensors of a CLIP model, of its positions the first."""
        tensors = weights.text()
        tensors["positional_embedding"] = tensors["positional_embedding"][: len(self.transformer.positional_embedding)]
        if isinstance(self.transformer.token_embedding, nn.Identity):
            del tensors["token_embedding.weight"]
        self.transformer.load_state_dict(tensors)

    def forward(self, tokens: Tensor, added: Tensor | None = None) -> Tensor:
        """Tokens (N, 77) int64 to features (N, embed_dim) at the end-of-text position, projected, not normalised.

        ``added`` (..., V, width): vectors of the V token ids from VOCABULARY on, any number of sets; then features
        are (..., N, embed_dim), and tokens may end with the longest sentence, since nothing after it is used.
        """
        if added is not None:
            return self._with_added(tokens, added)
        features: Tensor = self.transformer(tokens)
        return features

    def _with_added(self, tokens: Tensor, added: Tensor) -> Tensor:
        is_added = tokens >= VOCABULARY
        words = self.transformer.token_embedding(tokens.masked_fill(is_added, 0))
        given = added[..., (tokens - VOCABULARY).clamp_min(0), :]
        vectors = torch.where(is_added[..., None], given, words)
        return self.encode(vectors, (tokens == END_OF_TEXT).int().argmax(-1))

    def encode(self, vectors: Tensor, ends: Tensor) -> Tensor:
        """Vectors (..., N, L, width) in the place of word embeddings to features (..., N, embed_dim), as ``forward``.

        ``ends`` (N,): the position of each sentence that its feature is read from.
        """
        text, length = self.transformer, vectors.shape[-2]
        x = vectors + text.positional_embedding[:length]
        rows, mask = x.flatten(0, -3), text.attn_mask[:length, :length]
        ends = ends.repeat(rows.shape[0] // ends.shape[0])
        whole = torch.jit.is_tracing()  # a trace would hold the number of parts
        parts = [(rows, ends)] if whole else zip(rows.split(_ADDED_BATCH), ends.split(_ADDED_BATCH), strict=True)
        last = [
            text.transformer(part, attn_mask=mask).gather(1, end[:, None, None].expand(-1, 1, part.shape[2]))[:, 0]
            for part, end in parts
        ]
        features: Tensor = text.ln_final(torch.cat(last)) @ text.text_projection
        return features if x.ndim == 3 else features.unflatten(0, x.shape[:-2])


def tokenize(sentences: Sequence[str]) -> Tensor:
    """CLIP's byte-pair tokens (N, 77) int64, zero after the end of text.

    A sentence of more than 75 tokens is cut, with a warning. Raises UsageError for anything but a list of strings.
    """
    if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
        raise UsageError(f"expected a list of sentences, got {sentences!r}")
    rows = torch.zeros(len(sentences), CONTEXT_LENGTH, dtype=torch.int64)
    tokenizer = byte_pairs()
    for row, sentence in zip(rows, sentences, strict=True):
        words = tokenizer.encode(sentence)
        if len(words) > CONTEXT_LENGTH - 2:
            warnings.warn(
                f"text '{sentence[:40]}...': {len(words)} tokens, of which CLIP takes the first {CONTEXT_LENGTH - 2}",
                stacklevel=2,
            )
        tokens = [tokenizer.sot_token_id, *words[: CONTEXT_LENGTH - 2], tokenizer.eot_token_id]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows


def raw_text_features(sentences: Sequence[str], weights: ClipWeights) -> Tensor:
    """CLIP's features (N, D) float32 of the sentences as they are, not brought to norm 1; cached (text/cache.py)."""
    computed = False

    def compute() -> Tensor:
        nonlocal computed
        computed = True
        return _encode(sentences, weights)

    if weights.sha256:
        key = content_key("clip-text/1", weights.sha256, weights.architecture, weights.quick_gelu, list(sentences))
        raw = remembered(key, compute)
    else:
        raw = compute()
    if not computed:
        warn_of_cuts(sentences)
    return raw


def warn_of_cuts(sentences: Sequence[str]) -> None:
    """Warn as ``tokenize`` does, of sentences whose features are known."""
    tokenize([sentence for sentence in sentences if len(sentence.encode()) > CONTEXT_LENGTH - 2])  # a byte is a token


def encode_sentences(sentences: Sequence[str], weights: ClipWeights, *, templates: Sequence[str] = ("{}",)) -> Tensor:
    """Unit vectors (N, D) float32 of the sentences, each put into every template.

    Normalised per template, averaged over the templates, normalised again (CLIP's prompt ensemble; depthclip.md, 4).
    ``templates`` have one "{}" each. Features that were computed before are found again (text/cache.py).
    Raises UsageError for no sentences, no templates, or a template without its one "{}".
    """
    for what, texts in (("sentences", sentences), ("templates", templates)):
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"expected a list of {what}, got {texts!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise UsageError(f"template {template!r} must have the place '{{}}' once, as in 'a photo of {{}}'")
    final = [template.replace("{}", sentence) for template in templates for sentence in sentences]
    raw = raw_text_features(final, weights)
    features = F.normalize(raw.unflatten(0, (len(templates), len(sentences))), dim=-1)
    return F.normalize(features.mean(0), dim=-1)


@torch.no_grad()
def _encode(sentences: Sequence[str], weights: ClipWeights) -> Tensor:
    tower = ClipTextTower.from_weights(weights)
    return torch.cat([tower(tokens) for tokens in tokenize(sentences).split(_BATCH)])


@cache
def byte_pairs() -> Any:
    """CLIP's own tokenizer; it has no state that changes."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=CONTEXT_LENGTH)
