"""CLIP's tokens and text features, and the cache that finds features again."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.backbones.clip_weights import ClipWeights, find_clip_weights
from langdepth.errors import UsageError
from langdepth.text import cache, clip_text
from langdepth.text.clip_text import ClipTextTower, encode_sentences, tokenize


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_memory", cache.OrderedDict())
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def weights() -> ClipWeights:
    with pytest.warns(UserWarning, match="RANDOM"):
        return find_clip_weights("random", "RN-small", True)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The lists of sentences that went through the text tower."""
    seen: list[list[str]] = []
    encode = clip_text._encode

    def counted(sentences: list[str], weights: ClipWeights) -> Tensor:
        seen.append(list(sentences))
        return encode(sentences, weights)

    monkeypatch.setattr(clip_text, "_encode", counted)
    return seen


def test_tokens_are_those_of_the_specification() -> None:
    words = {
        "giant": [4687],
        "extremely close": [6519, 2660],
        "not in distance": [783, 530, 7964],
        "a little remote": [320, 1274, 9687],
        "unseen": [19069],
    }
    tokens = tokenize([f"This object is {word}" for word in words])
    assert tokens.dtype == torch.int64
    assert tokens.shape == (5, 77)
    for row, ids in zip(tokens, words.values(), strict=True):
        expected = [49406, 589, 14115, 533, *ids, 49407]
        assert row.tolist() == expected + [0] * (77 - len(expected))


