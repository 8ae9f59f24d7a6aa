"""Reading depth maps, refusing what is none."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from langdepth.errors import ImageError
from langdepth.utils.depth_files import read_depth
from tests.utils.test_images import encoded, png_header

HEIGHT, WIDTH = 36, 48


def npy_header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that claims a shape and holds nothing."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


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
            saved("grey8.png", encoded(Image.fromarray(rgb[..., 0]))): "256 steps are too few",
            saved("color.png", encoded(Image.fromarray(rgb))): "16-bit grey PNG, .* 3 channels",
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
        monkeypatch.setattr("langdepth.utils.depth_files.MAX_PIXELS", 500_000)
        np.savez_compressed(tmp_path / "bomb.npz", depth=np.zeros((1000, 1000), np.float32))
        assert (tmp_path / "bomb.npz").stat().st_size < 100_000
        with pytest.raises(ImageError, match=r"bomb.npz: 1000x1000 = 1.0 megapixels is more than the limit"):
            read_depth(tmp_path / "bomb.npz", 1)


TWELVE_BITS = (  # a JPEG 2000 file of 40 x 36 numbers of 12 bits, which Pillow cannot write
    "/0//UQApAAAAAAAoAAAAJAAAAAAAAAAAAAAAKAAAACQAAAAAAAAAAAABCwEB/1IADAAAAAEAAgQEAAH/XAAKQGBoaHBoaHD/ZAAlAAFDcmVhdGVk"
    "IGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAC0AAH/k9/hoBJho7SDzqSbshVVVO+A05PdXUqAH7flcJc4KZmajOa1NCRfClAAHC93"
    "zTTxVus/2JNZ/NfekizC03G11cTR3w/j8B6iHKFBvA1FxhOV3m+cAFaAYkeaWcs/CtuwA9AxW3X+8iFR9MgAwA+QhA/AKBcpjKCQ1pUBQQDqq7UA"
    "MI94SBs36xgIuq44wA+QTAfaFCFsFUn5P/sJq8HE+y2aJMAYSEv/2Q=="
)


def test_jpeg_2000_keeps_its_numbers(tmp_path: Path) -> None:
    values = np.arange(40 * 36).reshape(36, 40) // 8 * 16 % 4096
    twelve = base64.b64decode(TWELVE_BITS)
    (tmp_path / "12.jp2").write_bytes(twelve)
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "16.jp2")
    for name in ("12.jp2", "16.jp2"):
        np.testing.assert_allclose(read_depth(tmp_path / name, 0.001), values * 0.001, rtol=1e-6)
    place = twelve.index(b"\xff\x51") + 40
    for bits, message in ((0x8B, "holds signed numbers"), (19, "holds numbers of 20 bits")):
        (tmp_path / "odd.jp2").write_bytes(twelve[:place] + bytes([bits]) + twelve[place + 1 :])
        with pytest.raises(ImageError, match=rf"odd\.jp2: {message}; a depth map in JPEG 2000"):
            read_depth(tmp_path / "odd.jp2", 0.001)
