"""How sure `tiny` is of its depth: fit the number of its option ``sigma`` to its errors, and check it.

    python benchmarks/calibrate.py runs/tiny/best.safetensors --root rgbd --weights calibrated.safetensors

Half of the scenes of the validation split give the number, with which the true depth lies within sigma in 67 % of the
pixels. Prints in how many of the other half it does, and within three times as much (95 % are due), and for comparison
the same with the halves exchanged; writes the weights with the number, for benchmarks/accuracy.py and embed.py. Takes a
minute of one core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from common import parser, write
from langdepth.data.base import open_dataset
from langdepth.data.rows import Row
from langdepth.prediction.network import as_float, infer, relative_focals
from langdepth.systems.base import System
from langdepth.weights.checkpoint import load

EVERY = 29  # pixels, of which one is taken
SHARE, TIMES = 0.67, (1, 3)


class Errors(NamedTuple):
    """Errors of some pixels of an image, as shares of the spread of their bins."""

    source: str
    values: npt.NDArray[np.float64]


def main() -> None:
    """Parse, fit, check, write."""
    arguments = parser(__doc__)
    arguments.add_argument("system", help="weights file or name")
    arguments.add_argument("--root", type=Path, required=True, help="folder with an index.csv")
    arguments.add_argument("--weights", type=Path, help="write the calibrated weights here")
    options = arguments.parse_args()
    system = load(options.system).eval()
    if not hasattr(system.config, "sigma"):
        raise SystemExit(f"{options.system}: '{system.name}' does not say how sure it is")
    halves = errors_of_halves(system, options.root)
    if not all(halves):
        raise SystemExit(f"{options.root}: the validation images are of one scene; two halves need two")
    fitted = [round(float(np.quantile(together(half), SHARE)), 4) for half in halves]
    numbers: dict[str, Any] = {"system": options.system}
    for half, sigma in enumerate(fitted):
        found = coverage(halves[1 - half], sigma)
        print(f"\nsigma {sigma} of half {half}; in the other half, within {TIMES[0]} and {TIMES[1]} sigma")
        for source, (images, *shares) in found.items():
            print(f"{source:>24} {images:4.0f} images " + " ".join(f"{share:7.1%}" for share in shares))
        numbers[f"half {half}"] = {"sigma": sigma, "other half": found}
    if options.weights is not None:
        system.config = replace(system.config, sigma=fitted[0])
        system.save(options.weights)
        print(f"\nwritten, with the number of half 0: {options.weights}")
    write(numbers, options.out)


def errors_of_halves(system: System, root: Path) -> tuple[list[Errors], list[Errors]]:
    """What the system is off by in either half of the validation images."""
    dataset = open_dataset("folder", root, split="val")
    half = halved(dataset.rows)
    system.config = replace(system.config, sigma=1.0)  # the spread itself
    found: tuple[list[Errors], list[Errors]] = ([], [])
    for row, sample in zip(dataset.rows, dataset, strict=True):
        focal = torch.from_numpy(relative_focals([sample.camera]))
        output: Any = infer(system, as_float(sample.image[None]), focal=focal)
        apart = (output.depth[0] - sample.depth).abs() / output.sigma[0]
        found[half[row.source, row.scene_run]].append(Errors(row.source, apart[sample.mask][::EVERY].double().numpy()))
    return found


def halved(rows: Sequence[Row]) -> dict[tuple[str, str], int]:
    """Source and scene -> its half: large ones first, each to the half with fewer images of its source, then of all."""
    images = Counter((row.source, row.scene_run) for row in rows)
    taken: Counter[Any] = Counter()
    half = {}
    for scene, count in sorted(images.items(), key=lambda item: (-item[1], item[0])):
        half[scene] = min((0, 1), key=lambda side: (taken[scene[0], side], taken[side]))
        taken.update({(scene[0], half[scene]): count, half[scene]: count})
    return half


def together(images: Sequence[Errors]) -> npt.NDArray[np.float64]:
    """All pixels."""
    return np.concatenate([image.values for image in images])


def coverage(images: Sequence[Errors], sigma: float) -> dict[str, list[float]]:
    """Source -> number of images, and shares of their pixels within 1 and 3 sigma; last of all."""
    found = {}
    for source in [*sorted({image.source for image in images}), "all"]:
        some = [image for image in images if source in (image.source, "all")]
        found[source] = [len(some), *(float((together(some) <= times * sigma).mean()) for times in TIMES)]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
