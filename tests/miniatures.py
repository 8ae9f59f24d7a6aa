"""Data sets in small, in each official layout, made by code: a few pictures whose depth is known.

To have a new data set tested with all the others, add its builders to ``MINIATURES``. A builder writes a tree below an
empty folder and returns the root that is read; what the package ships in full (split lists, expected counts) it
replaces through ``monkeypatch`` by what the small tree holds.
"""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import scipy.io
from PIL import Image

from langdepth.data import kitti, nyu
from tests.helpers import ramp, save_picture, write_folder

Builder = Callable[[Path, pytest.MonkeyPatch], Path]
Metres = npt.NDArray[np.float32]
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
    module: ModuleType,
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
    """Two pictures to learn from, one to judge on."""
    return write_folder(
        root, [{"split": split, "scene": f"place {i}"} for i, split in enumerate(("train",) * 2 + ("val",))]
    )


# NYU Depth v2

NYU_TRAIN = ("bedroom/rgb_00002.jpg", "nyu_office/rgb_00003.jpg", "kitchen/rgb_00004.jpg")
NYU_TEST = ("bathroom/rgb_00000.jpg", "kitchen/rgb_00001.jpg")
NYU_SYNC = ("kitchen_0028b/rgb_00045.jpg", "living_room_0019/rgb_00111.jpg")


def _nyu(monkeypatch: pytest.MonkeyPatch, **splits: int) -> None:
    stand_in(monkeypatch, nyu, splits, {"nyu_test": NYU_TEST, "nyu_sync": NYU_SYNC})


def _nyu_tree(folder: Path, keys: Sequence[str], first: int = 0) -> None:
    for i, key in enumerate(keys, first):
        save_picture(folder / key, ramp(WIDTH, HEIGHT, seed=i))
        save_depth((folder / key.replace("rgb_", "sync_depth_")).with_suffix(".png"), depth(i), 0.001)


