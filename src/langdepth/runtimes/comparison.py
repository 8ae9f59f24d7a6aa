"""How far one runtime's depth is from another's, and the photograph that runtimes are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.errors import LangdepthError

PHOTO = Path(__file__).with_name("desk.jpg")


@dataclass
class Difference:
    """Of depth from the expected one: relative differences of all pixels, and the share within 25 % (delta1)."""

    images: int = 0
    pixels: int = 0
    total: float = 0.0
    largest: float = 0.0
    near: int = 0

    def add(self, found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
        """Depth (B, H, W) of one batch. Raises LangdepthError where it has another shape."""
        if found.shape != expected.shape:
            raise LangdepthError(f"the graph gives depth of shape {found.shape} where {expected.shape} is expected")
        apart = np.abs(found - expected) / np.maximum(expected, 1e-6)
        ratio = np.maximum(found, 1e-6) / np.maximum(expected, 1e-6)
        self.images += len(found)
        self.pixels += apart.size
        self.total += float(apart.sum(dtype=np.float64))
        self.largest = max(self.largest, float(apart.max())) if np.isfinite(apart).all() else float("inf")
        self.near += int(((ratio < 1.25) & (ratio > 0.8)).sum())

    @property
    def mean(self) -> float:
        return self.total / self.pixels

    @property
    def delta1(self) -> float:
        return self.near / self.pixels

    def __str__(self) -> str:
        return f"{self.mean:.2g} on average, {self.largest:.2g} at most, in {self.images} images"
