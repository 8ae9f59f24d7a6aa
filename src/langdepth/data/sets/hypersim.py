"""HyperSim: photographs of rooms that a renderer made, with exact depth.

Layouts below the root:

    metadata_images_split_scene_v1.csv, ai_V_N/images/scene_CAM_final_preview/frame.N.tonemap.jpg and
    scene_CAM_geometry_hdf5/frame.N.depth_meters.hdf5               train, val, test
    hypersim_list2.txt: lines "IMAGE DEPTH" below the root        test, depth as PNG

The list, which ScaleDepth evaluates, comes first. In the HDF5 files is the distance from the camera's centre; read
here, it is depth along the camera's z axis. For that the direction of each pixel's ray must be known. Many scenes have
one and the same lens, others have it shifted or tilted, as metadata_camera_parameters.csv says (beside the split list).
Where that file is missing, or has no line for a scene, the usual lens is taken.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.hdf5 import read_hdf5
from langdepth.data.lists import inside, listed
from langdepth.data.rows import FILES, Decoder, Intrinsics, Metres, Row
from langdepth.errors import ImageError, LangdepthError, text_flaw
from langdepth.utils.reading import read_csv, visible

CARD = DatasetCard(
    name="hypersim",
    title="HyperSim",
    unit="metres along the ray in HDF5, millimetres in 16-bit PNG",
    depth_scale=0.001,
    invalid="0, NaN",
    intrinsics="fx = fy 886.81, cx 511.5, cy 383.5, or as metadata_camera_parameters.csv says; none of tilted lenses",
    depth_range=(0.1, 80.0),
    median_range=(0.5, 40.0),
    scenes="none",
    licence="CC BY-SA 3.0",
    where="https://github.com/apple/ml-hypersim",
    layouts=(
        "metadata_images_split_scene_v1.csv (and metadata_camera_parameters.csv) and "
        "ai_V_N/images/scene_CAM_{final_preview,geometry_hdf5}",
        "hypersim_list2.txt (image, depth)",
    ),
    splits={"train": 59543, "val": 7386, "test": 7690},
    split="test",
    protocol="hypersim",
)
LIST = "hypersim_list2.txt"
SPLIT_FILE, CAMERA_FILE = "metadata_images_split_scene_v1.csv", "metadata_camera_parameters.csv"
FOCAL, SIZE = 886.81, (768, 1024)
_COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")
# From (u, v, 1), u to the right and v up across the image from -1 to 1, to a ray's x, y and z; z points backwards
USUAL = np.diag([SIZE[1] / 2 / FOCAL, SIZE[0] / 2 / FOCAL, -1.0])
_UPRIGHT = 1e-6  # what a lens may be off and still count as not tilted

Lens = npt.NDArray[np.float64]


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _converted, _official)


def _converted(root: Path, split: str) -> list[Row]:
    lines = listed(root / LIST) if split == "test" else []
    lenses = _lenses(root) if lines else {}
    return [_row(root, image, depth, split, lenses) for image, depth in lines]


def _official(root: Path, split: str) -> list[Row]:
    file = _table(root, SPLIT_FILE)
    if file is None:
        if visible(root, "ai_*/images/*_geometry_hdf5"):
            raise LangdepthError(f"{root / SPLIT_FILE}: the split list is missing")
        return []
    lenses, cameras, found = _lenses(root), _table(root, CAMERA_FILE), []
    what = "the split list"
    for line in _lines(file, what):
        try:
            scene, camera, number, released, partition = (line[column] for column in _COLUMNS)
            frame = f"frame.{int(number):04d}"
        except (KeyError, ValueError) as error:
            raise LangdepthError(f"{file}: not readable as {what} ({error})") from None
        if partition == split and released == "True":
            images = inside(f"{scene}/images/scene_{camera}", str(file))
            image = f"{images}_final_preview/{frame}.tonemap.jpg"
            depth = f"{images}_geometry_hdf5/{frame}.depth_meters.hdf5"
            along_ray = Decoder(FILES.image, partial(_depth, lens=lenses.get(scene, USUAL)))
            row = _row(root, image, depth, split, lenses)
            found.append(replace(row, decoder=along_ray, needs=() if cameras is None else (cameras,)))
    if not found:
        raise LangdepthError(f"{file}: names no image of split {split}; get it again")
    return sorted(found, key=lambda row: row.key)


def _table(root: Path, name: str) -> Path | None:
    places = (root / name, root / "evermotion_dataset" / "analysis" / name)
    return next((place for place in places if place.is_file()), None)


def _lines(file: Path, what: str) -> list[dict[str, str]]:
    """The lines of a table. Raises LangdepthError naming it where it is no table, or a line is not whole."""
    try:
        reader = read_csv(file)
        lines = []
        for line in reader:
            if None in line.values():
                raise ValueError(f"line {reader.line_num} ends too early")
            lines.append(line)
        return lines
    except (csv.Error, ValueError, OSError) as error:
        raise LangdepthError(f"{file}: not readable as {what} ({text_flaw(error)})") from None


def _lenses(root: Path) -> dict[str, Lens]:
    """Scene -> its lens, as ``USUAL``; empty where the table is not there."""
    file = _table(root, CAMERA_FILE)
    if file is None:
        return {}
    what = "the table of cameras"
    try:
        return {line["scene_name"]: _lens(line) for line in _lines(file, what)}
    except (KeyError, ValueError) as error:
        raise LangdepthError(f"{file}: not readable as {what} ({error})") from None


def _lens(line: dict[str, str]) -> Lens:
    lens = np.array([[float(line[f"M_cam_from_uv_{i}{j}"]) for j in range(3)] for i in range(3)])
    if not np.isfinite(lens).all() or np.linalg.det(lens) == 0:
        raise ValueError(f"the numbers of {line['scene_name']} are no lens")
    return lens


def _row(root: Path, image: str, depth: str, split: str, lenses: dict[str, Lens]) -> Row:
    scene = image.split("/")[0]
    return Row(
        key=image,
        path_rgb=root / image,
        path_depth=root / depth,
        depth_scale=0.001,
        source="hypersim",
        scene_run=scene,
        split=split,
        size=SIZE,
        intrinsics=_intrinsics(lenses.get(scene, USUAL)),
    )


def _intrinsics(lens: Lens) -> Intrinsics | None:
    """fx, fy, cx, cy, or None for a tilted lens, which is no pinhole camera along its z axis."""
    across, upwards, backwards = np.diag(lens)
    if np.abs(lens[[0, 1, 2, 2], [1, 0, 0, 1]]).max() > _UPRIGHT:
        return None
    height, width = SIZE
    centre = (width * (1 - lens[0, 2] / across) - 1) / 2, (height * (1 + lens[1, 2] / upwards) - 1) / 2
    return -backwards * width / 2 / across, -backwards * height / 2 / upwards, *centre


def _depth(row: Row, lens: Lens) -> Metres:
    distance = read_hdf5(row.path_depth, ("dataset",)).astype(np.float32)
    if distance.ndim != 2:
        raise ImageError(f"{row.path_depth}: a depth map is (H, W), found shape {distance.shape}")
    height, width = distance.shape
    u = (2 * np.arange(width, dtype=np.float32) + 1) / width - 1
    v = 1 - (2 * np.arange(height, dtype=np.float32)[:, None] + 1) / height
    x, y, z = (a * u + b * v + c for a, b, c in lens.tolist())
    depth: Metres = distance * (-z / np.sqrt(x**2 + y**2 + z**2))
    return depth
