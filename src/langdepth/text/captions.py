"""Captions of images and their CLIP text features: published files, and the packed form.

Published (WorDepth): one ``<nyu|kitti>/<train|test>/<image without suffix>.txt`` per image, and beside that tree
another of ``.pt`` files, each a float16 tensor (1, 1024) of norm 1. Packed: a folder with

    features.npy   (N, D) float16, one row of norm 1 per distinct caption; read through a memory map
    captions.csv   image (path without suffix, as in the split lists), caption, row in features.npy

Equal captions have equal features, so one row serves all images with the same caption. ``text/caption_features.py``
opens all of these forms.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from langdepth.errors import LangdepthError, UsageError, text_flaw
from langdepth.utils.arrays import read_npz
from langdepth.utils.files import atomic_path, require_marked
from langdepth.utils.locks import locked
from langdepth.utils.reading import Rows, open_regular, read_text, visible
from langdepth.utils.tensors import read_pickle, reading_tensors, require_plain, require_ratio

FEATURES, INDEX = "features.npy", "captions.csv"
TEXT_TREE, FEATURE_TREE = "text", "text_feat"  # names of the published trees, side by side
NORM_TOLERANCE = 2e-3  # float16 rounding leaves 5e-4
_MAX_CSV_BYTES = 1 << 28
_MAX_PT_BYTES = 1 << 20
_MAX_TXT_BYTES = 1 << 12
Half = npt.NDArray[np.float16]


class Caption(NamedTuple):
    """The caption of one image; ``image`` is its path without suffix and leading slash."""

    image: str
    sentence: str


def image_key(path: str) -> str:
    """An image's path as captions name it: forward slashes, no leading one, no suffix."""
    plain = PurePosixPath(path.replace("\\", "/"))
    return str(plain.with_suffix("") if plain.name else plain).lstrip("/")


def check_norms(features: npt.NDArray[np.floating[Any]], where: str) -> None:
    """Raise LangdepthError unless all rows (N, D) have norm 1 up to the rounding of float16."""
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float32))
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # so that NaN is wrong
    if len(wrong):
        raise LangdepthError(f"{where}: feature {wrong[0]} has norm {norms[wrong[0]]:.4g} instead of 1")


def csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values of every row of a ``.csv`` or ``.csv.gz``."""
    try:
        with open_regular(path) as stream, gzip.open(stream) if path.suffix == ".gz" else stream as file:
            content: bytes = file.read(_MAX_CSV_BYTES + 1)
        if len(content) > _MAX_CSV_BYTES:
            raise LangdepthError(f"{path}: unpacks to more than {_MAX_CSV_BYTES >> 20} MB")
        reader = Rows(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise LangdepthError(f"{path}: has no column {' and no column '.join(missing)}")
        for values in reader:
            short = [column for column in columns if not values[column]]
            if short:
                raise LangdepthError(f"{path} line {reader.line_num}: {short[0]} is empty")
            yield reader.line_num, values
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise LangdepthError(f"{path}: not readable as CSV ({text_flaw(error)})") from None


# --- published files


def read_captions(source: str | Path) -> list[Caption]:
    """Captions from a CSV with the columns image and caption, a folder of such (``*.csv``, ``*.csv.gz``), or a tree of
    ``<nyu|kitti>/<train|test>/<image>.txt`` or the folder above it.

    Raises LangdepthError naming the file for an empty caption, an image with two different ones, or no caption at all.
    """
    source = Path(source)
    if source.is_dir():
        tables = [file for file in visible(source, "*") if file.name.endswith((".csv", ".csv.gz"))]
        below = source / TEXT_TREE
        found = _from_tables(tables) if tables else _from_tree(below if below.is_dir() else source)
    elif source.is_file():
        found = _from_tables([source])
    else:
        raise LangdepthError(f"{source}: no such file or folder")
    captions: dict[str, str] = {}
    for image, sentence in found:
        if captions.setdefault(image, sentence) != sentence:
            raise LangdepthError(f"{source}: {image} has two captions, '{captions[image]}' and '{sentence}'")
    if not captions:
        raise LangdepthError(f"{source}: holds no captions, neither a .csv with image and caption nor .txt files")
    return [Caption(image, sentence) for image, sentence in captions.items()]


def _from_tables(tables: Iterable[Path]) -> Iterator[Caption]:
    for table in tables:
        for _, values in csv_rows(table, ("image", "caption")):
            yield Caption(image_key(values["image"]), values["caption"])


def _from_tree(root: Path) -> Iterator[Caption]:
    for file in visible(root, "**/*.txt"):
        try:
            sentence = read_text(file, _MAX_TXT_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LangdepthError(f"{file}: not readable as a caption ({text_flaw(error)})") from None
        if not sentence:
            raise LangdepthError(f"{file}: the caption is empty")
        yield Caption(_without_set(file.relative_to(root)), sentence)


def _without_set(path: Path) -> str:
    """Without the leading data set and split, which the split lists leave out."""
    parts = path.with_suffix("").parts
    splits = [place for place, part in enumerate(parts[:2]) if part in ("train", "test")]
    return "/".join(parts[splits[0] + 1 :] if splits else parts)


def published_feature(path: Path) -> Half:
    """One published ``.pt``: (D,) float16. Raises LangdepthError naming the file."""
    try:
        size = path.stat().st_size
    except OSError:
        raise LangdepthError(f"{path}: no such file; every caption needs its feature") from None
    if size > _MAX_PT_BYTES:
        raise LangdepthError(f"{path}: too large for one feature")
    tensor = read_pickle(path)
    if not isinstance(tensor, Tensor) or tensor.ndim != 2 or len(tensor) != 1:
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise LangdepthError(f"{path}: expected one tensor (1, D), found {found}")
    require_plain({"feature": tensor}, path)
    feature: Half = tensor[0].half().numpy()
    check_norms(feature[None], str(path))
    return feature


def tree_features(
    captions: Iterable[Caption], root: Path, progress: Callable[[], object] | None = None, *, compare: bool = True
) -> dict[str, Half]:
    """Sentence to feature from a tree of ``.pt`` files.

    Args:
        captions: The captions whose features are read.
        root: Top of the tree, or a folder in it.
        progress: Called after every caption.
        compare: Read the feature of every image, not only of the first one with each caption.

    Raises:
        LangdepthError: A file is missing or damaged, or (with ``compare``) equal captions differ in their features.
    """
    files = {_without_set(file.relative_to(root)): file for file in visible(root, "**/*.pt")}
    features: dict[str, Half] = {}
    for image, sentence in captions:
        if compare or sentence not in features:
            feature = published_feature(files.get(image, root / f"{image}.pt"))
            known = features.setdefault(sentence, feature)
            if not np.array_equal(known, feature):
                raise LangdepthError(f"{root}: the feature of {image} is not that of other images with its caption")
        if progress is not None:
            progress()
    return features


def table_features(path: Path) -> dict[str, Half]:
    """Sentence to feature from an ``.npz`` with the arrays caption (N,) and feature (N, D).

    Features of norm 1 keep their bits; others are divided by their norm. Other arrays are not read.

    Raises:
        LangdepthError: The file is missing, damaged, too large or of another kind; a feature is not finite or zero;
            a caption is empty or has two features.
    """
    what = "a file of caption features, the arrays caption (N,) and feature (N, D)"
    with reading_tensors(path, what), open_regular(path) as stream:
        require_ratio(path)
        captions, stored = read_npz(stream, lambda _: "caption"), read_npz(stream, lambda _: "feature")
        with np.errstate(over="ignore"):  # what is beyond float32 is refused as not finite
            sentences, features = [str(sentence) for sentence in captions], stored.astype(np.float32)
    if features.ndim != 2 or not len(sentences) == len(features) > 0:
        raise LangdepthError(f"{path}: {len(sentences)} captions and features {features.shape} do not belong together")
    if not all(sentence.strip() for sentence in sentences):
        raise LangdepthError(f"{path}: a caption is empty")
    table: dict[str, Half] = {}
    for sentence, feature in zip(sentences, _of_norm_1(features, str(path)), strict=True):
        if not np.array_equal(table.setdefault(sentence, feature), feature):
            raise LangdepthError(f"{path}: the caption '{sentence}' has two different features")
    return table


def _of_norm_1(features: npt.NDArray[np.float32], where: str) -> Half:
    """Rows (N, D) as float16 of norm 1; those that have it already unchanged. Raises LangdepthError."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    wrong = np.flatnonzero(~((norms > 0) & np.isfinite(norms)))
    if len(wrong):
        raise LangdepthError(f"{where}: some features are not finite or zero, the first is feature {wrong[0]}")
    unit: Half = np.where(np.abs(norms - 1) <= NORM_TOLERANCE, features, features / norms).astype(np.float16)
    return unit


