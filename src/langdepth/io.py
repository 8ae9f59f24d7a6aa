"""Safe reading of images and depth maps, writing of results."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import re
import stat
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langdepth.camera import Camera, is_cut
from langdepth.errors import (
    FileWarning,
    ImageError,
    MissingImageError,
    UsageError,
    is_disk_error,
    is_memory_error,
    nearest,
)
from langdepth.utils.arrays import ArrayError, read_npy, read_npz
from langdepth.utils.files import atomic_path, not_the_file_itself
from langdepth.utils.images import HEAD, PNG_TAG, RAW_REFUSAL, formats, image_kind, refusal
from langdepth.utils.png import without_broken_metadata

if TYPE_CHECKING:
    from langdepth.records import DepthResult

MIN_SIDE = 32
MAX_PIXELS = 80_000_000  # phones take 50 and 64 megapixels; Pillow warns above 89
_MAX_SCANS = 100  # of a progressive JPEG, each of which decodes the whole image again; encoders write about ten
_MAX_PLAIN_BYTES = 1 << 28  # of a PPM in decimal digits

_GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # "I": how older Pillows and PPM open 16-bit grey
_EXIF_ORIENTATION, _EXIF_BLOCK = 0x0112, 0x8769
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
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706  # TIFF tags
_PNG_COMPRESSION = 1  # 8 ms for a 640x480 depth map; level 6 takes 37 ms and saves a fifth of the bytes
_KITTI_SCALE = 1 / 256  # metres per unit of the KITTI benchmark's depth PNGs


# --- images


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A decoded image.

    pixels: (H, W, 3) uint8 RGB, upright. camera: what EXIF says, in these pixels, or None. cut: EXIF describes a larger
    image, of which this is a part. orientation: the EXIF number by which the stored pixels were turned. path: "" for
    one from memory.
    """

    pixels: npt.NDArray[np.uint8]
    camera: Camera | None = None
    cut: bool = False
    orientation: int = 1
    path: str = ""


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
            return _from_pil(source, path, max_pixels)
    with _opened(source) as (image, path):
        return _from_pil(image, path, max_pixels)


def _from_pil(image: Image.Image, path: str, max_pixels: int) -> DecodedImage:
    _check_size(*image.size, max_pixels)
    tags, orientation = _exif(image)
    if image.format == "TIFF":
        image.load()  # Pillow turns these by itself
    elif orientation != 1:
        image = image.transpose(_UPRIGHT[orientation])
    facts: dict[str, Any] = {
        "camera": Camera.from_exif(tags, *image.size),
        "cut": is_cut(tags, *image.size),
        "orientation": orientation,
        "path": path,
    }
    if image.mode in _GREY_16_BIT or image.mode == "F":
        return DecodedImage(pixels=_array_to_rgb(_integers_as_uint16(np.asarray(image))), **facts)
    if image.has_transparency_data:
        image = _over_white(image)
    return DecodedImage(pixels=np.asarray(image if image.mode == "RGB" else image.convert("RGB")), **facts)


def _exif(image: Image.Image) -> tuple[Mapping[int, Any], int]:
    """The Exif block, and the orientation that it states, 1 to 8; broken ones state nothing."""
    tags: Mapping[int, Any] = {}
    orientation: Any = 1
    with suppress(Exception):  # Pillow's reader raises almost anything
        exif = image.getexif()
        orientation = exif.get(_EXIF_ORIENTATION, 1)
        tags = exif.get_ifd(_EXIF_BLOCK)
    return tags, orientation if orientation in _UPRIGHT else 1


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of an image as ``read_image`` turns it, known from its header. Raises ImageError."""
    with _opened(path) as (image, _):
        width, height = image.size
        # Pillow reports the upright size of TIFF files, whose pixels it turns by itself.
        lying = image.format != "TIFF" and _exif(image)[1] >= 5
        return (width, height) if lying else (height, width)


def _over_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ImageError(f"tensor of shape {tuple(tensor.shape)}: an image is (3, H, W) or (1, H, W)")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    return np.moveaxis(tensor.numpy(), 0, -1)


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


def _integers_as_uint16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pillow's 32-bit "I" images as uint16, if they are; float images as they are."""
    if np.issubdtype(values.dtype, np.floating):
        return values
    if values.dtype != np.uint16 and (values.min() < 0 or values.max() > 65535):
        raise ImageError("32-bit integer values do not fit 16 bits")
    return values.astype(np.uint16, copy=False)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{width}x{height} pixels is too small; the smaller side must be at least {MIN_SIDE}")
    _check_pixels(width, height, max_pixels)


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
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
        reason = f" ({error})" if isinstance(error, ArrayError) else ""  # others have the words of their library
        raise ImageError(f"{name}: damaged or truncated{reason}") from None


