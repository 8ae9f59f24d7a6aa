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


FUNCTION_WORDS = frozenset(
    words_of(
        "a above against an and any are around at each from had his in is it next of on other out over the their "
        "through to under up with"
    )
)
"""Those that captions have around what they name: a sentence of nothing else has a feature, and says nothing."""


class Vocabulary:
    """Known words in order. ``max_words``: longer sentences are cut."""

    def __init__(self, words: Sequence[str], max_words: int) -> None:
        self.words = tuple(words)
        self.max_words = max_words
        self._index = {word: i + 2 for i, word in enumerate(self.words)}

    def known(self, sentence: str) -> list[str]:
        """Words of the sentence that are known, in order, as often as they stand there."""
        return [word for word in words_of(sentence) if word in self._index]

    def unknown(self, sentence: str) -> list[str]:
        """Words of the sentence that are not known, in order, once each."""
        return [word for word in dict.fromkeys(words_of(sentence)) if word not in self._index]

    def tokens(self, sentence: str) -> list[int]:
        """The words' numbers. Raises UsageError for a sentence without any word."""
        found = [self._index.get(word, UNKNOWN) for word in words_of(sentence)][: self.max_words]
        if not found:
            raise UsageError(f"the text {sentence!r} has no words; describe the image, or leave it out")
        return found

    def check(self, sentence: str) -> None:
        """Warn about words that count for nothing. Raises UsageError for a sentence of only such."""
        words, known, unknown = words_of(sentence), self.known(sentence), self.unknown(sentence)
        if words and FUNCTION_WORDS.issuperset(known):
            but = ", ".join(dict.fromkeys(known))
            raise UsageError(
                f"text '{sentence}': none of its words is known{but and f' but {but}'}; use plain words such as "
                "'a kitchen with a table', or name a scene"
            )
        if unknown:
            warnings.warn(f"text '{sentence}': unknown words are ignored: {', '.join(unknown)}", stacklevel=2)
        if len(words) > self.max_words:
            cut = f"{len(words)} words, of which the small encoder takes the first {self.max_words}"
            warnings.warn(f"text '{sentence}': {cut}", stacklevel=2)

    def encoded(self, known: dict[str, Row], sentences: Sequence[str], encode: Callable[[list[int]], Row]) -> list[Row]:
        """What ``encode`` makes of the words' numbers of each sentence, and ``check`` of it, in any number of threads.

        Sentences in ``known``, which keeps the new ones, are not encoded again.
        """
        if len(known) > _KEPT:
            known.clear()
        rows: dict[str, Row] = {}
        for sentence in dict.fromkeys(sentences):
            self.check(sentence)  # also of a sentence that is known: who reads its depth may be another one
            row = known.get(sentence)
            rows[sentence] = known[sentence] = encode(self.tokens(sentence)) if row is None else row
        return [rows[sentence] for sentence in sentences]