def nyu_exported(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """official_splits, as exported from the labelled file."""
    _nyu(monkeypatch, train=3, test=2)
    _nyu_tree(root / "official_splits" / "train", NYU_TRAIN, 2)
    _nyu_tree(root / "official_splits" / "test", NYU_TEST)
    return root


def nyu_sync(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Frames of the raw sequences to learn from, official_splits to judge on."""
    _nyu(monkeypatch, sync=2, test=2)
    _nyu_tree(root / "nyu_depth_v2" / "sync", NYU_SYNC, 7)
    _nyu_tree(root / "nyu_depth_v2" / "official_splits" / "test", NYU_TEST)
    return root


def nyu_annotated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of mmsegmentation's converter."""
    _nyu(monkeypatch, train=3, test=2)
    for split, keys, first in (("train", NYU_TRAIN, 2), ("test", NYU_TEST, 0)):
        for i, key in enumerate(keys, first):
            name = key.replace("/rgb", "")
            save_picture(root / "images" / split / name, ramp(WIDTH, HEIGHT, seed=i))
            save_depth((root / "annotations" / split / name).with_suffix(".png"), depth(i), 0.001)
    return root


def write_labelled(file: Path, matlab: bool = True) -> Path:
    """The labelled file with all five pictures, and splits.mat beside it (counted from 1, a column each)."""
    keys = [*NYU_TEST, *NYU_TRAIN]
    pictures = np.stack([ramp(WIDTH, HEIGHT, seed=i).transpose(2, 0, 1) for i in range(len(keys))])
    sensed = np.stack([depth(i) for i in range(len(keys))])
    arrays = {"images": pictures, "rawDepths": sensed, "depths": np.where(sensed > 0, sensed, np.float32(9))}
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w", userblock_size=512 if matlab else 0) as content:
        for name, array in arrays.items():
            content[name] = np.swapaxes(array, -1, -2) if matlab else array
        for name, number in (("sceneTypes", ""), ("scenes", "_{:04d}")):
            cells = content.create_dataset(name, (1, len(keys)), dtype=h5py.ref_dtype)
            for i, key in enumerate(keys):
                text = key.split("/")[0] + number.format(i)
                letters = content.create_dataset(
                    f"#refs#/{name}{i}", data=np.array([[ord(c)] for c in text], np.uint16)
                )
                cells[0, i] = letters.ref
    if matlab:
        with file.open("r+b") as block:
            block.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    columns = {"testNdxs": [[1.0], [2.0]], "trainNdxs": [[3.0], [4.0], [5.0]]}
    scipy.io.savemat(file.with_name("splits.mat"), {name: np.array(column) for name, column in columns.items()})
    return file


def nyu_labelled(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published file: MATLAB 7.3, pictures stored width first."""
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


def _sparse(seed: int) -> Metres:
    """Depth of a street as a laser knows it."""
    known = np.random.default_rng(seed).random(KITTI_SIZE) < 0.2
    return np.where(known, depth(seed, 5.0, 40.0, *KITTI_SIZE), 0).astype(np.float32)


def _kitti_eigen(pictures: Path, truth: Callable[[str], Path], keys: Sequence[str], suffix: str = ".png") -> None:
    for i, key in enumerate(keys):
        _, drive, *_, name = key.split("/")
        save_picture((pictures / key).with_suffix(suffix), ramp(*KITTI_SIZE[::-1], seed=len(drive) + i))
        save_depth(truth(drive) / drive / "proj_depth/groundtruth/image_02" / name, _sparse(i), 1 / 256)


def kitti_raw(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Raw data and the annotated depth, as the official archives unpack."""
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2}, lists)
    _kitti_eigen(root, lambda drive: root / ("val" if drive.endswith("0002_sync") else "train"), KITTI_TRAIN)
    _kitti_eigen(root, lambda drive: root / ("val" if drive.endswith("0002_sync") else "train"), KITTI_TEST)
    return root


def kitti_input(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """input and gt_depth, pictures as JPEG."""
    lists = {"kitti_eigen_train": KITTI_TRAIN, "kitti_eigen_test": KITTI_TEST}
    stand_in(monkeypatch, kitti, {"train": 2, "test": 2}, lists)
    _kitti_eigen(root / "input", lambda _: root / "gt_depth", (*KITTI_TRAIN, *KITTI_TEST), ".jpg")
    return root


def kitti_selection(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The depth selection for validation."""
    stand_in(monkeypatch, kitti, {"val": 2})
    home = root / "depth_selection" / "val_selection_cropped"
    for i, frame in enumerate(("0000000005", "0000000008")):
        name = f"2011_09_26_drive_0002_sync_{{}}_{frame}_image_02"
        save_picture(home / "image" / f"{name.format('image')}.png", ramp(*KITTI_SIZE[::-1], seed=i))
        save_depth(home / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png", _sparse(i), 1 / 256)
        (home / "intrinsics").mkdir(exist_ok=True)
        numbers = (721.5 + i, 0, 596.5, 0, 721.5, 149.8, 0, 0, 1)
        (home / "intrinsics" / f"{name.format('image')}.txt").write_text(" ".join(map(str, numbers)) + "\n")
    return root


# Data set -> layout -> builder. The first layout of a data set is the one that is trained on.
MINIATURES: dict[str, dict[str, Builder]] = {
    "folder": {"index": folder},
    "kitti": {"raw": kitti_raw, "input": kitti_input, "selection": kitti_selection},
    "nyu": {
        "exported": nyu_exported,
        "sync": nyu_sync,
        "annotated": nyu_annotated,
        "labelled": nyu_labelled,
        "labelled hdf5": nyu_labelled_hdf5,
        "hdf5": nyu_hdf5,
    },
}


def each() -> list[Any]:
    """(data set, builder) for every layout, as parameters of a test."""
    return [
        pytest.param(name, build, id=f"{name}-{layout.replace(' ', '-')}")
        for name, layouts in MINIATURES.items()
        for layout, build in layouts.items()
    ]
