"""How good a system is on an indexed folder: standard metrics per source, scale on close-ups, what words do.

    python benchmarks/accuracy.py --root rgbd --out accuracy.json

Prints tables and writes JSON. Every source is scored on its validation images under its protocol (LiDAR images:
kitti-eigen-garg, the others nyu-eigen). Sources without a validation image are scored on training images and
marked so: they say how well the model fits, not how well it generalises. "factor": the median over images of
max(m, 1/m), where m is the ratio of the median predicted to the median true depth. "words": the median predicted
depth of some validation images, in metres, when every scene of the vocabulary is claimed in turn.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import parser, write
from langdepth.data.base import open_dataset
from langdepth.data.rows import RowDataset
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.prediction.predictor import as_float, infer
from langdepth.systems.base import System
from langdepth.weights.checkpoint import load

LIDAR_SCALE = 1 / 256
SHOWN = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10", "silog")
WORD_PICTURES = 20


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, required=True, help="folder with an index.csv")
    arguments.add_argument("--system", default="tiny", help="registry name, weights file or hub id")
    options = arguments.parse_args()
    system = load(options.system)
    numbers = {"system": options.system, "sources": sources(system, options.root), "words": words(system, options.root)}
    show(numbers)
    write(numbers, options.out)


def sources(system: System, root: Path) -> list[dict[str, Any]]:
    """One record per source: metrics (image mean) under its protocol, and the scale factor."""
    rows = open_dataset("folder", root).rows
    records = []
    for source in sorted({row.source for row in rows}):
        mine = [row for row in rows if row.source == source]
        split = "val" if any(row.split == "val" for row in mine) else "train"
        outdoor = abs(mine[0].depth_scale - LIDAR_SCALE) < 1e-6
        protocol = protocols.get("kitti-eigen-garg" if outdoor else "nyu-eigen")
        dataset = open_dataset("folder", root, split=split, source=source)
        with tempfile.TemporaryDirectory() as folder:
            report = evaluate(
                system, dataset, protocol, split=split, source=source, out=Path(folder, "r.json"), progress=False
            )
        factor = statistics.median(scale_factor(system, dataset, index) for index in range(len(dataset)))
        records.append(
            {
                "source": source,
                "split": split,
                "protocol": report["protocol"]["name"],
                "hash": report["protocol"]["hash"],
                "images": report["images"],
                **{name: report["image_mean"][name] for name in SHOWN},
                "factor": factor,
            }
        )
    return records


def scale_factor(system: System, dataset: RowDataset, index: int) -> float:
    """max(m, 1/m) of one image, m = median predicted / median true depth over known pixels."""
    sample = dataset[index]
    depth = infer(system, as_float(sample.image[None])).depth[0]
    ratio = float(depth[sample.mask].median() / sample.depth[sample.mask].median())
    return max(ratio, 1 / ratio)


def words(system: System, root: Path) -> dict[str, float]:
    """Median predicted depth with no words and with every scene of the system's vocabulary."""
    dataset = open_dataset("folder", root, split="val")
    chosen = range(0, len(dataset), max(1, len(dataset) // WORD_PICTURES))
    images = [as_float(dataset[index].image[None]) for index in chosen]

    def median(scene: str | None) -> float:
        claimed = None if scene is None else [scene]
        return statistics.median(float(infer(system, image, None, claimed).depth.median()) for image in images)

    return {"(none)": median(None), **{scene: median(scene) for scene in system.scenes}}


def show(numbers: dict[str, Any]) -> None:
    """The tables."""
    columns = ("source", "split", "protocol", "images", *SHOWN, "factor")
    print(" ".join(f"{name:>18}" if name in ("source", "protocol") else f"{name:>8}" for name in columns))
    for record in numbers["sources"]:
        cells = [record[name] for name in columns]
        print(
            " ".join(
                f"{c:8.3f}" if isinstance(c, float) else f"{c!s:>18.18}" if n in ("source", "protocol") else f"{c!s:>8}"
                for n, c in zip(columns, cells, strict=True)
            )
        )
    print("\nmedian depth of validation images when a scene is claimed:")
    for scene, depth in numbers["words"].items():
        print(f"{scene:>18} {depth:6.2f} m")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
