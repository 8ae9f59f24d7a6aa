"""Depth maps from files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.errors import ImageError
from langdepth.utils.arrays import read_npy, read_npz
from langdepth.utils.images import (
    GREY_16_BIT,
    MAX_PIXELS,
    binary_stream,
    check_pixels,
    decoding,
    integers_as_uint16,
    opened_image,
)
from langdepth.utils.png import PNG_TAG


def read_depth(path: str | Path, scale: float, *, keep_invalid: bool = False) -> npt.NDArray[np.float32]:
    """A depth map (H, W) float32 in metres, 0 where there is no value.

    A 16-bit grey PNG (or TIFF) holds ``value * scale`` metres. An ``.npy``, or an ``.npz`` with the key "depth" or a
    single array, holds metres in floating point; ``scale`` is not applied to it. NaN, infinite and negative values
    become 0, no value; ``keep_invalid`` leaves them in, for checks that count them.

    Raises ImageError, naming the file, for anything missing, broken, 8-bit, of another shape or above ``MAX_PIXELS``,
    and for a PNG of this library that states another scale.
    """
    if Path(path).suffix.lower() in (".npy", ".npz"):
        with binary_stream(path) as (stream, name), decoding(name):
            depth = _load_numpy(stream)
    else:
        with opened_image(path) as (image, _):
            values, stated = _decode_grey_16_bit(image), _stated_scale(image)
            if stated is not None and not np.isclose(stated, scale, rtol=1e-4, atol=0):
                raise ImageError(f"states a depth scale of {stated:g} inside, but is to be read with {scale:g}")
            depth = values.astype(np.float32) * np.float32(scale)
    if not keep_invalid:
        depth[~(np.isfinite(depth) & (depth > 0))] = 0
    return depth


def read_depth16(path: str | Path) -> tuple[npt.NDArray[np.float32], float]:
    """A depth PNG written by this library: depth (H, W) float32 in the unit the file states, 0 = no value; its scale.

    Raises ImageError, naming the file, when it is broken or carries no scale.
    """
    with opened_image(path) as (image, _):
        values, scale = _decode_grey_16_bit(image), _stated_scale(image)
        if scale is None:
            raise ImageError("carries no depth scale; read it with read_depth(path, scale)")
        if not (np.isfinite(scale) and scale > 0):
            raise ImageError(f"states a depth scale of {scale}, which is not a positive number")
    return values.astype(np.float32) * np.float32(scale), scale


def _stated_scale(image: Image.Image) -> float | None:
    """The depth scale that a PNG of this library states, None in other files."""
    try:
        return float(json.loads(image.info[PNG_TAG])["scale"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _decode_grey_16_bit(image: Image.Image) -> npt.NDArray[np.uint16]:
    check_pixels(*image.size, MAX_PIXELS)
    if image.mode not in GREY_16_BIT:
        raise ImageError(f"a depth map is a 16-bit grey PNG, this one is a {image.format} of mode {image.mode}")
    largest = _pgm_maximum(image)  # forgotten once it is decoded
    values = integers_as_uint16(np.asarray(image))
    if largest is None:
        return values
    return np.rint(values * (largest / 65535)).astype(np.uint16)


def _pgm_maximum(image: Image.Image) -> int | None:
    """The largest value that a PGM states, where Pillow stretches that to 65535; depth is the stored number."""
    tiles = getattr(image, "tile", None)
    if image.format != "PPM" or not tiles:
        return None
    codec, _, _, arguments = tiles[0]
    return int(arguments[1]) if codec != "raw" and isinstance(arguments, tuple) else None


def _load_numpy(stream: IO[bytes]) -> npt.NDArray[np.float32]:
    def choose(keys: Sequence[str]) -> str:
        if "depth" not in keys and len(keys) != 1:
            raise ImageError(f"expected the key 'depth' or a single array, found {', '.join(keys) or 'nothing'}")
        return "depth" if "depth" in keys else keys[0]

    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if len(shape) != 2 or 0 in shape:
            raise ImageError(f"a depth map is (H, W), found shape {shape}")
        if not np.issubdtype(dtype, np.floating):
            raise ImageError(f"a depth map in NumPy format holds metres in floating point, found {dtype}")
        check_pixels(shape[1], shape[0], MAX_PIXELS)

    if zipfile.is_zipfile(stream):
        return read_npz(stream, choose, check).astype(np.float32)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return read_npy(stream, check, size).astype(np.float32)