def test_tokens_equal_those_of_open_clip() -> None:
    import open_clip

    sentences = ["", "It's  12 o'clock", "naïve &amp; café 😀", "far " * 75, "far " * 74 + "close"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(tokenize(sentences), open_clip.tokenize(sentences))
    with pytest.warns(UserWarning, match="80 tokens, of which CLIP takes the first 75"):
        cut = tokenize(["far " * 80])
    assert torch.equal(cut, open_clip.tokenize(["far " * 80]))
    assert cut[0, -1] == 49407


@torch.no_grad()
def test_the_tower_is_open_clip_s(weights: ClipWeights) -> None:
    from open_clip.model import CLIP

    from langdepth.backbones.clip import model_config

    theirs = CLIP(**model_config("RN-small"), quick_gelu=True).eval()
    theirs.load_state_dict(weights.tensors)
    tokens = tokenize(["This object is close", "", "far " * 75])
    tower = ClipTextTower.from_weights(weights)
    assert tower.embed_dim == 256
    torch.testing.assert_close(tower(tokens), theirs.encode_text(tokens), rtol=1e-5, atol=1e-6)


def test_features_are_normalised_per_template_and_again(weights: ClipWeights) -> None:
    words, templates = ["close", "far", "a little remote"], ("This object is {}", "a photo of something {}.")
    features = encode_sentences(words, weights, templates=templates)
    with torch.no_grad():
        tower = ClipTextTower.from_weights(weights)
        each = [F.normalize(tower(tokenize([t.format(word) for word in words])), dim=-1) for t in templates]
    torch.testing.assert_close(features, F.normalize((each[0] + each[1]) / 2, dim=-1))
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(encode_sentences(["This object is far"], weights), each[0][1:2])


def test_features_may_take_part_in_training(weights: ClipWeights) -> None:
    features = encode_sentences(["close", "far"], weights)
    assert not features.requires_grad
    cells = torch.ones(1, 256, requires_grad=True)
    (cells @ features.T).sum().backward()
    assert cells.grad is not None


def test_features_are_found_again(weights: ClipWeights, encodings: list[list[str]], empty_cache: Path) -> None:
    first = encode_sentences(["close", "far"], weights)
    assert encodings == [["close", "far"]]
    first.zero_()  # what a caller does with it stays with the caller
    second = encode_sentences(["close", "far"], weights)
    assert len(encodings) == 1
    cache._memory.clear()
    third = encode_sentences(["close", "far"], weights)
    assert len(encodings) == 1  # from disk
    assert torch.equal(second, third)
    assert float(third.norm()) > 1
    assert len(list(empty_cache.rglob("*.safetensors"))) == 1


def test_a_cut_sentence_warns_every_time(weights: ClipWeights) -> None:
    """Also when its features are known already, in memory or on disk."""
    long = " ".join(["very long text"] * 40)
    for forget in (lambda: None, lambda: None, cache._memory.clear):
        forget()
        with pytest.warns(UserWarning, match="120 tokens, of which CLIP takes the first 75"):
            encode_sentences(["short", long], weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_sentences(["short"], weights)


def test_features_that_are_forgotten_at_once_are_given(monkeypatch: pytest.MonkeyPatch, weights: ClipWeights) -> None:
    """As other threads may make it so."""
    monkeypatch.setattr(cache, "_IN_MEMORY", 0)
    assert encode_sentences(["near"], weights).shape[0] == 1


def test_other_content_is_another_entry(weights: ClipWeights, encodings: list[list[str]]) -> None:
    encode_sentences(["close", "far"], weights)
    encode_sentences(["far", "close"], weights)
    encode_sentences(["close", "far"], weights, templates=("a {}",))
    encode_sentences(["a close", "a far"], weights)  # the same final sentences as the last
    assert len(encodings) == 3
    tensors = {name: value.clone() for name, value in weights.tensors.items()}
    encode_sentences(["close", "far"], ClipWeights("RN-small", True, tensors, "other", "another sha256"))
    encode_sentences(["close", "far"], ClipWeights("RN-small", False, tensors, "other", weights.sha256))
    assert len(encodings) == 5
    for _ in range(2):  # nobody knows what these weights are
        encode_sentences(["close", "far"], ClipWeights("RN-small", True, tensors, "other", ""))
    assert len(encodings) == 7


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_a_damaged_entry_is_made_again(
    damage: str, weights: ClipWeights, encodings: list[list[str]], empty_cache: Path
) -> None:
    good = encode_sentences(["close", "far"], weights)
    (path,) = empty_cache.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-100]
    elif damage == "flipped":
        content[-100] ^= 64
    else:
        content = bytearray(b"something else")
    path.write_bytes(content)
    cache._memory.clear()
    assert torch.equal(encode_sentences(["close", "far"], weights), good)
    assert len(encodings) == 2
    cache._memory.clear()
    encode_sentences(["close", "far"], weights)
    assert len(encodings) == 2  # repaired


def test_a_folder_that_cannot_be_written_costs_only_time(
    weights: ClipWeights, encodings: list[list[str]], empty_cache: Path
) -> None:
    empty_cache.write_text("a file where the folder should be")
    encode_sentences(["close"], weights)
    cache._memory.clear()
    encode_sentences(["close"], weights)
    assert len(encodings) == 2


def test_memory_is_bounded() -> None:
    for number in range(cache._IN_MEMORY + 5):
        cache.remembered(cache.content_key(number), lambda: torch.ones(1, 1))
    assert len(cache._memory) == cache._IN_MEMORY


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LANGDEPTH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "langdepth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "langdepth"


@pytest.mark.parametrize(
    ("sentences", "templates", "message"),
    [
        ("close", ("{}",), "expected a list of sentences, got 'close'"),
        ([], ("{}",), "expected a list of sentences, got []"),
        (["close", 3], ("{}",), "expected a list of sentences, got ['close', 3]"),
        (["close"], "{}", "expected a list of templates, got '{}'"),
        (["close"], (), "expected a list of templates"),
        (["close"], ("a photo",), "template 'a photo' must have the place '{}' once"),
        (["close"], ("{} and {}",), "must have the place '{}' once"),
    ],
)
def test_wrong_texts_are_refused(
    sentences: list[str], templates: tuple[str], message: str, weights: ClipWeights
) -> None:
    with pytest.raises(UsageError) as refused:
        encode_sentences(sentences, weights, templates=templates)
    assert message in str(refused.value)
    if templates == ("{}",) and sentences:
        with pytest.raises(UsageError, match="expected a list of sentences"):
            tokenize(sentences)


def test_braces_in_a_sentence_are_just_text(weights: ClipWeights) -> None:
    assert encode_sentences(["{0.__class__} {}"], weights).shape == (1, 256)
