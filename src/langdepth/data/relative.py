"""Relative maps that lie beside images, for systems that give them metres: files of any model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.data.masks import OverlayKind
from langdepth.errors import ImageError
from langdepth.evaluation.protocols import ScaleKind
from langdepth.utils.depth_files import map_numbers, read_map

ENDINGS = (".npy", ".npz", ".exr", ".png", "_depth.png")
ADVICE = (
    "name what makes it with --base (system.prepare.base): a depth model as transformers:NAME, another system, or a "
    "folder of maps"
)


def relative_maps(numbers: ScaleKind, learned: str | None = None) -> OverlayKind:
    """Files of relative maps.

    Args:
        numbers: What they hold where a file does not say it.
        learned: The base whose maps a system has learned from.
    """
    advice = ADVICE + ("" if learned is None else f"; these weights have learned from the maps of {learned}")
    return OverlayKind("relative map", ENDINGS, partial(read_relative, numbers=numbers), advice, folder=None)


def maps_of(base: str | None) -> Path | None:
    """The maps that ``--base`` names, one file or a folder without weights; None where it names a system."""
    path = Path(base or "")
    if base is None or (path.is_dir() and any(path.glob("*.safetensors"))):
        return None
    return path if path.is_dir() or path.suffix.lower() in ENDINGS else None


def read_relative(source: Any, image: npt.NDArray[np.uint8], numbers: ScaleKind) -> npt.NDArray[np.float32]:
    """The inverse depth (H, W, 1), up to factor and shift, of an image (H, W, 3); NaN where there is no value.

    Args:
        source: A file (16-bit grey PNG, .npy, .npz, .exr) or an array (H, W).
        image: What the map is of.
        numbers: What the map holds where its file does not say it.

    Raises:
        ImageError: The file is unusable, or of another size than the image.
    """
    name = f"{source}: " if isinstance(source, str | Path) else ""
    if isinstance(source, str | Path):
        values, stated = read_map(source)
        disparity = (stated or numbers) == "disparity"
    else:
        values, disparity = map_numbers(np.asarray(source)), numbers == "disparity"
    if values.shape != image.shape[:2]:
        found, wanted = ("x".join(map(str, shape[::-1])) for shape in (values.shape, image.shape[:2]))
        raise ImageError(f"{name}is {found}, its image {wanted}; resize the map to the size of its image")
    known = np.isfinite(values)
    if not disparity:
        known &= values > 0
        values = np.float32(1) / np.where(known, values, np.float32(1))
    inverse: npt.NDArray[np.float32] = np.where(known, values, np.float32(np.nan)).astype(np.float32)
    return inverse[..., None]
