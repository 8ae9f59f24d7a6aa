"""How good a system is on an indexed folder: what a user meets, metrics per source, scale, what words do.

    python benchmarks/accuracy.py --root rgbd --out accuracy.json

Prints tables and writes JSON. All of them are of the validation split, unless said otherwise.

* "targets": NYUv2 (nyu-eigen), KITTI (kitti-eigen-garg), the other sources (full), and on NYUv2 how steady the
  depth is. Systems that consider cameras are told those that the index states; "no K": they are not.
  "crop": median depth of the middle half of an image as an image of its own, over that of the same part of the whole.
  "pan": median relative change of depth where the frame moves by 2 pixels. "tilt", "height": angle between the true
  floor and the plane through its predicted points, and ratio of the camera's heights above them.
* "sources": every source under its protocol (LiDAR: kitti-eigen-garg, NYUv2: nyu-eigen, others: full). Those without
  validation images are scored on training images and marked so: they say how well the model fits, not how well it
  generalises. "factor": the median over images of max(m, 1/m), where m is the ratio of the median predicted to the
  median true depth.
* "words": the median predicted depth of some images, in metres, when every scene of the vocabulary is claimed in turn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import parser, write
from langdepth.data.base import open_dataset
from langdepth.data.rows import RowDataset
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.prediction.network import as_float, infer
from langdepth.records import Sample
from langdepth.systems.base import System
from langdepth.weights.checkpoint import load

LIDAR_SCALE = 1 / 256
SHOWN = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10", "silog")
NYU, KITTI = "nyuv2_train", "kitti"
FEW_IMAGES = 20
PAN = 2  # pixels


def images_of(root: Path, split: str | None = None, source: str | None = None) -> RowDataset:
    """Of the folder; whole sources lie nearer than what is taken for a wrong unit elsewhere."""
    return open_dataset("folder", root, split=split, source=source, trust_unit=True)


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, required=True, help="folder with an index.csv")
    arguments.add_argument("--system", default="tiny", help="registry name, weights file or hub id")
    arguments.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES, help="which tables to make")
    options = arguments.parse_args()
    system = load(options.system).eval()
    numbers: dict[str, Any] = {"system": options.system}
    for name in options.tables:
        make, show = TABLES[name]
        numbers[name] = make(system, options.root)
        show(numbers[name])
    write(numbers, options.out)


# What a user meets


def targets(system: System, root: Path) -> dict[str, float]:
    """Figure -> value."""

    def report(source: str, protocol: str, *, cameras: bool = True, **switches: Any) -> dict[str, Any]:
        rules = protocols.get(protocol).override(**switches)
        dataset = images_of(root, split="val", source=source)
        if not cameras:
            dataset.rows = [replace(row, intrinsics=None) for row in dataset.rows]
        return evaluate(system, dataset, rules, progress=False)

    found: dict[str, float] = {}
    rows = images_of(root, split="val").rows
    for source in sorted({row.source for row in rows}):
        protocol = {NYU: "nyu-eigen", KITTI: "kitti-eigen-garg"}.get(source, "full")
        means = report(source, protocol)
        found |= {f"{source} {name}": means["image_mean"][name] for name in ("delta1", "abs_rel", "rmse")}
        known = any(row.intrinsics for row in rows if row.source == source)
        if known and system.input_spec.focal is not None:
            means_of_others = report(source, protocol, cameras=False)["image_mean"]
            found |= {f"{source} {name}, no K": means_of_others[name] for name in ("delta1", "abs_rel", "rmse")}
        if source == NYU:
            aligned = report(source, protocol, alignment="median")
            found[f"{source} delta1, median aligned"] = aligned["image_mean"]["delta1"]
            found |= {f"{source} edges {name}": value for name, value in (means["edges"] or {}).items()}
            near = next(ranges["abs_rel"] for ranges in means["by_depth"] if ranges["from"] == 0)
            found[f"{source} abs_rel below 1 m"] = near
            dataset = images_of(root, split="val", source=source)
            found |= steadiness(system, (dataset[index] for index in range(len(dataset))))
    return found


def steadiness(system: System, samples: Iterable[Sample]) -> dict[str, float]:
    """Crop, pan and floor, see the top of this file: medians over the samples."""
    found: dict[str, list[float]] = {name: [] for name in ("crop", "crop, no K", "pan", "tilt, degrees", "height")}
    for sample in samples:
        image = as_float(sample.image[None])
        focal = sample.camera.relative_focal if sample.camera else 0.0
        whole = _depth(system, image, focal)
        height, width = image.shape[-2:]
        rows, columns = (slice(side // 4, side // 4 + side // 2) for side in (height, width))
        for name, known in (("crop", 2 * focal), ("crop, no K", 0.0)):
            middle = _depth(system, image[..., rows, columns], known)
            found[name].append(float(middle.median() / whole[rows, columns].median()))
        left, right = (_depth(system, image[..., start : start + width - PAN], focal) for start in (0, PAN))
        found["pan"].append(float((left[:, PAN:] / right[:, :-PAN] - 1).abs().median()))
        floor = floor_error(whole, sample)
        if floor is not None:
            found["tilt, degrees"].append(floor[0])
            found["height"].append(floor[1])
    return {name: statistics.median(values) for name, values in found.items() if values}


def floor_error(depth: Tensor, sample: Sample) -> tuple[float, float] | None:
    """Tilt in degrees and ratio of heights of the floor, None where the true depth shows none."""
    if sample.camera is None:
        return None
    points = sample.camera.unproject(sample.depth[0].numpy())[sample.mask[0].numpy()]
    inside = _floor(points)
    if inside is None:
        return None
    predicted = sample.camera.unproject(depth.numpy())[sample.mask[0].numpy()]
    (normal, height), (other, other_height) = _plane(points[inside]), _plane(predicted[inside])
    return math.degrees(math.acos(min(1.0, abs(float(normal @ other))))), other_height / height


def _floor(points: np.ndarray[Any, Any], tries: int = 300) -> np.ndarray[Any, Any] | None:
    """Which points (N, 3) lie on the largest level plane that has next to nothing below it; None: on no plane."""
    random, best = np.random.default_rng(0), (0.08, None)
    some = points[:: max(1, len(points) // 20000)]
    for _ in range(tries):
        a, b, c = some[random.integers(len(some), size=3)]
        normal = np.cross(b - a, c - a)
        normal = normal / (np.linalg.norm(normal) + 1e-12) * (-1 if normal[1] < 0 else 1)  # downwards
        if normal[1] < math.cos(math.radians(40)):
            continue
        below = (some - a) @ normal
        share = float((np.abs(below) < 0.04).mean())
        if share > best[0] and (below > 0.15).mean() < 0.02:
            best = share, (a, normal)
    return None if best[1] is None else np.abs((points - best[1][0]) @ best[1][1]) < 0.04


def _plane(points: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """Normal and distance from the camera of the plane through points (N, 3), by least squares."""
    middle = points.mean(0)
    normal = np.linalg.eigh(np.cov((points - middle).T.astype(np.float64)))[1][:, 0]
    return normal, abs(float(middle @ normal))


def _few(dataset: RowDataset) -> list[Sample]:
    return [dataset[index] for index in range(0, len(dataset), max(1, len(dataset) // FEW_IMAGES))]


def _depth(system: System, image: Tensor, focal: float = 0.0) -> Tensor:
    """(1, 3, H, W) to metres (H, W); ``focal``: relative, 0 where unknown."""
    return infer(system, image, focal=torch.tensor([focal])).depth[0, 0]


def show_targets(found: dict[str, float]) -> None:
    """The first table."""
    print()
    for name, value in found.items():
        print(f"{name:>42} {value:9.4f}")


# Sources, words


def sources(system: System, root: Path) -> list[dict[str, Any]]:
    """One record per source: metrics (image mean) under its protocol, and the scale factor."""
    rows = images_of(root).rows
    records = []
    for source in sorted({row.source for row in rows}):
        mine = [row for row in rows if row.source == source]
        split = "val" if any(row.split == "val" for row in mine) else "train"
        outdoor = abs(mine[0].depth_scale - LIDAR_SCALE) < 1e-6
        protocol = protocols.get(
            "kitti-eigen-garg" if outdoor else "nyu-eigen" if source.startswith("nyuv2") else "full"
        )
        dataset = images_of(root, split=split, source=source)
        report = evaluate(system, dataset, protocol, progress=False)
        factor = statistics.median(scale_factor(system, dataset[index]) for index in range(len(dataset)))
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


def scale_factor(system: System, sample: Sample) -> float:
    """max(m, 1/m) of one image, m = median predicted / median true depth over known pixels."""
    depth = _depth(system, as_float(sample.image[None]), sample.camera.relative_focal if sample.camera else 0.0)
    ratio = float(depth[sample.mask[0]].median() / sample.depth[sample.mask].median())
    return max(ratio, 1 / ratio)


def show_sources(records: list[dict[str, Any]]) -> None:
    """The second table."""
    columns = ("source", "split", "protocol", "images", *SHOWN, "factor")
    print("\n" + " ".join(f"{name:>18}" if name in ("source", "protocol") else f"{name:>8}" for name in columns))
    for record in records:
        cells = [record[name] for name in columns]
        print(
            " ".join(
                f"{c:8.3f}" if isinstance(c, float) else f"{c!s:>18.18}" if n in ("source", "protocol") else f"{c!s:>8}"
                for n, c in zip(columns, cells, strict=True)
            )
        )


def words(system: System, root: Path) -> dict[str, float]:
    """Median predicted depth with no words and with every scene of the system's vocabulary."""
    images = [as_float(sample.image[None]) for sample in _few(images_of(root, split="val"))]

    def median(scene: str | None) -> float:
        claimed = None if scene is None else [scene]
        return statistics.median(float(infer(system, image, None, claimed).depth.median()) for image in images)

    return {"(none)": median(None), **{scene: median(scene) for scene in system.scenes}}


def show_words(found: dict[str, float]) -> None:
    """The last table."""
    print("\nmedian depth of validation images when a scene is claimed:")
    for scene, depth in found.items():
        print(f"{scene:>18} {depth:6.2f} m")


TABLES: dict[str, tuple[Callable[[System, Path], Any], Callable[[Any], None]]] = {
    "targets": (targets, show_targets),
    "sources": (sources, show_sources),
    "words": (words, show_words),
}

if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