@contextmanager
def _stream(source: Any) -> Iterator[tuple[IO[bytes], str]]:
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
        seekable = hasattr(source, "seekable") and source.seekable()
        yield (source if seekable else io.BytesIO(source.read())), path_of_file
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
def _opened(source: Any) -> Iterator[tuple[Image.Image, str]]:
    """A PIL image, header read and nothing decoded, and its path. All that goes wrong inside becomes ImageError."""
    with (
        _stream(source) as (stream, path),
        decoding(path or "image in memory"),
        _open_image(stream) as image,
    ):
        if _is_camera_raw(image):
            raise ImageError(RAW_REFUSAL)
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
        _silence_libtiff()
    try:
        return Image.open(_without_comments(stream), formats=formats())
    except Image.UnidentifiedImageError:
        kind = image_kind(head)
        if kind is None:
            raise
        raise ImageError(f"damaged or truncated (begins like a {kind} file)") from None


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Without this, libtiff prints a line of its own for every flaw of a file, beside the error that Pillow raises."""
    with suppress(Exception):  # a Pillow that was built in another way
        library = ctypes.CDLL(Image.core.__file__)
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


def _is_camera_raw(image: Image.Image) -> bool:
    """Whether a TIFF is a camera's raw file, whose first image is a small preview of the photo."""
    tags = getattr(image, "tag_v2", {})
    return _DNG_VERSION in tags or tags.get(_NEW_SUBFILE_TYPE) == 1


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


# --- depth maps


def read_depth(path: str | Path, scale: float, *, keep_invalid: bool = False) -> npt.NDArray[np.float32]:
    """A depth map (H, W) float32 in metres, 0 where there is no value.

    A 16-bit grey PNG (or TIFF) holds ``value * scale`` metres. An ``.npy``, or an ``.npz`` with the key "depth" or a
    single array, holds metres in floating point; ``scale`` is not applied to it. NaN, infinite and negative values
    become 0, no value; ``keep_invalid`` leaves them in, for checks that count them.

    Raises ImageError, naming the file, for anything missing, broken, 8-bit, of another shape or above ``MAX_PIXELS``,
    and for a PNG of this library that states another scale.
    """
    if Path(path).suffix.lower() in (".npy", ".npz"):
        with _stream(path) as (stream, name), decoding(name):
            depth = _load_numpy(stream)
    else:
        with _opened(path) as (image, _):
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
    with _opened(path) as (image, _):
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
    _check_pixels(*image.size, MAX_PIXELS)
    if image.mode not in _GREY_16_BIT:
        raise ImageError(f"a depth map is a 16-bit grey PNG, this one is a {image.format} of mode {image.mode}")
    largest = _pgm_maximum(image)  # forgotten once it is decoded
    values = _integers_as_uint16(np.asarray(image))
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
        _check_pixels(shape[1], shape[0], MAX_PIXELS)

    if zipfile.is_zipfile(stream):
        return read_npz(stream, choose, check).astype(np.float32)
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return read_npy(stream, check, size).astype(np.float32)


def visible(folder: Path, pattern: str) -> list[Path]:
    """What below ``folder`` matches ``pattern``, in order, without files and folders whose name begins with a dot.

    Those are files that are still being written (``utils.files.atomic_path``) and what other computers add ("._NAME").
    """
    above = len(folder.parts)
    return sorted(path for path in folder.glob(pattern) if not any(part.startswith(".") for part in path.parts[above:]))


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's content in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- writing


class Writer(NamedTuple):
    """How one format is written: the end of its file names, and the function that fills an open file.

    ``write`` returns what there is to warn of, or None.

    ``by_name``: whether a file name alone may choose it.
    """

    suffix: str
    write: Callable[..., str | None]
    by_name: bool = True


