"""The words that a small sentence encoder knows, and their numbers. Imports no torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from langdepth.errors import UsageError

PADDING, UNKNOWN = 0, 1
_KEPT = 1000  # sentences whose features are not computed again
Row = TypeVar("Row")


def words_of(sentence: str) -> list[str]:
    """Lower-case words of a sentence."""
    return re.findall(r"[a-z]+", sentence.lower())


def each_once(known: dict[str, Row], sentences: Sequence[str], encode: Callable[[str], Row]) -> list[Row]:
    """The features of each sentence; those in ``known``, which keeps the new ones, are not encoded again."""
    if len(known) > _KEPT:
        known.clear()
    for sentence in dict.fromkeys(sentences):
        if sentence not in known:
            known[sentence] = encode(sentence)
    return [known[sentence] for sentence in sentences]


class Vocabulary:
    """Known words in order. ``max_words``: longer sentences are cut."""

    def __init__(self, words: Sequence[str], max_words: int) -> None:
        self.words = tuple(words)
        self.max_words = max_words
        self._index = {word: i + 2 for i, word in enumerate(self.words)}

    def unknown(self, sentence: str) -> list[str]:
        """Words of the sentence that are not known, in order, once each."""
        return [word for word in dict.fromkeys(words_of(sentence)) if word not in self._index]

    def tokens(self, sentence: str) -> list[int]:
        """The words' numbers. Raises UsageError for a sentence without any word."""
        found = [self._index.get(word, UNKNOWN) for word in words_of(sentence)][: self.max_words]
        if not found:
            raise UsageError(f"the text {sentence!r} has no words; describe the image, or leave it out")
        return found

    def checked_tokens(self, sentence: str) -> list[int]:
        """``tokens``. Warns about words that it does not know; raises UsageError for a sentence of only such."""
        unknown = self.unknown(sentence)
        if unknown and set(unknown) == set(words_of(sentence)):
            raise UsageError(
                f"text '{sentence}': none of its words is known; use plain words such as "
                "'a kitchen with a table', or name a scene"
            )
        if unknown:
            warnings.warn(f"text '{sentence}': unknown words are ignored: {', '.join(unknown)}", stacklevel=2)
        return self.tokens(sentence)
