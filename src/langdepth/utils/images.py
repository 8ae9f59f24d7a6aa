"""Safe reading of images."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.camera import Camera
from langdepth.errors import ImageError, MissingImageError, is_disk_error, is_memory_error
from langdepth.utils.arguments import checked
from langdepth.utils.arrays import ArrayError, UnreadArrayError
from langdepth.utils.exif import is_cut
from langdepth.utils.files import not_the_file_itself
from langdepth.utils.image_kinds import HEAD, formats, image_kind, refusal
from langdepth.utils.png import without_broken_metadata
from langdepth.utils.tiff import require_readable, silence_libtiff, stored_bits, unread_kind

MIN_SIDE = 32
MAX_PIXELS = 80_000_000  # phones take 50 and 64 megapixels; Pillow warns above 89
_MAX_SCANS = 100  # of a progressive JPEG, each of which decodes the whole image again; encoders write about ten
_MAX_PLAIN_BYTES = 1 << 28  # of a PPM in decimal digits

GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # "I": how older Pillows and PPM open 16-bit grey
_EXIF_ORIENTATION, _EXIF_BLOCK = 0x0112, 0x8769
TURNED_BY_READER = ("TIFF", "HEIF")  # formats whose pixels and size Pillow, or its plug-in, turns upright by itself
# What turns stored pixels upright; as ``camera.turned_upright`` does.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image.

    pixels: (H, W, 3) uint8 RGB, upright. camera: what EXIF says, in these pixels, or None. cut: EXIF describes another
    image, see ``is_cut``. orientation: the EXIF number by which the stored pixels were turned. path: "" for
    one from memory.
    """

    pixels: npt.NDArray[np.uint8]
    camera: Camera | None = None
    cut: bool = False
    orientation: int = 1
    path: str = ""


@checked
def read_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """Decode one image of any common kind to upright 8-bit RGB.

    ``source``: a path; bytes or a binary file; a PIL image; a NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
    of uint8, uint16, bool or float in [0, 1]; or a torch tensor (1, H, W), (3, H, W) or (4, H, W) of the same types.
    EXIF rotation is applied, transparency is laid over white, 16-bit values are scaled to 8 bits, animations give
    their first frame.

    Raises ImageError, naming the source, for anything missing, broken or not an image, a side below ``MIN_SIDE``
    pixels, or more than ``max_pixels`` pixels (known from the header, before anything is decoded).
    """
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        return DecodedImage(pixels=_from_array(_tensor_to_array(source), max_pixels))
    if isinstance(source, np.ndarray):
        return DecodedImage(pixels=_from_array(source, max_pixels))
    if isinstance(source, Image.Image):
        path = str(getattr(source, "filename", ""))
        with decoding(path or "image in memory"):
            if _is_closed(source):
                raise ImageError("is closed; use it inside its 'with' block")
            if source.format == "TIFF":
                require_readable(source)
            return _from_pil(source, path, max_pixels)
    with opened_image(source) as (image, path):
        return _from_pil(image, path, max_pixels)


