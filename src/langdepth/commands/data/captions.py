"""``langdepth data pack-captions``: captions and their features for training."""

from __future__ import annotations

import sys
from pathlib import Path

from langdepth.errors import UsageError


def pack_captions(*, text: Path, out: Path, features: Path | None = None, clip_weights: str | None = None) -> None:
    """Pack captions and their CLIP text features into the folder that data.captions of a recipe names.

    The features are published ones, or are computed from CLIP weights (RN50's text tower).

    Args:
        text: Captions: the published tree of .txt files, a CSV with the columns image and caption, or a folder of such.
        out: Folder to write: features.npy and captions.csv.
        features: Their features: the published tree of .pt files, or an .npz with the arrays caption and feature.
            Pictures without a feature are left out and counted.
        clip_weights: Compute the features that are not given: OpenAI's archive, open_clip's or Hugging Face's file, or
            the word random.
    """
    if features is None and clip_weights is None:
        raise UsageError("say where the captions' features come from: --features DIR or --clip-weights FILE")

    from tqdm import tqdm

    from langdepth.text import captions as words

    found = words.read_captions(text)
    known = {}
    if features is not None and features.is_dir():
        with tqdm(total=len(found), unit="caption", disable=not sys.stderr.isatty(), leave=False) as bar:
            known = words.tree_features(found, features, progress=bar.update)
    elif features is not None:
        known = words.table_features(features)
    new = list(dict.fromkeys(caption.sentence for caption in found if caption.sentence not in known))
    if clip_weights is not None and new:
        encoded = words.ClipSentences(clip_weights).encode(new).half().numpy()
        known |= dict(zip(new, encoded, strict=True))
    packed = words.pack(found, known, out)
    print(f"{packed.pictures} pictures, {packed.distinct} distinct captions in {out}")
    if packed.left_out:
        print(
            f"langdepth data pack-captions: {packed.left_out} pictures have a caption without feature", file=sys.stderr
        )
