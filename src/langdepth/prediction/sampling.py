"""Several depths near the one of an image, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from langdepth.errors import UsageError
from langdepth.prediction.arrays import as_float, as_float32, joined, mean_and_std
from langdepth.records import DepthOutput
from langdepth.systems.contract import Array, Imagines, Predicts, Text, require
from langdepth.utils.arguments import check_fields


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
        if not 0 < self.spread <= 1:
            raise UsageError(f"spread must be above 0 and at most 1, got {self.spread}")
        generator_of(self.seed)

    def __call__(self, system: Predicts, image: Array, text: Text) -> DepthOutput:
        """Mean and standard deviation (B, 1, h, w); an image's own do not depend on what else is in the batch."""
        imagining = require(system, Imagines)
        height, width = image.shape[-2:]
        noise = imagining.draw_noise(self.samples, height, width, generator_of(self.seed))
        image = as_float(image)
        drawn = []
        for i in range(len(image)):  # one by one: each fills the network with its samples
            words = None if text is None else text[i : i + 1]
            depth = imagining.draw(image[i : i + 1], words, noise, self.spread).depth
            drawn.append(mean_and_std(as_float32(depth)))
        mean, std = (joined([one[None] for one in maps]) for maps in zip(*drawn, strict=True))
        return DepthOutput(depth=mean, std=std)
