"""What evaluation costs beside the model: decoding, the protocol, metrics and records, in processor time an image.

    OMP_NUM_THREADS=1 python benchmarks/evaluate_overhead.py --root rgbd --source nyuv2_train --split val --out c.json

Evaluates a system that returns a constant, on one core, and prints the median of several rounds. The
system sees images at their own size and tells depth at 1/32 of it, so that mirroring the one and enlarging the other
are part of the measure; itself it takes less than 0.1 ms. The report's own images and tables, made once a data set,
are not part of it. Without ``--root`` it writes synthetic rooms of 480x640.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import parser, write
from langdepth.data.base import open_dataset
from langdepth.data.tools.sample import write_sample
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems.base import System


class Constant(System):
    """2 m everywhere, stated at 1/32 of the image's size."""

    name = "constant"

    def __init__(self) -> None:
        super().__init__(None, InputSpec(multiple_of=1))

    def forward(
        self, image: Tensor, text: list[str] | Tensor | None = None, scene: list[str] | None = None
    ) -> DepthOutput:
        return DepthOutput(depth=image.new_full((len(image), 1, image.shape[-2] // 32, image.shape[-1] // 32), 2.0))


def main() -> None:
    """Parse, measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, help="folder with an index.csv; without it synthetic rooms")
    arguments.add_argument("--split")
    arguments.add_argument("--source")
    arguments.add_argument("--protocol", default="nyu-eigen")
    arguments.add_argument("--limit", type=int, default=60, help="images a round")
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.root or write_sample(Path(folder, "rooms"), count=24, size=(480, 640))
        numbers = measure(options, root)
    print(f"{numbers['milliseconds']:.2f} ms an image ({numbers['images']} images, {numbers['protocol']})")
    write(numbers, options.out)


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Median milliseconds an image over the rounds, after one round that warms up."""
    dataset = open_dataset("folder", root, options.split, options.source)
    protocol = protocols.get(options.protocol)
    rounds = []
    for _ in range(options.rounds + 1):
        start = time.process_time()
        report = evaluate(Constant(), dataset, protocol, limit=options.limit, progress=False)
        rounds.append(1000 * (time.process_time() - start) / report["images"])
    return {
        "milliseconds": statistics.median(rounds[1:]),
        "rounds": rounds[1:],
        "images": report["images"],
        "protocol": protocol.name,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    main()
