"""Virtual KITTI 2: drives of KITTI rebuilt in a game engine, in ten kinds of weather and views.

Layout below the root, as published:

    SceneNN/VARIATION/frames/rgb/Camera_0/rgb_N.jpg and frames/depth/Camera_0/depth_N.png
    test.txt: images as data/vkitti2.0/SceneNN/...        test; train is what it does not name

Neighbouring frames of one drive are alike, so a list that divides drives leaves train and test similar. The sky is
stored as the largest number there is, 655.35 m, which is no distance of it: its depth is unknown.
"""

from __future__ import annotations

from pathlib import Path

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import read_list
from langdepth.data.rows import FILES, Decoder, Metres, Row
from langdepth.text.scenes import SCENES
from langdepth.utils.reading import visible

CARD = DatasetCard(
    name="vkitti2",
    title="Virtual KITTI 2",
    unit="centimetres in 16-bit PNG",
    depth_scale=0.01,
    invalid="0, and 655.35 m, the sky",
    intrinsics="fx = fy 725.0087, cx 620.5, cy 187",
    depth_range=(0.01, 655.34),
    median_range=(2.0, 80.0),
    scenes="all outdoor_scene",
    licence="CC BY-NC-SA 3.0",
    where="https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2",
    layouts=("test.txt and SceneNN/VARIATION/frames/{rgb,depth}/Camera_0",),
    splits={"train": None, "test": None},
    split="test",
    protocol="vkitti2",
)
LIST = "test.txt"
PREFIX = "data/vkitti2.0/"
OUTDOOR = SCENES.index("outdoor_scene")


def rows(search: Search) -> list[Row]:
    """See ``data.base.Layout``."""
    return first_layout(CARD, search, _frames)


def _frames(root: Path, split: str) -> list[Row]:
    there = [path.relative_to(root).as_posix() for path in visible(root, "Scene*/*/frames/rgb/Camera_0/rgb_*.jpg")]
    if not there and not (root / LIST).is_file():
        return []
    if split == "train" and not (root / LIST).is_file():
        return [_row(root, key, split) for key in sorted(there)]
    listed = {line[0].removeprefix(PREFIX) for line in read_list(root / LIST)}
    return [_row(root, key, split) for key in sorted(listed if split == "test" else {*there} - listed)]


def _row(root: Path, key: str, split: str) -> Row:
    depth = key.replace("/rgb/", "/depth/").replace("rgb_", "depth_").replace(".jpg", ".png")
    return Row(
        key=key,
        path_rgb=root / key,
        path_depth=root / depth,
        depth_scale=0.01,
        decoder=WITHOUT_SKY,
        source="vkitti2",
        scene_run="/".join(key.split("/")[:2]),
        split=split,
        scene=OUTDOOR,
        size=(375, 1242),
        intrinsics=(725.0087, 725.0087, 620.5, 187.0),
    )


def _depth(row: Row) -> Metres:
    metres = FILES.depth(row)
    metres[metres > CARD.depth_range[1] + row.depth_scale / 2] = 0
    return metres


WITHOUT_SKY = Decoder(FILES.image, _depth)
