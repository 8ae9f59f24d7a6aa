"""The training images of WorDepth (CVPR 2024; docs/systems/wordepth.md): those of BTS, KITTI's without rotation."""

from __future__ import annotations

from collections.abc import Sequence

from langdepth.data.bts import BtsRules, BtsTransform

RULES = {
    "wordepth-nyu": BtsRules(frame="nyu", degrees=2.5, brightness=(0.75, 1.25)),
    "wordepth-kitti": BtsRules(frame="kb", degrees=0.0, brightness=(0.9, 1.1)),
}


def nyu_images(sizes: Sequence[tuple[int, int]]) -> BtsTransform:
    """Cuts, rotates and recolors images of NYU (640x480) as WorDepth does."""
    return BtsTransform(RULES["wordepth-nyu"])


def kitti_images(sizes: Sequence[tuple[int, int]]) -> BtsTransform:
    """Cuts and recolors images of KITTI as WorDepth does."""
    return BtsTransform(RULES["wordepth-kitti"])
