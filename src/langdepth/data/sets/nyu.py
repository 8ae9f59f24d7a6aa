"""NYU Depth v2: the labelled file, the trees exported from it, and the frames of the raw sequences that BTS chose.

Layouts below the root (or its folder nyu_depth_v2):

    nyu_depth_v2_labeled.mat (or .h5, .hdf5), splits.mat                           labelled: train 795, test 654
    official_splits/{train,test}/kitchen/{rgb_00045.jpg, sync_depth_00045.png}     the same, exported; also .png
    images/{train,test}/kitchen_00045.jpg, annotations/{train,test}/....png        the same, as mmsegmentation has it
    {train,test or val}/kitchen_0004/00045.h5                                      one HDF5 file per pair
    sync/kitchen_0028b/{rgb_00045.jpg, sync_depth_00045.png}                       24,231 frames of raw sequences
    images/train/kitchen_0028b_00045.jpg, annotations/train/....png                the same, as mmsegmentation has it
    kitchen/{rgb_00045.jpg, sync_depth_00045.png}                                  one of the splits alone

Depth is the sensor's, with holes; in files in millimetres, in HDF5 in metres. Photos of the labelled file have a white
rim; the published export, on which networks were trained and evaluated, painted it black, and so do reading and
exporting that file here. Images in the other layouts stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from langdepth.data.base import DatasetCard, Member, Search, first_layout
from langdepth.data.hdf5 import own_dataset, read_hdf5
from langdepth.data.lists import Listing, shipped
from langdepth.data.pairs import ListRules
from langdepth.data.rows import HDF5, MATLAB, Row, known_depth, read_pair
from langdepth.errors import ImageError, LangdepthError
from langdepth.text.scenes import SCENES
from langdepth.utils.images import DecodedImage, decoding
from langdepth.utils.matlab import read_matlab
from langdepth.utils.reading import visible

CARD = DatasetCard(
    name="nyu",
    title="NYU Depth v2",
    unit="millimetres in 16-bit PNG, metres in .mat and HDF5",
    depth_scale=0.001,
    invalid="0",
    intrinsics="fx 518.858, fy 519.470, cx 325.582, cy 253.736",
    depth_range=(0.5, 10.0),
    median_range=(0.8, 8.0),
    scenes="from the name of folder or file: kitchen_0028b is kitchen, nyu_office is office",
    licence="research use; ask its authors for more",
    where="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
    layouts=(
        "nyu_depth_v2_labeled.mat and splits.mat",
        "official_splits/{train,test}/SCENE/{rgb_N.jpg, sync_depth_N.png}",
        "images/{train,test}/SCENE_N.jpg and annotations/{train,test}/SCENE_N.png",
        "{train,test}/SCENE/N.h5",
        "sync/SCENE/{rgb_N.jpg, sync_depth_N.png}",
    ),
    splits={"train": 795, "sync": 24231, "test": 654},
    training=("train", "sync"),
    split="test",
    protocol="nyu-eigen",
)
INTRINSICS = (518.85790117, 519.46961112, 325.58244941, 253.73616633)
SIZE = (480, 640)
INSIDE = slice(7, 474), slice(7, 632)  # rows and columns that the published export keeps of such a photo
LABELLED = ("nyu_depth_v2_labeled.mat", "nyu_depth_v2_labeled.h5", "nyu_depth_v2_labeled.hdf5")
INDEX = ("path_rgb", "path_depth", "source", "scene", "split", "width", "height", "depth_scale",
         "fx", "fy", "cx", "cy", "scene_type")  # fmt: skip
_JPEG_QUALITY = 95
_PAIRS_MEASURED = 8  # by which the size of the export is estimated


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    readers = _sync, _exported, _annotated, _labelled, _hdf5, _scene_folders
    return first_layout(CARD, search, *readers, folders=("nyu_depth_v2", ""))


def scene_label(name: str) -> int:
    """The label of a folder or file called ``name``, an index into SCENES, or -1.

    As published: what stands before the first digit, less one character (the underscore), is one of the names, so that
    ``kitchen_0028b`` has a label and ``laundry_room1.jpg`` has none; ``nyu_office`` is an office. A name without
    digits, such as the folders of the labelled set have, is the scene itself.
    """
    before, digit, _ = re.split(r"(\d)", name, maxsplit=1) if re.search(r"\d", name) else (name, "", "")
    scene = before[:-1] if digit else before
    scene = {"nyu_office": "office"}.get(scene, scene)
    return SCENES.index(scene) if scene in SCENES else -1


@lru_cache
def _test_numbers(shipped: Callable[[str], list[str]]) -> list[int]:
    """The places in the labelled file of the official test images, rising."""
    return sorted(number for key in shipped("nyu_test") if (number := _number(key)) is not None)


def _number(key: str) -> int | None:
    """The place in the labelled file of an image of the labelled set, such as kitchen/rgb_00045.jpg."""
    digits = re.search(r"(\d+)\.\w+$", key)
    return int(digits[1]) if digits else None


def _run(key: str, split: str) -> str:
    """Which place an image is from: the folder of its raw sequence, or a run of the labelled training images.

    The labelled set is ordered by scenes, and its folders are types of scenes: images without a test image between them
    are of one place.
    """
    folder, _, name = key.rpartition("/")
    if re.search(r"\d", folder):
        return folder.split("/")[0]
    number = _number(name)
    return f"labelled run {bisect(_test_numbers(shipped), number)}" if split == "train" and number is not None else ""


def _row(key: str, path_rgb: Path, path_depth: Path, split: str, **values: Any) -> Row:
    facts: dict[str, Any] = {"depth_scale": 0.001, "size": SIZE, "intrinsics": INTRINSICS}
    facts["scene"] = scene_label(key.split("/")[0])
    return Row(key=key, path_rgb=path_rgb, path_depth=path_depth, split=split, source="nyu", **facts | values)


def _beside(image: Path) -> Path:
    """The depth map of rgb_00045.jpg."""
    return image.with_name(image.name.replace("rgb_", "sync_depth_", 1)).with_suffix(".png")


def _listed(folder: Path, keys: list[str], split: str) -> list[Row]:
    found, there = [], Listing()
    for line, key in enumerate(keys, 1):
        image = folder / key
        if image not in there and image.with_suffix(".png") in there:
            image = image.with_suffix(".png")
        found.append(_row(key, image, _beside(image), split, line=line, scene_run=_run(key, split)))
    return found


def _sync(base: Path, split: str) -> list[Row]:
    folder = base / "sync"
    return _listed(folder, shipped("nyu_sync"), split) if split == "sync" and folder.is_dir() else []


def _exported(base: Path, split: str) -> list[Row]:
    for folder in (base / "official_splits" / split, base / split):
        images = visible(folder, "*/rgb_*.[jp][pn]g")
        if images:
            keys = [path.relative_to(folder).as_posix() for path in images]
            return _listed(folder, shipped("nyu_test") if split == "test" else keys, split)
    return []


def _scene_folders(root: Path, split: str) -> list[Row]:
    """Where ``root`` itself holds the scenes' folders, such as official_splits/test, whose names say the split."""
    first = next((path for path in root.glob("*/rgb_*.[jp][pn]g") if not path.name.startswith(".")), None)
    if first is None:
        return []
    if re.search(r"\d", first.parent.name):
        found = "sync"
    else:
        found = "test" if f"{first.parent.name}/{first.stem}.jpg" in shipped("nyu_test") else "train"
    if found != split:
        return []
    keys = [path.relative_to(root).as_posix() for path in visible(root, "*/rgb_*.[jp][pn]g")]
    return _listed(root, keys if split == "train" else shipped(f"nyu_{split}"), split)


