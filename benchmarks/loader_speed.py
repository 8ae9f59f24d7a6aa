"""Training images per second: the loader against a plain PIL and NumPy one, and a cache of frames against PNG files.

    python benchmarks/loader_speed.py --images 48 --seconds 8 --out loader_speed.json

Pairs are made of noisy synthetic scenes at 480x640, or those of ``--root``: JPEG and 16-bit PNG as in NYU's sync
frames, and PNG for both. The first five loaders run with the same number of worker processes and the same batches. All
take turns so that all see the same machine; a turn starts again, reads until all workers are at work, and then counts
images.

    plain      as published loaders do it: PIL opens both files, turns them by up to 2.5 degrees, everything becomes
               float32 NumPy arrays, crop, mirror, gamma, brightness, colors, a torch tensor, the default collate
    wordepth   `data.pipeline: wordepth-nyu`, the same steps with the same ranges
    standard   `data.pipeline: standard` with the same steps
    ... cached the same two from `langdepth data cache`
    png, cache samples read one after the other in one process, from PNG files and from `langdepth data cache`

"cpu ms" is the processor time of one thread for one image, from its files to the tensors that a batch is made of:
what a worker does, without the way of batches between processes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common import parser, write
from langdepth.data.base import open_dataset
from langdepth.data.bts import BtsTransform
from langdepth.data.rows import Row, RowDataset
from langdepth.data.tools.cache import write_cache
from langdepth.data.tools.scenes import room
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.records import Sample
from langdepth.systems.wordepth.pipeline import RULES
from langdepth.training.loaders import TrainingLoader, TrainingSet
from langdepth.training.sampling import BatchPlan, Draw

HEIGHT, WIDTH = 480, 640
ROOMS = 6
REPEATS = 50  # times that each pair is in an epoch, so that no turn meets its end
DEGREES = 2.5
GOALS = dict.fromkeys(("wordepth", "standard", "wordepth cached", "standard cached"), ("plain", 1.5))
GOALS["cache"] = ("png", 3.0)
# The published steps for NYU: turned a little, mirrored, gamma, brightness and colors; no zoom, no blur.
PUBLISHED = Augmentation(
    zoom=1.0,
    rotate=DEGREES,
    rotate_probability=1.0,
    brightness=0.25,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    gamma=0.1,
    colour_probability=0.5,
    grey=0.0,
    blur=0.0,
)


class Plain(Dataset[dict[str, torch.Tensor]]):
    """The published kind of loader: PIL images, then float32 NumPy arrays."""

    def __init__(self, rows: Sequence[Row], size: tuple[int, int]) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        angle = random.uniform(-DEGREES, DEGREES)
        photo = Image.open(row.path_rgb).rotate(angle, Image.Resampling.BILINEAR)
        sensed = Image.open(row.path_depth).rotate(angle, Image.Resampling.NEAREST)
        image = np.asarray(photo, dtype=np.float32) / 255.0
        depth = np.asarray(sensed, dtype=np.float32)[..., None] / 1000.0
        top = random.randint(0, image.shape[0] - self.size[0])
        left = random.randint(0, image.shape[1] - self.size[1])
        image = image[top : top + self.size[0], left : left + self.size[1]]
        depth = depth[top : top + self.size[0], left : left + self.size[1]]
        if random.random() > 0.5:
            image, depth = image[:, ::-1].copy(), depth[:, ::-1].copy()
        if random.random() > 0.5:
            image = image ** random.uniform(0.9, 1.1) * random.uniform(0.75, 1.25)
            colors = [random.uniform(0.9, 1.1) for _ in range(3)]
            image = np.clip(image * np.stack([np.full(image.shape[:2], c) for c in colors], axis=2), 0, 1)
        image = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)
        depth = np.ascontiguousarray(depth.transpose(2, 0, 1))
        return {"image": torch.from_numpy(image), "depth": torch.from_numpy(depth)}


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, help="folder with index.csv and 640x480 images, instead of made ones")
    arguments.add_argument("--images", type=int, default=48, help="pairs (default: 48)")
    arguments.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments.add_argument("--batch-size", type=int, default=8, help="images per batch (default: 8)")
    arguments.add_argument("--size", type=int, nargs=2, default=(416, 544), help="height, width learned from")
    arguments.add_argument("--seconds", type=float, default=8.0, help="of a turn (default: 8)")
    arguments.add_argument("--turns", type=int, default=3, help="turns of each loader (default: 3)")
    options = arguments.parse_args()
    size = tuple(options.size)
    with tempfile.TemporaryDirectory() as folder:
        images = open_dataset("folder", options.root or made(Path(folder, "made"), options.images))
        png = as_png(images, Path(folder, "png"))
        write_cache("folder", png, Path(folder, "cache"))
        lossless = open_dataset("folder", png)
        frames = open_dataset("cache", Path(folder, "cache"))
        wordepth = BtsTransform(RULES["wordepth-nyu"])
        standard = TrainTransform(PUBLISHED, size[0] * size[1], resized=False)
        learned = {
            "wordepth": TrainingSet(images, wordepth),
            "standard": TrainingSet(images, standard),
            "wordepth cached": TrainingSet(frames, wordepth),
            "standard cached": TrainingSet(frames, standard),
        }
        loaders: dict[str, Callable[[], Iterator[int]]] = {
            "plain": partial(plain, images, size, options),
            **{name: partial(trained, pairs, size, options) for name, pairs in learned.items()},
            "png": partial(read, lossless),
            "cache": partial(read, frames),
        }
        makers: dict[str, Callable[[int], object]] = {
            "plain": Plain(images.rows, size).__getitem__,
            **{name: partial(training_image, pairs, size) for name, pairs in learned.items()},
            "png": lossless.__getitem__,
            "cache": frames.__getitem__,
        }
        torch.set_num_threads(1)
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        costs: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(options.turns):
            for name, loader in loaders.items():
                rates[name].append(rate(loader(), options.seconds))
            for i in range(len(images)):
                for name, make in makers.items():
                    start = time.process_time()
                    make(i)
                    costs[name].append(1000 * (time.process_time() - start))
    report(rates, costs, options)


def made(root: Path, count: int) -> Path:
    """``count`` synthetic pairs of 480x640 with the grain and the holes of a sensor; returns ``root``."""
    noise = np.random.default_rng(0)
    rooms = [room(i, height=HEIGHT, width=WIDTH) for i in range(ROOMS)]
    root.mkdir()
    lines = ["path_rgb,path_depth,depth_scale"]
    for i in range(count):
        shown = rooms[i % ROOMS]
        grain = shown.image + noise.normal(0, 6, shown.image.shape)
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(root / f"{i}.jpg", quality=95)
        metres = shown.depth * noise.normal(1, 0.002, shown.depth.shape)
        metres[noise.random(metres.shape) < 0.05] = 0
        Image.fromarray((metres * 1000).astype(np.uint16)).save(root / f"{i}_depth.png")
        lines.append(f"{i}.jpg,{i}_depth.png,0.001")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def as_png(images: RowDataset, root: Path) -> Path:
    """The same pairs with their photographs as PNG; returns ``root``."""
    root.mkdir()
    lines = ["path_rgb,path_depth,depth_scale"]
    for i, row in enumerate(images.rows):
        Image.open(row.path_rgb).save(root / f"{i}.png")
        shutil.copy(row.path_depth, root / f"{i}_depth.png")
        lines.append(f"{i}.png,{i}_depth.png,{row.depth_scale}")
    (root / "index.csv").write_text("\n".join(lines) + "\n")
    return root


def read(images: RowDataset) -> Iterator[int]:
    """Images read one by one in this process, for ever."""
    while True:
        for i in range(len(images)):
            images[i]
            yield 1


def plain(images: RowDataset, size: Any, options: argparse.Namespace) -> Iterator[int]:
    """Images per batch of the plain loader, for ever."""
    loader = DataLoader(
        Plain(images.rows * REPEATS, size), options.batch_size, shuffle=True, num_workers=options.workers
    )
    while True:
        for batch in loader:
            yield len(batch["image"])


def training_image(pairs: TrainingSet, size: Any, index: int) -> Sample:
    """One image to learn from, as a worker makes it."""
    return pairs[Draw(index, size, index)]


def trained(pairs: TrainingSet, size: Any, options: argparse.Namespace) -> Iterator[int]:
    """Images per batch of the loader that ``langdepth train`` uses, for ever."""
    count = len(pairs)
    draws = BatchPlan(
        shapes=[0] * count, sizes=[size], weights=[float(REPEATS)] * count, batch_size=options.batch_size, seed=0
    )
    loader = TrainingLoader(pairs, draws, options.workers)
    while True:
        for batch in loader:
            yield len(batch.image)


def rate(batches: Iterator[int], seconds: float) -> float:
    """Images per second once the first batches are out."""
    for _ in range(8):  # of all workers, and what they have prepared beyond
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        count += next(batches)
    return count / (time.perf_counter() - start)


def report(rates: dict[str, list[float]], costs: dict[str, list[float]], options: argparse.Namespace) -> None:
    """Print a row per loader, write JSON."""
    record: dict[str, Any] = {"torch": torch.__version__, "workers": options.workers, "size": list(options.size)}
    print(f"{'':>15} {'images/s':>11} {'lowest':>8} {'highest':>8} {'times':>6} {'cpu ms':>7} {'times':>6} {'goal':>5}")
    for name, values in rates.items():
        against, goal = GOALS.get(name, (name, 1.0))
        times = statistics.median(a / b for a, b in zip(values, rates[against], strict=True))
        cost = statistics.median(costs[name])
        cheaper = statistics.median(costs[against]) / cost
        row = {"per_second": statistics.median(values), "times": times, "cpu_ms": cost, "cpu_times": cheaper}
        record[name] = row | {"against": against, "turns": values}
        print(
            f"{name:>15} {row['per_second']:11.1f} {min(values):8.1f} {max(values):8.1f} {times:6.2f} {cost:7.2f} "
            f"{cheaper:6.2f} " + (f"{goal:5.1f} {against}" if name in GOALS else "")
        )
    write(record, options.out)


if __name__ == "__main__":
    main()
