"""Depth maps from files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.camera import turned_upright
from langdepth.errors import ImageError
from langdepth.utils.arrays import read_npy, read_npz
from langdepth.utils.exr import read_exr
from langdepth.utils.images import (
    GREY_16_BIT,
    MAX_PIXELS,
    TURNED_BY_READER,
    binary_stream,
    check_pixels,
    decoding,
    exif_of,
    integers_as_uint16,
    opened_image,
)
from langdepth.utils.png import PNG_TAG


def read_depth(path: str | Path, scale: float, *, keep_invalid: bool = False) -> npt.NDArray[np.float32]:
    """A depth map (H, W) float32 in metres, 0 where there is no value.

    A 16-bit grey PNG (or TIFF) holds ``value * scale`` metres. An ``.npy``, or an ``.npz`` with the key "depth" or a
    single array, holds metres in floating point; ``scale`` is not applied to it. NaN, infinite and negative values
    become 0, no value; ``keep_invalid`` leaves them in, for checks that count them. A file that states an EXIF
    orientation of its own is turned upright by it, whatever its format.

    Raises ImageError, naming the file, for anything missing, broken, 8-bit, of several pages, of another shape or above
    ``MAX_PIXELS``, and for a PNG of this library that states another scale.
    """
    if Path(path).suffix.lower() in (".npy", ".npz"):
        with binary_stream(path) as (stream, name), decoding(name):
            depth = _load_numpy(stream, _require_floats).astype(np.float32)
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


def read_map(path: str | Path) -> tuple[npt.NDArray[np.float32], str | None]:
    """The numbers (H, W) of a depth or disparity map as they are, and what the file says of them.

    The second is "metric", "relative" or "disparity" in 16-bit PNGs and .npz files of this library, else None. Such a
    PNG is multiplied by its own scale, others hold their numbers; of .npy and .npz see ``map_numbers``; an .exr has one
    channel, or one called Z, depth or Y. Not finite and negative numbers stay as they are.

    Raises ImageError, naming the file, as ``read_depth`` does; UsageError for an .exr without the package OpenEXR.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".exr":
        return read_exr(Path(path)), None
    if suffix in (".npy", ".npz"):
        with binary_stream(path) as (stream, name), decoding(name):
            return map_numbers(_load_numpy(stream, _require_fine)), _stated_kind(stream)
    with opened_image(path) as (image, _):
        values, scale = _decode_grey_16_bit(image).astype(np.float32), _stated_scale(image)
        kind = None if scale is None else json.loads(image.info[PNG_TAG]).get("scale_kind")
    return values if scale is None else values * np.float32(scale), kind


