"""DIML/CVL outdoor: streets and parks through a stereo camera.

Layouts below the root:

    {train,test}/{HR,LR}/outleft/N.png and depthmap/N.png       as published
    test_outdoor.txt: lines "IMAGE DEPTH" below the root        test, the list that ScaleDepth evaluates; it comes first

Depth comes from stereo; what is nearer than 2 m is not to be trusted (the protocol leaves it out).
"""

from __future__ import annotations

from pathlib import Path

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import listed
from langdepth.data.rows import Row
from langdepth.utils.reading import visible

CARD = DatasetCard(
    name="diml-outdoor",
    title="DIML, outdoors",
    unit="millimetres in 16-bit PNG",
    depth_scale=0.001,
    invalid="0",
    intrinsics="not read",
    depth_range=(2.0, 65.535),
    median_range=(2.0, 50.0),
    scenes="none",
    licence="research use; ask its authors for more",
    where="https://dimlrgbd.github.io (outdoor)",
    layouts=("test_outdoor.txt (image, depth)", "{train,test}/{HR,LR}/{outleft,depthmap}/N.png"),
    splits={"train": None, "test": None},
    split="test",
    protocol="diml-outdoor",
)


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _listed, _published)


def _listed(root: Path, split: str) -> list[Row]:
    lines = listed(root / "test_outdoor.txt") if split == "test" else []
    return [_row(root, image, depth, split) for image, depth in lines]


def _published(root: Path, split: str) -> list[Row]:
    keys = [path.relative_to(root).as_posix() for path in visible(root, f"{split}/[HL]R/outleft/*.png")]
    return [_row(root, key, key.replace("/outleft/", "/depthmap/"), split) for key in keys]


def _row(root: Path, image: str, depth: str, split: str) -> Row:
    return Row(key=image, path_rgb=root / image, path_depth=root / depth, depth_scale=0.001, source="diml", split=split)