def write_result(result: DepthResult, path: str | Path, *, format: str | None = None, **options: Any) -> Path:
    """Write one result. ``format`` is a key of ``WRITERS``; without one, the end of the file name decides.

    depth16 (``_depth.png``, and any other ``.png``)
        16-bit PNG, 0 = no value, its scale in the file: see ``read_depth16``. Option ``scale``: metres per unit, 0.001
        by default. Where the farthest pixel does not fit in 16 bits, a whole multiple of it is used, with a warning, so
        that reading back is always within half a unit. Relative depth fills the 16 bits unless ``scale`` is given.
        Depth that rounds to 0, which means no value, is stored as 1 unit.
    kitti16 (only with ``format``, any ``.png``)
        16-bit PNG as the KITTI benchmark takes it: depth in metres x 256, rounded to the nearest unit, 0 = no value.
        Depth that rounds to 0 is stored as 1 unit; depth beyond 255.996 m is stored as 255.996 m, with a warning.
    npy (``.npy``)
        (H, W) float32, 0 = no value.
    npz (``.npz``)
        ``depth``, ``valid``, ``intrinsics`` (3, 3) where there is a camera, ``std`` (H, W) where depths were drawn, and
        ``metadata``, a JSON text.
    color (``_color.png``)
        Colours with a legend in metres. Option ``colors``: a ``langdepth.prediction.options.ColorScale``.
    ply (``.ply``)
        Binary point cloud of the valid pixels in metres, x right, y down, z forward, with the image's colours. Needs
        a camera. Option ``max_points``: keep at most that many, evenly spread.

    Pixels that are not valid, not finite or not positive have no value. Returns the path. Raises UsageError for an
    unknown
    format, a name that does not fit it, or a result that cannot be written so; LangdepthError when the place cannot be
    written.
    """
    path = Path(path)
    writer = _writer_for(path, format)
    if result.depth.ndim != 2 or result.valid.shape != result.depth.shape:
        raise UsageError(f"{path}: depth {result.depth.shape} and valid {result.valid.shape} must both be (H, W)")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        note = writer.write(result, file, **options)
    if note:
        warnings.warn(FileWarning(path, note), stacklevel=2)
    return path


def _writer_for(path: Path, format: str | None) -> Writer:
    name, extension = path.name.lower(), path.suffix.lower()
    if format is not None:
        if format not in WRITERS:
            raise UsageError(f"unknown format '{format}': {nearest(format, WRITERS)}")
        writer = WRITERS[format]
        if extension != Path("x" + writer.suffix).suffix:
            raise UsageError(f"{path}: the name of a {format} file ends in '{writer.suffix}'")
        return writer
    writers = [writer for writer in WRITERS.values() if writer.by_name]
    for writer in [w for w in writers if name.endswith(w.suffix)] + writers:
        if extension == Path("x" + writer.suffix).suffix:
            return writer
    raise UsageError(f"{path}: no format has this name; known: {', '.join(w.suffix for w in writers)}")


def _clean_depth(result: DepthResult) -> npt.NDArray[np.float32]:
    """(H, W) float32 with 0 wherever there is no value."""
    depth = np.nan_to_num(result.depth.astype(np.float32, copy=False), nan=0, posinf=0, neginf=0)
    return np.where(result.valid & (depth > 0), depth, np.float32(0))


def _write_depth16(result: DepthResult, file: IO[bytes], *, scale: float | None = None) -> str | None:
    depth = _clean_depth(result)
    farthest = float(depth.max(initial=0))
    if scale is None:
        scale = 0.001 if result.scale_kind == "metric" or farthest == 0 else farthest / 65535
    if not (np.isfinite(scale) and scale > 0):
        raise UsageError(f"depth16: the scale must be a positive number of {result.unit}s per unit, got {scale}")
    note = None
    coarser = max(1, int(np.ceil(farthest / scale / 65535 - 1e-6)))
    if coarser > 1:
        note = (
            f"depth beyond {65535 * scale:g} {result.unit}s does not fit 16 bits at scale {scale:g}; "
            "such files use a coarser scale, stated inside them (read_depth16)"
        )
    _write_grey_16_bit(depth, coarser * scale, result, file)
    return note


def _write_kitti16(result: DepthResult, file: IO[bytes]) -> str | None:
    if result.scale_kind != "metric":
        raise UsageError(
            f"kitti16 holds metres, and '{result.system}' gives {result.scale_kind} depth; save it as depth16 or npy"
        )
    depth = _clean_depth(result)
    note = None
    if depth.max(initial=0) > 65535.5 * _KITTI_SCALE:
        note = (
            "depth beyond 255.996 m does not fit KITTI's 16-bit PNGs and is stored as 255.996 m; depth16, npy and npz "
            "keep it"
        )
    _write_grey_16_bit(depth, _KITTI_SCALE, result, file)
    return note


