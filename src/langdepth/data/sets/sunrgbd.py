"""SUN RGB-D: four kinds of sensors in rooms, with the official split or the list of ScaleDepth's test.

Layouts below the root:

    SUNRGBD_val_splits.txt: lines "IMAGE DEPTH FOCAL" below the root                             test
    allsplit.mat, or (SUNRGBDtoolbox/)traintestSUNRGBD/allsplit.mat, and SUNRGBD/SENSOR/.../SCENE/{image/*.jpg,
    depth/*.png, intrinsics.txt, scene.txt}                                                        train, test

The list comes first. Depth is the sensor's, with holes.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import listed, read_intrinsics
from langdepth.data.rows import FILES, Decoder, Metres, Row
from langdepth.errors import ImageError, LangdepthError
from langdepth.text.scenes import SCENES
from langdepth.utils.depth_files import read_depth
from langdepth.utils.images import decoding, read_size
from langdepth.utils.matlab import read_matlab
from langdepth.utils.reading import read_bytes, visible

CARD = DatasetCard(
    name="sunrgbd",
    title="SUN RGB-D",
    unit="millimetres in 16-bit PNG, their bits rotated left by 3",
    depth_scale=0.001,
    invalid="0",
    intrinsics="intrinsics.txt of each scene; the list states the focal length",
    depth_range=(0.3, 8.0),
    median_range=(0.8, 8.0),
    scenes="scene.txt where it names one of the labels",
    licence="research use; ask its authors for more",
    where="https://rgbd.cs.princeton.edu (SUNRGBD.zip, SUNRGBDtoolbox.zip)",
    layouts=(
        "SUNRGBD_val_splits.txt (image, depth, focal length)",
        "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat and SUNRGBD/SENSOR/.../SCENE/{image,depth,intrinsics.txt}",
    ),
    splits={"train": 5285, "test": 5050},
    split="test",
    protocol="sunrgbd",
)
LIST = "SUNRGBD_val_splits.txt"
_MAX_LABEL = 1000  # bytes
_BESIDE = (("image", "*.jpg"), ("depth", "*.png"))  # of a scene: folder and files of image and depth
_SPLIT_FILES = tuple(
    f"{folder}allsplit.mat" for folder in ("", "traintestSUNRGBD/", "SUNRGBDtoolbox/traintestSUNRGBD/")
)


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _listed, _official)


def _listed(root: Path, split: str) -> list[Row]:
    found = []
    for image, depth, focal in listed(root / LIST, 3) if split == "test" else []:
        try:
            length = float(focal)
        except ValueError:
            raise LangdepthError(f"{root / LIST}: '{focal}' is no focal length") from None
        found.append(_row(root, root / image, root / depth, split, length))
    return found


def _official(root: Path, split: str) -> list[Row]:
    file = next((root / name for name in _SPLIT_FILES if (root / name).is_file()), None)
    if file is None:
        if (root / "SUNRGBD").is_dir() and not (root / LIST).is_file():
            raise LangdepthError(f"{root}: the split list is missing, {LIST} or {_SPLIT_FILES[-1]}")
        return []
    found = []
    for folder in _scene_folders(file, split):
        images, depths = (visible(root / folder / name, ending) for name, ending in _BESIDE)
        image = images[0] if images else root / folder / "image" / "*.jpg"
        depth = depths[0] if depths else root / folder / "depth" / "*.png"
        found.append(_row(root, image, depth, split))
    return sorted(found, key=lambda row: row.key)


def _scene_folders(file: Path, split: str) -> list[str]:
    """Folders of the scenes of ``split``, below the root; the file has the paths of the authors' computer."""
    name = f"all{split}"
    with decoding(str(file)):
        paths = read_matlab(file, name)
        if paths is None:
            raise ImageError(f"has no array {name}")
    return [
        path[path.index("SUNRGBD/") :].rstrip("/")
        for path in map(str, np.ravel(paths))
        if "SUNRGBD/" in path and ".." not in path
    ]


def _row(root: Path, image: Path, depth: Path, split: str, focal: float | None = None) -> Row:
    scene = image.parents[1]
    intrinsics = read_intrinsics(scene / "intrinsics.txt")
    if focal is not None:
        cx, cy = intrinsics[2:] if intrinsics else _middle(image)
        intrinsics = (focal, focal, cx, cy)
    kind = ""
    with suppress(OSError):  # there is none
        kind = read_bytes(scene / "scene.txt", _MAX_LABEL).decode(errors="replace").strip()
    return Row(
        key=image.relative_to(root).as_posix(),
        path_rgb=image,
        path_depth=depth,
        depth_scale=0.001,
        decoder=ROTATED,
        source="sunrgbd",
        scene_run=scene.relative_to(root).as_posix(),
        split=split,
        scene=SCENES.index(kind) if kind in SCENES else -1,
        intrinsics=intrinsics,
    )


def _middle(image: Path) -> tuple[float, float]:
    try:
        height, width = read_size(image)
    except ImageError:
        return 0.0, 0.0  # it is named when it is decoded
    return (width - 1) / 2, (height - 1) / 2


def _depth(row: Row) -> Metres:
    stored = read_depth(row.path_depth, 1.0).astype(np.uint16)
    return ((stored >> 3) | (stored << 13)).astype(np.float32) / np.float32(1000)


ROTATED = Decoder(FILES.image, _depth)