def map_numbers(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A map (H, W) of floats, or of whole numbers of 16 bits and more, where 0 is no value and becomes NaN.

    Raises ImageError for other arrays.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise ImageError(f"a relative map is an array of numbers (H, W), got {values.dtype} {values.shape}")
    _require_fine(values.dtype)
    with np.errstate(over="ignore"):  # beyond float32 is no value
        numbers = values.astype(np.float32)
    return numbers if values.dtype.kind == "f" else np.where(numbers == 0, np.float32(np.nan), numbers)


def _require_fine(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "uif":
        raise ImageError(f"a relative map holds real numbers, found {dtype}")
    if dtype.itemsize == 1:
        raise ImageError(
            f"a relative map of 8 bits ({dtype}) holds 256 steps, too few for depth; give 16 bits or floats"
        )


def _require_floats(dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f":
        raise ImageError(f"a depth map in NumPy format holds metres in floating point, found {dtype}")


def _stated_kind(stream: IO[bytes]) -> str | None:
    """What the metadata of an .npz of this library says of its numbers."""

    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if shape != () or dtype.kind != "U" or dtype.itemsize > 1 << 20:
            raise ImageError("its metadata is no text")

    stream.seek(0)
    if not zipfile.is_zipfile(stream) or "metadata.npy" not in zipfile.ZipFile(stream).namelist():
        return None
    kind: str | None = json.loads(str(read_npz(stream, lambda _: "metadata", check))).get("scale_kind")
    return kind


def depth_orientation(path: str | Path) -> int:
    """The EXIF orientation that a depth file states, by which ``read_depth`` has turned it; 1 where there is none."""
    if Path(path).suffix.lower() in (".npy", ".npz"):
        return 1
    try:
        with opened_image(path) as (image, _):
            return exif_of(image)[1]
    except ImageError:  # for example an HDF5 file
        return 1


def _stated_scale(image: Image.Image) -> float | None:
    """The depth scale that a PNG of this library states, None in other files."""
    try:
        return float(json.loads(image.info[PNG_TAG])["scale"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _decode_grey_16_bit(image: Image.Image) -> npt.NDArray[np.uint16]:
    check_pixels(*image.size, MAX_PIXELS)
    if image.mode not in GREY_16_BIT:
        channels = len(image.getbands())
        found = f"has {channels} channels" if channels > 1 else f"is of mode {image.mode}"
        if image.mode in ("L", "P"):
            found = "holds 8 bits, whose 256 steps are too few for depth"
        elif image.mode == "F":
            found = "holds floats, which are read from .npy"
        raise ImageError(f"a depth map is a 16-bit grey PNG, this {image.format} {found}")
    if getattr(image, "is_animated", False):
        raise ImageError("holds several pages or frames; a depth map is a file of its own")
    orientation = 1 if image.format in TURNED_BY_READER else exif_of(image)[1]
    values = _pgm_values(image)
    if values is None:
        shift = _stretched_bits(image)  # before the decoder lets go of the file
        values = integers_as_uint16(np.asarray(image)) >> np.uint16(shift)
    return turned_upright(values, orientation)


def _stretched_bits(image: Image.Image) -> int:
    """By how many bits Pillow shifts the numbers of a JPEG 2000 file to fill 16 of them; 0 for other images."""
    if image.format != "JPEG2000":
        return 0
    stream: IO[bytes] = getattr(image, "fp")  # noqa: B009
    stream.seek(0)
    _, start, sizes = stream.read(1 << 20).partition(b"\xff\x4f\xff\x51")
    bits = sizes[38] + 1 if start and len(sizes) > 38 else 0  # the upper bit is set for signed numbers
    if not 8 < bits <= 16:
        found = "signed numbers" if bits > 128 else f"numbers of {bits} bits"
        raise ImageError(f"holds {found}; a depth map in JPEG 2000 has up to 16 bits, without a sign")
    return 16 - bits


def _pgm_values(image: Image.Image) -> npt.NDArray[np.uint16] | None:
    """The numbers of a PGM that states a largest one, which Pillow would stretch to 65535; None for other images."""
    tiles: Any = getattr(image, "tile", None)
    if image.format != "PPM" or not tiles or tiles[0][0] == "raw":
        return None
    codec, _, offset, (_, largest) = tiles[0]
    if codec != "ppm":  # in decimal digits, which Pillow compares with the largest
        return np.rint(integers_as_uint16(np.asarray(image)) * (largest / 65535)).astype(np.uint16)
    stream: IO[bytes] = getattr(image, "fp")  # noqa: B009
    stream.seek(offset)
    count = image.width * image.height
    values = np.frombuffer(stream.read(2 * count), ">u2")
    if len(values) < count:
        raise ImageError("damaged or truncated")
    if values.max() > largest:
        raise ImageError(f"holds the number {values.max()}, but its header states {largest} as the largest")
    return values.astype(np.uint16).reshape(image.height, image.width)


def _load_numpy(stream: IO[bytes], require: Callable[[np.dtype[Any]], None]) -> npt.NDArray[Any]:
    """The map in a stream, of a type that ``require`` lets through."""

    def choose(keys: Sequence[str]) -> str:
        if "depth" not in keys and len(keys) != 1:
            raise ImageError(f"expected the key 'depth' or a single array, found {', '.join(keys) or 'nothing'}")
        return "depth" if "depth" in keys else keys[0]

    def check(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if len(shape) != 2 or 0 in shape:
            raise ImageError(f"a depth map is (H, W), found shape {shape}")
        require(dtype)
        check_pixels(shape[1], shape[0], MAX_PIXELS)

    if zipfile.is_zipfile(stream):
        return read_npz(stream, choose, check)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return read_npy(stream, check, size)
