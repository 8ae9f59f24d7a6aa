"""TIFF files of kinds that are not read: named, and never decoded to something else."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from langdepth.errors import ImageError
from langdepth.utils.depth_files import read_depth
from langdepth.utils.images import read_image
from tests.helpers import ramp

GREY, RGB = ramp()[..., 0], ramp()
BITS, COMPRESSION, PHOTOMETRIC, PLANAR, FORMAT = 258, 259, 262, 284, 339
DEFLATE = 8
WHITE_IS_ZERO = {PHOTOMETRIC: 0}
PLANES = {PLANAR: 2}


def tiff(values: npt.NDArray[np.generic], tags: dict[int, int] | None = None, order: str = "<") -> bytes:
    """A TIFF of (H, W) or (H, W, C) numbers, with its channels apart where the tags say so."""
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    number = {"u": 1, "i": 2, "f": 3, "c": 6}[values.dtype.kind]
    tags = {BITS: 8 * values.dtype.itemsize, COMPRESSION: 1, PHOTOMETRIC: 2 if channels == 3 else 1} | (tags or {})
    parts = [plane.copy() for plane in np.moveaxis(values, -1, 0)] if tags.get(PLANAR) == 2 else [values]
    stored = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    if tags[COMPRESSION] == DEFLATE:
        stored = [zlib.compress(part) for part in stored]
    starts = list(itertools.accumulate(map(len, stored), initial=8))
    entries = {256: [width], 257: [height], 277: [channels], 278: [height], FORMAT: [number] * channels}
    entries |= {tag: [value] * (channels if tag == BITS else 1) for tag, value in tags.items()}
    entries |= {273: starts[:-1], 279: [len(part) for part in stored]}
    place = starts[-1]
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            beyond, packed = beyond + packed, struct.pack(order + "I", after + len(beyond))
        directory += struct.pack(order + "HHI", tag, 4, len(numbers)) + packed
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", place)
    return head + b"".join(stored) + directory + bytes(4) + beyond


def test_what_is_read_keeps_its_brightness() -> None:
    wide, brightness = RGB.astype(np.uint16) * 257, np.repeat(GREY[..., None], 3, 2)
    for order in "<>":
        np.testing.assert_array_equal(read_image(tiff(wide, order=order)).pixels, RGB)
        np.testing.assert_array_equal(read_image(tiff(wide[..., 0], order=order)).pixels, brightness)
    np.testing.assert_array_equal(read_image(tiff(RGB, PLANES)).pixels, RGB)
    np.testing.assert_array_equal(read_image(tiff(255 - GREY, WHITE_IS_ZERO)).pixels, brightness)
    np.testing.assert_array_equal(read_image(tiff((GREY / 255).astype(np.float32))).pixels, brightness)


def test_grey_of_12_bits_is_not_taken_for_16() -> None:
    values = GREY.astype(np.uint32) * 4095 // 255
    pairs = values[:, ::2] << 12 | values[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=-1).astype(np.uint8)
    content = tiff(packed.reshape(len(values), -1), {BITS: 12, 256: values.shape[1]})
    found = read_image(content).pixels[..., 0]
    np.testing.assert_allclose(found, GREY, atol=1)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "tags", "message"),
    [
        (RGB.astype(np.uint16) * 257, PLANES, "TIFF of 16 bits with each channel apart"),
        (np.dstack((RGB, GREY)).astype(np.uint16) * 257, PLANES | {PHOTOMETRIC: 2, 338: 2}, "with each channel apart"),
        (GREY.astype(np.uint16) * 257, WHITE_IS_ZERO, "white is zero"),
        ((GREY / 255).astype(np.float32), WHITE_IS_ZERO, "white is zero"),
        (GREY.astype(np.int8), {}, "TIFF of 8-bit signed integers"),
        ((GREY / 255).astype(np.float16), {}, "TIFF of 16-bit floats in one channel"),
        (GREY / 255, {}, "TIFF of 64-bit floats in one channel"),
        ((RGB / 255).astype(np.float32), {}, "TIFF of 32-bit floats in 3 channels"),
        (RGB[..., :2].astype(np.uint16), {}, "TIFF of 16-bit integers in 2 channels"),
        (RGB, {COMPRESSION: 34712}, "TIFF compressed by JPEG 2000"),
        (GREY.astype(np.uint16), {COMPRESSION: 50002}, "TIFF compressed by JPEG XL"),
        (RGB, {COMPRESSION: 34887}, "TIFF compressed by LERC"),
        (RGB, {COMPRESSION: 40000}, "TIFF compressed by method 40000"),
    ],
)
def test_kinds_that_are_not_read_are_named(
    values: npt.NDArray[np.generic], tags: dict[int, int], message: str, order: str, tmp_path: Path
) -> None:
    content = tiff(values, tags, order)
    with pytest.raises(ImageError, match=message):
        read_image(content)
    (tmp_path / "depth.tif").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_depth(tmp_path / "depth.tif", 0.001)


def test_an_open_pil_image_is_held_to_the_same_rules() -> None:
    with (
        Image.open(io.BytesIO(tiff(RGB.astype(np.uint16) * 257, PLANES))) as image,
        pytest.raises(ImageError, match="with each channel apart"),
    ):
        read_image(image)
    with Image.open(io.BytesIO(tiff(RGB))) as image:
        image.load()
        np.testing.assert_array_equal(read_image(image).pixels, RGB)


def test_compressed_planes_are_whole_until_a_part_is_missing() -> None:
    content = tiff(RGB, PLANES | {COMPRESSION: DEFLATE})
    np.testing.assert_array_equal(read_image(content).pixels, RGB)
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(content[:8] + bytes(400) + content[408:])


def test_depth_in_colors_is_not_said_to_have_8_bits(tmp_path: Path) -> None:
    (tmp_path / "colors.tif").write_bytes(tiff(RGB.astype(np.uint16) * 257))
    with pytest.raises(ImageError, match="this TIFF has 3 channels"):
        read_depth(tmp_path / "colors.tif", 0.001)
    (tmp_path / "floats.tif").write_bytes(tiff((GREY / 255).astype(np.float32)))
    with pytest.raises(ImageError, match=r"this TIFF holds floats, which are read from \.npy"):
        read_depth(tmp_path / "floats.tif", 0.001)
    Image.fromarray(GREY).save(tmp_path / "coarse.png")
    with pytest.raises(ImageError, match="this PNG holds 8 bits, whose 256 steps are too few"):
        read_depth(tmp_path / "coarse.png", 0.001)
