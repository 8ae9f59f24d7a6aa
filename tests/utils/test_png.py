"""Metadata of PNG files costs no image."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from langdepth.errors import ImageError
from langdepth.utils.images import read_image
from langdepth.utils.png import PNG_TAG, without_broken_metadata, write_own_png
from tests.helpers import ramp

LARGE = zlib.compress(b"x" * 3_000_000)
PIXELS = np.ascontiguousarray(ramp())


def png(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    check = zlib.crc32(name + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)


METADATA = {
    "large zTXt": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "large iTXt": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "large iCCP": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "large tEXt": chunk(b"tEXt", b"prompt\0" + b"x" * 3_000_000),
    "many texts": b"".join(chunk(b"tEXt", b"prompt\0" + b"x" * 900_000) for _ in range(80)),
    "wrong checksum": chunk(b"tEXt", b"prompt\0text", checksum=1),
    "broken zTXt": chunk(b"zTXt", b"workflow\0\0no such stream"),
    "broken eXIf": chunk(b"eXIf", b"MM\0*\0\0\0\x08", checksum=1),
    "chunk of nobody": chunk(b"abCd", bytes(99), checksum=1),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("name", METADATA)
def test_it_does_not_cost_the_image(name: str, after: bool) -> None:
    whole = png()
    place = len(whole) - 12 if after else 33
    np.testing.assert_array_equal(read_image(whole[:place] + METADATA[name] + whole[place:]).pixels, PIXELS)


def test_good_metadata_stays() -> None:
    text, exif = PngInfo(), Image.Exif()
    text.add_text("a", "b", zip=True)
    text.add_itxt("c", "d", zip=True)
    exif[0x0112] = 6
    stream = io.BytesIO(png(pnginfo=text, exif=exif))
    assert without_broken_metadata(stream) is stream
    assert stream.tell() == 0
    assert read_image(stream).pixels.shape == (PIXELS.shape[1], PIXELS.shape[0], 3)


def test_damage_of_pixels_is_damage() -> None:
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(png()[: len(png()) * 2 // 3])


@pytest.mark.parametrize("depth", [False, True])
def test_own_files_are_what_pillow_reads(depth: bool) -> None:
    pixels = (np.arange(48 * 50) * 27 % 65536).astype(np.uint16).reshape(48, 50) if depth else PIXELS
    buffer = io.BytesIO()
    write_own_png(buffer, pixels, kind="ä", no_value=0)
    with Image.open(buffer) as image:
        assert np.array_equal(np.asarray(image), pixels)
        assert json.loads(image.text[PNG_TAG]) == {"kind": "ä", "no_value": 0}
    with Image.open(buffer) as image:
        image.verify()
