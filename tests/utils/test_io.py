"""Reading any image, refusing what is none, writing results without losing what was there."""

from __future__ import annotations

import errno
import io
import json
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
from PIL.PngImagePlugin import PngInfo

from langdepth.camera import Camera
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.io import WRITERS, read_depth, read_depth16, read_image, write_result
from langdepth.records import DepthResult
from langdepth.utils.files import atomic_path

HEIGHT, WIDTH = 36, 48


@pytest.fixture
def rgb() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def depth() -> npt.NDArray[np.float32]:
    values = np.random.default_rng(1).uniform(0.5, 9.5, (HEIGHT, WIDTH)).astype(np.float32)
    values[:4, :5] = 0
    return values


def make_result(depth: npt.NDArray[np.float32], **changes: Any) -> DepthResult:
    camera = Camera.from_fov(60, depth.shape[1], depth.shape[0])
    return DepthResult(**{"depth": depth, "valid": depth > 0, "system": "fake", "camera": camera, **changes})


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


def npy_header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that claims a shape and holds nothing."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


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


class TestReadDepth:
    def test_16_bit_png(self, tmp_path: Path) -> None:
        values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 37
        Image.fromarray(values).save(tmp_path / "depth.png")
        depth = read_depth(tmp_path / "depth.png", 1 / 256)
        assert depth.dtype == np.float32
        np.testing.assert_allclose(depth, values / 256, rtol=1e-6)

    @pytest.mark.parametrize("name", ["depth.npy", "depth.npz"])
    def test_numpy_files_hold_metres(self, depth: npt.NDArray[np.float32], tmp_path: Path, name: str) -> None:
        if name.endswith(".npy"):
            np.save(tmp_path / name, depth.astype(np.float64))
        else:
            np.savez_compressed(tmp_path / name, depth=depth, other=np.zeros(3))
        np.testing.assert_array_equal(read_depth(tmp_path / name, 0.001), depth)

    def test_values_that_are_no_distance_become_no_value(self, tmp_path: Path) -> None:
        stored = np.ones((HEIGHT, WIDTH), np.float32)
        stored[0, :4] = np.nan, np.inf, -np.inf, -2
        np.save(tmp_path / "depth.npy", stored)
        depth = read_depth(tmp_path / "depth.npy", 1)
        assert (depth[0, :4] == 0).all()
        assert (depth.ravel()[4:] == 1).all()
        np.testing.assert_array_equal(read_depth(tmp_path / "depth.npy", 1, keep_invalid=True), stored)

    def test_bad_files(self, rgb: npt.NDArray[np.uint8], tmp_path: Path) -> None:
        def saved(name: str, content: Any) -> Path:
            path = tmp_path / name
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif isinstance(content, dict):
                np.savez_compressed(path, **content)
            else:
                np.save(path, content)
            return path

        deep = np.zeros((40, 40), np.float32)
        grey16 = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 65535, (40, 40), dtype=np.uint16)))
        whole = saved("whole.npy", deep).read_bytes()
        cases = {
            saved("grey8.png", encoded(Image.fromarray(rgb[..., 0]))): "16-bit grey PNG.*mode L",
            saved("colour.png", encoded(Image.fromarray(rgb))): "16-bit grey PNG.*mode RGB",
            saved("truncated.png", grey16[:500]): "damaged or truncated",
            saved("bomb.png", png_header(9000, 9000)): "81.0 megapixels",
            saved("truncated.npy", whole[:-100]): "damaged or truncated",
            saved("claims.npy", npy_header((1000, 1000))): "damaged or truncated",
            saved("text.npy", b"no array at all"): "damaged or truncated",
            saved("text.npz", b"PK no archive"): "damaged or truncated",
            saved("empty.npy", b""): "empty",
            saved("objects.npy", np.array([[{}]], dtype=object)): "Python objects",
            saved("millimetres.npy", np.ones((40, 40), np.uint16)): "uint16",
            saved("batch.npy", np.ones((1, 40, 40))): "shape",
            saved("nothing.npy", np.ones((0, 40))): "shape",
            saved("keys.npz", {"a": deep, "b": deep}): "expected the key 'depth'",
            tmp_path / "nowhere.png": "no such file",
        }
        for path, message in cases.items():
            with pytest.raises(ImageError, match=rf"{path.name}: .*{message}"):
                read_depth(path, 0.001)

    def test_archive_that_unpacks_to_too_much(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("langdepth.io.MAX_PIXELS", 500_000)
        np.savez_compressed(tmp_path / "bomb.npz", depth=np.zeros((1000, 1000), np.float32))
        assert (tmp_path / "bomb.npz").stat().st_size < 100_000
        with pytest.raises(ImageError, match=r"bomb.npz: 1000x1000 = 1.0 megapixels is more than the limit"):
            read_depth(tmp_path / "bomb.npz", 1)


class TestWriteResult:
    def test_every_format_by_name_and_by_suffix(
        self, rgb: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], tmp_path: Path
    ) -> None:
        result = make_result(depth, image=rgb)
        for name, writer in WRITERS.items():
            if not writer.by_name:
                continue
            by_suffix = write_result(result, tmp_path / "new" / f"a{writer.suffix}")
            by_name = write_result(result, tmp_path / f"{name}{by_suffix.suffix}", format=name)
            assert by_suffix.read_bytes() == by_name.read_bytes()
        expected = {"a_depth.png", "a.npy", "a.npz", "a_color.png", "a.ply"}
        assert {path.name for path in (tmp_path / "new").iterdir()} == expected  # and nothing temporary left

    def test_depth16_says_what_it_holds(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = make_result(depth).save(tmp_path / "depth.png")
        with Image.open(path) as image:
            assert image.mode == "I;16"
            tag = json.loads(image.info["langdepth"])
        assert tag == {"unit": "metre", "scale": 0.001, "scale_kind": "metric", "system": "fake", "no_value": 0}
        np.testing.assert_array_equal(read_depth(path, 0.001), read_depth16(path)[0])

    def test_depth16_far_depth_gets_a_coarser_scale(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        far = depth * 20
        with pytest.warns(UserWarning, match=r"far.png: depth beyond 65.535 metres does not fit 16 bits"):
            path = write_result(make_result(far), tmp_path / "far.png")
        back, scale = read_depth16(path)
        assert scale == pytest.approx(0.003)  # farthest pixel just under 190 m
        np.testing.assert_allclose(back, far, atol=scale * 0.51)

    def test_depth16_relative_depth_fills_the_range(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = write_result(
            make_result(depth / np.float32(1000), scale_kind="relative", unit="unknown"), tmp_path / "r.png"
        )
        back, scale = read_depth16(path)
        np.testing.assert_allclose(back, depth / 1000, atol=scale * 0.51)
        assert back.max() == pytest.approx(65535 * scale)

    def test_kitti16_is_what_the_kitti_server_reads(
        self, depth: npt.NDArray[np.float32], tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        depth[0, :6] = 0, 0.0005, 1.0, 2.0 + 0.5 / 256 + 1e-4, 255.99, np.nan
        path = write_result(make_result(depth), tmp_path / "0000000000.png", format="kitti16")
        with Image.open(path) as image:
            assert image.mode == "I;16"
            units = np.asarray(image)
        # No value is 0, and only that; the nearest unit, not the one below.
        assert units[0, :6].tolist() == [0, 1, 256, 513, 65533, 0]
        np.testing.assert_allclose(read_depth(path, 1 / 256)[1:], depth[1:], atol=0.5 / 256 + 1e-6)
        np.testing.assert_array_equal(read_depth16(path)[0], read_depth(path, 1 / 256))
        assert not recwarn.list

    def test_kitti16_says_what_it_cannot_hold(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[0, 0] = 300
        with pytest.warns(UserWarning, match=r"far.png: depth beyond 255.996 m .* is stored as 255.996 m"):
            path = write_result(make_result(depth), tmp_path / "far.png", format="kitti16")
        back = read_depth(path, 1 / 256)
        assert back[0, 0] == pytest.approx(255.996, abs=0.001)
        np.testing.assert_allclose(back[1:], depth[1:], atol=0.5 / 256 + 1e-6)  # the others keep the scale
        with pytest.raises(UsageError, match="kitti16 holds metres, and 'fake' gives relative depth"):
            write_result(make_result(depth, scale_kind="relative"), tmp_path / "r.png", format="kitti16")

    def test_what_has_no_value_stays_without(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        depth[10, :4] = np.nan, np.inf, -1, 3
        valid = np.ones_like(depth, dtype=bool)
        valid[10, 3] = False
        for name in ("a.png", "a.npy", "a.npz"):
            path = write_result(make_result(depth, valid=valid), tmp_path / name)
            back = read_depth(path, 0.001, keep_invalid=True)
            assert (back[10, :4] == 0).all()
            assert back[11, 0] == pytest.approx(depth[11, 0], abs=0.00051)
        nothing = make_result(np.zeros_like(depth), image=np.zeros((*depth.shape, 3), np.uint8))
        for name in ("n.png", "n.npy", "n.npz", "n_color.png", "n.ply"):
            assert write_result(nothing, tmp_path / name).stat().st_size > 0

    def test_depth16_without_its_scale(self, tmp_path: Path) -> None:
        Image.fromarray(np.ones((40, 40), np.uint16)).save(tmp_path / "plain.png")
        with pytest.raises(ImageError, match=r"plain.png: carries no depth scale"):
            read_depth16(tmp_path / "plain.png")
        for text in ("{}", "no json", "[1]", '{"scale": null}', '{"scale": NaN}', '{"scale": -1}'):
            tag = PngInfo()
            tag.add_text("langdepth", text)
            Image.fromarray(np.ones((40, 40), np.uint16)).save(tmp_path / "odd.png", pnginfo=tag)
            with pytest.raises(ImageError, match=r"odd.png: .*depth scale"):
                read_depth16(tmp_path / "odd.png")

    def test_npz_holds_everything_without_pickles(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        result = make_result(
            depth, scene_probs={"kitchen": np.float32(0.5)}, provenance={"path": tmp_path, "size": (1, 2)}
        )
        with np.load(write_result(result, tmp_path / "a.npz"), allow_pickle=False) as content:
            np.testing.assert_array_equal(content["depth"], depth)
            np.testing.assert_array_equal(content["valid"], depth > 0)
            assert result.camera is not None
            np.testing.assert_array_equal(content["intrinsics"], result.camera.matrix)
            metadata = json.loads(str(content["metadata"]))
        assert metadata["scene_probs"] == {"kitchen": 0.5}
        assert metadata["provenance"] == {"path": str(tmp_path), "size": [1, 2]}
        assert Camera(**metadata["camera"]) == result.camera
        with np.load(write_result(make_result(depth, camera=None), tmp_path / "b.npz")) as content:
            assert "intrinsics" not in content

    def test_ply_is_the_unprojected_image(
        self, rgb: npt.NDArray[np.uint8], depth: npt.NDArray[np.float32], tmp_path: Path
    ) -> None:
        result = make_result(depth, image=rgb)
        header, points, colours = read_ply(write_result(result, tmp_path / "a.ply"))
        assert "format binary_little_endian 1.0" in header
        valid = depth > 0
        assert result.camera is not None
        np.testing.assert_array_equal(points, result.camera.unproject(depth)[valid])
        np.testing.assert_array_equal(colours, rgb[valid])
        few = write_result(result, tmp_path / "few.ply", max_points=10)
        assert len(read_ply(few)[1]) == 10

    def test_ply_without_image_and_without_camera(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        path = write_result(make_result(depth), tmp_path / "plain.ply")
        content = path.read_bytes()
        assert b"red" not in content
        assert len(content.split(b"end_header\n", 1)[1]) == 12 * (depth > 0).sum()
        with pytest.raises(UsageError, match="needs a camera"):
            write_result(make_result(depth, camera=None), tmp_path / "none.ply")
        assert not (tmp_path / "none.ply").exists()

    def test_color_is_the_colour_map_with_a_legend(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        from langdepth.prediction.viz import color_with_legend

        with Image.open(write_result(make_result(depth), tmp_path / "a_color.png")) as image:
            np.testing.assert_array_equal(np.asarray(image), color_with_legend(depth, depth > 0))

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("a.exr", {}, r"a.exr: no format has this name; known: _depth.png"),
            ("a", {}, "no format has this name"),
            ("a.png", {"format": "dpeth16"}, "did you mean 'depth16'"),
            ("a.png", {"format": "ply"}, "ends in '.ply'"),
            ("a.png", {"scale": 0.0}, "scale must be a positive"),
            ("a.png", {"scale": float("nan")}, "scale must be a positive"),
            ("a.ply", {"max_points": 0}, "max_points"),
        ],
    )
    def test_bad_requests(
        self, depth: npt.NDArray[np.float32], tmp_path: Path, name: str, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            write_result(make_result(depth), tmp_path / name, **options)
        assert list(tmp_path.iterdir()) == []

    def test_sizes_that_differ(self, depth: npt.NDArray[np.float32], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="must both be"):
            write_result(make_result(depth, valid=depth[1:] > 0), tmp_path / "a.npy")
        with pytest.raises(UsageError, match="differ in size"):
            write_result(make_result(depth, image=np.zeros((5, 5, 3), np.uint8)), tmp_path / "a.ply")


class TestAtomicPath:
    def test_replaces_only_when_complete(self, tmp_path: Path) -> None:
        target = tmp_path / "new folder" / "a.txt"
        with atomic_path(target) as temporary:
            temporary.write_text("one")
            assert not target.exists()
        assert target.read_text() == "one"
        with pytest.raises(KeyboardInterrupt):
            write_half(target, KeyboardInterrupt())
        assert target.read_text() == "one"
        assert list(target.parent.iterdir()) == [target]

    def test_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        with pytest.raises(LangdepthError, match=r"file/deep/a.npy: cannot be written"):
            write_result(make_result(np.ones((40, 40), np.float32)), tmp_path / "file" / "deep" / "a.npy")
        assert (tmp_path / "file").read_text() == "kept"

    def test_target_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").mkdir()
        with (
            pytest.raises(LangdepthError, match=r"a.txt: cannot be written"),
            atomic_path(tmp_path / "a.txt") as temporary,
        ):
            temporary.write_text("x")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
    def test_full_disk_and_no_permission(self, tmp_path: Path, code: int) -> None:
        target = tmp_path / "a.txt"
        target.write_text("before")
        with pytest.raises(LangdepthError) as caught:
            write_half(target, OSError(code, os.strerror(code)))
        assert str(caught.value) == f"{target}: cannot be written ({os.strerror(code)})"
        assert target.read_text() == "before"
        assert list(tmp_path.iterdir()) == [target]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    @pytest.mark.parametrize("name", ["a.png", "a.npy", "a.npz", "a_color.png", "a.ply"])
    def test_every_writer_on_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        real_open = Path.open
        monkeypatch.setattr(Path, "open", lambda self, mode="r": real_open(Path("/dev/full"), mode))
        depth = np.random.default_rng(0).uniform(1, 9, (200, 200)).astype(np.float32)
        with pytest.raises(LangdepthError, match=rf"{name}: cannot be written \(No space left on device\)"):
            write_result(make_result(depth), tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_errors_about_other_files_pass_through(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"other.txt"), atomic_path(tmp_path / "a.txt"):
            (tmp_path / "folder" / "other.txt").read_text()


def write_half(target: Path, error: BaseException) -> None:
    """A writer that fails in the middle."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


def read_ply(path: Path) -> tuple[str, npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    header, _, body = path.read_bytes().partition(b"end_header\n")
    vertices = np.frombuffer(body, dtype=[("point", "<f4", 3), ("colour", "u1", 3)])
    assert f"element vertex {len(vertices)}\n" in header.decode()
    return header.decode(), vertices["point"], vertices["colour"]
