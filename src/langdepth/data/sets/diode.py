"""DIODE: rooms and streets measured by one laser scanner, two data sets here since they are evaluated by other rules.

Layouts below the root:

    {train,val}/{indoors,outdoor}/scene_N/scan_N/{NAME.png, NAME_depth.npy, NAME_depth_mask.npy}    as published
    indoors_test.txt or outdoor_test.txt: lines "IMAGE DEPTH" below the root                        val, depth as PNG

The list, which ScaleDepth evaluates, comes first. Where the mask is 0, the scanner's depth is not to be trusted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.lists import listed
from langdepth.data.rows import FILES, Decoder, Metres, Row
from langdepth.errors import ImageError
from langdepth.utils.arrays import load_npy
from langdepth.utils.images import MAX_PIXELS, decoding
from langdepth.utils.reading import visible


class DiodePart:
    """Indoors or outdoors: its ``folder`` in the published tree, the ``listed`` file of the tree that users convert."""

    def __init__(self, card: DatasetCard, folder: str, listed: str) -> None:
        self.CARD, self.folder, self.listed = card, folder, listed

    def rows(self, search: Search) -> list[Row]:
        """See ``data.base.Layout``."""
        return first_layout(self.CARD, search, self._converted, self._published)

    def _converted(self, root: Path, split: str) -> list[Row]:
        lines = listed(root / self.listed) if split == "val" else []
        return [self._row(root, root / image, root / depth, split) for image, depth in lines]

    def _published(self, root: Path, split: str) -> list[Row]:
        found = []
        for image in visible(root / split / self.folder, "scene_*/scan_*/*.png"):
            if not image.stem.endswith(("_depth", "_depth_mask")):
                depth, mask = (image.with_name(f"{image.stem}_{what}.npy") for what in ("depth", "depth_mask"))
                found.append(replace(self._row(root, image, depth, split), decoder=MASKED, needs=(mask,)))
        return found

    def _row(self, root: Path, image: Path, depth: Path, split: str) -> Row:
        return Row(
            key=image.relative_to(root).as_posix(),
            path_rgb=image,
            path_depth=depth,
            depth_scale=self.CARD.depth_scale or 1.0,
            source=self.CARD.name,
            scene_run=image.parent.relative_to(root).as_posix(),
            split=split,
            size=(768, 1024),
            intrinsics=(886.81, 927.06, 512.0, 384.0),
        )


def _depth(row: Row) -> Metres:
    (mask_path,) = row.needs
    metres, mask = _array(row.path_depth), _array(mask_path)
    if mask.shape != metres.shape:
        raise ImageError(f"{mask_path}: the mask is of shape {mask.shape}, its depth of {metres.shape}")
    return np.where(mask > 0, metres, np.float32(0))


def _array(path: Path) -> Metres:
    """(H, W) from a file of (H, W) or (H, W, 1)."""
    with decoding(str(path)):
        content = load_npy(path, _require_one_channel)
        return content.reshape(content.shape[:2]).astype(np.float32)


def _require_one_channel(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)) or math.prod(shape) > MAX_PIXELS:
        raise ImageError(f"a depth map is (H, W) or (H, W, 1), found shape {shape}")


MASKED = Decoder(FILES.image, _depth)
_TREE = "{train,val}/%s/scene_N/scan_N/{NAME.png, NAME_depth.npy, NAME_depth_mask.npy}"
INDOOR = DiodePart(
    DatasetCard(
        name="diode-indoor",
        title="DIODE, indoors",
        unit="metres in .npy, millimetres in 16-bit PNG",
        depth_scale=0.001,
        invalid="0, and where the mask is 0",
        intrinsics="fx 886.81, fy 927.06, cx 512, cy 384",
        depth_range=(0.6, 50.0),
        median_range=(0.8, 30.0),
        scenes="none",
        licence="MIT",
        where="https://diode-dataset.org (train.tar.gz, val.tar.gz)",
        layouts=(_TREE % "indoors", "indoors_test.txt (image, depth)"),
        splits={"train": 8574, "val": 325},
        split="val",
        protocol="diode-indoor",
    ),
    "indoors",
    "indoors_test.txt",
)
OUTDOOR = DiodePart(
    replace(
        INDOOR.CARD,
        name="diode-outdoor",
        title="DIODE, outdoors",
        unit="metres in .npy, 1/256 m in 16-bit PNG",
        depth_scale=1 / 256,
        depth_range=(0.6, 350.0),
        median_range=(1.0, 100.0),
        layouts=(_TREE % "outdoor", "outdoor_test.txt (image, depth)"),
        splits={"train": 16884, "val": 446},
        protocol="diode-outdoor",
    ),
    "outdoor",
    "outdoor_test.txt",
)