def _write_grey_16_bit(depth: npt.NDArray[np.float32], scale: float, result: DepthResult, file: IO[bytes]) -> None:
    """Depth as units of ``scale``, from 1 to 65535 where there is a value, 0 where there is none."""
    tag = {"unit": result.unit, "scale": scale, "scale_kind": result.scale_kind, "system": result.system, "no_value": 0}
    values = np.where(depth > 0, np.rint(depth / np.float32(scale)).clip(1, 65535), 0).astype(np.uint16)
    Image.fromarray(values).save(file, "PNG", pnginfo=own_png(**tag), compress_level=_PNG_COMPRESSION)


def own_png(**facts: Any) -> PngInfo:
    """The text that marks a PNG file of this library, so that it is not taken for a photo; for ``Image.save``."""
    text = PngInfo()
    text.add_text(PNG_TAG, json.dumps(facts))
    return text


def _write_npy(result: DepthResult, file: IO[bytes]) -> None:
    np.save(file, _clean_depth(result), allow_pickle=False)


def _write_npz(result: DepthResult, file: IO[bytes]) -> None:
    depth = _clean_depth(result)
    metadata = {
        "unit": result.unit,
        "scale_kind": result.scale_kind,
        "system": result.system,
        "camera": asdict(result.camera) if result.camera else None,
        "provenance": result.provenance,
        "scene_probs": result.scene_probs,
    }
    text = json.dumps(metadata, default=lambda value: value.item() if isinstance(value, np.generic) else str(value))
    intrinsics = {"intrinsics": result.camera.matrix} if result.camera else {}
    std = {} if result.std is None else {"std": result.std}
    np.savez(file, depth=depth, valid=depth > 0, metadata=np.array(text), **intrinsics, **std)  # type: ignore[arg-type]


def _write_color(result: DepthResult, file: IO[bytes], **options: Any) -> None:
    from langdepth.prediction.viz import color_with_legend

    unit = "m" if result.scale_kind == "metric" else ""
    depth = _clean_depth(result)
    pixels = color_with_legend(depth, depth > 0, **{"unit": unit, **options})
    tag = own_png(kind="color", system=result.system)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=tag, compress_level=_PNG_COMPRESSION)


def _write_ply(result: DepthResult, file: IO[bytes], *, max_points: int | None = None) -> None:
    if result.camera is None:
        raise UsageError("a point cloud needs a camera: give the intrinsics (fx,fy,cx,cy) or the field of view")
    if max_points is not None and max_points < 1:
        raise UsageError(f"ply: max_points must be at least 1, got {max_points}")
    depth = _clean_depth(result)
    with np.errstate(over="ignore"):
        points = result.camera.unproject(depth).reshape(-1, 3)
    kept = np.flatnonzero((depth.ravel() > 0) & np.isfinite(points).all(1))  # a huge depth may have no place in float32
    if max_points is not None and len(kept) > max_points:
        kept = kept[np.linspace(0, len(kept) - 1, max_points).astype(np.int64)]
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    if result.image is not None:
        fields += [("red", "u1"), ("green", "u1"), ("blue", "u1")]
    vertices = np.empty(len(kept), dtype=fields)
    vertices["x"], vertices["y"], vertices["z"] = points[kept].T
    if result.image is not None:
        if result.image.shape != (*depth.shape, 3):
            raise UsageError(f"ply: image {result.image.shape} and depth {depth.shape} differ in size")
        vertices["red"], vertices["green"], vertices["blue"] = result.image.reshape(-1, 3)[kept].T
    kinds = {"<f4": "float", "u1": "uchar"}
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {result.system} depth, {result.scale_kind}, unit {result.unit}; x right, y down, z forward",
        f"comment camera from {result.camera.source}",
        f"element vertex {len(vertices)}",
        *(f"property {kinds[kind]} {name}" for name, kind in fields),
        "end_header",
    ]
    file.write(("\n".join(header) + "\n").encode("ascii", "replace"))
    file.write(vertices.view(np.uint8).data)  # no copy


WRITERS: dict[str, Writer] = {
    "depth16": Writer("_depth.png", _write_depth16),
    "kitti16": Writer(".png", _write_kitti16, by_name=False),
    "npy": Writer(".npy", _write_npy),
    "npz": Writer(".npz", _write_npz),
    "color": Writer("_color.png", _write_color),
    "ply": Writer(".ply", _write_ply),
}
