"""What is said about an image before its depth is predicted: a sentence, or a CLIP feature in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import UsageError
from langdepth.prediction.arrays import is_tensor, to_numpy
from langdepth.systems.contract import Predicts

if TYPE_CHECKING:
    from langdepth.text.caption_features import Captions


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """A sentence, its feature, or both; systems get the feature where there is one.

    ``feature``: (D,); for systems whose text matrix holds for all images (``text_per_image`` False), the matrix.
    """

    sentence: str | None = None
    feature: npt.NDArray[np.float32] | None = None

    @property
    def label(self) -> str:
        """For the record of a result."""
        if self.sentence is not None or self.feature is None:
            return self.sentence or ""
        return f"features of shape {tuple(self.feature.shape)}"


def words_per_image(system: Predicts, text: Any, count: int) -> list[Words | None]:
    """What the option ``text`` of a prediction says about each of ``count`` images.

    Args:
        system: The system that is to read it.
        text: None; a sentence; a feature (D,) or (1, D), which like the sentence holds for all images; features (N, D),
            a row per image; or a list of sentences or features, one per image. Tensors and NumPy arrays both do.
        count: How many images there are.

    Raises:
        UsageError: Their number or shape does not fit, or a feature is not finite.
    """
    if isinstance(text, list | tuple):
        if len(text) != count:
            raise UsageError(f"text: {len(text)} given for {count} images; give one for all, or one per image")
        if any(one is None for one in text):
            raise UsageError("text: give it for all images or for none")
        words = [words_per_image(system, one, 1)[0] for one in text]
        shapes = {tuple(one.feature.shape) for one in words if one is not None and one.feature is not None}
        if len(shapes) > 1:
            raise UsageError(f"text: features of different shapes, {' and '.join(map(str, sorted(shapes)))}")
        return words
    if text is None or isinstance(text, str | Words):
        return [Words(sentence=text) if isinstance(text, str) else text] * count
    features = _as_features(text)
    if not system.text_per_image:
        return [Words(feature=features)] * count
    rows = features[None] if features.ndim == 1 else features
    if rows.ndim != 2 or len(rows) not in (1, count):
        raise UsageError(
            f"text: features of shape {tuple(features.shape)} for {count} image{'s' * (count != 1)}; "
            f"give (D,) for all of them, or ({count}, D)"
        )
    return [Words(feature=rows[0 if len(rows) == 1 else i]) for i in range(count)]


def _as_features(text: Any) -> npt.NDArray[np.float32]:
    if not isinstance(text, np.ndarray) and not is_tensor(text):
        raise UsageError(f"text: give a sentence or CLIP features, not {type(text).__name__}")
    try:
        features = to_numpy(text if isinstance(text, np.ndarray) else text.float()).astype(np.float32)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        raise UsageError(f"text: an array of {getattr(text, 'dtype', 'objects')} holds no features") from None
    if not np.isfinite(features).all():
        raise UsageError("text: some features are not finite")
    return features


def batch_of(system: Predicts, words: Sequence[Words | None]) -> Any:
    """The words of a batch as a system takes them: all are sentences, all features, or all None.

    Captions that have both reach a system that reads sentences as these.
    """
    known = [one for one in words if one is not None]
    spoken = system.reads_sentences and all(one.sentence is not None for one in known)
    features = [] if spoken else [one.feature for one in known if one.feature is not None]
    if features:
        return system.as_input(np.stack(features) if system.text_per_image else features[0])
    return [one.sentence or "" for one in known] or None


def find_caption(captions: Captions, place: str, source: str) -> Words | None:
    """The caption of an image: by its ``place`` below the folder that was named, else by its path ``source``."""
    found = captions.find(place) or captions.find(source)
    if found is None:
        return None
    return Words(sentence=found.sentence, feature=None if found.row is None else to_numpy(captions.feature(found.row)))
