"""Data sets in small, in each official layout, made by code: a few images whose depth is known.

To have a new data set tested with all the others, add its builders to ``MINIATURES``. A builder writes a tree below an
empty folder and returns the root that is read; what the package ships in full (split lists, expected counts) it
replaces through ``monkeypatch`` by what the small tree holds.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from PIL import Image
from scipy.spatial.transform import Rotation

from langdepth.data.sets import ddad, diode, hypersim, ibims1, kitti, nyu, sunrgbd
from langdepth.data.tools.cache import write_cache
from tests.helpers import ramp, save_image, write_folder

Builder = Callable[[Path, pytest.MonkeyPatch], Path]
Metres = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]
HEIGHT, WIDTH = 48, 64


def depth(seed: int, low: float = 1.0, high: float = 4.0, height: int = HEIGHT, width: int = WIDTH) -> Metres:
    """(height, width) metres from ``low`` at the left to ``high`` at the right, and a hole by ``seed``."""
    metres = np.broadcast_to(np.linspace(low, high, width, dtype=np.float32), (height, width)).copy()
    metres[seed % 7 : seed % 7 + 5, 3:9] = 0
    return metres


def save_depth(path: Path, metres: Metres, scale: float) -> Path:
    """A 16-bit PNG of ``metres / scale``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(metres / scale).astype(np.uint16)).save(path)
    return path


