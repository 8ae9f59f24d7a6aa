"""`example-rooms`: ROOT/SPLIT/NAME.png beside ROOT/SPLIT/NAME_depth.png, 16 bits, millimetres."""

from __future__ import annotations

from pathlib import Path

from langdepth.data.base import DatasetCard
from langdepth.data.rows import Row
from langdepth.errors import LangdepthError

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


def rows(
    root: Path,
    split: str | None = None,
    problems: list[LangdepthError] | None = None,
    truth_root: Path | None = None,
) -> list[Row]:
    """The pairs of ``split``, or of all splits, by name."""
    truth = truth_root or root
    found = [
        Row(
            key=f"{part}/{image.name}",
            path_rgb=image,
            path_depth=truth / part / f"{image.stem}_depth.png",
            depth_scale=0.001,
            source="rooms",
            split=part,
        )
        for part in ([split] if split else CARD.splits)
        for image in sorted((root / part).glob("*.png"))
        if not image.stem.endswith("_depth")
    ]
    if not found:
        raise LangdepthError(f"{root}: holds no {CARD.title}; known layouts: {'; '.join(CARD.layouts)}")
    return found
