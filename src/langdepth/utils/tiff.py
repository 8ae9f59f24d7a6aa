"""TIFF: which of its many kinds are read, and which Pillow would decode wrongly."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import IO, Any

from PIL import Image, TiffImagePlugin

from langdepth.errors import ImageError
from langdepth.utils.image_kinds import RAW_REFUSAL

_NEW_SUBFILE_TYPE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _PLANAR, _TILES, _SAMPLE_FORMAT, _DNG_VERSION = 273, 277, 284, 324, 339, 50706
_WHITE_IS_ZERO, _PLANES, _SIGNED = 0, 2, 2
_NUMBERS = {1: "integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
_BIG = 43  # the version of a TIFF with addresses of 64 bits
_COMPRESSIONS = {  # some that Pillow does not know, or may be built without
    **dict.fromkeys((33003, 33004, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((22610, 34934), "JPEG XR"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34887: "LERC",
    34933: "PNG",
    50001: "WebP",
}


def stored_bits(image: Image.Image) -> int:
    """Bits of a number in a TIFF that Pillow has opened."""
    return _bits(image.tag_v2)  # type: ignore[attr-defined]


def require_readable(image: Image.Image) -> None:
    """Raise ImageError for a TIFF that Pillow opens but would not decode to what it shows."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE) == 1:  # its first image is a small preview of the photo
        raise ImageError(RAW_REFUSAL)
    reason = _refusal(tags)
    if reason is not None:
        raise ImageError(reason)
    tiles = image.tile  # type: ignore[attr-defined]
    if not tiles:  # somebody has decoded it already
        return
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR) == _PLANES and tiles[0][0] != "libtiff" else 1
    stored = sum((right - left) * (lower - upper) for _, (left, upper, right, lower), *_ in tiles)
    if stored < planes * image.width * image.height:  # Pillow would make up the rest
        raise ImageError("damaged or truncated (its strips hold a part of the image only)")


def unread_kind(stream: IO[bytes]) -> str | None:
    """Why Pillow does not open a TIFF that may be whole, and what to do; None for a damaged one."""
    with suppress(Exception):  # Pillow's reader raises almost anything
        stream.seek(0)
        header = stream.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header + (stream.read(8) if _BIG in header[2:4] else b""))
        stream.seek(tags.next)
        tags.load(stream)
        if _WIDTH in tags and _LENGTH in tags and (_STRIPS in tags or _TILES in tags):
            kind = _NUMBERS.get(max(tags.get(_SAMPLE_FORMAT, (1,))), "numbers")
            count = tags.get(_SAMPLES, 1)
            channels = "one channel" if count == 1 else f"{count} channels"
            return _refusal(tags) or _not_read(f"of {_bits(tags)}-bit {kind} in {channels}")
    return None


def _bits(tags: Mapping[int, Any]) -> int:
    return int(max(tags.get(_BITS, (1,))))


def _refusal(tags: Mapping[int, Any]) -> str | None:
    compression, bits = tags.get(_COMPRESSION, 1), _bits(tags)
    if not _has_codec(compression):
        return _not_read(f"compressed by {_COMPRESSIONS.get(compression, f'method {compression}')}")
    if bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts those of 8 bits only
        return "its numbers count from white to black (white is zero); save it with black as zero"
    if bits > 8 and tags.get(_PLANAR) == _PLANES and tags.get(_SAMPLES, 1) > 1:  # Pillow takes them for 8 bits
        return _not_read(f"of {bits} bits with each channel apart (planar configuration 2)")
    if bits == 8 and max(tags.get(_SAMPLE_FORMAT, (1,))) == _SIGNED:
        return _not_read("of 8-bit signed integers")
    return None


def _not_read(what: str) -> str:
    return f"is a TIFF {what}, which is not read; save it as PNG, or depth as .npy"


def _has_codec(compression: int) -> bool:
    library = _libtiff()
    if compression in _COMPRESSIONS and library is not None and not library.TIFFIsCODECConfigured(compression):
        return False
    return compression in TiffImagePlugin.COMPRESSION_INFO


@lru_cache(maxsize=1)
def _libtiff() -> ctypes.CDLL | None:
    """The library inside Pillow; None in a Pillow that was built in another way."""
    with suppress(Exception):
        library = ctypes.CDLL(Image.core.__file__)
        _ = library.TIFFIsCODECConfigured, library.TIFFSetErrorHandler, library.TIFFSetWarningHandler
        return library
    return None


@lru_cache(maxsize=1)
def silence_libtiff() -> None:
    """Without this, libtiff prints a line of its own for every flaw of a file, beside the error that Pillow raises."""
    library = _libtiff()
    if library is not None:
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)
