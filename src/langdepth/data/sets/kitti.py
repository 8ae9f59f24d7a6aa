"""KITTI with its improved ground truth: the Eigen lists on the raw data, and the depth selection of 1,000 images.

Layouts below the root:

    images        DATE/DRIVE/image_02/data/0000000069.png, below the root or raw, raw_data, kitti_raw, kitti_raw_data,
                  input; also .jpg
    ground truth  DRIVE/proj_depth/groundtruth/image_02/0000000069.png, below the root (or the folder that is given for
                  it) or gt_depth, gt, ground_truth, kitti_ground_truth, data_depth_annotated, each with or without
                  train and val
    selection     depth_selection/val_selection_cropped/{image, groundtruth_depth, intrinsics}; also without the first

Eigen's test list has 697 images, 45 of them without improved ground truth; 652 remain, as published numbers have it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import Listing, read_intrinsics, shipped
from langdepth.data.pairs import ListRules
from langdepth.data.rows import Row
from langdepth.text.scenes import SCENES
from langdepth.utils.reading import visible

CARD = DatasetCard(
    name="kitti",
    title="KITTI raw with improved ground truth, Eigen's lists",
    unit="1/256 m in 16-bit PNG",
    depth_scale=1 / 256,
    invalid="0",
    intrinsics="by date, fx = fy from 707.05 to 721.54; the depth selection has a file for each image",
    depth_range=(0.001, 80.0),
    median_range=(4.0, 50.0),
    scenes="all outdoor_scene",
    licence="CC BY-NC-SA 3.0",
    where="https://www.cvlibs.net/datasets/kitti/raw_data.php and eval_depth.php?benchmark=depth_prediction",
    layouts=(
        "DATE/DRIVE/image_02/data/N.png and DRIVE/proj_depth/groundtruth/image_02/N.png",
        "depth_selection/val_selection_cropped/{image,groundtruth_depth,intrinsics}",
    ),
    splits={"train": 23158, "val": 1000, "test": 652},
    split="test",
    protocol="kitti-eigen-garg",
)
OUTDOOR = SCENES.index("outdoor_scene")
# Date -> fx = fy, cx, cy of camera 2 after rectification, and (height, width).
CAMERAS = {
    "2011_09_26": ((721.5377, 609.5593, 172.854), (375, 1242)),
    "2011_09_28": ((707.0493, 604.0814, 180.5066), (370, 1224)),
    "2011_09_29": ((718.3351, 600.3891, 181.5122), (374, 1238)),
    "2011_09_30": ((707.0912, 601.8873, 183.1104), (370, 1226)),
    "2011_10_03": ((718.856, 607.1928, 185.2157), (376, 1241)),
}
_IMAGES = ("", "raw", "raw_data", "kitti_raw", "kitti_raw_data", "input")
_TRUTH = ("", "gt_depth", "gt", "ground_truth", "kitti_ground_truth", "data_depth_annotated")
_SELECTION = ("depth_selection/val_selection_cropped", "val_selection_cropped")


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, partial(_eigen, search.truth_root or search.root), _selection)


def _eigen(truth_root: Path, root: Path, split: str) -> list[Row]:
    if split not in ("train", "test"):
        return []
    images = next((root / name for name in _IMAGES if any((root / name / date).is_dir() for date in CAMERAS)), None)
    if images is None:
        return []
    truths = [truth_root / name for name in _TRUTHS if (truth_root / name).is_dir()]
    homes: dict[str, Path] = {}  # drive -> where its ground truth lies
    there = Listing()
    found = []
    for line, key in enumerate(shipped(f"kitti_eigen_{split}"), 1):
        drive, name = key.split("/")[1], Path(key).name
        if drive not in homes:
            homes[drive] = next((folder for folder in truths if (folder / drive / "proj_depth").is_dir()), truths[0])
        image = images / key
        if image not in there and image.with_suffix(".jpg") in there:
            image = image.with_suffix(".jpg")
        depth = homes[drive] / drive / "proj_depth" / "groundtruth" / "image_02" / name
        found.append(replace(_row(key, image, depth, split), line=line))
    return found


def _row(key: str, image: Path, depth: Path, split: str) -> Row:
    """The row of an image called DATE/DRIVE/image_02/data/N.png, or of one whose date and drive are not known."""
    date, drive = ("", *Path(key).parts)[-5:-3] if key.count("/") >= 4 else ("", "")
    camera: dict[str, Any] = {}
    if date in CAMERAS:
        (focal, cx, cy), size = CAMERAS[date]
        camera = {"size": size, "intrinsics": (focal, focal, cx, cy)}
    return Row(
        key=key,
        path_rgb=image,
        path_depth=depth,
        depth_scale=1 / 256,
        source="kitti",
        scene_run=drive,
        split=split,
        scene=OUTDOOR,
        **camera,
    )


def _list_key(image: str) -> str:
    """DATE/DRIVE/image_02/data/N.png, whatever stands before it."""
    parts = Path(image).parts
    start = next((place for place, part in enumerate(parts) if part in CAMERAS), 0)
    return "/".join(parts[start:]).lstrip("/")


_TRUTHS = tuple(str(Path(name, part)) for name in _TRUTH for part in ("", "train", "val"))
LISTS = ListRules(images=_IMAGES, truths=_TRUTHS, row=_row, key=_list_key)


def _selection(root: Path, split: str) -> list[Row]:
    folder = next((root / name for name in _SELECTION if (root / name / "image").is_dir()), None)
    if split != "val" or folder is None:
        return []
    return [
        Row(
            key=image.name,
            path_rgb=image,
            path_depth=folder / "groundtruth_depth" / image.name.replace("_image_", "_groundtruth_depth_", 1),
            depth_scale=1 / 256,
            source="kitti",
            scene_run=image.name.split("_image_")[0],
            split=split,
            scene=OUTDOOR,
            size=(352, 1216),
            intrinsics=read_intrinsics(folder / "intrinsics" / f"{image.stem}.txt"),
        )
        for image in visible(folder / "image", "*.png")
    ]
