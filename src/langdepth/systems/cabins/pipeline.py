"""The training images of CaBins (2024; docs/systems/cabins.md): those of BTS and AdaBins."""

from __future__ import annotations

from collections.abc import Sequence

from langdepth.data.bts import BtsRules, BtsTransform

RULES = {
    "cabins-nyu": BtsRules(frame="nyu", degrees=2.5, brightness=(0.75, 1.25)),
    "cabins-kitti": BtsRules(frame="kb", degrees=1.0, brightness=(0.9, 1.1)),
}


def nyu_images(sizes: Sequence[tuple[int, int]]) -> BtsTransform:
    """Cuts, rotates and recolors images of NYU (640x480) as CaBins does."""
    return BtsTransform(RULES["cabins-nyu"])


def kitti_images(sizes: Sequence[tuple[int, int]]) -> BtsTransform:
    """Cuts, rotates and recolors images of KITTI as CaBins does."""
    return BtsTransform(RULES["cabins-kitti"])
