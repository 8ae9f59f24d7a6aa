"""``langdepth data caption`` and ``pack-captions``: captions of images, and their features for training."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

from langdepth.commands.data._progress import count_outcomes
from langdepth.errors import UsageError, say


def caption(
    directory: str,
    *,
    model: str,
    out: Path = Path("captions.csv"),
    pattern: str | None = None,
    batch_size: int = 8,
    device: str = "auto",
    resume: bool = False,
) -> int:
    """Write a sentence about every image of a folder, by an image-to-text model. Needs the package transformers.

    The result is a CSV with the columns image and caption, which pack-captions takes. An image that cannot be read is
    reported and skipped; the exit code is then 1. The published captions of WorDepth came from ExpansionNet v2.

    Args:
        directory: Folder of images.
        model: The model's folder, or its name on the hub, for example Salesforce/blip-image-captioning-base.
        out: The CSV to write.
        pattern: Only images whose path below the folder fits, for example "**/rgb_*"; by default all images, whatever
            their names, but depth maps and results.
        batch_size: How many images go through the model at once.
        device: auto (an accelerator if there is one), cpu, cuda, cuda:1.
        resume: Keep what the CSV holds and describe the other images.
    """
    from langdepth.data.tools.captioner import Captioner, write_captions
    from langdepth.prediction.inputs import images_below

    describe = Captioner(model, device)
    images, problems = images_below(directory, out, pattern)
    outcomes = write_captions(directory, out, describe, images, batch_size=batch_size, resume=resume)
    done, failed = count_outcomes(chain(problems, outcomes), "langdepth data caption", "image")
    say(f"{done} captions written, {failed} images failed, results in {out}")
    return 1 if failed else 0


def pack_captions(*, text: Path, out: Path, features: Path | None = None, clip_weights: str | None = None) -> None:
    """Pack captions and their CLIP text features into the folder that data.captions of a recipe names.

    The features are published ones, or are computed from CLIP weights (RN50's text tower).

    Args:
        text: Captions: the published tree of .txt files, a CSV with the columns image and caption, or a folder of such.
        out: Folder to write: features.npy and captions.csv.
        features: Their features: the published tree of .pt files, an .npz with the arrays caption and feature, or a
            packed folder. Images without a feature are left out and counted.
        clip_weights: Compute the features that are not given: OpenAI's archive, open_clip's or Hugging Face's file, or
            the word random.
    """
    if features is None and clip_weights is None:
        raise UsageError("say where the captions' features come from: --features DIR or --clip-weights FILE")

    from tqdm import tqdm

    from langdepth.text import captions as words
    from langdepth.text.caption_features import sentence_features

    found = words.read_captions(text)
    known = {}
    if features is not None:
        with tqdm(total=len(found), unit="caption", disable=not sys.stderr.isatty(), leave=False) as bar:
            known = sentence_features(found, features, progress=bar.update)
    new = list(dict.fromkeys(caption.sentence for caption in found if caption.sentence not in known))
    if clip_weights is not None and new:
        encoded = words.ClipSentences(clip_weights).encode(new).half().numpy()
        known |= dict(zip(new, encoded, strict=True))
    packed = words.pack(found, known, out)
    say(f"{packed.images} images, {packed.distinct} distinct captions in {out}")
    if packed.left_out:
        say(f"langdepth data pack-captions: {packed.left_out} images have a caption without feature", file=sys.stderr)