def _from_pil(image: Image.Image, path: str, max_pixels: int) -> DecodedImage:
    _check_size(*image.size, max_pixels)
    tags, orientation = exif_of(image)
    if image.format in TURNED_BY_READER:
        image.load()
    elif orientation != 1:
        image = image.transpose(_UPRIGHT[orientation])
    facts: dict[str, Any] = {
        "camera": Camera.from_exif(tags, *image.size),
        "cut": is_cut(tags, *image.size),
        "orientation": orientation,
        "path": path,
    }
    if image.mode in GREY_16_BIT or image.mode == "F":
        values = integers_as_uint16(np.asarray(image))
        if image.format == "TIFF" and stored_bits(image) == 12:
            values = (values.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
        return DecodedImage(pixels=_array_to_rgb(values), **facts)
    if image.has_transparency_data:
        image = _over_white(image)
    return DecodedImage(pixels=np.asarray(image if image.mode == "RGB" else image.convert("RGB")), **facts)


def _is_closed(image: Image.Image) -> bool:
    """Whether a PIL image has lost its pixels, or its file before they were decoded."""
    try:
        _ = image.im is not None and image.im.size
    except AssertionError:  # nothing is decoded yet
        return getattr(image, "fp", None) is None
    except ValueError:
        return True
    return False


def exif_of(image: Image.Image) -> tuple[Mapping[int, Any], int]:
    """The Exif block, and the orientation that it states, 1 to 8; broken ones state nothing.

    The reader of HEIF clears the orientation by which it has turned an image, and keeps it beside the pixels.
    """
    tags: Mapping[int, Any] = {}
    orientation: Any = 1
    with suppress(Exception):  # Pillow's reader raises almost anything
        exif = image.getexif()
        orientation = image.info.get("original_orientation") or exif.get(_EXIF_ORIENTATION, 1)
        tags = exif.get_ifd(_EXIF_BLOCK)
    return tags, orientation if orientation in _UPRIGHT else 1


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image as ``read_image`` turns it, known from its header. Raises ImageError."""
    with opened_image(path) as (image, _):
        width, height = image.size
        lying = image.format not in TURNED_BY_READER and exif_of(image)[1] >= 5
        return (width, height) if lying else (height, width)


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(f"tensor of shape {tuple(tensor.shape)}: an image is (3, H, W) or (1, H, W)")
    try:
        tensor = tensor.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()  # NumPy has no bfloat16
        return np.moveaxis(tensor.numpy(), 0, -1)
    except (TypeError, RuntimeError):  # sparse, quantized, on the device "meta"
        raise ImageError(f"tensor of {tensor.dtype}, {tensor.layout}, on {tensor.device}: give a dense one") from None


def _from_array(array: npt.NDArray[Any], max_pixels: int) -> npt.NDArray[np.uint8]:
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ImageError(f"array of shape {array.shape}: an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)")
    with decoding("array"):
        _check_size(array.shape[1], array.shape[0], max_pixels)
        return _array_to_rgb(array)


def _array_to_rgb(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to (H, W, 3) uint8."""
    pixels = _to_uint8(array)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape[2] == 4:
        pixels = np.asarray(_over_white(Image.fromarray(np.ascontiguousarray(pixels))).convert("RGB"))
    return np.ascontiguousarray(pixels)


def _to_uint8(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded
    if not np.issubdtype(array.dtype, np.floating):
        raise ImageError(f"values of type {array.dtype}; give uint8, uint16, bool or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN; the margin lets rounding errors pass
        raise ImageError(f"float values must lie in [0, 1], found {low:g} to {high:g}; divide 8-bit values by 255")
    return np.rint(array.clip(0, 1) * array.dtype.type(255)).astype(np.uint8)


def integers_as_uint16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pillow's 32-bit "I" images as uint16, if they are; float images as they are."""
    if np.issubdtype(values.dtype, np.floating):
        return values
    if values.dtype != np.uint16 and (values.min() < 0 or values.max() > 65535):
        raise ImageError("32-bit integer values do not fit 16 bits")
    return values.astype(np.uint16, copy=False)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{width}x{height} pixels is too small; the smaller side must be at least {MIN_SIDE}")
    check_pixels(width, height, max_pixels)


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{width}x{height} = {width * height / 1e6:.1f} megapixels is more than the limit of {max_pixels / 1e6:g}; "
            "make it smaller"
        )


# --- opening files


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a broken file into one line that names it."""
    try:
        yield
    except MissingImageError:
        raise
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # the latter where warnings are errors
        raise ImageError(f"{name}: larger than any image Pillow opens; make it smaller") from None
    except Image.UnidentifiedImageError:
        other = not_the_file_itself(name)
        raise ImageError(f"{name}: {other or 'not an image (known: ' + ', '.join(formats()) + ')'}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        if is_memory_error(error):
            raise ImageError(f"{name}: not enough memory to decode it; make it smaller") from None
        if isinstance(error, OSError) and is_disk_error(error):
            raise ImageError(f"{name}: cannot be read ({error.strerror})") from None
        if isinstance(error, UnreadArrayError):
            raise ImageError(f"{name}: {error}") from None
        reason = f" ({error})" if isinstance(error, ArrayError) else ""  # others have the words of their library
        raise ImageError(f"{name}: damaged or truncated{reason}") from None


@contextmanager
def binary_stream(source: Any) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable binary stream over a path, bytes or a binary file, and its path ("" in memory), or ImageError."""
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ImageError("bytes: empty (0 bytes)")
        yield io.BytesIO(source), ""
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        with _open_regular(path) as stream:
            yield stream, str(path)
    elif hasattr(source, "read"):
        name = getattr(source, "name", "")
        path_of_file = name if isinstance(name, str) else ""
        try:
            seekable = hasattr(source, "seekable") and source.seekable()
            stream = source if seekable and isinstance(source.read(0), bytes) else io.BytesIO(source.read())
        except (OSError, ValueError, TypeError):  # it is closed, for writing alone, of text
            raise ImageError(f"{path_of_file or 'file'}: is not open for reading bytes (mode 'rb')") from None
        yield stream, path_of_file
    else:
        kind = type(source).__name__
        raise ImageError(f"an image is a path, bytes, file, PIL image, NumPy array or torch tensor, not {kind}")


def _open_regular(path: Path) -> IO[bytes]:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{path}: is a folder, not an image")
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise ImageError(f"{path}: not a regular file")
        if status.st_size == 0:
            raise ImageError(f"{path}: empty (0 bytes)")
        return path.open("rb")
    except ImageError:
        raise
    except FileNotFoundError:
        raise MissingImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise ImageError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None


@contextmanager
def opened_image(source: Any) -> Iterator[tuple[Image.Image, str]]:
    """A PIL image, header read and nothing decoded, and its path. All that goes wrong inside becomes ImageError."""
    with (
        binary_stream(source) as (stream, path),
        decoding(path or "image in memory"),
        _open_image(stream) as image,
    ):
        if image.format == "TIFF":
            require_readable(image)
        _require_few_scans(image, stream)
        yield image, path


def _open_image(stream: IO[bytes]) -> Image.Image:
    """Raises ImageError, saying what to do, where the stream holds an image of a kind that is not read."""
    start = stream.tell()
    head = stream.read(HEAD)
    stream.seek(start)
    reason = refusal(head)
    if reason is not None:
        raise ImageError(reason)
    if image_kind(head) == "PNG":
        stream = without_broken_metadata(stream)
    elif image_kind(head) == "TIFF":
        silence_libtiff()
    try:
        return Image.open(_without_comments(stream), formats=formats(image_kind(head)))
    except Image.UnidentifiedImageError:
        kind = image_kind(head)
        if kind is None:
            raise
        reason = unread_kind(stream) if kind == "TIFF" else None
        raise ImageError(reason or f"damaged or truncated (begins like a {kind} file)") from None


def _without_comments(stream: IO[bytes]) -> IO[bytes]:
    """A PPM in decimal digits without its comments, each of which costs Pillow a copy of the rest; others as they are.

    Raises ImageError for one that is too large.
    """
    start = stream.tell()
    head = stream.read(2)
    stream.seek(start)
    if head not in (b"P1", b"P2", b"P3"):
        return stream
    plain, inside = io.BytesIO(), False
    while block := stream.read(1 << 20):
        if stream.tell() - start > _MAX_PLAIN_BYTES:
            limit = f"{_MAX_PLAIN_BYTES >> 20} MB"
            raise ImageError(f"a PPM in decimal digits of more than {limit}; write it in binary (P6)")
        codes = np.frombuffer(block, np.uint8)
        places = np.arange(1, len(codes) + 1)
        ends = np.maximum.accumulate(np.where((codes == 10) | (codes == 13), places, 0))  # of the line before
        starts = np.maximum.accumulate(np.where(codes == ord("#"), places, 0))
        comment = (starts > ends) | (inside & (ends == 0))
        plain.write(re.sub(rb"\s{2,}", b"\n", codes[~comment].tobytes()))
        inside = bool(comment[-1])
    plain.seek(0)
    return plain


def _require_few_scans(image: Image.Image, stream: IO[bytes]) -> None:
    if image.format != "JPEG" or not image.info.get("progressive"):
        return
    place, scans, before = stream.tell(), 0, b""
    stream.seek(0)
    while block := stream.read(1 << 20):
        scans += (before + block).count(b"\xff\xda")  # which is no part of compressed data
        before = block[-1:]
    stream.seek(place)
    if scans > _MAX_SCANS:
        raise ImageError(f"a progressive JPEG of {scans} scans is refused, {_MAX_SCANS} at most; save it again")