_SYNC_NAME = re.compile(r".*\d+[a-z]?_\d+\.jpg")  # scene, number of the sequence, number of the frame


def _annotated(base: Path, split: str) -> list[Row]:
    """images/train holds the labelled images or the frames of the raw sequences, whose names have two numbers."""
    home = "test" if split == "test" else "train"
    images, depths = base / "images" / home, base / "annotations" / home
    found = []
    for path in visible(images, "**/*.jpg"):
        key, frame = path.relative_to(images), bool(_SYNC_NAME.fullmatch(path.name))
        if frame == (split == "sync") or split == "test":
            run = path.stem.rpartition("_")[0] if frame else _run(key.name, split)
            depth = depths / key.with_suffix(".png")
            found.append(_row(key.as_posix(), path, depth, split, scene=scene_label(key.name), scene_run=run))
    return found


def _hdf5(base: Path, split: str) -> list[Row]:
    folders = (base / split, base / "val") if split == "test" else (base / split,)
    for folder in folders:
        files = visible(folder, "*/*.h5")
        if files:
            facts: dict[str, Any] = {"decoder": HDF5, "depth_scale": 1.0}
            keys = [path.relative_to(folder).as_posix() for path in files]
            return [
                _row(key, path, path, split, scene_run=path.parent.name, **facts)
                for key, path in zip(keys, files, strict=True)
            ]
    return []


def _without_rim(read: Callable[[Row], DecodedImage], row: Row) -> DecodedImage:
    image = read(row)
    if image.pixels.shape[:2] != SIZE:
        return image
    painted = np.zeros_like(image.pixels)
    painted[INSIDE] = image.pixels[INSIDE]
    return replace(image, pixels=painted)


# Of the labelled file, as MATLAB or as Python writes HDF5.
_LABELLED_MATLAB = MATLAB._replace(image=partial(_without_rim, MATLAB.image))
_LABELLED_HDF5 = HDF5._replace(image=partial(_without_rim, HDF5.image))


def _labelled(base: Path, split: str) -> list[Row]:
    file = next((base / name for name in LABELLED if (base / name).is_file()), None)
    return [] if file is None or split == "sync" else labelled_rows(file, split)


