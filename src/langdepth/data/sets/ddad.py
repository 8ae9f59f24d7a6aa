"""DDAD: drives with long-range laser, through the front camera.

Layouts below the root:

    ddad.json, SCENE/scene_HASH.json and what they name            train, val: as published (also below ddad_train_val)
    camera01.txt: lines "IMAGE DEPTH", as SCENE/{rgb,depth}/CAMERA_01/N.png        val (also below ddad_results)

The list, which ScaleDepth evaluates, comes first. As published (DGP format), a sample's depth is a cloud of points
(SCENE/point_cloud/LIDAR/N.npz), measured at another moment than the image. Each sensor has a pose in the world; by
both poses the points are moved into the camera's frame, and by the camera matrix (SCENE/calibration/HASH.json) into the
image. The pixel whose centre is nearest gets a point's depth, of several points the nearest one's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import inside, list_of, read_list
from langdepth.data.rows import FILES, Decoder, Intrinsics, Metres, Row
from langdepth.errors import ImageError, LangdepthError, first_line
from langdepth.utils.arrays import read_npz
from langdepth.utils.images import MAX_PIXELS, decoding
from langdepth.utils.reading import open_regular, read_bytes, visible

CARD = DatasetCard(
    name="ddad",
    title="DDAD, front camera",
    unit="metres in clouds of points, 1/256 m in 16-bit PNG",
    depth_scale=1 / 256,
    invalid="0; most pixels, since no point falls on them",
    intrinsics="of each scene, from its calibration; not in the converted files",
    depth_range=(0.001, 250.0),
    median_range=(3.0, 120.0),
    scenes="none",
    licence="CC BY-NC-SA 4.0",
    where="https://github.com/TRI-ML/DDAD (DDAD.tar, train and val)",
    layouts=(
        "ddad.json, SCENE/{scene_HASH.json,calibration,rgb/CAMERA_01,point_cloud/LIDAR} (DGP)",
        "camera01.txt (image, depth) and SCENE/{rgb,depth}/CAMERA_01",
    ),
    splits={"train": 12650, "val": 3950},
    split="val",
    protocol="ddad",
)
DATASET, LIST = "ddad.json", "camera01.txt"
CAMERA, LIDAR = "CAMERA_01", "LIDAR"
_SPLITS = {"train": "0", "val": "1"}  # DGP numbers them
_MAX_CLOUD_BYTES = 512_000_000

Numbers = npt.NDArray[np.float64]


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _listed, _published, folders=("ddad_results", "ddad_train_val", ""))


def _listed(base: Path, split: str) -> list[Row]:
    converted = visible(base, f"*/depth/{CAMERA}") or (base / LIST).is_file()
    if split != "val" or not converted:
        return []
    return [
        Row(
            key=image,
            path_rgb=base / image,
            path_depth=base / depth,
            depth_scale=1 / 256,
            source="ddad",
            scene_run=image.split("/")[0],
            split=split,
        )
        for image, depth, *_ in read_list(list_of(base, LIST), 2)
    ]


# The DGP format


def _published(base: Path, split: str) -> list[Row]:
    file = base / DATASET
    if not file.is_file():
        return []
    with _understood(file):
        scenes = json.loads(read_bytes(file))["scene_splits"].get(_SPLITS[split], {}).get("filenames", [])
        names = sorted(inside(name, str(file)) for name in scenes)
    return [row for name in names for row in _scene(base, name, split)]


def _scene(base: Path, name: str, split: str) -> Iterator[Row]:
    """The samples of a scene that have both an image and a cloud, in their order."""
    file = base / name
    folder = file.parent.relative_to(base).as_posix()
    calibrations: dict[str, Intrinsics] = {}
    with _understood(file):
        scene = json.loads(read_bytes(file))
        data = {datum["key"]: datum for datum in scene["data"]}
        for sample in scene["samples"]:
            sensors = {data[key]["id"]["name"].upper(): data[key]["datum"] for key in sample["datum_keys"]}
            if not {CAMERA, LIDAR} <= set(sensors):
                continue
            image, cloud = sensors[CAMERA]["image"], sensors[LIDAR]["point_cloud"]
            calibration = sample["calibration_key"]
            if calibration not in calibrations:
                calibrations[calibration] = _intrinsics(file, calibration)
            size, intrinsics = (int(image["height"]), int(image["width"])), calibrations[calibration]
            if not 0 < size[0] * size[1] <= MAX_PIXELS:
                raise ValueError(f"an image of {size[1]}x{size[0]} pixels")
            depth = partial(
                _projected,
                columns=[cloud["point_format"].index(axis) for axis in "XYZ"],
                motion=_motion(cloud["pose"], image["pose"]),
                intrinsics=intrinsics,
                size=size,
            )
            key = inside(f"{folder}/{image['filename']}", str(file))
            yield Row(
                key=key,
                path_rgb=base / key,
                path_depth=base / inside(f"{folder}/{cloud['filename']}", str(file)),
                needs=(file,),
                decoder=Decoder(FILES.image, depth),
                source="ddad",
                scene_run=folder,
                split=split,
                size=size,
                intrinsics=intrinsics,
            )


@contextmanager
def _understood(file: Path) -> Iterator[None]:
    """Whatever is wrong with a JSON file, as one line that names it."""
    try:
        yield
    except LangdepthError:
        raise
    except FileNotFoundError:
        raise LangdepthError(f"{file}: is missing") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise LangdepthError(f"{file}: is not understood as a file of the DGP format ({what})") from None


def _intrinsics(scene: Path, key: str) -> Intrinsics:
    file = scene.parent / inside(f"calibration/{key}.json", str(scene))
    with _understood(file):
        calibration = json.loads(read_bytes(file))
        place = [name.upper() for name in calibration["names"]].index(CAMERA)
        fx, fy, cx, cy = (float(calibration["intrinsics"][place][name]) for name in ("fx", "fy", "cx", "cy"))
    return fx, fy, cx, cy


def _motion(source: dict[str, Any], target: dict[str, Any]) -> Numbers:
    """(3, 4): rotation and translation from one sensor's frame to another's, by their poses in the world."""
    from scipy.spatial.transform import Rotation

    (turned, moved), (turn, move) = (
        (
            Rotation.from_quat([pose["rotation"][name] for name in ("qx", "qy", "qz", "qw")]).as_matrix(),
            np.array([pose["translation"][name] for name in "xyz"], dtype=np.float64),
        )
        for pose in (source, target)
    )
    return np.column_stack([turn.T @ turned, turn.T @ (moved - move)])


def _projected(row: Row, columns: list[int], motion: Numbers, intrinsics: Intrinsics, size: tuple[int, int]) -> Metres:
    """Depth (H, W) of the points of a cloud, whose ``columns`` are x, y and z, moved by ``motion``."""
    (fx, fy, cx, cy), (height, width) = intrinsics, size
    with decoding(str(row.path_depth)):
        x, y, z = motion[:, :3] @ _points(row.path_depth)[:, columns].T + motion[:, 3:]
    ahead = z > 0
    x, y, z = x[ahead], y[ahead], z[ahead]
    right, down = np.rint(fx * x / z + cx), np.rint(fy * y / z + cy)
    inside_image = (right >= 0) & (right < width) & (down >= 0) & (down < height)
    pixels = (down[inside_image] * width + right[inside_image]).astype(np.intp)
    depth = np.full(height * width, np.inf, dtype=np.float32)
    np.minimum.at(depth, pixels, z[inside_image].astype(np.float32))
    depth[np.isinf(depth)] = 0
    return depth.reshape(height, width)


def _points(path: Path) -> Numbers:
    """(N, columns)"""
    with open_regular(path) as stream:
        return read_npz(stream, lambda _: "data", _require_cloud).astype(np.float64)


def _require_cloud(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    unpacked = math.prod(shape) * dtype.itemsize
    if unpacked > _MAX_CLOUD_BYTES:
        raise ImageError(f"unpacks to {unpacked / 1e6:.0f} MB, more than a cloud of points needs")
    if len(shape) != 2:
        raise ImageError(f"a cloud is (points, columns), found shape {shape}")
