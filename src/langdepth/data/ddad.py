"""DDAD: drives with long-range laser, converted to pictures and PNG by the user.

Layout below the root (or its folder ddad_results):

    camera01.txt: lines "PICTURE DEPTH", as SCENE/{rgb,depth}/CAMERA_01/N.png

As published, depth is a cloud of points in the DGP format, which is not read here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from langdepth.data.base import DatasetCard, first_layout
from langdepth.data.lists import read_list
from langdepth.data.rows import Row
from langdepth.errors import LangdepthError

CARD = DatasetCard(
    name="ddad",
    title="DDAD, camera 1, converted",
    unit="1/256 m in 16-bit PNG",
    depth_scale=1 / 256,
    invalid="0",
    intrinsics="not in the converted files",
    depth_range=(0.001, 250.0),
    median_range=(3.0, 120.0),
    scenes="none",
    licence="CC BY-NC-SA 4.0",
    where="https://github.com/TRI-ML/DDAD; project its points into camera 1, 0 where there is none",
    layouts=("camera01.txt (picture, depth) and SCENE/{rgb,depth}/CAMERA_01",),
    splits={"val": None},
    split="val",
    protocol="ddad",
)
LIST = "camera01.txt"


def rows(root: Path, split: str | None = None, problems: list[LangdepthError] | None = None) -> list[Row]:
    """See ``data.base.Layout``."""
    readers = [partial(_listed, root, base) for base in (root / "ddad_results", root)]
    return first_layout(CARD, root, split, readers, problems)


def _listed(root: Path, base: Path, split: str) -> list[Row]:
    if next(base.glob("*/rgb/CAMERA_01"), None) is None and not (base / LIST).is_file():
        return []
    return [
        Row(
            key=picture,
            path_rgb=base / picture,
            path_depth=base / depth,
            depth_scale=1 / 256,
            source="ddad",
            scene_run=picture.split("/")[0],
            split=split,
        )
        for picture, depth, *_ in sorted(read_list(base / LIST if (base / LIST).is_file() else root / LIST, 2))
    ]
