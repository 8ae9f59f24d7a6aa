"""A depth file's own EXIF orientation is applied once, whatever its format, and with that of its photo never twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.camera import turned_upright
from langdepth.data.base import open_dataset
from langdepth.data.tools.check import check_dataset
from langdepth.utils.depth_files import read_depth
from langdepth.utils.images import read_image, read_size

UPRIGHT = (1000 + np.arange(48 * 64, dtype=np.uint16)).reshape(48, 64)
PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
INVERSE = {1: 1, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:  # type: ignore[type-arg]
    return turned_upright(upright, INVERSE[orientation])


def save(path: Path, pixels: np.ndarray, orientation: int) -> None:  # type: ignore[type-arg]
    """The pixels as they are, in a file that states an orientation."""
    exif = Image.Exif()
    if orientation != 1:
        exif[0x112] = orientation
    if path.suffix == ".tif":
        Image.fromarray(pixels).save(path, tiffinfo=exif)
    else:
        Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("orientation", INVERSE)
def test_a_depth_file_is_turned_by_its_own_orientation(tmp_path: Path, kind: str, orientation: int) -> None:
    path = tmp_path / f"d.{kind}"
    save(path, stored(UPRIGHT, orientation), orientation)
    assert np.array_equal(read_depth(path, 1.0), UPRIGHT)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize(("photo", "own"), [(1, 3), (3, 3), (3, 1), (6, 6), (6, 1), (8, 3)])
def test_a_pair_is_turned_once(tmp_path: Path, kind: str, photo: int, own: int) -> None:
    """Depth with an orientation of its own is upright by that; depth without one lies as its photo does."""
    pixels = stored(PIXELS, photo)
    save(tmp_path / "p.png", pixels, photo)
    save(tmp_path / f"d.{kind}", stored(UPRIGHT, own if own != 1 else photo), own)
    camera = "60,61,20,10"  # in the stored photo
    (tmp_path / "index.csv").write_text(f"path_rgb,path_depth,depth_scale,fx,fy,cx,cy\np.png,d.{kind},0.001,{camera}\n")
    sample = open_dataset("folder", tmp_path, trust_unit=True)[0]
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), PIXELS)
    assert np.allclose(sample.depth[0].numpy(), UPRIGHT / 1000)
    assert sample.camera is not None
    assert (sample.camera.height, sample.camera.width) == (48, 64)
    focal = (60, 61) if photo < 5 else (61, 60)
    assert (sample.camera.fx, sample.camera.fy) == focal
    assert check_dataset("folder", tmp_path).problems == []


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_a_photo_that_its_reader_has_turned_states_by_what(orientation: int) -> None:
    """As pillow-heif hands it on, whose depth lies as the stored pixels did."""
    photo = Image.fromarray(PIXELS)
    photo.format = "HEIF"
    photo.info["original_orientation"] = orientation if orientation > 1 else None
    found = read_image(photo)
    assert found.orientation == orientation
    np.testing.assert_array_equal(found.pixels, PIXELS)


@pytest.mark.parametrize("photo", [1, 3, 6, 8])
def test_depth_and_camera_turn_with_a_heic_photo(tmp_path: Path, photo: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x112] = photo
    smooth = np.asarray(Image.fromarray(PIXELS[:6, :8]).resize((64, 48)))
    for name in ("p.heic", "p.jpg"):
        Image.fromarray(stored(smooth, photo)).save(tmp_path / name, quality=95, exif=exif.tobytes())
    np.save(tmp_path / "d.npy", stored(UPRIGHT, photo).astype(np.float32) / 1000)
    header = "path_rgb,path_depth,depth_scale,fx,fy,cx,cy\n"
    (tmp_path / "index.csv").write_text(header + "".join(f"p.{k},d.npy,1,60,61,20,10\n" for k in ("heic", "jpg")))
    heic, jpeg = open_dataset("folder", tmp_path, trust_unit=True)
    assert np.allclose(heic.image.float(), jpeg.image.float(), atol=40)
    assert np.allclose(heic.depth[0].numpy(), UPRIGHT / 1000)
    assert heic.camera == jpeg.camera
    assert read_size(tmp_path / "p.heic") == read_size(tmp_path / "p.jpg") == (48, 64)
