"""The distilled sentence encoder, on a small made-up feature set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.errors import UsageError
from langdepth.text.caption_features import CaptionFeatures
from langdepth.text.encoders import (
    PADDING,
    UNKNOWN,
    SentenceEncoder,
    distil,
    report_captions,
    words_of,
)
from langdepth.text.vocabulary import Vocabulary

THINGS = ("bed", "desk", "sink", "car", "tree", "lamp", "chair", "book")
PLACES = ("kitchen", "bedroom", "street", "office", "library")
VOCABULARY = sorted({"a", "with", "in", "the", *THINGS, *PLACES})
FEATURES = 16


def fake_captions() -> CaptionFeatures:
    """80 captions; a feature is the sum of its words' random directions and one that all share."""
    captions = [f"a {place} with a {thing}" for place in PLACES for thing in THINGS]
    captions += [f"the {thing} in the {place}" for place in PLACES for thing in THINGS]
    directions = torch.randn(len(VOCABULARY), FEATURES, generator=torch.Generator().manual_seed(1))
    rows = [directions[[VOCABULARY.index(w) for w in words_of(c)]].sum(0) for c in captions]
    features = F.normalize(torch.stack(rows) + 2, dim=-1)
    return CaptionFeatures(captions, features)


def fresh_encoder(seed: int = 0) -> SentenceEncoder:
    torch.manual_seed(seed)
    return SentenceEncoder(VOCABULARY, FEATURES, width=16, max_words=8).eval()


def held_out_cosine(encoder: SentenceEncoder, data: CaptionFeatures) -> float:
    kept = report_captions(len(data.captions))
    with torch.no_grad():
        return float(F.cosine_similarity(encoder(encoder.tokenize(data.captions))[kept], data.features[kept]).mean())


# Sentences


def test_sentences_become_unit_vectors_that_do_not_depend_on_their_neighbours() -> None:
    encoder = fresh_encoder()
    sentences = ["a kitchen with a sink", "street", "The BED, in the bedroom!"]
    with torch.no_grad():
        together = encoder(encoder.tokenize(sentences))
        alone = torch.cat([encoder(encoder.tokenize([s])) for s in sentences])
    assert together.shape == (3, FEATURES)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)  # padding does not count
    assert (together[0] - together[1]).norm() > 0.01


def test_tokens_are_words_without_case_and_marks() -> None:
    encoder = fresh_encoder()
    plain, shouted = encoder.tokenize(["a bed in the kitchen", "A bed; in THE kitchen?!"])
    assert torch.equal(plain, shouted)
    rows = encoder.tokenize(["bed", "bed zebra sink"])
    assert rows[0, 1:].tolist() == [PADDING, PADDING]
    assert rows[1].tolist() == [rows[0, 0], UNKNOWN, rows[1, 2]]
    assert rows[1, 2] > UNKNOWN


def test_word_order_matters() -> None:
    encoder = fresh_encoder()
    with torch.no_grad():
        one, other = encoder(encoder.tokenize(["bed in kitchen", "kitchen in bed"]))
    assert (one - other).norm() > 1e-3


def test_unknown_words_are_named_once_each_in_order() -> None:
    encoder = fresh_encoder()
    assert encoder.words.unknown("A zebra, an apple and a ZEBRA in the kitchen") == ["zebra", "an", "apple", "and"]
    assert encoder.words.unknown("a bed") == []


@pytest.mark.parametrize("sentence", ["", "   ", "123 !?", "厨房"])
def test_a_sentence_without_words_is_refused(sentence: str) -> None:
    with pytest.raises(UsageError, match="has no words; describe the image"):
        fresh_encoder().tokenize(["a bed", sentence])


@pytest.mark.parametrize(("sentence", "but"), [("a cathedral with the pews", " but a, with"), ("zebra", "")])
def test_a_sentence_that_names_nothing_known_is_refused(sentence: str, but: str) -> None:
    words = Vocabulary(["a", "bed", "with"], 8)
    with pytest.raises(UsageError, match=f"none of its words is known{but}; use plain words"):
        words.check(sentence)
    words.check("a bed with a bed")


def test_long_sentences_are_cut_at_the_limit() -> None:
    encoder = fresh_encoder()
    tokens = encoder.tokenize(["bed " * 500, "bed " * 8])
    assert tokens.shape == (2, 8)
    assert torch.equal(tokens[0], tokens[1])
    with torch.no_grad():
        assert torch.isfinite(encoder(tokens)).all()


def test_what_counts_for_nothing_is_said_every_time() -> None:
    """Also of a sentence whose feature is known: who reads its depth now may not have read the line before."""
    encoder = fresh_encoder()
    for _ in range(2):
        with pytest.warns(UserWarning, match="unknown|takes the first") as said:
            encoder.encode(["a bed and a bed and a bed with a zebra"])
        assert [str(one.message).partition(": ")[2] for one in said] == [
            "unknown words are ignored: and, zebra",
            "11 words, of which the small encoder takes the first 8",
        ]


def test_another_thread_may_forget_features_in_mid_encoding() -> None:
    words, known = Vocabulary(["bed", "desk"], 8), {"lamp": [0]}

    def encode(tokens: list[int]) -> list[int]:
        known.clear()
        return tokens

    assert words.encoded(known, ["bed", "desk", "bed"], encode) == [[2], [3], [2]]
    assert known == {"desk": [3]}


# Distillation


def test_distillation_improves_the_cosine_on_captions_it_never_saw() -> None:
    data, encoder = fake_captions(), fresh_encoder()
    before = held_out_cosine(encoder, data)
    report = distil(encoder, data, epochs=20, batch_size=16)
    assert before < 0.5
    assert report.cosine > 0.9
    assert report.cosine_centred > 0.6
    assert report.captions == 4
    assert report.cosine == pytest.approx(held_out_cosine(encoder, data), abs=1e-6)
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_distillation_repeats_for_a_seed_and_leaves_the_callers_randomness_alone() -> None:
    data = fake_captions()

    def weights(start: int, seed: int) -> Tensor:
        encoder = fresh_encoder()
        torch.manual_seed(start)
        state = torch.get_rng_state()
        distil(encoder, data, epochs=1, batch_size=16, seed=seed)
        assert torch.equal(state, torch.get_rng_state())
        return torch.cat([p.flatten() for p in encoder.parameters()])

    assert torch.equal(weights(start=1, seed=0), weights(start=2, seed=0))
    assert not torch.equal(weights(start=1, seed=0), weights(start=1, seed=1))


def test_every_20th_caption_is_held_out() -> None:
    assert torch.nonzero(report_captions(45)).flatten().tolist() == [0, 20, 40]


def test_distillation_hides_a_twentieth_of_the_words() -> None:
    """Else an unknown word would mean whatever its random vector says."""
    data, encoder = fake_captions(), fresh_encoder()
    given: list[Tensor] = []
    encoder.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].clone()))
    distil(encoder, data, epochs=8, batch_size=16)
    *trained, evaluated = given
    assert not (evaluated == UNKNOWN).any()
    words = torch.cat([tokens.flatten() for tokens in trained])
    real = words[words != PADDING]
    assert 0.02 < (real == UNKNOWN).double().mean() < 0.09
    whole = encoder.tokenize(data.captions)
    shares = (words == PADDING).double().mean(), (whole == PADDING).double().mean()
    assert float(shares[0]) == pytest.approx(float(shares[1]), abs=0.1)  # padding is no word, and is never hidden
