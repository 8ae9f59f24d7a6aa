"""A small folder of synthetic images with depth, in the layout that ``data.sets.folder`` reads."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from langdepth.data.tools.scenes import Rendering, room, street
from langdepth.errors import LangdepthError, UsageError
from langdepth.utils.files import temporary_folder

COLUMNS = (
    "path_rgb", "path_depth", "source", "scene", "split", "width", "height", "depth_scale", "min_m", "max_m",
    "valid_fraction", "fx", "fy", "cx", "cy", "scene_type",
)  # fmt: skip

# Source name -> (what renders it, metres per stored unit: streets reach further than 16 bits of millimetres).
SOURCES: dict[str, tuple[Callable[..., Rendering], float]] = {
    "synthetic_room": (room, 0.001),
    "synthetic_street": (street, 1 / 256),
}


def write_sample(
    directory: str | Path,
    count: int = 24,
    seed: int = 0,
    size: tuple[int, int] = (240, 320),
    progress: Callable[[], Any] = lambda: None,
) -> Path:
    """Render ``count`` images of ``size`` (height, width) with depth and index into ``directory``; returns it.

    Every fourth image is a street, the others are rooms, each a scene of its own; every fifth belongs to the split
    "val". The folder appears when all of it is written. ``progress`` is called once per image.

    Raises UsageError for a count below 2 or an impossible size, LangdepthError when ``directory`` exists and is not
    empty.
    """
    directory = Path(directory)
    if count < 2:
        raise UsageError(f"count {count}: at least 2 images are needed, one to train on and one to validate")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise LangdepthError(f"{directory}: exists and is not an empty folder; give a new one")
    with temporary_folder(beside=directory) as partial:
        with (partial / "index.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for index in range(count):
                writer.writerow(_write_pair(partial, index, seed, size))
                progress()
        if directory.exists():
            directory.rmdir()
        os.replace(partial, directory)
    return directory


def _write_pair(root: Path, index: int, seed: int, size: tuple[int, int]) -> dict[str, Any]:
    """Render and write one pair; returns its row of the index."""
    source = "synthetic_street" if index % 4 == 3 else "synthetic_room"
    draw, scale = SOURCES[source]
    rendering = draw(index, height=size[0], width=size[1], seed=seed)
    values = np.rint(rendering.depth / scale).astype(np.uint16)
    scene = f"scene{index:04d}"
    folder = root / source / scene
    folder.mkdir(parents=True)
    Image.fromarray(rendering.image).save(folder / "0.jpg", quality=95)
    Image.fromarray(values).save(folder / "0.png")
    metres = values[values > 0] * scale
    camera = rendering.camera
    return {
        "path_rgb": f"{source}/{scene}/0.jpg",
        "path_depth": f"{source}/{scene}/0.png",
        "source": source,
        "scene": scene,
        "split": "val" if index % 5 == 1 else "train",
        "width": size[1],
        "height": size[0],
        "depth_scale": scale,
        "min_m": f"{metres.min():.3f}",
        "max_m": f"{metres.max():.3f}",
        "valid_fraction": f"{metres.size / values.size:.4f}",
        **{name: f"{getattr(camera, name):.4f}" for name in ("fx", "fy", "cx", "cy")},
        "scene_type": rendering.scene,
    }
