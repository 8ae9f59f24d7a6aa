"""A depth map from an OpenEXR file, whose other channels are not read, and to one."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import ImageError, UsageError
from langdepth.utils.images import MAX_PIXELS, binary_stream, check_pixels, decoding

OWN_EXR = b"langdepthDepth"  # the attribute by which files of this library are recognized
_KNOWN = ("Z", "depth", "Y")
_MAX_NUMBERS = 1 << 29  # pixels x channels, of the image and of a tile: all channels are unpacked, part by part
_TYPES = {"FLOAT": np.float32, "HALF": np.float16}
_STDERR = 2
_lock = threading.Lock()


def read_exr(path: Path) -> npt.NDArray[np.float32]:
    """The only channel (H, W), or that called Z, depth or Y.

    Raises:
        ImageError: The file is missing, damaged, too large or holds something else.
        UsageError: The package OpenEXR is not installed.
    """
    package = _package(path)
    with binary_stream(path) as (_, name), decoding(name), _quiet():
        file = package.InputFile(name)
        try:
            return _read(file)
        finally:
            file.close()


def exr_bytes(depth: npt.NDArray[np.float32], facts: str) -> bytes:
    """A file of a depth map (H, W): the channel Z in 32-bit floats, and ``facts`` in the header.

    Raises UsageError where the package OpenEXR is not installed.
    """
    package = _package("exr")
    header = {"compression": package.ZIP_COMPRESSION, "type": package.scanlineimage, OWN_EXR.decode(): facts}
    with tempfile.TemporaryDirectory(prefix="langdepth-") as folder:  # the package writes to names only
        path = Path(folder, "depth.exr")
        package.File(header, {"Z": np.ascontiguousarray(depth)}).write(str(path))
        return path.read_bytes()


def _package(path: object) -> Any:
    try:
        import OpenEXR
    except ImportError:
        raise UsageError(f"{path}: .exr files need a package: pip install 'langdepth[exr]'") from None
    return OpenEXR


def _read(file: Any) -> npt.NDArray[np.float32]:
    header = file.header()
    window, channels = header["dataWindow"], header["channels"]
    width, height = window.max.x - window.min.x + 1, window.max.y - window.min.y + 1
    check_pixels(width, height, MAX_PIXELS)
    tiles = header.get("tiles")
    parts = [(width, height, "pixels"), *([] if tiles is None else [(tiles.xSize, tiles.ySize, "pixels in each tile")])]
    for across, down, what in parts:
        if across * down * len(channels) > _MAX_NUMBERS:
            numbers = f"{len(channels)} channels of {across}x{down} {what}"
            raise ImageError(f"has {numbers}, which are too many; save the depth alone, in lines")
    wanted = next((known for known in _KNOWN if known in channels), None)
    if wanted is None and len(channels) != 1:
        raise ImageError(f"has the channels {', '.join(channels)}; a map is one channel, or one called Z")
    wanted = wanted or next(iter(channels))
    kind = str(channels[wanted].type)
    if kind not in _TYPES:
        raise ImageError(f"holds {kind}; a map is in floating point")
    if (channels[wanted].xSampling, channels[wanted].ySampling) != (1, 1):
        raise ImageError(f"holds {wanted} for a part of its pixels only; save it at full size")
    values = np.frombuffer(file.channel(wanted), _TYPES[kind])
    return values.reshape(height, width).astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without this, the library prints lines of its own for a damaged file, beside the error that it raises."""
    with _lock, open(os.devnull, "wb") as nothing:
        kept = os.dup(_STDERR)
        os.dup2(nothing.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
