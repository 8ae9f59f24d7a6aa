"""`words-to-scale`: what a sentence says about the distances in its image. Imports no torch.

Data flow: sentence -> ``Traits`` (at what distance things of its words are usually photographed, its words and pairs
of words, its feature from a small sentence encoder) -> kernel with the sentences of the training images -> mean and
covariance of the logarithms of the 10th, 50th and 90th percentile of depth, by Gaussian process regression.

``benchmarks/words_to_scale.py`` trains and evaluates it; docs/scale.md says how well it does.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.errors import CheckpointError, UsageError
from langdepth.runtimes.graph import Sentences
from langdepth.runtimes.onnx import OnnxGraph
from langdepth.text.vocabulary import FUNCTION_WORDS, words_of
from langdepth.utils.reading import read_csv

Array = npt.NDArray[np.float64]
FOLDER = Path(__file__).parents[1] / "models"
WEIGHTS, DISTANCES = FOLDER / "words-to-scale.npz", FOLDER / "word-distances.csv"
QUANTILES = (0.1, 0.5, 0.9)
_FEATURE = 1024  # numbers of the sentence encoder
_STOP_WORDS = frozenset(words_of("a an and are at in is it its of on that the there to with"))
_LINEAR, _FEATURES, _WIDTH = 0.2, 0.5, 8.0  # of the kernel, chosen by cross-validation over the training scenes


class Belief(NamedTuple):
    """What is known about an image's depth: natural logarithms of the percentiles ``QUANTILES`` in metres.

    mean: (3,). covariance: (3, 3).
    """

    mean: Array
    covariance: Array


class Traits(NamedTuple):
    """What the kernel compares of N sentences.

    distances: (N, 6), logarithms of the usual distances of the words: mean, largest, smallest, first, last, median; NaN
    where no word has one. terms: words and pairs of neighbouring words. features: (N, D) of the sentence encoder.
    """

    distances: Array
    terms: list[frozenset[str]]
    features: Array


def stem(word: str) -> str:
    """The singular of a regular plural."""
    if re.search("(ch|sh|ss|x)es$", word):
        return word[:-2]
    return re.sub("(?<=[^s])s$", "", re.sub("(?<=..)ies$", "y", word))


@cache
def usual_distances() -> dict[str, float]:
    """Word -> logarithm of the distance in metres at which what it names is usually photographed."""
    try:
        rows = [(row["word"] or "", float(row["metres"] or "")) for row in read_csv(DISTANCES)]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise CheckpointError(f"{DISTANCES}: damaged ({error}); reinstall langdepth") from None
    stems = {stem(word): float(np.log(metres)) for word, metres in rows}
    return stems | {word: float(np.log(metres)) for word, metres in rows}


@cache
def encoder() -> Sentences:
    """The small sentence encoder in the package."""
    return Sentences(OnnxGraph(FOLDER / "tiny-words.onnx", part="words"))


def traits_of(sentences: Sequence[str], features: Array | None = None) -> Traits:
    """The traits of sentences; ``features`` are computed where they are not given. Unknown words count for nothing."""
    both = [_words_of(sentence) for sentence in sentences]
    encoded = np.array([_feature(sentence) for sentence in sentences]) if features is None else features
    return Traits(np.array([one for one, _ in both]), [terms for _, terms in both], encoded)


def _words_of(sentence: str) -> tuple[list[float], frozenset[str]]:
    """The distances and terms of a sentence, see ``Traits``."""
    words, usual = words_of(sentence), usual_distances()
    forms = [word if word in usual else stem(word) for word in words]
    found = [usual[form] for form in forms if form in usual]
    stems = [stem(word) for word in words if word not in _STOP_WORDS]
    terms = frozenset(stems) | {f"{one} {two}" for one, two in pairwise(stems)}
    if not found:
        return [np.nan] * 6, terms
    return [float(np.mean(found)), max(found), min(found), found[0], found[-1], float(np.median(found))], terms


def _feature(sentence: str) -> npt.NDArray[np.float32]:
    """(D,) of its words that the encoder knows, zeros where there are none."""
    vocabulary = encoder().vocabulary
    known = vocabulary.known(sentence)[: vocabulary.max_words]
    nothing = FUNCTION_WORDS.issuperset(known)
    return np.zeros(_FEATURE, np.float32) if nothing else encoder().encode([" ".join(known)])[0]


def require_known(sentence: str) -> None:
    """Warn about words without meaning here. Raises UsageError where a sentence has no others."""
    words = [word for word in words_of(sentence) if word not in _STOP_WORDS]
    usual = usual_distances()
    unknown = [w for w in words if w not in usual and stem(w) not in usual and encoder().vocabulary.unknown(w)]
    if len(unknown) == len(words):
        raise UsageError(
            f"text {sentence!r}: none of its words is known; use plain words such as 'a kitchen with a sink'"
        )
    if unknown:
        listed = ", ".join(dict.fromkeys(unknown))
        warnings.warn(f"text '{sentence}': unknown words are ignored: {listed}", stacklevel=2)


def kernel(one: Traits, other: Traits) -> Array:
    """How alike sentences are, (N, M), for traits that ``Frame.normalised`` gave."""
    square = (one.distances[:, None] - other.distances[None]) ** 2
    near = np.exp(-square.sum(2) / 2 / _WIDTH)
    common = np.array([[len(a & b) / max(len(a | b), 1) for b in other.terms] for a in one.terms])
    linear = one.distances @ other.distances.T / one.distances.shape[1]
    alike = np.exp(one.features @ other.features.T - 1)
    kernels: Array = 0.5 * near * (1 + common) + _LINEAR * linear + _FEATURES * alike
    return kernels


class Frame(NamedTuple):
    """What brings traits to a common size: mean and deviation of ``distances``, centre and directions of features."""

    mean: Array
    deviation: Array
    centre: Array
    directions: Array

    def normalised(self, traits: Traits) -> Traits:
        """Distances in deviations from the mean, 0 where there are none; features as unit vectors."""
        distances = np.nan_to_num((traits.distances - self.mean) / self.deviation)
        features = np.where(traits.features.any(1, keepdims=True), traits.features - self.centre, 0) @ self.directions.T
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return Traits(distances, traits.terms, features / np.where(norms > 0, norms, 1))


class WordsToScale:
    """The trained head. Raises CheckpointError for a file that is missing or damaged.

    ``probabilities``: what intervals hold; ``deviations``: how many standard deviations to each side that takes;
    ``photo_deviations``: the same where the photo decides, of which the embedded model is sometimes far off.
    """

    def __init__(self, path: Path = WEIGHTS) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                self.arrays: dict[str, Any] = {name: file[name].astype(_dtype(file[name])) for name in file.files}
            self.frame = Frame(*(self.arrays[name] for name in Frame._fields))
            sentences = [str(sentence) for sentence in self.arrays["sentences"]]
            self.probabilities, self.deviations = self.arrays["probabilities"], self.arrays["deviations"]
            self.photo_deviations = self.arrays["photo_deviations"]
            self.image_deviation = float(self.arrays["image_deviation"])
            self.licence = str(self.arrays["licence"])
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing; reinstall langdepth") from None
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); reinstall langdepth") from None
        nothing = np.zeros((len(sentences), self.frame.centre.size))
        known = self.frame.normalised(traits_of(sentences, nothing))
        self._known = known._replace(features=self.arrays["features"])

    def belief(self, sentence: str | None) -> Belief:
        """What a sentence says about its image, or what is known of any image.

        Warns about words that it does not know; raises UsageError for a sentence of which it knows none.
        """
        if sentence is None:
            return Belief(self.arrays["any_mean"], self.arrays["any_covariance"])
        require_known(sentence)
        stored, traits = self.arrays, self.frame.normalised(traits_of([sentence]))
        found = kernel(traits, self._known)[0]
        unknown = float(kernel(traits, traits)[0, 0] - found @ stored["inverse"] @ found)
        growth = 1 + float(stored["growth"]) * max(unknown, 0.0)
        return Belief(stored["base"] + found @ stored["weights"], stored["covariance"] * growth)


def _dtype(array: npt.NDArray[Any]) -> Any:
    return array.dtype if array.dtype.kind == "U" else np.float64


@cache
def words_to_scale() -> WordsToScale:
    """The head in the package."""
    return WordsToScale()
