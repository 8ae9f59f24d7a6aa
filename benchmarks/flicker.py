"""How much depth flickers from frame to frame, and how right it is, with each kind of `--steady`: docs/video.md.

    python benchmarks/flicker.py --out flicker.json
    python benchmarks/flicker.py --data CLIP --fps 30

* pan: examples/desk.jpg seen by a camera that pans, 480 x 360 pixels of it, moved by known fractions of pixels as by a
  hand. A place is followed by that motion; its depth does not change.
* clip (with --data): a folder with an index.csv (path_rgb, path_depth, depth_scale) of consecutive frames with measured
  depth. There is no true motion; each pixel is compared with itself in the next frame, less the change of the measured
  depth there.

Flicker is the median over the places of |change of the logarithm of depth|, which is the relative change, and its mean
over the pairs of frames. abs_rel is against the measured depth, as it is and with one factor for the whole clip.
Goal: flicker with motion at most half of that without, abs_rel not worse.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import langdepth
from common import ROOT, parser, write
from langdepth.prediction.video.steady import Steady

Floats = npt.NDArray[np.float32]
KINDS = {"off": None, "scale": False, "motion": True}
SIZE = (360, 480)


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="a folder with an index.csv of consecutive frames")
    arguments.add_argument("--fps", type=float, default=30.0, help="of both clips (default: 30)")
    arguments.add_argument("--frames", type=int, default=60, help="of the pan (default: 60)")
    arguments.add_argument("--system", default="tiny", help="what predicts (default: tiny)")
    options = arguments.parse_args()
    model = langdepth.load(options.system)
    found = {"pan": pan(model, options.frames, options.fps)}
    if options.data is not None:
        found["clip"] = clip(model, options.data, options.fps)
    for name, kinds in found.items():
        print(f"\n{name:<8} flicker   of off   abs_rel   with one factor   ms per frame")
        for kind, numbers in kinds.items():
            errors = [numbers.get(key) for key in ("abs_rel", "abs_rel_scaled")]
            shown = ["-" if error is None else f"{error:.4f}" for error in errors]
            share = numbers["flicker"] / kinds["off"]["flicker"]
            print(
                f"{kind:<8} {numbers['flicker']:7.2%} {share:8.2f} {shown[0]:>9} {shown[1]:>17} {numbers['ms']:14.1f}"
            )
    write(found, options.out)


def steadied(
    kind: bool | None, images: list[npt.NDArray[np.uint8]], depths: list[Floats], fps: float
) -> tuple[list[Floats], float]:
    """Depth maps by one kind of ``KINDS``, and milliseconds of processor time per frame."""
    if kind is None:
        return depths, 0.0
    steady, start = Steady(along_motion=kind), time.process_time()
    found = [
        depth * steady(image, depth, number / fps)
        for number, (image, depth) in enumerate(zip(images, depths, strict=True))
    ]
    return found, 1000 * (time.process_time() - start) / len(depths)


def places(count: int, fps: float) -> list[tuple[float, float]]:
    """(x, y) of the window's corner in the photo: a slow pan with the tremor of a hand."""
    random = np.random.default_rng(0)
    tremor = np.cumsum(random.normal(0, 0.4, (count, 2)), axis=0)
    x = 80 + 60 * np.sin(np.arange(count) / fps * np.pi / 2)
    return [(float(a + dx), float(60 + dy)) for a, (dx, dy) in zip(x, tremor, strict=True)]


def window(image: Image.Image, x: float, y: float) -> Image.Image:
    """``SIZE`` pixels from (x, y) on, bilinearly."""
    height, width = SIZE
    return image.transform((width, height), Image.Transform.AFFINE, (1, 0, x, 0, 1, y), Image.Resampling.BILINEAR)


def pan(model: Any, count: int, fps: float) -> dict[str, dict[str, float]]:
    """Flicker on a photo that moves."""
    photo = Image.open(ROOT / "examples" / "desk.jpg").convert("RGB")
    corners = places(count, fps)
    images = [np.asarray(window(photo, x, y)) for x, y in corners]
    depths = [result.depth for result in model.predict(images)]
    found = {}
    for name, kind in KINDS.items():
        steady, ms = steadied(kind, images, depths, fps)
        logs = [Image.fromarray(np.log(depth)) for depth in steady]
        changes = []
        for ((x, y), before), ((x2, y2), after) in pairwise(zip(corners, logs, strict=True)):
            moved = np.asarray(window(before, x2 - x, y2 - y))[8:-8, 8:-8]
            changes.append(np.median(np.abs(np.asarray(after)[8:-8, 8:-8] - moved)))
        found[name] = {"flicker": float(np.mean(changes)), "ms": ms}
    return found


def frames_of(folder: Path) -> Iterator[tuple[npt.NDArray[np.uint8], Floats]]:
    """Images and measured depth in metres, in the order of the index."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            depth = np.asarray(Image.open(folder / row["path_depth"])).astype(np.float32) * float(row["depth_scale"])
            yield np.asarray(Image.open(folder / row["path_rgb"]).convert("RGB")), depth


def clip(model: Any, folder: Path, fps: float) -> dict[str, dict[str, float]]:
    """Flicker and error on frames with measured depth."""
    images, truths = map(list, zip(*frames_of(folder), strict=True))
    depths = [result.depth for result in model.predict(images)]
    known = [truth > 0 for truth in truths]
    found = {}
    for name, kind in KINDS.items():
        steady, ms = steadied(kind, images, depths, fps)
        errors = [
            np.log(depth / np.where(has, truth, 1)) for depth, truth, has in zip(steady, truths, known, strict=True)
        ]
        changes = [
            np.median(np.abs(after - before)[a & b])
            for (before, a), (after, b) in pairwise(zip(errors, known, strict=True))
        ]
        factor = np.exp(-np.median(np.concatenate([e[k][::50] for e, k in zip(errors, known, strict=True)])))
        found[name] = {
            "flicker": float(np.mean(changes)),
            "abs_rel": float(np.mean([np.abs(np.exp(e[k]) - 1).mean() for e, k in zip(errors, known, strict=True)])),
            "abs_rel_scaled": float(
                np.mean([np.abs(factor * np.exp(e[k]) - 1).mean() for e, k in zip(errors, known, strict=True)])
            ),
            "ms": ms,
        }
    return found


if __name__ == "__main__":
    main()
