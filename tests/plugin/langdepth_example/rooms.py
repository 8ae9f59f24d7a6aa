"""`example-rooms`: ROOT/SPLIT/NAME.png beside ROOT/SPLIT/NAME_depth.png, 16 bits, millimetres."""

from __future__ import annotations

from pathlib import Path

from langdepth.data.base import DatasetCard, Search, first_layout
from langdepth.data.rows import Row

CARD = DatasetCard(
    name="example-rooms",
    title="Rooms of the example",
    unit="16-bit PNG, millimetres",
    depth_scale=0.001,
    invalid="0",
    intrinsics="none",
    depth_range=(0.1, 10.0),
    median_range=(0.2, 9.0),
    scenes="none",
    licence="CC0",
    where="made by the test",
    layouts=("SPLIT/NAME.png, SPLIT/NAME_depth.png",),
    splits={"train": None, "val": None},
    split="val",
    protocol="example-near",
)


def rows(search: Search) -> list[Row]:
    """The pairs of each split, by name."""
    return first_layout(CARD, search, _beside)


def _beside(root: Path, split: str) -> list[Row]:
    return [
        Row(
            key=f"{split}/{image.name}",
            path_rgb=image,
            path_depth=image.with_name(f"{image.stem}_depth.png"),
            depth_scale=0.001,
            source="rooms",
            split=split,
        )
        for image in sorted((root / split).glob("*.png"))
        if not image.stem.endswith("_depth")
    ]
