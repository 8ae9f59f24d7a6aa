"""What kind of image a file holds."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.errors import ImageError
from langdepth.prediction.results import DepthResult, write_result
from langdepth.utils.image_kinds import HEAD, formats, image_kind, reads_heif
from langdepth.utils.images import read_image
from langdepth.utils.png import grey_bits, is_own_png
from tests.helpers import ramp

HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + struct.pack(">I", 8) + b"meta" + bytes(200)


def encoded(kind: str, pixels: np.ndarray | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ramp() if pixels is None else pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_what_pillow_writes_is_known_by_its_first_bytes(kind: str) -> None:
    assert image_kind(encoded(kind)[:HEAD]) == kind
    assert kind in formats()


@pytest.mark.parametrize(
    "head",
    [b"", b"BM is how this text begins, and it goes on for long", b"P5 is the name", b"path_rgb,path_depth", b"II"],
)
def test_other_content_is_no_image(head: bytes) -> None:
    assert image_kind(head) is None


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "is a JPEG XL file, which is not read; convert it to JPEG or PNG"),
        (b"8BPS\0\x01" + bytes(99), "is a Photoshop file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom" + bytes(99), "is a camera raw file"),
    ],
)
def test_kinds_that_are_not_read_are_named(head: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_image(head)


@pytest.mark.parametrize("tags", [{254: 1}, {50706: b"\x01\x04\0\0"}])
def test_the_preview_in_a_raw_file_is_not_the_photo(tags: dict[int, object]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "TIFF", tiffinfo=tags)
    with pytest.raises(ImageError, match="is a camera raw file, which is not read; develop it"):
        read_image(buffer.getvalue())


@pytest.fixture
def without_reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installation without pillow-heif."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    reads_heif.cache_clear()
    yield
    reads_heif.cache_clear()


@pytest.mark.usefixtures("without_reader")
def test_a_heic_photo_is_named_with_what_reads_it() -> None:
    with pytest.raises(ImageError, match=r"is a HEIC or HEIF photo; .*pip install 'langdepth\[heif\]'"):
        read_image(HEIC)


def test_a_heic_photo_upright_with_its_camera(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:32, :48] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    exif.get_ifd(0x8769).update({0xA405: 26, 0xA002: 96, 0xA003: 64})
    Image.fromarray(pixels).save(tmp_path / "a.heic", format="HEIF", quality=90, exif=exif.tobytes())
    found = read_image(tmp_path / "a.heic")
    assert found.pixels.shape == (96, 64, 3)
    assert found.pixels[10, 50].min() > 200  # the bright corner is at the upper right
    assert found.pixels[80, 10].max() < 50
    assert found.camera is not None
    assert (found.camera.width, found.camera.height) == (64, 96)
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_image(HEIC)


def test_what_this_library_writes_says_so(tmp_path: Path) -> None:
    depth = np.full((48, 64), 2, np.float32)
    result = DepthResult(depth=depth, valid=depth > 0, system="fake")
    for name in ("depth16", "kitti16", "color"):
        assert is_own_png(write_result(result, tmp_path / f"{name}.png", format=name))
    for name in ("photo.png", "photo.jpg"):
        Image.fromarray(ramp()).save(tmp_path / name)
        assert not is_own_png(tmp_path / name)
    assert not is_own_png(tmp_path / "gone.png")


def test_bits_of_grey() -> None:
    assert grey_bits(encoded("PNG", np.zeros((40, 40), np.uint16))[:HEAD]) == 16
    assert grey_bits(encoded("PNG", np.zeros((40, 40), np.uint8))[:HEAD]) == 8
    assert grey_bits(encoded("PNG")[:HEAD]) is None
    assert grey_bits(encoded("JPEG", np.zeros((40, 40), np.uint8))[:HEAD]) is None


@pytest.mark.parametrize("kind", ["strips", "content"])
def test_a_damaged_tiff_is_reported_in_one_line_of_ours(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(ramp()).save(buffer, "TIFF", compression="tiff_lzw")
    content = bytearray(buffer.getvalue())
    if kind == "strips":
        entry = content.index(struct.pack("<HHI", 279, 4, 1))  # StripByteCounts
        content[entry + 8 : entry + 12] = struct.pack("<I", 5)
    else:
        content[20:400] = bytes(380)
    with pytest.raises(ImageError, match=r"^image in memory: damaged or truncated$"):
        read_image(bytes(content))
    assert capfd.readouterr() == ("", "")
