"""Reading any image, refusing what is none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from langdepth.camera import Camera
from langdepth.errors import ImageError
from langdepth.utils.images import read_image

HEIGHT, WIDTH = 36, 48


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends where its pixels should begin."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")[:2])


class TestReadImage:
    def test_path_bytes_file_and_pil_give_the_same_pixels(self, rgb: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(encoded(Image.fromarray(rgb)))
        with path.open("rb") as file:
            sources = [path, str(path), path.read_bytes(), file, Image.fromarray(rgb), Image.open(path)]
            images = [read_image(source) for source in sources]
        for image in images:
            np.testing.assert_array_equal(image.pixels, rgb)
            assert image.camera is None
        assert [image.path for image in images] == [str(path), str(path), "", str(path), "", str(path)]

    def test_stream_that_cannot_seek(self, rgb: npt.NDArray[np.uint8]) -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as file:
            file.write(encoded(Image.fromarray(rgb)))
        with os.fdopen(reader, "rb") as file:
            np.testing.assert_array_equal(read_image(file).pixels, rgb)

    @pytest.mark.parametrize(
        "convert",
        [
            lambda a: a,
            lambda a: a.astype(np.uint16) * 257,
            lambda a: (a / 255).astype(np.float32),
            lambda a: a / 255,
            lambda a: np.dstack((a, np.full(a.shape[:2], 255, np.uint8))),
            lambda a: torch.from_numpy(a).permute(2, 0, 1),
            lambda a: torch.from_numpy(a).permute(2, 0, 1) / 255,
            lambda a: (torch.from_numpy(a).permute(2, 0, 1) / 255).requires_grad_(),
        ],
    )
    def test_arrays_and_tensors(self, rgb: npt.NDArray[np.uint8], convert: Any) -> None:
        pixels = read_image(convert(rgb)).pixels
        assert pixels.dtype == np.uint8
        assert pixels.flags.c_contiguous
        np.testing.assert_array_equal(pixels, rgb)

    def test_grey_arrays_of_every_kind(self) -> None:
        grey = np.zeros((HEIGHT, WIDTH), np.uint8)
        grey[:, 10:] = 255
        kinds = [
            grey,
            grey[..., None],
            grey > 0,
            grey.astype(np.uint16) * 257,
            grey / 255,
            torch.from_numpy(grey)[None],
        ]
        for kind in kinds:
            np.testing.assert_array_equal(read_image(kind).pixels, np.dstack((grey, grey, grey)))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
    def test_modes(self, mode: str) -> None:
        white, dark = (255, 255, 255), (0, 0, 0)
        image = Image.new("RGB", (WIDTH, HEIGHT), dark)
        image.paste(white, (0, 0, 20, HEIGHT))
        middle = image.convert("LA") if mode == "PA" else image  # no direct way from RGB to PA
        pixels = read_image(middle.convert(mode)).pixels
        assert pixels.shape == (HEIGHT, WIDTH, 3)
        np.testing.assert_allclose(pixels[0, 0], white, atol=1)
        np.testing.assert_allclose(pixels[0, -1], dark, atol=1)

    def test_16_bit_grey_is_scaled_not_wrapped(self, tmp_path: Path) -> None:
        values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
        for name in ("grey.png", "grey.tiff"):
            Image.fromarray(values).save(tmp_path / name)
            pixels = read_image(tmp_path / name).pixels
            np.testing.assert_array_equal(pixels[..., 0], np.rint(values / 257))
            np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])

    def test_transparency_is_laid_over_white(self) -> None:
        clear = Image.new("RGBA", (WIDTH, HEIGHT), (200, 0, 0, 0))
        assert (read_image(clear).pixels == 255).all()
        half = np.full((HEIGHT, WIDTH, 4), (0, 0, 0, 128), np.uint8)
        np.testing.assert_allclose(read_image(half).pixels, 127, atol=1)
        palette = Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0)).convert("P")
        assert (read_image(encoded(palette)).pixels[..., 1] < 60).all()
        transparent = encoded(palette, transparency=palette.getpixel((0, 0)))
        assert (read_image(transparent).pixels == 255).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
    def test_exif_rotation_and_camera_stay_together(self, orientation: int, mode: str) -> None:
        """The image's mark and the camera's principal point are at one place, before and after."""
        size = (80, 60)
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif.get_ifd(0x8769)[0xA405] = 28
        image = Image.new("RGB", size)
        image.paste((255, 255, 255), (0, 0, 16, 8))  # a mark in the top left corner of the stored image
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        found = read_image(encoded(image, exif=exif))
        stored = Camera.from_focal(28 / np.hypot(36, 24) * 100, *size, source="exif")
        assert found.camera == stored.oriented(orientation)
        assert found.pixels.shape[:2] == (found.camera.height, found.camera.width)
        y, x = np.nonzero(found.pixels[..., 0] > 128)
        marked = Camera(fx=1, fy=1, cx=7.5, cy=3.5, width=80, height=60).oriented(orientation)
        assert (x.mean(), y.mean()) == (marked.cx, marked.cy)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_tiff_is_turned_once(self, rgb: npt.NDArray[np.uint8], orientation: int) -> None:
        """Pillow turns TIFF files by itself; the result is that of any other file."""
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x8769] = exif._ifds[0x8769] = {0xA405: 26}  # as a TIFF file and as the others take it
        image = Image.fromarray(rgb)
        tiff, png = (read_image(encoded(image, kind, exif=exif)) for kind in ("TIFF", "PNG"))
        np.testing.assert_array_equal(tiff.pixels, png.pixels)
        assert tiff.camera is not None
        assert tiff.camera == png.camera
        assert (tiff.camera.height, tiff.camera.width) == tiff.pixels.shape[:2]
        assert tiff.orientation == png.orientation == orientation

    def test_a_cut_photo_says_so(self, rgb: npt.NDArray[np.uint8]) -> None:
        exif = Image.Exif()
        exif.get_ifd(0x8769).update({0xA405: 26, 0xA002: WIDTH, 0xA003: HEIGHT})
        photo = Image.open(io.BytesIO(encoded(Image.fromarray(rgb), "JPEG", exif=exif)))
        whole, part = read_image(photo), read_image(photo.crop((0, 0, HEIGHT, HEIGHT)))
        assert whole.camera is not None
        assert not whole.cut
        assert part.camera is None
        assert part.cut

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_no_damage_of_exif_costs_the_image(self, rgb: npt.NDArray[np.uint8], kind: str) -> None:
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "Maker", 6
        exif.get_ifd(0x8769).update({0xA405: 26, 0xA002: WIDTH, 0xA003: HEIGHT, 0x920A: (4, 1)})
        whole, random = exif.tobytes(), np.random.default_rng(0)
        for _ in range(120):
            damaged = bytearray(whole)
            for place in random.integers(6, len(whole), random.integers(1, 6)):
                damaged[place] = random.integers(256)
            try:
                content = encoded(Image.fromarray(rgb), kind, exif=bytes(damaged[: random.integers(8, 2 * len(whole))]))
            except Exception:  # what Pillow does not write
                continue
            assert sorted(read_image(content).pixels.shape[:2]) == sorted(rgb.shape[:2])

    def test_broken_exif_does_not_cost_the_image(self, rgb: npt.NDArray[np.uint8]) -> None:
        data = encoded(Image.fromarray(rgb), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff")
        with pytest.warns(UserWarning, match="Corrupt EXIF"):
            assert read_image(data).pixels.shape == rgb.shape

    def test_first_frame_of_an_animation(self) -> None:
        frames = [Image.new("L", (WIDTH, HEIGHT), value) for value in (255, 0)]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
        assert (read_image(data).pixels == 255).all()

    def test_smallest_and_too_small(self) -> None:
        assert read_image(np.zeros((32, 32, 3), np.uint8)).pixels.shape == (32, 32, 3)
        with pytest.raises(ImageError, match=r"31x500 pixels is too small.*32"):
            read_image(np.zeros((500, 31), np.uint8))

    def test_huge_image_is_refused_from_its_header(self, tmp_path: Path) -> None:
        path = tmp_path / "bomb.png"
        path.write_bytes(png_header(9000, 9000))
        with pytest.raises(ImageError, match=r"bomb.png: 9000x9000 = 81.0 megapixels is more than the limit of 80"):
            read_image(path)
        with pytest.raises(ImageError, match="damaged or truncated"):  # allowed, so it comes to decoding
            read_image(path, max_pixels=81_000_000)
        path.write_bytes(png_header(60000, 60000))
        with pytest.raises(ImageError, match=r"bomb.png: larger than any image"):
            read_image(path)

    def test_bad_files(self, rgb: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        jpeg = encoded(Image.fromarray(rgb), "JPEG")
        files = {
            "empty.jpg": (b"", r"empty \(0 bytes\)"),
            "text.jpg": (b"this is no image\n" * 20, "not an image"),
            "truncated.jpg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
            "truncated.png": (encoded(Image.fromarray(rgb))[:300], "damaged or truncated"),
            "figure.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\n", "not an image"),
        }
        for name, (content, message) in files.items():
            path = tmp_path / name
            path.write_bytes(content)
            with pytest.raises(ImageError, match=f"{name}: {message}") as caught:
                read_image(path)
            assert "\n" not in str(caught.value)

    def test_a_tiff_that_holds_a_part_of_its_rows(self, rgb: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        content = encoded(Image.fromarray(rgb), "TIFF")
        rows = struct.pack("<HHII", 278, 4, 1, len(rgb)), struct.pack("<HHII", 278, 3, 1, len(rgb))
        (entry,) = (entry for entry in rows if entry in content)
        (tmp_path / "x.tif").write_bytes(content.replace(entry, entry[:8] + struct.pack("<I", 1)))
        with pytest.raises(ImageError, match=r"x.tif: damaged or truncated \(its strips hold a part"):
            read_image(tmp_path / "x.tif")
        for kind in ("raw", "tiff_lzw"):
            np.testing.assert_array_equal(
                read_image(encoded(Image.fromarray(rgb), "TIFF", compression=kind)).pixels, rgb
            )

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"nothing.jpg: no such file"):
            read_image(tmp_path / "nothing.jpg")
        with pytest.raises(ImageError, match="is a folder"):
            read_image(tmp_path)
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(ImageError, match=r"pipe.jpg: not a regular file"):
            read_image(tmp_path / "pipe.jpg")
        for name in ("x" * 5000, "null\0byte.jpg"):
            with pytest.raises(ImageError, match="cannot be opened"):
                read_image(name)
        with pytest.raises(ImageError, match="empty"):
            read_image(b"")
        with pytest.raises(ImageError, match="not int"):
            read_image(3)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((40, 40, 3), np.nan), "found nan"),
            (np.full((40, 40, 3), 200.0), "divide 8-bit values by 255"),
            (np.full((40, 40, 3), -0.5), "must lie in"),
            (np.full((40, 40, 3), np.inf, np.float32), "must lie in"),
            (np.zeros((40, 40, 2)), "shape"),
            (np.zeros((3, 40, 40)), "shape"),
            (np.zeros((1, 40, 40, 3)), "shape"),
            (np.zeros((0, 40, 3), np.uint8), "too small"),
            (np.zeros((40, 40, 3), np.int64), "int64"),
            (np.zeros((40, 40, 3), np.complex64), "complex64"),
            (torch.zeros(40, 40, 3), "tensor of shape"),
            (torch.zeros(1, 3, 40, 40), "tensor of shape"),
            (torch.full((3, 40, 40), torch.nan), "found nan"),
        ],
    )
    def test_bad_arrays(self, array: Any, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            read_image(array)

    def test_bfloat16_tensor(self) -> None:
        assert (read_image(torch.ones(3, 40, 40, dtype=torch.bfloat16)).pixels == 255).all()

    def test_integers_beyond_16_bits(self) -> None:
        with pytest.raises(ImageError, match="do not fit 16 bits"):
            read_image(Image.fromarray(np.full((40, 40), 70000, np.int32)))


def test_a_closed_image_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (WIDTH, HEIGHT))))
    with Image.open(path) as unread:
        pass
    with Image.open(path) as decoded:
        decoded.load()
    assert read_image(decoded).pixels.shape == (HEIGHT, WIDTH, 3)
    decoded.close()
    for image in (unread, decoded):
        with pytest.raises(ImageError, match=r"a\.png: is closed; use it inside its 'with' block$"):
            read_image(image)