def stand_in(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    splits: Mapping[str, int],
    lists: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Let the data set ``module`` expect ``splits`` and use ``lists`` instead of those that the package ships."""
    monkeypatch.setattr(module, "CARD", replace(module.CARD, splits={**dict.fromkeys(module.CARD.splits), **splits}))
    if lists is not None:
        monkeypatch.setattr(module, "shipped", lambda name: list(lists[name]))


def zip_of(root: Path, archive: Path) -> Path:
    """All files below ``root`` in a zip archive."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            file.write(path, path.relative_to(root))
    return archive


def tar_of(root: Path, archive: Path) -> Path:
    """All files below ``root`` in a tar archive, compressed as its name says."""
    with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as file:
        for path in sorted(root.iterdir()):
            file.add(path, path.relative_to(root).as_posix())
    return archive


# Any folder


def folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images to learn from, one to evaluate."""
    return write_folder(
        root, [{"split": split, "scene": f"place {i}"} for i, split in enumerate(("train",) * 2 + ("val",))]
    )


def cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The decoded frames of an indexed folder."""
    write_cache("folder", folder(root.with_name("original"), monkeypatch), root)
    return root


# NYU Depth v2

NYU_TRAIN = ("bedroom/rgb_00002.jpg", "nyu_office/rgb_00003.jpg", "kitchen/rgb_00004.jpg")
NYU_TEST = ("bathroom/rgb_00000.jpg", "kitchen/rgb_00001.jpg")
NYU_SYNC = ("kitchen_0028b/rgb_00045.jpg", "living_room_0019/rgb_00111.jpg")


def _nyu(monkeypatch: pytest.MonkeyPatch, **splits: int) -> None:
    stand_in(monkeypatch, nyu, splits, {"nyu_test": NYU_TEST, "nyu_sync": NYU_SYNC})


def nyu_tree(folder: Path, keys: Sequence[str], first: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
    """SCENE/rgb_N.jpg and SCENE/sync_depth_N.png for each of ``keys``."""
    height, width = size
    for i, key in enumerate(keys, first):
        save_image(folder / key, ramp(width, height, seed=i))
        metres = depth(i, height=height, width=width)
        save_depth((folder / key.replace("rgb_", "sync_depth_")).with_suffix(".png"), metres, 0.001)


def nyu_exported(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """official_splits, as exported from the labelled file."""
    _nyu(monkeypatch, train=3, test=2)
    nyu_tree(root / "official_splits" / "train", NYU_TRAIN, 2)
    nyu_tree(root / "official_splits" / "test", NYU_TEST)
    return root


def nyu_sync(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames of the raw sequences to learn from, official_splits to evaluate."""
    _nyu(monkeypatch, sync=2, test=2)
    nyu_tree(root / "nyu_depth_v2" / "sync", NYU_SYNC, 7)
    nyu_tree(root / "nyu_depth_v2" / "official_splits" / "test", NYU_TEST)
    return root


def nyu_annotated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of mmsegmentation's converter."""
    _nyu(monkeypatch, train=3, test=2)
    for split, keys, first in (("train", NYU_TRAIN, 2), ("test", NYU_TEST, 0)):
        for i, key in enumerate(keys, first):
            name = key.replace("/rgb", "")
            save_image(root / "images" / split / name, ramp(WIDTH, HEIGHT, seed=i))
            save_depth((root / "annotations" / split / name).with_suffix(".png"), depth(i), 0.001)
    return root


NYU_FRAMES = ("kitchen_0028b_00045.jpg", "living_room_0019_00111.jpg")


def nyu_annotated_frames(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same layout with the frames of the raw sequences to learn from, as ScaleDepth has it."""
    nyu_annotated(root, monkeypatch)
    shutil.rmtree(root / "images" / "train")
    shutil.rmtree(root / "annotations" / "train")
    _nyu(monkeypatch, sync=2, test=2)
    for i, name in enumerate(NYU_FRAMES, 7):
        save_image(root / "images" / "train" / name, ramp(WIDTH, HEIGHT, seed=i))
        save_depth((root / "annotations" / "train" / name).with_suffix(".png"), depth(i), 0.001)
    return root


def write_labelled(
    file: Path,
    matlab: bool = True,
    types: Sequence[str] = tuple(key.split("/")[0] for key in (*NYU_TEST, *NYU_TRAIN)),
    test: Sequence[int] = (0, 1),
    size: tuple[int, int] = (HEIGHT, WIDTH),
) -> Path:
    """The labelled file with an image of each scene type, and splits.mat beside it (counted from 1, a column each)."""
    height, width = size
    images = np.stack([ramp(width, height, seed=i).transpose(2, 0, 1) for i in range(len(types))])
    sensed = np.stack([depth(i, height=height, width=width) for i in range(len(types))])
    arrays = {"images": images, "rawDepths": sensed, "depths": np.where(sensed > 0, sensed, np.float32(9))}
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w", userblock_size=512 if matlab else 0) as content:
        for name, array in arrays.items():
            content[name] = np.swapaxes(array, -1, -2) if matlab else array
        for name, number in (("sceneTypes", ""), ("scenes", "_{:04d}")):
            cells = content.create_dataset(name, (1, len(types)), dtype=h5py.ref_dtype)
            for i, kind in enumerate(types):
                text = kind + number.format(i)
                letters = content.create_dataset(
                    f"#refs#/{name}{i}", data=np.array([[ord(c)] for c in text], np.uint16)
                )
                cells[0, i] = letters.ref
    if matlab:
        with file.open("r+b") as block:
            block.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    places = {"testNdxs": test, "trainNdxs": [i for i in range(len(types)) if i not in test]}
    columns = {name: [[1.0 + i] for i in chosen] for name, chosen in places.items()}
    scipy.io.savemat(file.with_name("splits.mat"), {name: np.array(column) for name, column in columns.items()})
    return file


def nyu_labelled(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published file: MATLAB 7.3, images stored width first."""
    _nyu(monkeypatch, train=3, test=2)
    write_labelled(root / "nyu_depth_v2_labeled.mat")
    return root


def nyu_labelled_hdf5(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same arrays in HDF5 as Python writes them, height first."""
    _nyu(monkeypatch, train=3, test=2)
    write_labelled(root / "nyu_depth_v2_labeled.h5", matlab=False)
    return root


def nyu_hdf5(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One HDF5 file per pair."""
    _nyu(monkeypatch, train=3, test=2)
    for home, keys, first in (("train", NYU_TRAIN, 2), ("val", NYU_TEST, 0)):
        for i, key in enumerate(keys, first):
            path = root / home / key.split("/")[0] / f"{i:05d}.h5"
            path.parent.mkdir(parents=True)
            with h5py.File(path, "w") as content:
                content["rgb"], content["depth"] = ramp(WIDTH, HEIGHT, seed=i).transpose(2, 0, 1), depth(i)
    return root


# KITTI

KITTI_TRAIN = tuple(f"2011_09_30/2011_09_30_drive_0028_sync/image_02/data/{i:010d}.png" for i in (7, 12))
KITTI_TEST = (
    "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png",
    "2011_10_03/2011_10_03_drive_0047_sync/image_02/data/0000000096.png",
)
KITTI_SIZE = (60, 200)


def street(seed: int, size: tuple[int, int] = KITTI_SIZE) -> Metres:
    """Depth of a street as a laser knows it."""
    known = np.random.default_rng(seed).random(size) < 0.2
    return np.where(known, depth(seed, 5.0, 40.0, *size), 0).astype(np.float32)


def kitti_eigen(
    images: Path,
    truth: Callable[[str], Path],
    keys: Sequence[str],
    suffix: str = ".png",
    size: tuple[int, int] = KITTI_SIZE,
) -> None:
    """The images ``keys`` below ``images``, and the depth of each drive below ``truth(drive)``."""
    for i, key in enumerate(keys):
        _, drive, *_, name = key.split("/")
        save_image((images / key).with_suffix(suffix), ramp(*size[::-1], seed=len(drive) + i))
        save_depth(truth(drive) / drive / "proj_depth/groundtruth/image_02" / name, street(i, size), 1 / 256)


def kitti_raw(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw data and the annotated depth, as the official archives unpack."""
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2}, lists)
    kitti_eigen(root, lambda drive: root / ("val" if drive.endswith("0002_sync") else "train"), KITTI_TRAIN)
    kitti_eigen(root, lambda drive: root / ("val" if drive.endswith("0002_sync") else "train"), KITTI_TEST)
    return root


def kitti_wordepth(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """kitti_raw_data and kitti_ground_truth, as WorDepth's README has them."""
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2}, lists)
    kitti_eigen(root / "kitti_raw_data", lambda _: root / "kitti_ground_truth", (*KITTI_TRAIN, *KITTI_TEST))
    return root


def kitti_input(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """input and gt_depth, images as JPEG."""
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2}, lists)
    kitti_eigen(root / "input", lambda _: root / "gt_depth", (*KITTI_TRAIN, *KITTI_TEST), ".jpg")
    return root


def kitti_selection(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The depth selection for validation."""
    stand_in(monkeypatch, kitti, {"val": 2})
    home = root / "depth_selection" / "val_selection_cropped"
    for i, frame in enumerate(("0000000005", "0000000008")):
        name = f"2011_09_26_drive_0002_sync_{{}}_{frame}_image_02"
        save_image(home / "image" / f"{name.format('image')}.png", ramp(*KITTI_SIZE[::-1], seed=i))
        save_depth(home / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png", street(i), 1 / 256)
        (home / "intrinsics").mkdir(exist_ok=True)
        numbers = (721.5 + i, 0, 596.5, 0, 721.5, 149.8, 0, 0, 1)
        (home / "intrinsics" / f"{name.format('image')}.txt").write_text(" ".join(map(str, numbers)) + "\n")
    return root


# SUN RGB-D

SUN_SCENES = {
    "train": ("SUNRGBD/kv1/NYUdata/NYU0003", "SUNRGBD/xtion/sun3ddata/a/0000"),
    "test": ("SUNRGBD/kv2/kinect2data/000002_resize", "SUNRGBD/realsense/lg/0001"),
}


def _sun_scene(root: Path, place: str, seed: int) -> tuple[str, str]:
    """A scene's files, as published; the paths of image and depth."""
    image, sensed = f"{place}/image/{seed:07d}.jpg", f"{place}/depth/{seed:07d}.png"
    save_image(root / image, ramp(WIDTH, HEIGHT, seed=seed))
    millimetres = np.rint(depth(seed) * 1000).astype(np.uint16)
    (root / sensed).parent.mkdir(parents=True)
    Image.fromarray((millimetres << 3) | (millimetres >> 13)).save(root / sensed)
    (root / place / "intrinsics.txt").write_text("529.5 0 365\n0 529.5 265\n0 0 1\n")
    (root / place / "scene.txt").write_text("classroom" if seed % 2 else "rest_space")
    return image, sensed


def sun_official(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scenes and the split of the toolbox, which has the paths of another computer."""
    stand_in(monkeypatch, sunrgbd, {"train": 2, "test": 2})
    split = {}
    for first, (name, places) in zip((0, 2), SUN_SCENES.items(), strict=True):
        for seed, place in enumerate(places, first):
            _sun_scene(root, place, seed)
        split[f"all{name}"] = np.array([f"/n/fs/sun3d/data/{place}" for place in places], dtype=object)
    home = root / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    home.mkdir(parents=True)
    scipy.io.savemat(home / "allsplit.mat", split)
    return root


def sun_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list with focal lengths; of one image nothing else is known."""
    stand_in(monkeypatch, sunrgbd, {"test": 2})
    pairs = [_sun_scene(root, place, seed) for seed, place in enumerate(SUN_SCENES["test"])]
    for name in ("intrinsics.txt", "scene.txt"):
        (root / SUN_SCENES["test"][1] / name).unlink()
    lines = [f"{image} {sensed} {500.5 + i}" for i, (image, sensed) in enumerate(pairs)]
    (root / "SUNRGBD_val_splits.txt").write_text("\n".join([lines[1], "SUNRGBD/kv2/x.jpg None 500.0", lines[0]]) + "\n")
    return root


# iBims-1

IBIMS = ("corridor_01", "bathroom_02")


def _ibims(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, ibims1, {"test": 2})
    root.mkdir(parents=True, exist_ok=True)
    (root / "imagelist.txt").write_text("\n".join(IBIMS) + "\n")


def ibims_masks(height: int = HEIGHT, width: int = WIDTH) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """1 where depth is right, and 1 where the surface is not transparent."""
    right, solid = np.ones((2, height, width), np.uint8)
    right[:, 20:24], solid[10:14] = 0, 0
    return right, solid


def ibims_edges(seed: int) -> npt.NDArray[np.uint8]:
    """1 at a true edge: an upright line, and none in the second image."""
    edges = np.zeros((HEIGHT, WIDTH), np.uint8)
    edges[:, 30 : 31 - seed] = 1
    return edges


def ibims_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .mat file for each image."""
    _ibims(root, monkeypatch)
    (root / "ibims1_core_mat").mkdir()
    right, solid = ibims_masks()
    for i, name in enumerate(IBIMS):
        fields = {"rgb": ramp(WIDTH, HEIGHT, seed=i), "depth": depth(i).astype(float), "mask_invalid": right}
        calib = np.array([[60.0 + i, 0, 0], [0, 61, 0], [32.5, 24.5, 1]])  # transposed, pixels counted from 1
        content = {"data": {**fields, "mask_transp": solid, "edges": ibims_edges(i), "calib": calib}}
        scipy.io.savemat(root / "ibims1_core_mat" / f"{name}.mat", content, do_compression=True)
    return root


def ibims_raw(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images of everything."""
    _ibims(root, monkeypatch)
    for i, name in enumerate(IBIMS):
        save_image(root / "rgb" / f"{name}.png", ramp(WIDTH, HEIGHT, seed=i))
        save_depth(root / "depth" / f"{name}.png", depth(i), 50 / 65535)
        masks = (*ibims_masks(), ibims_edges(i))
        for kind, mask in zip(("mask_invalid", "mask_transp", "edges"), masks, strict=True):
            save_image(root / kind / f"{name}.png", mask * 255)
    return root


def ibims_converted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Depth in millimetres, 0 where a mask says so."""
    _ibims(root, monkeypatch)
    right, solid = ibims_masks()
    for i, name in enumerate(IBIMS):
        save_image(root / "rgb" / f"{name}.png", ramp(WIDTH, HEIGHT, seed=i))
        save_depth(root / "masked_depth" / f"{name}.png", depth(i) * right * solid, 0.001)
    return root


# Sets whose list names image and depth


def _listed(root: Path, name: str, pairs: Sequence[tuple[str, str]], metres: Sequence[Metres], scale: float) -> Path:
    """A list file, last image first, and what it names."""
    for i, ((image, sensed), known) in enumerate(zip(pairs, metres, strict=True)):
        height, width = known.shape
        save_image(root / image, ramp(width, height, seed=i))
        save_depth(root / sensed, known, scale)
    lines = [" ".join(pair) for pair in reversed(pairs)]
    (root / name).write_text("\n".join([*lines, "missing.png None"]) + "\n")
    return root


# DIODE


def _diode_tree(root: Path, part: str) -> Path:
    for split, scene in (("train", 1), ("val", 19)):
        folder = root / split / part / f"scene_{scene:05d}" / f"scan_{scene:05d}"
        for i in range(2):
            stem = f"{scene:05d}_{scene:05d}_{part}_000_0{i}0"
            save_image(folder / f"{stem}.png", ramp(WIDTH, HEIGHT, seed=scene + i))
            known = depth(scene + i)
            np.save(folder / f"{stem}_depth.npy", np.where(known > 0, known, np.float32(77))[..., None])
            np.save(folder / f"{stem}_depth_mask.npy", (known > 0).astype(np.float32))
    return root


def diode_indoor(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rooms, as published."""
    stand_in(monkeypatch, diode.INDOOR, {"train": 2, "val": 2})
    return _diode_tree(root, "indoors")


def diode_outdoor(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Streets, as published."""
    stand_in(monkeypatch, diode.OUTDOOR, {"train": 2, "val": 2})
    return _diode_tree(root, "outdoor")


def diode_indoor_converted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rooms, depth as PNG."""
    stand_in(monkeypatch, diode.INDOOR, {"val": 2})
    pairs = [(f"val/indoors/s/{name}.png", f"val/indoors/s/{name}_depth.png") for name in "ab"]
    return _listed(root, "indoors_test.txt", pairs, [depth(0), depth(1)], 0.001)


def diode_outdoor_converted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Streets, depth as PNG."""
    stand_in(monkeypatch, diode.OUTDOOR, {"val": 2})
    pairs = [(f"val/outdoor/s/{name}.png", f"val/outdoor/s/{name}_depth.png") for name in "ab"]
    return _listed(root, "outdoor_test.txt", pairs, [depth(0, 4, 60), depth(1, 4, 60)], 1 / 256)


# HyperSim


def hypersim_official(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The renderer's files, an image that is not released among the list's."""
    stand_in(monkeypatch, hypersim, {"train": 2, "val": 2, "test": 2})
    root.mkdir(parents=True, exist_ok=True)
    lines = ["scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"]
    for i, (scene, split) in enumerate((("ai_001_001", "train"), ("ai_003_010", "val"), ("ai_001_010", "test"))):
        for frame in range(2):
            images = root / scene / "images"
            image = images / "scene_cam_00_final_preview" / f"frame.{frame:04d}.tonemap.jpg"
            save_image(image, ramp(WIDTH, HEIGHT, seed=2 * i + frame))
            file = images / "scene_cam_00_geometry_hdf5" / f"frame.{frame:04d}.depth_meters.hdf5"
            file.parent.mkdir(exist_ok=True)
            distance = np.where(depth(frame) > 0, depth(frame), np.nan).astype(np.float16)
            with h5py.File(file, "w") as content:
                content["dataset"] = distance
            lines.append(f"{scene},cam_00,{frame},True,,{split}")
        lines.append(f"{scene},cam_00,7,False,bad,")
    (root / "metadata_images_split_scene_v1.csv").write_text("\n".join(lines) + "\n")
    return root


LENSES = {  # three of the table's scenes: the usual lens, a shifted one, one that is shifted and tilted
    "ai_001_001": (0.57735028861, 0, 0, 0, 0.43301271646, 0, 0, 0, -1),
    "ai_003_010": (0.58503007355, 0, 0.20242039722, 0, 0.43877255516, -0.05, 0, 0, -1.01330177821),
    "ai_001_010": (0.57960725142, 0, -0.06955286861, 0, 0.43468653346, 0.09273312506, 0, 0.00405412698, -1.0039091738),
}


def write_lenses(root: Path, lenses: Mapping[str, Sequence[float]]) -> None:
    """HyperSim's table of cameras."""
    header = ["scene_name", *(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))]
    lines = [",".join(map(str, (scene, *values))) for scene, values in lenses.items()]
    (root / hypersim.CAMERA_FILE).write_text("\n".join([",".join(header), *lines]) + "\n")


def hypersim_with_lenses(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The renderer's files with the lens of each scene."""
    write_lenses(hypersim_official(root, monkeypatch), LENSES)
    return root


def hypersim_converted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Depth as PNG."""
    stand_in(monkeypatch, hypersim, {"test": 2})
    image = "ai_001_010/images/scene_cam_00_final_preview/frame.000{}.tonemap.jpg"
    pairs = [(image.format(i), f"masked_depth/x{i}.png") for i in range(2)]
    return _listed(root, "hypersim_list2.txt", pairs, [depth(0), depth(1)], 0.001)


# Virtual KITTI 2


def vkitti2(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames and the list of those to evaluate."""
    keys = [f"Scene0{n}/sunset/frames/rgb/Camera_0/rgb_0017{n}.jpg" for n in (1, 2, 6)]
    for i, key in enumerate(keys):
        save_image(root / key, ramp(*KITTI_SIZE[::-1], seed=i))
        known = depth(i, 4, 60, *KITTI_SIZE)
        known[:4] = 655.35
        save_depth(root / key.replace("rgb", "depth").replace(".jpg", ".png"), known, 0.01)
    (root / "test.txt").write_text(f"data/vkitti2.0/{keys[2]}\n")
    return root


# DDAD, DIML


DGP_CAMERA = {"fx": 150.0, "fy": 155.0, "cx": 99.0, "cy": 30.5}
_FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # x right, y down, z forward to x forward, z up


def _turn(degrees: float) -> Matrix:
    """A rotation about the upright axis of the world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _dgp_pose(rotation: Matrix, translation: Matrix) -> dict[str, dict[str, float]]:
    quaternion = Rotation.from_matrix(rotation).as_quat()
    return {
        "rotation": dict(zip(("qx", "qy", "qz", "qw"), quaternion.tolist(), strict=True)),
        "translation": dict(zip("xyz", translation.tolist(), strict=True)),
    }


def _dgp_sample(home: Path, seed: int) -> dict[str, Any]:
    """An image and the cloud of points that its depth comes from, measured from elsewhere; sensor -> datum."""
    camera, here = _turn(20 + seed) @ _FORWARD, np.array([400.0 + seed, -260, 13.8])
    laser, there = _turn(-70), np.array([398.0, -259, 12.5])
    known = street(seed)
    down, right = np.nonzero(known)
    z = known[down, right].astype(np.float64)
    rays = np.stack([(right - DGP_CAMERA["cx"]) / DGP_CAMERA["fx"], (down - DGP_CAMERA["cy"]) / DGP_CAMERA["fy"]])
    seen = camera @ np.stack([*(rays * z), z]) + (here - there)[:, None]
    image, cloud = f"rgb/CAMERA_01/{seed:017d}.png", f"point_cloud/LIDAR/{seed:017d}.npz"
    save_image(home / image, ramp(*KITTI_SIZE[::-1], seed=seed))
    (home / cloud).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(home / cloud, data=np.column_stack([np.ones(len(z)), (laser.T @ seen).T]).astype(np.float32))
    size = dict(zip(("height", "width"), KITTI_SIZE, strict=True))
    fields = {"point_format": ["INTENSITY", "X", "Y", "Z"], "pose": _dgp_pose(laser, there)}
    return {
        "LIDAR": {"point_cloud": {"filename": cloud, **fields}},
        "CAMERA_01": {"image": {"filename": image, **size, "pose": _dgp_pose(camera, here)}},
        "CAMERA_05": {"image": {"filename": "rgb/CAMERA_05/not_downloaded.png", **size}},
    }


def ddad_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two scenes of two samples in the DGP format."""
    stand_in(monkeypatch, ddad, {"train": 2, "val": 2})
    for number in range(2):
        home = root / f"00000{number}"
        sensors = [_dgp_sample(home, 2 * number + i) for i in range(2)]
        scene = {
            "data": [
                {"key": f"{name}{i}", "id": {"name": name, "index": "0"}, "datum": datum}
                for i, sample in enumerate(sensors)
                for name, datum in sample.items()
            ],
            "samples": [
                {"calibration_key": "c0e1a6", "datum_keys": [f"{name}{i}" for name in sample]}
                for i, sample in enumerate(sensors)
            ],
        }
        none, origin = dict.fromkeys(DGP_CAMERA, 0.0), _dgp_pose(np.eye(3), np.zeros(3))
        lenses = {"names": ["LIDAR", "CAMERA_01"], "intrinsics": [none, DGP_CAMERA], "extrinsics": [origin, origin]}
        (home / "calibration").mkdir()
        (home / "calibration" / "c0e1a6.json").write_text(json.dumps(lenses))
        (home / "scene_a8dc5e.json").write_text(json.dumps(scene))
    splits = {str(number): {"filenames": [f"00000{number}/scene_a8dc5e.json"]} for number in range(2)}
    (root / "ddad.json").write_text(json.dumps({"metadata": {"name": "DDAD"}, "scene_splits": splits}))
    return root


def ddad_converted(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted images of one camera."""
    stand_in(monkeypatch, ddad, {"val": 2})
    pairs = [(f"00015{i}/rgb/CAMERA_01/1.png", f"00015{i}/depth/CAMERA_01/1.png") for i in range(2)]
    return _listed(root, "camera01.txt", pairs, [street(0), street(1)], 1 / 256)


def diml_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of images to evaluate."""
    pairs = [(f"test/{size}/outleft/0155.png", f"test/{size}/depthmap/0155.png") for size in ("HR", "LR")]
    return _listed(root, "test_outdoor.txt", pairs, [depth(0, 3, 30), depth(1, 3, 30)], 0.001)


def diml_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both splits, without a list."""
    for i, place in enumerate(("train/HR", "train/LR", "test/HR", "test/LR")):
        save_image(root / place / "outleft" / "0001.png", ramp(WIDTH, HEIGHT, seed=i))
        save_depth(root / place / "depthmap" / "0001.png", depth(i, 3, 30), 0.001)
    return root


# Data set -> layout -> builder. The first layout of a data set is the one that is trained on.
MINIATURES: dict[str, dict[str, Builder]] = {
    "cache": {"frames": cached},
    "ddad": {"published": ddad_published, "converted": ddad_converted},
    "diml-outdoor": {"published": diml_published, "listed": diml_listed},
    "diode-indoor": {"published": diode_indoor, "converted": diode_indoor_converted},
    "diode-outdoor": {"published": diode_outdoor, "converted": diode_outdoor_converted},
    "folder": {"index": folder},
    "hypersim": {"official": hypersim_official, "converted": hypersim_converted},
    "ibims1": {"published": ibims_published, "raw": ibims_raw, "converted": ibims_converted},
    "kitti": {"raw": kitti_raw, "input": kitti_input, "wordepth": kitti_wordepth, "selection": kitti_selection},
    "nyu": {
        "exported": nyu_exported,
        "sync": nyu_sync,
        "annotated": nyu_annotated,
        "annotated frames": nyu_annotated_frames,
        "labelled": nyu_labelled,
        "labelled hdf5": nyu_labelled_hdf5,
        "hdf5": nyu_hdf5,
    },
    "sunrgbd": {"official": sun_official, "listed": sun_listed},
    "vkitti2": {"listed": vkitti2},
}


def each() -> list[Any]:
    """(data set, builder) for every layout, as parameters of a test."""
    return [
        pytest.param(name, build, id=f"{name}-{layout.replace(' ', '-')}")
        for name, layouts in MINIATURES.items()
        for layout, build in layouts.items()
    ]


# Captions


def published_captions(root: Path, captions: Mapping[str, tuple[str, npt.NDArray[np.float16]]]) -> tuple[Path, Path]:
    """WorDepth's trees ``text`` and ``text_feat``: image, as in "nyu/train/k_1/rgb_1", to sentence and feature (D,)."""
    import torch

    text, features = root / "text", root / "text_feat"
    for image, (sentence, feature) in captions.items():
        for tree in (text, features):
            (tree / image).parent.mkdir(parents=True, exist_ok=True)
        (text / f"{image}.txt").write_text(sentence)
        torch.save(torch.from_numpy(feature[None].copy()), features / f"{image}.pt")
    return text, features
