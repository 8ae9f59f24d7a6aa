"""Several depths near the one of an image, and what they have in common; limits of what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from langdepth.errors import UsageError
from langdepth.prediction.arrays import as_float, as_float32, joined, mean_and_std
from langdepth.records import DepthOutput
from langdepth.systems.contract import Array, Imagines, Predicts, Text, require
from langdepth.utils.arguments import check_fields

MAX_SAMPLES = 1000
MAX_MAP = 16_000_000  # pixels of one map
MAX_DRAWN = 100_000_000  # of all maps of one image or sentence: 400 MB
_AT_ONCE = 1 << 21  # pixels in the network at once


def check_drawn(samples: int, height: int, width: int) -> None:
    """Raise UsageError for more maps, or larger ones, than are drawn."""
    if samples > MAX_SAMPLES:
        raise UsageError(f"samples must be at most {MAX_SAMPLES}, got {samples}")
    if height * width > MAX_MAP:
        raise UsageError(f"a depth map of {width} x {height} is above {MAX_MAP / 1e6:g} megapixels; make it smaller")
    if samples * height * width > MAX_DRAWN:
        most = MAX_DRAWN // (height * width)
        raise UsageError(
            f"{samples} samples of {width} x {height} do not fit in memory; at most {most}, or smaller ones"
        )


def in_parts(noise: Array, height: int, width: int) -> Iterator[Array]:
    """The noise of as many maps at a time as the network takes."""
    step = max(1, _AT_ONCE // (height * width))
    for start in range(0, len(noise), step):
        yield noise[start : start + step]


def generator_of(seed: int) -> np.random.Generator:
    """Random numbers of a seed. Raises UsageError for one below 0 or from 2^63 on."""
    if not 0 <= seed < 2**63:
        raise UsageError("seed must be from 0 to below 2^63, which this one is not")
    return np.random.default_rng(int(seed))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How samples are drawn, see ``PredictOptions``. Raises UsageError for values that make no sense."""

    samples: int
    spread: float
    seed: int

    def __post_init__(self) -> None:
        check_fields(self)
        if self.samples < 2:
            raise UsageError(f"samples must be at least 2, got {self.samples}: one has no spread")
        check_drawn(self.samples, 1, 1)
        if not 0 < self.spread <= 1:
            raise UsageError(f"spread must be above 0 and at most 1, got {self.spread}")
        generator_of(self.seed)

    def __call__(self, system: Predicts, image: Array, text: Text) -> DepthOutput:
        """Mean and standard deviation (B, 1, h, w); an image's own do not depend on what else is in the batch."""
        imagining = require(system, Imagines)
        height, width = image.shape[-2:]
        check_drawn(self.samples, height, width)
        noise = imagining.draw_noise(self.samples, height, width, generator_of(self.seed))
        image = as_float(image)
        drawn = []
        for i in range(len(image)):  # one by one: each fills the network with its samples
            words = None if text is None else text[i : i + 1]
            maps = [
                as_float32(imagining.draw(image[i : i + 1], words, part, self.spread).depth)
                for part in in_parts(noise, height, width)
            ]
            drawn.append(mean_and_std(joined(maps)))
        mean, std = (joined([one[None] for one in maps]) for maps in zip(*drawn, strict=True))
        return DepthOutput(depth=mean, std=std)
