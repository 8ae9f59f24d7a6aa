"""Captions of one's own images, by any image-to-text model of the package ``transformers``.

WorDepth's published captions came from ExpansionNet v2; other models describe in other words, but any plain sentence
about the image will do. Model files are data: only ``.safetensors`` weights and classes of ``transformers``
itself are loaded.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from langdepth.errors import CheckpointError, ImageError, LangdepthError, UsageError, first_line
from langdepth.text.captions import read_captions
from langdepth.utils.devices import move
from langdepth.utils.files import atomic_path
from langdepth.utils.images import read_image
from langdepth.utils.network import hub_or_cache
from langdepth.utils.reading import read_csv

RgbArray = npt.NDArray[np.uint8]
Describe = Callable[[Sequence[RgbArray]], list[str]]
SAVE_EVERY = 100  # images between two writings of the file
LONGEST = 30  # tokens


class Captioner:
    """Images (H, W, 3) uint8 to sentences.

    ``model``: a folder or a hub name, for example "Salesforce/blip-image-captioning-base". Raises UsageError when the
    package is missing, CheckpointError for a model that cannot be loaded or is of another kind.
    """

    def __init__(self, model: str, device: str | torch.device | None = None) -> None:
        try:
            from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer
        except ImportError:
            raise UsageError("captions need the package transformers: pip install 'langdepth[hub]'") from None
        try:
            with nullcontext() if Path(model).exists() else hub_or_cache():
                self.processor: Any = AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
                self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
                loaded = AutoModelForImageTextToText.from_pretrained(
                    model, use_safetensors=True, trust_remote_code=False
                )
        except Exception as error:  # its own, the hub's, the tokenizer's and plain value errors
            raise CheckpointError(
                f"{model}: not an image-to-text model of transformers ({first_line(error)})"
            ) from None
        self.model: Any = move(loaded, device).eval()

    @torch.inference_mode()
    def __call__(self, images: Sequence[RgbArray]) -> list[str]:
        """A sentence for each image, the most likely one by greedy search."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values.to(self.model.device)
        tokens = self.model.generate(pixel_values=pixels, max_new_tokens=LONGEST, do_sample=False)
        return [as_sentence(text) for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def as_sentence(text: str) -> str:
    """With a capital first and a full stop last, as the published captions are; "" stays."""
    plain = " ".join(text.split()).rstrip(" .")
    return f"{plain[0].upper()}{plain[1:]}." if plain else ""


def write_captions(
    root: str | Path,
    out: str | Path,
    describe: Describe,
    images: Sequence[Path],
    *,
    batch_size: int = 8,
    resume: bool = False,
) -> Iterator[tuple[str, str] | LangdepthError]:
    """Describe images; yields (image, sentence), or what was wrong.

    Args:
        root: The folder of the images.
        out: A CSV with the columns image (relative to ``root``) and caption, saved every ``SAVE_EVERY`` images.
        describe: From images to their sentences.
        images: Paths below ``root``.
        batch_size: How many images are described at once.
        resume: Keep what ``out`` holds.

    Raises:
        UsageError: ``out`` exists and is not to be continued.
    """
    root, out = Path(root), Path(out)
    if out.exists() and not resume:
        raise UsageError(f"{out}: exists; continue it with --resume, or give another --out")
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, got {batch_size}")
    done = {}
    if out.exists():
        read_captions(out)  # says what is wrong with it
        done = {row["image"]: row["caption"] for row in read_csv(out)}
    rest = iter([image.as_posix() for image in images if image.as_posix() not in done])
    saved = len(done)
    try:
        while batch := list(islice(rest, batch_size)):
            yield from _described(root, batch, describe, done)
            if len(done) - saved >= SAVE_EVERY:
                _save(out, done)
                saved = len(done)
    finally:
        if len(done) > saved:
            _save(out, done)


def _described(
    root: Path, batch: list[str], describe: Describe, done: dict[str, str]
) -> Iterator[tuple[str, str] | LangdepthError]:
    read: dict[str, RgbArray] = {}
    for image in batch:
        try:
            read[image] = read_image(root / image).pixels
        except ImageError as error:
            yield error
    sentences = describe(list(read.values())) if read else []
    for image, sentence in zip(read, sentences, strict=True):
        if sentence:
            done[image] = sentence
            yield image, sentence
        else:
            yield LangdepthError(f"{root / image}: the model had nothing to say about it")


def _save(out: Path, captions: dict[str, str]) -> None:
    with atomic_path(out) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        writer.writerows(captions.items())
