"""A folder of images with depth, described by ``index.csv``.

Needed columns: path_rgb, path_depth (relative to the folder), depth_scale (metres per stored unit of a 16-bit PNG,
0 = no value). Optional: source, scene, split, width, height, fx, fy, cx, cy (pixels of the stored image, all four or
none), scene_type (one of ``text.scenes.SCENES``), text, path_overlay (the image with masks drawn over it, see
data/sam.py). Other columns are ignored.
"""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

from langdepth.data.base import DatasetCard, Search, keep
from langdepth.data.lists import require_two
from langdepth.data.rows import Intrinsics, Row
from langdepth.errors import LangdepthError, nearest, text_flaw
from langdepth.text.scenes import SCENES
from langdepth.utils.files import real_path
from langdepth.utils.numbers import plain_number
from langdepth.utils.reading import read_csv

_PIXELS = 1e6  # beyond any focal length and image; whether a camera fits its image is known with the image (rows.py)
REQUIRED = ("path_rgb", "path_depth", "depth_scale")
CARD = DatasetCard(
    name="folder",
    title="Any folder with an index.csv",
    unit="depth_scale metres per unit of a 16-bit PNG, metres in .npy and .npz",
    depth_scale=None,
    invalid="0, NaN, infinite, negative",
    intrinsics="columns fx, fy, cx, cy",
    depth_range=(0.001, 1000.0),
    median_range=(0.3, 300.0),
    scenes="column scene_type",
    licence="that of the images",
    where="langdepth data sample writes an example",
    layouts=("index.csv",),
    splits={},
    split=None,
    protocol="full",
)


def rows(search: Search) -> list[Row]:
    """The rows of ``index.csv``, see ``data.base.Layout``."""
    found = read_index(search.root, search.problems, search.truth_root)
    return found if search.split is None else keep(found, "split", search.split, search.root)


def read_index(
    root: str | Path, problems: list[LangdepthError] | None = None, truth_root: Path | None = None
) -> list[Row]:
    """All rows of ``root/index.csv`` in file order. ``truth_root``: what path_depth starts from, if not ``root``.

    Raises LangdepthError naming file, line and column of a mistake; with ``problems``, wrong rows are left out and
    their errors appended to it instead.
    """
    root = Path(root)
    index = root / "index.csv"
    if not root.is_dir():
        raise LangdepthError(f"{root}: no such folder")
    if not index.exists():
        raise LangdepthError(f"{root}: has no index.csv; make one with the columns {', '.join(REQUIRED)}")
    try:
        reader = read_csv(index)
        missing = [column for column in REQUIRED if column not in (reader.fieldnames or ())]
        if missing:
            raise LangdepthError(f"{index}: has no column {' and no column '.join(missing)}")
        rows = []
        for values in reader:
            try:
                rows.append(_row(root, truth_root or root, reader.line_num, values))
            except LangdepthError as error:
                if problems is None:
                    raise
                problems.append(error)
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{index}: not readable as CSV ({text_flaw(error)})") from None
    if not rows and not problems:
        raise LangdepthError(f"{index}: has no rows")
    return rows


def _outside(folder: Path, path: Path) -> str | None:
    """Why a path of an index may not be read: it, or what links in it lead to, lies outside the folder.

    The hub's cache keeps what a snapshot holds in the folder "blobs" of the same repository; that counts as inside.
    """
    real, home = real_path(path), real_path(folder)
    if real.is_relative_to(home):
        return None
    for place in (home, *home.parents):
        blobs = place.parent.parent / "blobs"
        if place.parent.name == "snapshots" and real.is_relative_to(blobs) and real_path(blobs) == blobs:
            return None
    if Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        return (
            f"is, or lies behind, a link that leads out of the folder, to {real}; nothing outside is read: copy the "
            "files into the folder (cp -rL follows links), or put the index.csv into a folder above both"
        )
    return "does not lie inside the folder"


def _row(root: Path, truth_root: Path, line: int, values: dict[str, str]) -> Row:
    where = f"{root / 'index.csv'} line {line}"
    scale = _number(where, values, "depth_scale")
    if scale <= 0:
        raise LangdepthError(f"{where}: depth_scale {scale} must be positive (metres per stored unit)")
    scene_type = (values.get("scene_type") or "").strip()
    if scene_type and scene_type not in SCENES:
        raise LangdepthError(f"{where}: unknown scene_type '{scene_type}': {nearest(scene_type, SCENES)}")
    path_rgb = _inside(where, values, "path_rgb", root)
    path_depth = _inside(where, values, "path_depth", truth_root)
    require_two(str(path_rgb), str(path_depth), where)
    sides = [values.get(name) or "" for name in ("height", "width")]
    size = [int(side) for side in sides if side.isdecimal() and len(side) < 10 and int(side)]
    return Row(
        key=values["path_rgb"],
        table=root / "index.csv",
        line=line,
        path_rgb=path_rgb,
        path_depth=path_depth,
        depth_scale=scale,
        source=values.get("source") or "",
        scene_run=values.get("scene") or "",
        split=values.get("split") or "",
        scene=SCENES.index(scene_type) if scene_type else -1,
        text=values.get("text") or None,
        path_overlay=_inside(where, values, "path_overlay", root) if values.get("path_overlay") else None,
        size=(size[0], size[1]) if len(size) == 2 else None,
        intrinsics=_intrinsics(where, values),
        stated={key: value for key, value in values.items() if key and value},
    )


def _inside(where: str, values: dict[str, str], column: str, folder: Path) -> Path:
    text = values[column] or ""
    outside = "does not lie inside the folder" if not text or "\0" in text else _outside(folder, folder / text)
    if outside is not None:
        raise LangdepthError(f"{where}: {column} '{text}' {outside}")
    return folder / text


def _number(where: str, values: dict[str, str], column: str) -> float:
    text = values.get(column) or ""
    try:
        value = plain_number(text)
    except ValueError:
        raise LangdepthError(f"{where}: {column} '{text}' is not a number") from None
    if not math.isfinite(value):
        raise LangdepthError(f"{where}: {column} '{text}' is not finite")
    return value


def _intrinsics(where: str, values: dict[str, str]) -> Intrinsics | None:
    names = ("fx", "fy", "cx", "cy")
    if not any(values.get(name) for name in names):
        return None
    fx, fy, cx, cy = (_number(where, values, name) for name in names)
    if not (0 < fx < _PIXELS and 0 < fy < _PIXELS):
        rule = f"must be positive numbers of pixels below {_PIXELS:g}"
        raise LangdepthError(f"{where}: focal lengths fx {fx:g}, fy {fy:g} {rule}")
    if not max(abs(cx), abs(cy)) < _PIXELS:
        raise LangdepthError(f"{where}: the principal point {cx:g}, {cy:g} is in no image")
    return fx, fy, cx, cy
