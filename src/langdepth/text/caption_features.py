"""Captions with their CLIP text features, opened from every form in which people have them.

    FOLDER         packed: features.npy and captions.csv, as ``langdepth data pack-captions`` writes them
    FOLDER         the published trees: a folder with text/ and text_feat/, or one of the two, or a folder inside it
    FILE.npz       the arrays caption (N,) and feature (N, D): an image has the feature of its own sentence
    TEXT,FEATURES  captions and features named apart. TEXT: a tree of .txt files, a CSV with the columns image and
                   caption, or a folder of such. FEATURES: a tree of .pt files, or any of the three forms above

Training starts from them (``read_caption_features``), and data sets take each image's caption from them (``Captions``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from langdepth.errors import LangdepthError, UsageError
from langdepth.text.captions import (
    FEATURE_TREE,
    FEATURES,
    INDEX,
    TEXT_TREE,
    Caption,
    Half,
    check_norms,
    csv_rows,
    image_key,
    read_captions,
    table_features,
    tree_features,
)
from langdepth.utils.tensors import reading_tensors

FORMS = (
    "known forms: the folder of 'langdepth data pack-captions', a folder with text/ and text_feat/, an .npz with "
    "caption and feature, or captions and features named apart as TEXT,FEATURES"
)

NO_CAPTIONS = (  # for systems that cannot start without
    "{} starts from captions with CLIP text features; name them in system.prepare.text_features or data.captions: "
    "the folder of 'langdepth data pack-captions', a folder with text/ and text_feat/, or an .npz"
)


class Found(NamedTuple):
    """The caption of an image and the row of its feature, None where only sentences are known."""

    sentence: str
    row: int | None


class Captions:
    """Captions of images, with the feature of each distinct sentence.

    Args:
        where: What messages call them.
        by_image: Image (path without suffix) to sentence.
        by_sentence: Sentence to row of ``features``, None without features.
        features: (N, D) float16, rows of norm 1; None where only sentences are known.
    """

    def __init__(
        self, where: str, by_image: Mapping[str, str], by_sentence: Mapping[str, int | None], features: Half | None
    ) -> None:
        self.where = where
        self.features = features
        self._by_image, self._by_sentence = dict(by_image), dict(by_sentence)

    def __len__(self) -> int:
        """How many images have a caption."""
        return len(self._by_image)

    @property
    def width(self) -> int:
        """D, the length of a feature; 0 without features."""
        return 0 if self.features is None else int(self.features.shape[1])

    @property
    def sha256(self) -> str:
        """Of all captions and features, independent of their form."""
        digest = hashlib.sha256(json.dumps([sorted(self._by_image.items()), *self._by_sentence.items()]).encode())
        if self.features is not None:
            digest.update(np.ascontiguousarray(self.features).data)
        return digest.hexdigest()

    def find(self, image: str, sentence: str | None = None) -> Found | None:
        """Caption and feature row of an image, or None.

        A given ``sentence`` is preferred, and there are no others for it where features are known. Else the end of the
        path decides: the image "sync/kitchen_0028b/rgb_00045.jpg" has the caption of "kitchen_0028b/rgb_00045", never
        of "rgb_00045".
        """
        if sentence in self._by_sentence:
            return Found(sentence, self._by_sentence[sentence])
        if sentence is not None and self.features is not None:
            return None
        parts = image_key(image).split("/")
        ends = ("/".join(parts[start:]) for start in range(max(1, len(parts) - 1)))
        found = next((self._by_image[end] for end in ends if end in self._by_image), None)
        return None if found is None else Found(found, self._by_sentence[found])

    @property
    def reach(self) -> str:
        """``where``, and, for the message about an image without caption, that no image could have one."""
        return self.where if self else f"{self.where}, which names no images (name both: CAPTIONS,{self.where})"

    def require_features(self) -> Half:
        """The features. Raises LangdepthError where only sentences are known."""
        if self.features is None:
            raise LangdepthError(f"{self.where}: holds captions without features; {FORMS}")
        return self.features

    def sentences(self) -> list[str]:
        """The distinct captions."""
        return list(self._by_sentence)

    def feature(self, row: int) -> Tensor:
        """(D,) float32. Raises LangdepthError where only sentences are known."""
        return torch.from_numpy(self.require_features()[row].astype(np.float32))

    def distinct(self) -> tuple[list[str], Tensor]:
        """The sentences, each once, and their features (N, D) float32. Raises LangdepthError without features."""
        features, rows = self.require_features(), np.array(list(self._by_sentence.values()), int)
        return self.sentences(), torch.from_numpy(features[rows].astype(np.float32))


def open_captions(source: str | Path | Captions, *, sentences_alone: bool = False) -> Captions:
    """Captions from any of the forms above.

    Args:
        source: A path, or TEXT,FEATURES. Captions that are open already stay as they are.
        sentences_alone: Also take captions that have no features: a tree of .txt files, a CSV or a folder of such.

    Raises:
        LangdepthError: Something is missing, damaged, too large, contradicts itself, or is of none of these forms.
    """
    if isinstance(source, Captions):
        return source
    path = Path(source)
    if not path.exists():
        text, comma, features = str(source).partition(",")
        if not comma:
            raise LangdepthError(f"{source}: no such file or folder; {FORMS}")
        captions = read_captions(text.strip())
        return _joined(captions, sentence_features(captions, Path(features.strip()), compare=False), str(source))
    if (path / FEATURES).is_file():
        return _packed(path)
    trees = _trees(path)
    if trees is not None:
        captions = read_captions(trees[0])
        return _joined(captions, tree_features(captions, trees[1], compare=False), str(source))
    if path.is_file() and not path.name.endswith((".csv", ".csv.gz")):
        return _joined([], table_features(path), str(source))
    captions = read_captions(path)
    if not sentences_alone:
        raise LangdepthError(f"{source}: holds captions without features; {FORMS}")
    return Captions(str(source), dict(captions), {caption.sentence: None for caption in captions}, None)


def sentence_features(
    captions: Iterable[Caption], source: Path, progress: Callable[[], object] | None = None, *, compare: bool = True
) -> dict[str, Half]:
    """Sentence to feature: from a tree of ``.pt`` files for these ``captions`` (see ``tree_features``), or from any
    form of captions with features. Raises LangdepthError.
    """
    if source.is_dir() and not (source / FEATURES).is_file():
        below = source / FEATURE_TREE
        return tree_features(captions, below if below.is_dir() else source, progress, compare=compare)
    sentences, features = open_captions(source).distinct()
    return dict(zip(sentences, features.numpy().astype(np.float16), strict=True))


def _trees(path: Path) -> tuple[Path, Path] | None:
    """The published trees of captions and of features that ``path`` is above, or is, or lies in."""
    pairs = [(path / TEXT_TREE, path / FEATURE_TREE)]
    for place in (place for place, part in enumerate(path.parts) if part in (TEXT_TREE, FEATURE_TREE)):
        above, below = Path(*path.parts[:place]), path.parts[place + 1 :]
        pairs.append((above.joinpath(TEXT_TREE, *below), above.joinpath(FEATURE_TREE, *below)))
    return next(((text, features) for text, features in reversed(pairs) if text.is_dir() and features.is_dir()), None)


def _packed(folder: Path) -> Captions:
    path, index = folder / FEATURES, folder / INDEX
    with reading_tensors(path, "an array of features"):
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    if features.ndim != 2 or features.dtype != np.float16 or not features.size:
        raise LangdepthError(f"{path}: expected (N, D) float16, found {features.shape} {features.dtype}")
    check_norms(features, str(path))
    by_image: dict[str, str] = {}
    by_sentence: dict[str, int | None] = {}
    for line, values in csv_rows(index, ("image", "caption", "row")):
        row = values["row"]
        if not row.isdecimal() or len(row) > 12 or int(row) >= len(features):
            raise LangdepthError(f"{index} line {line}: row '{row}' is not one of the {len(features)} features")
        by_image[values["image"]] = values["caption"]
        if by_sentence.setdefault(values["caption"], int(row)) != int(row):
            raise LangdepthError(f"{index} line {line}: the caption '{values['caption']}' has two rows")
    if not by_sentence:
        raise LangdepthError(f"{index}: holds no captions")
    return Captions(str(folder), by_image, by_sentence, features)


def _joined(captions: Iterable[Caption], features: Mapping[str, Half], where: str) -> Captions:
    """Captions with the features of their sentences; those without one are left out."""
    widths = sorted({len(feature) for feature in features.values()})
    if len(widths) > 1:
        raise LangdepthError(f"{where}: the features have different widths: {', '.join(map(str, widths))}")
    captions = list(captions)
    by_image = {image: sentence for image, sentence in captions if sentence in features}
    if captions and not by_image:
        raise LangdepthError(
            f"{where}: none of the {len(captions)} captions has a feature; do both come from one data set?"
        )
    by_sentence = {sentence: row for row, sentence in enumerate(features)}
    return Captions(where, by_image, by_sentence, np.stack(list(features.values())))


# --- features given to systems


def checked_features(text: Tensor, shape: tuple[int, int], system: str) -> Tensor:
    """Features (B, D) given to a system, checked.

    Raises:
        UsageError: They have another ``shape``, or a row's norm is neither 1 nor 0 (no words).
    """
    if text.shape != shape:
        raise UsageError(f"text features have shape {tuple(text.shape)}; '{system}' takes one row per image, {shape}")
    if not torch.compiler.is_compiling():
        norms = text.float().norm(dim=1)
        if not bool((((norms - 1).abs() <= 0.02) | (norms == 0)).all()):
            raise UsageError(
                f"text features have norms from {norms.min():.3g} to {norms.max():.3g}, not 1; divide each by its norm"
            )
    return text


# --- start of training


class CaptionFeatures(NamedTuple):
    """Distinct captions with their CLIP text features (N, D) float32 of norm 1."""

    captions: list[str]
    features: Tensor


def read_caption_features(source: str | Path | Captions, width: int | None = None) -> CaptionFeatures:
    """The distinct captions of ``source``, see ``open_captions``, with their features.

    Raises:
        LangdepthError: ``source`` holds no captions with features.
        UsageError: Features have other than ``width`` numbers.
    """
    opened = open_captions(source)
    captions, features = opened.distinct()
    if width not in (None, features.shape[1]):
        raise UsageError(f"{opened.where}: features have {features.shape[1]} numbers, the system takes {width}")
    return CaptionFeatures(captions, F.normalize(features, dim=-1))
