"""What is written comes back: 16-bit depth within half a unit, images in every lossless coat."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from langdepth.errors import ImageError
from langdepth.prediction.results import DepthResult, write_result
from langdepth.utils.depth_files import read_depth, read_depth16
from langdepth.utils.images import read_image

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("io")


@given(
    depth=hnp.arrays(np.float32, SHAPES, elements=st.floats(0, 1000, width=32)),
    scale=st.sampled_from([None, 0.001, 1 / 256, 0.01, 0.0002]),
    kind=st.sampled_from(["metric", "relative"]),
)
def test_depth16_round_trip_within_half_a_unit(folder: Path, depth: np.ndarray, scale: float | None, kind: str) -> None:
    result = DepthResult(depth=depth, valid=depth > 0, system="fake", scale_kind=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is clipped has its own test
        path = write_result(result, folder / "depth.png", scale=scale)
    back, used = read_depth16(path)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back > 0, depth > 0)  # what has a value keeps one, however near it is
    # Half a unit, and what float32 itself rounds at this distance.
    depth = np.minimum(depth, np.float32(65535 * used))
    error = np.abs(back.astype(np.float64) - depth)
    assert (error <= np.where(depth < used / 2, used, used / 2) + 2 * np.spacing(np.maximum(depth, back))).all()
    if kind == "metric" or scale is not None:
        assert used == (scale or 0.001)


@given(
    depth=hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)),
    suffix=st.sampled_from([".npy", ".npz"]),
)
def test_numpy_files_keep_every_distance_and_nothing_else(folder: Path, depth: np.ndarray, suffix: str) -> None:
    result = DepthResult(depth=depth, valid=np.ones(depth.shape, bool), system="fake")
    back = read_depth(write_result(result, folder / f"depth{suffix}"), 1)
    usable = np.isfinite(depth) & (depth > 0)
    np.testing.assert_array_equal(back, np.where(usable, depth, 0))


@given(
    pixels=hnp.arrays(np.uint8, st.tuples(st.integers(32, 40), st.integers(32, 40), st.just(3))),
    format=st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]),
)
def test_lossless_images_come_back(pixels: np.ndarray, format: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format)
    np.testing.assert_array_equal(read_image(stream.getvalue()).pixels, pixels)


@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_damaged_files_give_an_image_or_an_image_error(data: st.DataObject, format: str) -> None:
    """Whatever bytes change, and wherever the file ends: no other exception, no wrong shape."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(40 * 40 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 40, 3)).save(stream, format)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = read_image(bytes(content)).pixels
        except ImageError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert min(pixels.shape[:2]) >= 32
