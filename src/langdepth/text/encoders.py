"""A small sentence encoder distilled from CLIP text features: sentences in, unit vectors of CLIP's text space out.

It knows the words of its training captions and names the others in a warning. It replaces CLIP's text tower where that
cannot be downloaded; it is not a general language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from langdepth.text.caption_features import CaptionFeatures
from langdepth.text.scenes import CAPTION_SCENES, SCENE_TO_CAPTION_SCENE, SCENES
from langdepth.text.vocabulary import PADDING, UNKNOWN, Vocabulary, words_of


class SentenceEncoder(nn.Module):
    """Two transformer layers over word embeddings; output (B, features), L2 norm 1.

    ``vocabulary``: the known words in order. ``max_words``: longer sentences are cut.
    """

    def __init__(self, vocabulary: Sequence[str], features: int = 1024, width: int = 192, max_words: int = 24) -> None:
        super().__init__()
        self.words = Vocabulary(vocabulary, max_words)
        self.embedding = nn.Embedding(len(self.vocabulary) + 2, width, padding_idx=PADDING)
        self.position = nn.Parameter(torch.zeros(max_words, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(width, features)
        nn.init.normal_(self.position, std=0.02)
        self._encoded: dict[str, Tensor] = {}
        self.register_load_state_dict_post_hook(_forget_features)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The known words in order."""
        return self.words.words

    def tokenize(self, sentences: Sequence[str]) -> Tensor:
        """(B, words of the longest sentence) int64; raises LangdepthError for a sentence without any word."""
        rows = [torch.tensor(self.words.tokens(sentence)) for sentence in sentences]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """Sentences to unit vectors (B, features), constants; each distinct one is computed once.

        Warns about words that it does not know or cuts; raises UsageError for a sentence of which it knows none.
        """
        return torch.stack(self.words.encoded(self._encoded, sentences, self._encode)).to(self.position.device)

    def _encode(self, tokens: list[int]) -> Tensor:
        with torch.autocast(self.position.device.type, enabled=False):
            feature: Tensor = self(torch.tensor([tokens], device=self.position.device))[0]
        return feature.detach()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, words) to unit vectors (B, features)."""
        padding = tokens == PADDING
        hidden = self.layers(self.embedding(tokens) + self.position[: tokens.shape[1]], src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1)
        return F.normalize(self.output((hidden * kept).sum(1) / kept.sum(1)), dim=-1)


def _forget_features(encoder: SentenceEncoder, _: object) -> None:
    """Those of the weights before; a function of the module, or the encoder could not be pickled."""
    encoder._encoded.clear()


class CaptionBank:
    """Features of real captions, from which training takes one that fits an image's scene label.

    ``by_scene``: for every scene of CAPTION_SCENES the features (N, D) of its captions, of which there may be none.
    """

    def __init__(self, data: CaptionFeatures) -> None:
        words = [set(words_of(caption)) for caption in data.captions]
        self.by_scene = [
            data.features[torch.tensor([not w.isdisjoint(marks) for w in words])] for marks in CAPTION_SCENES.values()
        ]
        self._features = torch.cat(self.by_scene)
        self._offsets = torch.tensor([0, *accumulate(map(len, self.by_scene))])

    def draw(self, scene: Tensor) -> Tensor:
        """A random caption of each scene (B,), an index into CAPTION_SCENES: features (B, D), 0 where there is none."""
        if self._features.device != scene.device:
            self._features, self._offsets = self._features.to(scene.device), self._offsets.to(scene.device)
        first, last = self._offsets[scene.clamp_min(0)], self._offsets[scene.clamp_min(0) + 1]
        chosen = first + (torch.rand(len(scene), device=scene.device) * (last - first)).long()
        found = self._features[chosen.clamp_max(len(self._features) - 1)]
        return torch.where(((scene >= 0) & (first < last))[:, None], found, 0)


def caption_scene_of_label() -> Tensor:
    """For every label of a data set (``scenes.SCENES``) the index of its caption scene; at the end, so at -1, -1."""
    names = list(CAPTION_SCENES)
    return torch.tensor([*(names.index(SCENE_TO_CAPTION_SCENE[label]) for label in SCENES), -1])


class DistillationReport(NamedTuple):
    """Cosine between distilled and CLIP features on held-back captions.

    ``cosine``: as they are; ``cosine_centred``: after removing the mean feature.
    """

    captions: int
    cosine: float
    cosine_centred: float


def report_captions(count: int, every: int = 20) -> Tensor:
    """(count,) bool, True for the captions that are kept back for the report: every 20th."""
    return torch.arange(count) % every == 0


def distil(
    encoder: SentenceEncoder, data: CaptionFeatures, *, epochs: int = 24, batch_size: int = 256, seed: int = 0
) -> DistillationReport:
    """Fit the encoder to CLIP features (cosine loss, plain and mean-removed); deterministic for a seed."""
    kept_back = report_captions(len(data.captions))
    tokens = encoder.tokenize(data.captions)
    train = torch.nonzero(~kept_back).squeeze(1)
    mean = data.features[train].mean(0)
    steps = epochs * -(-len(train) // batch_size)
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    encoder.train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            for chosen in train[torch.randperm(len(train))].split(batch_size):
                words = tokens[chosen]
                # Dropped words train the feature of unknown words.
                dropped = (torch.rand(words.shape) < 0.05) & (words != PADDING)
                with torch.autocast(words.device.type, torch.bfloat16):
                    output = encoder(words.masked_fill(dropped, UNKNOWN)).float()
                target = data.features[chosen]
                plain = F.cosine_similarity(output, target).mean()
                centred = F.cosine_similarity(output - mean, target - mean).mean()
                loss = 2 - plain - centred
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    encoder.eval().requires_grad_(False)
    with torch.inference_mode():
        output, target = encoder(tokens[kept_back]), data.features[kept_back]
    return DistillationReport(
        int(kept_back.sum()),
        float(F.cosine_similarity(output, target).mean()),
        float(F.cosine_similarity(output - mean, target - mean).mean()),
    )


def distilled_encoder(data: CaptionFeatures) -> tuple[SentenceEncoder, DistillationReport]:
    """An encoder that knows all words of the captions, fitted to their features, see ``distil``."""
    vocabulary = sorted({word for caption in data.captions for word in words_of(caption)})
    encoder = SentenceEncoder(vocabulary, data.features.shape[1])
    return encoder, distil(encoder, data)
