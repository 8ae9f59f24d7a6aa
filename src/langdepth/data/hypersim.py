"""HyperSim: photographs of rooms that a renderer made, with exact depth.

Layouts below the root:

    metadata_images_split_scene_v1.csv, ai_V_N/images/scene_CAM_final_preview/frame.N.tonemap.jpg and
    scene_CAM_geometry_hdf5/frame.N.depth_meters.hdf5               train, val, test
    hypersim_list2.txt: lines "PICTURE DEPTH" below the root        test, depth as PNG

The list has the first word where both are there. In the HDF5 files is the distance from the camera's centre; read
here, it is depth along the optical axis.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np

from langdepth.data.base import DatasetCard, first_layout
from langdepth.data.lists import read_list
from langdepth.data.rows import FILES, Decoder, Metres, Row, read_hdf5
from langdepth.errors import ImageError, LangdepthError

CARD = DatasetCard(
    name="hypersim",
    title="HyperSim",
    unit="metres along the ray in HDF5, millimetres in 16-bit PNG",
    depth_scale=0.001,
    invalid="0, NaN",
    intrinsics="fx = fy 886.81, cx 511.5, cy 383.5 (a few scenes have shifted lenses, which this leaves out)",
    depth_range=(0.1, 80.0),
    median_range=(0.5, 40.0),
    scenes="none",
    licence="CC BY-SA 3.0",
    where="https://github.com/apple/ml-hypersim",
    layouts=(
        "metadata_images_split_scene_v1.csv and ai_V_N/images/scene_CAM_{final_preview,geometry_hdf5}",
        "hypersim_list2.txt (picture, depth)",
    ),
    splits={"train": None, "val": None, "test": None},
    split="test",
    protocol="hypersim",
)
LIST = "hypersim_list2.txt"
SPLIT_FILE = "metadata_images_split_scene_v1.csv"
FOCAL, SIZE = 886.81, (768, 1024)
_COLUMNS = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")


def rows(root: Path, split: str | None = None, problems: list[LangdepthError] | None = None) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, root, split, [partial(_converted, root), partial(_official, root)], problems)


def _converted(root: Path, split: str) -> list[Row]:
    if split != "test" or not (root / LIST).is_file():
        return []
    return [_row(root, picture, depth, split) for picture, depth, *_ in sorted(read_list(root / LIST, 2))]


def _official(root: Path, split: str) -> list[Row]:
    places = (root / SPLIT_FILE, root / "evermotion_dataset" / "analysis" / SPLIT_FILE)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        if next(root.glob("ai_*/images/*_geometry_hdf5"), None):
            raise LangdepthError(f"{places[0]}: the split list is missing")
        return []
    found = []
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream):
                scene, camera, number, released, partition = (line[column] for column in _COLUMNS)
                if partition == split and released == "True":
                    images, frame = f"{scene}/images/scene_{camera}", f"frame.{int(number):04d}"
                    picture = f"{images}_final_preview/{frame}.tonemap.jpg"
                    depth = f"{images}_geometry_hdf5/{frame}.depth_meters.hdf5"
                    found.append(_row(root, picture, depth, split, ALONG_RAY))
    except (csv.Error, KeyError, ValueError, OSError) as error:
        raise LangdepthError(f"{file}: not readable as the split list ({error})") from None
    return sorted(found, key=lambda row: row.key)


def _row(root: Path, picture: str, depth: str, split: str, decoder: Decoder = FILES) -> Row:
    return Row(
        key=picture,
        path_rgb=root / picture,
        path_depth=root / depth,
        depth_scale=0.001,
        decoder=decoder,
        source="hypersim",
        scene_run=picture.split("/")[0],
        split=split,
        size=SIZE,
        intrinsics=(FOCAL, FOCAL, (SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2),
    )


def _depth(row: Row) -> Metres:
    distance = read_hdf5(row.path_depth, ("dataset",)).astype(np.float32)
    if distance.ndim != 2:
        raise ImageError(f"{row.path_depth}: a depth map is (H, W), found shape {distance.shape}")
    height, width = distance.shape
    focal = FOCAL * width / SIZE[1]
    x = np.arange(width, dtype=np.float32) - (width - 1) / 2
    y = np.arange(height, dtype=np.float32)[:, None] - (height - 1) / 2
    depth: Metres = distance * (focal / np.sqrt(x**2 + y**2 + focal**2)).astype(np.float32)
    return depth


ALONG_RAY = Decoder(FILES.image, _depth)
