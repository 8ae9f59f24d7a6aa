"""Training steps with a frozen trunk's features read from disk (`data.cache: features`) against running the trunk.

    python benchmarks/train_cache.py --root DIR --images 24 --threads 2 --out train_cache.json

Published network sizes, RN50 with random weights (they take the same time as trained ones), images of an indexed
folder, mirrored at random and not otherwise varied. A step is what `langdepth train` does: images decoded by worker
processes, loss, gradients, AdamW. Both ways see the same batches, one step of each in turn, so that both see the same
machine; the first batch of each is left out. The files were written just before and fit into memory; the time to make
them is stated beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import parser, use_threads, write

if TYPE_CHECKING:
    from langdepth.records import Batch
    from langdepth.training.loaders import TrainingLoader

PLAIN: dict[str, Any] = {"random_crop": False} | dict.fromkeys(
    ("zoom_probability", "rotate_probability", "colour_probability", "grey", "blur"), 0.0
)
SYSTEMS: dict[str, dict[str, Any]] = {
    "clip-adapter": {},
    "clip-coarse-refined": {"stage": "coarse"},
    "prompt-clip": {},
    "few-shot-clip": {},
    "refine-clip": {},
    "mde-clip": {},
    "msa": {},
    "mirror-prompt": {},
}
GOAL = 4.0


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", required=True, help="folder with index.csv, split train, labelled images")
    arguments.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="default: one of every kind")
    arguments.add_argument("--images", type=int, default=16, help="images learned from (default: 16)")
    arguments.add_argument("--batch-size", type=int, default=4, help="images per step (default: 4)")
    arguments.add_argument("--steps", type=int, default=6, help="steps that are measured (default: 6)")
    arguments.add_argument("--workers", type=int, default=1, help="processes that read images (default: 1)")
    arguments.add_argument("--threads", type=int, default=2, help="CPU threads of torch (default: 2)")
    options = arguments.parse_args()
    use_threads(options.threads)

    import torch

    columns = ("without s", "with s", "ratio", "goal", "fill s", "MB/image", "loss differs")
    print(f"{'':>20} " + " ".join(f"{column:>11}" for column in columns))
    record: dict[str, Any] = {"threads": options.threads, "batch_size": options.batch_size, "torch": torch.__version__}
    for name in options.systems:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the weights are random on purpose
            os.environ["LANGDEPTH_CACHE"] = folder
            found = measured(name, options, Path(folder))
        record[name] = found
        print(
            f"{name:>20} {found['without']:11.3f} {found['with']:11.3f} {found['ratio']:11.1f} {GOAL:11.1f} "
            f"{found['fill']:11.1f} {found['megabytes']:11.1f} {found['difference']:11.1e}",
            flush=True,
        )
    write(record, options.out)


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Median seconds of a step without and with features, their ratio, and what they cost."""
    import torch

    from langdepth.data.base import open_dataset
    from langdepth.data.transforms import Augmentation, TrainTransform
    from langdepth.systems import registry
    from langdepth.training.features import FeatureCache
    from langdepth.training.loaders import TrainingLoader, TrainingSet
    from langdepth.training.sampling import BatchPlan

    torch.manual_seed(0)
    system = registry.build(name, SYSTEMS[name])
    system.prepare_training(clip_weights="random")  # type: ignore[call-arg]
    system.train()
    images = open_dataset("folder", options.root, "train")
    images.rows = images.rows[: options.images]
    size = system.input_spec.network_size(480, 640)
    dataset = TrainingSet(images, TrainTransform(Augmentation(**PLAIN), size[0] * size[1]))
    places = range(len(images))
    features = FeatureCache(system, dataset, dict.fromkeys(places, size), flip=0.5, batch_size=options.batch_size)
    start = time.perf_counter()
    features.fill(system)
    fill = time.perf_counter() - start
    draws = BatchPlan(
        shapes=[0] * len(places), sizes=[size], weights=[1.0] * len(places), batch_size=options.batch_size, seed=0
    )
    optimiser = torch.optim.AdamW(system.parameter_groups(1e-6, 0.0))
    ways = {"without": None, "with": features.add}
    loaders = {way: endless(TrainingLoader(dataset, draws, options.workers, finish)) for way, finish in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    totals: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.steps + 1):
        for way, loader in loaders.items():
            start = time.perf_counter()
            total = system.loss(next(loader))["total"]
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            seconds[way].append(time.perf_counter() - start)
            totals[way].append(total.item())
    without, cached = (statistics.median(values[1:]) for values in seconds.values())
    return {
        "without": without,
        "with": cached,
        "ratio": without / cached,
        "fill": fill,
        "megabytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / len(places) / 1e6,
        "difference": max(abs(a - b) / abs(a) for a, b in zip(*totals.values(), strict=True)),
    }


def endless(loader: TrainingLoader) -> Iterator[Batch]:
    """The batches of one epoch after the other."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