class ClipSentences:
    """Sentences to features as the published ones were made: CLIP's text tower, divided by the norm, through float16.

    ``clip_weights``: a file, None for open_clip's own download, or "random". ``raw``: features as the tower gives them,
    float32 and not brought to norm 1. Raises as ``find_clip_weights`` does.
    """

    def __init__(self, clip_weights: str | Path | None, architecture: str = "RN50", *, raw: bool = False) -> None:
        from langdepth.backbones.clip_weights import find_clip_weights

        self.raw = raw
        self.weights = find_clip_weights(clip_weights, architecture, quick_gelu=True)
        self._encoded: dict[str, Tensor] = {}

    def __deepcopy__(self, _: Any) -> ClipSentences:
        return self  # large; copies share the encoded sentences

    def encode(self, sentences: Sequence[str]) -> Tensor:
        """(B, D) float32; each distinct sentence is computed once. Raises UsageError for an empty one."""
        from langdepth.text.clip_text import encode_sentences, raw_text_features, warn_of_cuts

        if not all(sentence.strip() for sentence in sentences):
            raise UsageError("a text is empty; describe the image, or leave it out")
        distinct = dict.fromkeys(sentences)
        new = [sentence for sentence in distinct if sentence not in self._encoded]
        warn_of_cuts([sentence for sentence in distinct if sentence in self._encoded])
        if new:
            encoded = raw_text_features(new, self.weights) if self.raw else encode_sentences(new, self.weights)
            self._encoded.update(zip(new, encoded if self.raw else encoded.half().float(), strict=True))
        return torch.stack([self._encoded[sentence] for sentence in sentences])


# --- packing


class Packed(NamedTuple):
    """Numbers of images and distinct captions written, and of images left out for lack of a feature."""

    images: int
    distinct: int
    left_out: int


def pack(captions: Iterable[Caption], features: Mapping[str, Half], out: str | Path) -> Packed:
    """Write the packed form. Images whose caption has no feature are left out and counted.

    Raises LangdepthError when nothing is left, or the features differ in width.
    """
    out = Path(out)
    captions = list(captions)
    kept = [caption for caption in captions if caption.sentence in features]
    if not kept:
        raise LangdepthError(f"none of the {len(captions)} captions has a feature; do both come from one data set?")
    rows = {sentence: row for row, sentence in enumerate(dict.fromkeys(caption.sentence for caption in kept))}
    widths = {len(features[sentence]) for sentence in rows}
    if len(widths) > 1:
        raise LangdepthError(f"the features have different widths: {', '.join(map(str, sorted(widths)))}")
    require_marked(out / INDEX, b"image,caption,row")
    if not (out / INDEX).exists():  # without it the features are of somebody else
        require_marked(out / FEATURES)
    with locked(out):  # the two files belong together
        with atomic_path(out / FEATURES) as path:
            np.save(path, np.stack([features[sentence] for sentence in rows]), allow_pickle=False)
        with atomic_path(out / INDEX) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "caption", "row"))
            writer.writerows((image, sentence, rows[sentence]) for image, sentence in kept)
    return Packed(len(kept), len(rows), len(captions) - len(kept))
