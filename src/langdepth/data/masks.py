"""What some systems take beside the image, its overlay: the image with masks drawn over it, or masks to be drawn."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.errors import ImageError, MissingImageError
from langdepth.utils.arrays import ArrayError, read_npz
from langdepth.utils.images import read_image
from langdepth.utils.reading import open_regular

MAX_MASK_BYTES = 1_000_000_000
OPACITY = 0.35  # as in SAM's demonstration notebook

OverlayReader = Callable[[Any, npt.NDArray[np.uint8]], npt.NDArray[Any]]
"""From a file, or what else the kind takes, and the image (H, W, 3) to (H, W, C), uint8 or float32."""


class OverlayKind(NamedTuple):
    """What a system takes beside the image.

    what: its name in messages. endings: of its file names, after the image's name; the first that is there counts.
    read: opens one. advice: how to get them. folder: of overlays, where none is named.
    """

    what: str
    endings: tuple[str, ...]
    read: OverlayReader
    advice: str
    folder: str | None

    @property
    def one(self) -> str:
        """Its name with the article."""
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"


def draw_masks(image: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], seed: int = 0) -> npt.NDArray[np.uint8]:
    """The image (H, W, 3) with ``masks`` (N, H, W) over it, translucent, each in a random color; large ones first.

    Raises ImageError when sizes differ.
    """
    if masks.ndim != 3 or masks.shape[1:] != image.shape[:2]:
        raise ImageError(f"masks of shape {masks.shape} do not fit an image of {image.shape[1]}x{image.shape[0]}")
    generator = np.random.default_rng(seed)
    colors = np.zeros((*image.shape[:2], 3), np.float32)
    covered = np.zeros(image.shape[:2], bool)
    for index in np.argsort(-masks.sum((1, 2)), kind="stable"):
        colors[masks[index]] = 255 * generator.random(3, np.float32)
        covered |= masks[index]
    blended = image * (1 - OPACITY) + colors * OPACITY
    return np.where(covered[..., None], blended.round(), image).astype(np.uint8)


def read_overlay(source: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The overlay of the photo ``image`` (H, W, 3): an image, brought to the photo's size, or masks to be drawn.

    ``source``: anything ``read_image`` takes, or an ``.npz`` file with the array ``masks`` (N, H, W).
    Raises ImageError.
    """
    if not isinstance(source, str | Path) or Path(source).suffix != ".npz":
        overlay = Image.fromarray(read_image(source).pixels)
        return np.asarray(overlay.resize((image.shape[1], image.shape[0])))  # Pillow's default, as published
    path = Path(source)
    try:
        with open_regular(path) as stream:
            check = partial(_require_fit, image.shape[:2])
            masks = read_npz(stream, lambda names: "masks", check).astype(bool, copy=False)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise MissingImageError(f"{path}: no such file") from None
    except Exception as error:  # a damaged archive raises OSError, ValueError, KeyError, BadZipFile, zlib.error ...
        reason = error if isinstance(error, ArrayError) else "it is damaged, truncated or of another kind"
        raise ImageError(f"{path}: not a file of masks ({reason}); needed is the array masks (N, H, W)") from None
    try:
        return draw_masks(image, masks, color_seed(path.stem))
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _require_fit(size: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ImageError, before they are unpacked, for masks of another size than the photo and for too many."""
    if len(shape) != 3 or shape[1:] != size:
        raise ImageError(f"masks of shape {shape} do not fit an image of {size[1]}x{size[0]}")
    if math.prod(shape) * dtype.itemsize > MAX_MASK_BYTES:
        raise ImageError(f"{shape[0]} masks of {size[1]}x{size[0]} are more than {MAX_MASK_BYTES // 10**6} MB")


def color_seed(name: str) -> int:
    """A seed by the name of an image, so that its colors are the same in every run."""
    return zlib.crc32(name.encode())


MASKS = OverlayKind(
    "overlay",
    (".jpg", ".png", ".npz"),
    read_overlay,
    "draw SAM's masks over the images with 'langdepth data sam' and name their folder (--overlay, data.overlay)",
    folder="sam_out",  # where the published data has them, beside the images
)
