"""Who turns an image turns its depth and its camera."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from langdepth.camera import turned_upright
from langdepth.data.base import open_dataset
from langdepth.data.rows import read_pair
from langdepth.errors import ImageError
from langdepth.records import InputSpec
from langdepth.training.sampling import Sizes, training_shapes
from langdepth.utils.images import read_image, read_size
from tests.helpers import Run, ramp, save_image

WIDTH, HEIGHT = 128, 96
CAMERA = (100.0, 110.0, 30.0, 20.0)


def write_pair(
    root: Path, orientation: int, *, depth_upright: bool = False, name: str = "0.jpg", **more: object
) -> Path:
    """A folder with one image whose bright upper left corner, as stored, is 1 m away, and everything else 4 m."""
    pixels, depth = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH), 4000, np.uint16)
    pixels[: HEIGHT // 2, : WIDTH // 2], depth[: HEIGHT // 2, : WIDTH // 2] = 255, 1000
    exif = Image.Exif()
    exif[0x0112] = orientation
    save_image(root / name, pixels, exif=exif)
    Image.fromarray(turned_upright(depth, orientation) if depth_upright else depth).save(root / "0_depth.png")
    row = {"path_rgb": name, "path_depth": "0_depth.png", "depth_scale": 0.001, **more}
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return root


INTRINSICS = dict(zip(("fx", "fy", "cx", "cy"), CAMERA, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_arrays_are_turned_as_pillow_turns_images(orientation: int) -> None:
    pixels = np.ascontiguousarray(ramp(8, 6))
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    turned = turned_upright(pixels, orientation)
    np.testing.assert_array_equal(turned, expected)
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pair_is_turned_together(tmp_path: Path, orientation: int, name: str) -> None:
    sample = open_dataset("folder", write_pair(tmp_path / "d", orientation, name=name, **INTRINSICS))[0]
    bright = sample.image.float().mean(0) > 128
    assert sample.depth[0][bright].max() < 1.1
    assert sample.depth[0][~bright].min() > 3.9
    assert sample.camera is not None
    assert (sample.camera.height, sample.camera.width) == sample.depth.shape[1:]
    # The point on the optical axis is still in the bright corner, at the same distance from its outer edges.
    u, v = sample.camera.cx, sample.camera.cy
    assert bright[round(v), round(u)]
    across, down = sorted((min(u, sample.camera.width - 1 - u), min(v, sample.camera.height - 1 - v)))
    assert (across, down) == (20, 30)
    assert (sample.camera.fx, sample.camera.fy) == ((110, 100) if orientation >= 5 else (100, 110))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_depth_that_only_fits_the_upright_image_is_upright_itself(tmp_path: Path, orientation: int) -> None:
    root = write_pair(tmp_path / "d", orientation, depth_upright=True)
    sample = open_dataset("folder", root)[0]
    bright = sample.image.float().mean(0) > 128
    assert sample.depth[0][bright].max() < 1.1
    assert sample.depth[0][~bright].min() > 3.9


def test_depth_that_fits_neither_names_exif(tmp_path: Path) -> None:
    root = write_pair(tmp_path / "d", 6)
    Image.fromarray(np.full((50, 60), 1000, np.uint16)).save(root / "0_depth.png")
    with pytest.raises(ImageError, match="turned from its stored size by EXIF orientation 6"):
        open_dataset("folder", root)[0]


@pytest.mark.parametrize("orientation", [3, 6])
def test_the_check_says_that_images_are_turned(tmp_path: Path, command: Run, orientation: int) -> None:
    code, out, _ = command("data", "check", write_pair(tmp_path / "d", orientation, **INTRINSICS))
    assert code == 0
    assert "1 images are turned upright as their EXIF says, and with them depth and camera" in out
    assert "turned" not in command("data", "check", write_pair(tmp_path / "e", 1))[1]


def test_a_stated_size_of_an_image_on_its_side(tmp_path: Path, command: Run) -> None:
    root = write_pair(tmp_path / "d", 6, width=WIDTH, height=HEIGHT)
    code, out, _ = command("data", "check", root)
    assert code == 1
    assert "EXIF turns this image on its side: leave width and height out of the index" in out
    assert command("data", "check", write_pair(tmp_path / "e", 3, width=WIDTH, height=HEIGHT))[0] == 0


def test_the_cache_keeps_what_is_turned(tmp_path: Path, command: Run) -> None:
    root = write_pair(tmp_path / "d", 6, **INTRINSICS)
    assert command("data", "cache", "folder", "--root", root, "--out", tmp_path / "cache")[0] == 0
    (cached,) = open_dataset("cache", tmp_path / "cache").rows
    (row,) = open_dataset("folder", root).rows
    expected, found = read_pair(row), read_pair(cached)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    np.testing.assert_allclose(found.depth, expected.depth)
    assert found.camera == expected.camera


@pytest.mark.parametrize("name", ["0.jpg", "0.png", "0.tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_known_from_the_header_is_that_of_the_pixels(tmp_path: Path, name: str, orientation: int) -> None:
    root = write_pair(tmp_path / "d", orientation, name=name)
    size = read_image(root / name).pixels.shape[:2]
    assert read_size(root / name) == size
    sizes = Sizes(InputSpec(area=WIDTH * HEIGHT, multiple_of=32), (WIDTH / HEIGHT, HEIGHT / WIDTH))
    assert training_shapes(open_dataset("folder", root), sizes) == [sizes.of(*size)]
