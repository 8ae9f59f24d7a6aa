"""Teach a trained wordepth-tiny the noise that its training images pick, which it then imagines with.

    python benchmarks/learn_noise.py runs/wordepth-tiny/best.safetensors --root DIR --out wordepth-tiny.safetensors

DIR is an indexed folder whose images have sentences (column text).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from langdepth.data.base import open_dataset
from langdepth.data.rows import RowDataset
from langdepth.prediction.network import as_float
from langdepth.records import Batch
from langdepth.systems.wordepth.tiny import WorDepthTiny
from langdepth.weights.checkpoint import load
from langdepth.weights.files import save


def main() -> None:
    """Parse, learn, save, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--source", help="learn from this source alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    system = load(options.weights).eval()
    if not isinstance(system, WorDepthTiny):
        raise SystemExit(f"{options.weights}: '{system.name}' draws its noise as published, there is nothing to learn")
    images = open_dataset("folder", options.root, "train", options.source)
    share = system.learn_noise(_batches(images, system))
    print(f"{save(system, options.out)}: {len(images)} images; {share:.0%} of their noise along the main directions")


def _batches(images: RowDataset, system: WorDepthTiny) -> Iterator[Batch]:
    for index in range(len(images)):
        sample = images[index]
        size = system.input_spec.network_size(*sample.image.shape[-2:])
        image = F.interpolate(as_float(sample.image[None]), size, mode="bilinear", antialias=True)
        depth = torch.zeros(1, 1, *size)
        yield Batch(
            image=image,
            depth=depth,
            mask=depth > 0,
            scene=torch.tensor([sample.scene]),
            text=[sample.text],
            path=[sample.path],
        )


if __name__ == "__main__":
    main()
