"""What kind of image a file holds, by its content and not by its name. Imports neither Pillow nor NumPy."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from langdepth.utils.reading import open_regular

HEAD = 64  # bytes that tell the kind

HEIF_ADVICE = "install the reader of such photos, pip install 'langdepth[heif]', or convert it to JPEG"
_CONVERT = "convert it to JPEG or PNG"
# Raw files of cameras, mostly TIFF files with a small preview, which a reader of TIFF would take for the photo.
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw")

RAW_REFUSAL = f"is a camera raw file, which is not read; develop it and {_CONVERT}"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "camera raw", **dict.fromkeys(_HEIF_BRANDS, "HEIF")}
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0\x08\0\0\0": "TIFF",  # with addresses of 64 bits
    b"MM\0+\0\x08\0\0": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS\0": "Photoshop",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIU\0": "camera raw",
    b"IIRO": "camera raw",
    b"IIRS": "camera raw",
}
_READABLE = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
_PPM = re.compile(rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


def image_kind(head: bytes) -> str | None:
    """The kind of image that begins with these bytes (``HEAD`` are enough): Pillow's name for it, where it has one."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))]
        kinds = [_BRANDS[brand] for brand in brands if brand in _BRANDS]
        return "AVIF" if "AVIF" in kinds else next(iter(kinds), None)
    return "PPM" if _PPM.match(head) else None


@lru_cache(maxsize=1)
def reads_heif() -> bool:
    """Whether HEIC and HEIF photos can be read, which takes the package pillow-heif; Pillow is made to use it."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def formats(kind: str | None = None) -> tuple[str, ...]:
    """Pillow's names of the formats that are read; others that it knows start programs or are no photographs.

    ``kind``: what ``image_kind`` says of a file, for which the reader of another kind need not be imported.
    """
    return (*_READABLE, "HEIF") if kind not in _READABLE and reads_heif() else _READABLE


def refusal(head: bytes) -> str | None:
    """Why an image that begins with these bytes cannot be read, and what to do; None for all others."""
    kind = image_kind(head)
    if kind is None or kind in formats(kind):
        return None
    if kind == "HEIF":
        return f"is a HEIC or HEIF photo; {HEIF_ADVICE}"
    if kind == "camera raw":
        return RAW_REFUSAL
    return f"is a {kind} file, which is not read; {_CONVERT}"


def read_head(path: str | Path) -> bytes:
    """The first ``HEAD`` bytes of a regular file; none of anything else, or where it cannot be opened."""
    try:
        with open_regular(path) as file:
            return file.read(HEAD)
    except (OSError, ValueError):
        return b""