def labelled_rows(file: Path, split: str) -> list[Row]:
    """The pairs of ``split`` in the labelled file, by the ``splits.mat`` beside it.

    An image is called by its scene type and its place in the file, counted from 0. Raises LangdepthError when
    splits.mat is missing, ImageError when a file is damaged.
    """
    import h5py

    places = _places(file.with_name("splits.mat"), split)
    with decoding(str(file)), h5py.File(file, "r") as content:
        count, *shape = content["images"].shape
        first, second = (side for side in shape if side != 3)
        types, scenes = (_texts(content, name) for name in ("sceneTypes", "scenes"))
    matlab = first > second  # photos are wider than high, and MATLAB stores width first
    count = min(count, len(types), len(scenes))
    for i in places:
        if not 0 <= i < count:
            raise LangdepthError(f"{file.with_name('splits.mat')}: names image {i + 1}; there are 1 to {count}")
    return [
        _row(
            f"{types[i]}/rgb_{i:05d}.jpg",
            file,
            file,
            split,
            decoder=_LABELLED_MATLAB if matlab else _LABELLED_HDF5,
            item=int(i),
            depth_scale=1.0,
            scene_run=scenes[i],
            size=(second, first) if matlab else (first, second),
        )
        for i in places
    ]


def _places(path: Path, split: str) -> npt.NDArray[np.intp]:
    """Places in the labelled file, counted from 0."""
    import h5py

    if not path.is_file():
        raise LangdepthError(f"{path}: the official split list is missing; put it beside the labelled file")
    name = f"{split}Ndxs"
    with decoding(str(path)):
        numbers = read_hdf5(path, (name,)) if h5py.is_hdf5(path) else read_matlab(path, name)
        if numbers is None:
            raise ImageError(f"has no array {name}")
        return np.sort(np.asarray(numbers).ravel().astype(np.intp)) - 1


_MOST_TEXTS, _LONGEST_TEXT = 100_000, 1000


def _texts(file: Any, name: str) -> list[str]:
    """A MATLAB cell array of texts."""
    cells = own_dataset(file, name, references=True)
    if cells.size > _MOST_TEXTS:
        raise ImageError(f"'{name}' has {cells.size} texts, {_MOST_TEXTS} at most")
    arrays = [file[reference] for reference in cells[()].ravel()]
    if any(array.size > _LONGEST_TEXT for array in arrays):
        raise ImageError(f"'{name}' has texts of more than {_LONGEST_TEXT} characters")
    return ["".join(map(chr, array[()].ravel())) for array in arrays]


# List files


def _list_key(image: str) -> str:
    """kitchen_0028b/rgb_00045.jpg, whatever stands before it."""
    return "/".join(Path(image).parts[-2:])


def _list_row(key: str, image: Path, depth: Path, split: str) -> Row:
    return _row(key, image, depth, split, scene_run=_run(key, "train"))


_LIST_FOLDERS = tuple(f"{top}{part}" for top in ("", "nyu_depth_v2/")
                for part in ("", "sync", "official_splits/train", "official_splits/test", "train", "test"))  # fmt: skip
LISTS = ListRules(images=_LIST_FOLDERS, truths=_LIST_FOLDERS, row=_list_row, key=_list_key)


# langdepth data prepare


def export(source: Path) -> list[Member]:
    """The labelled file ``source`` as JPEG and 16-bit PNG in the layout official_splits, with an index.csv.

    Depth is cut to whole millimetres, as in the published export. Sizes are estimated from a few pairs.
    """
    pairs = [row for split in ("train", "test") for row in labelled_rows(source, split)]
    few = pairs[:: max(1, len(pairs) // _PAIRS_MEASURED)]
    photo, sensed = (sum(len(write(row)) for row in few) // max(1, len(few)) for write in (_jpeg, _png))
    members = []
    table = io.StringIO(newline="")
    index = csv.DictWriter(table, INDEX)
    index.writeheader()
    for row in pairs:
        height, width = row.size or SIZE
        camera = [value * width / SIZE[1] for value in INTRINSICS]  # of a file whose images were made smaller
        image = Path("official_splits", row.split, row.key)
        members.append(Member(image.as_posix(), photo, partial(_jpeg, row), exact=False))
        members.append(Member(_beside(image).as_posix(), sensed, partial(_png, row), exact=False))
        index.writerow(
            {
                "path_rgb": image.as_posix(),
                "path_depth": _beside(image).as_posix(),
                "source": "nyu",
                "scene": row.scene_run,
                "split": row.split,
                "height": height,
                "width": width,
                "depth_scale": 0.001,
                **dict(zip(("fx", "fy", "cx", "cy"), camera, strict=True)),
                "scene_type": SCENES[row.scene] if row.scene >= 0 else "",
            }
        )
    content = table.getvalue().encode()
    # splits.mat may have changed
    return [*members, Member("index.csv", len(content), lambda: content, always_write=True)]


def _jpeg(row: Row) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(read_pair(row).pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _png(row: Row) -> bytes:
    buffer = io.BytesIO()
    millimetres = (known_depth(row).astype(np.float64) * 1000).clip(0, 65535).astype(np.uint16)
    Image.fromarray(millimetres).save(buffer, "PNG")
    return buffer.getvalue()


EXPORTS = dict.fromkeys(LABELLED, export)
