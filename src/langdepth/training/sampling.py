"""The images of every batch: weighted by source, grouped by shape.

The batches follow from the seed alone, wherever training was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from langdepth.data.rows import Row, RowDataset
from langdepth.errors import UsageError, nearest
from langdepth.records import InputSpec
from langdepth.utils.images import read_size


@dataclass(frozen=True, slots=True)
class Draw:
    """One place in a batch: which row, at which (height, width), with which random seed."""

    index: int
    size: tuple[int, int]
    seed: int


class Sizes:
    """The few network sizes that training images are cut to: each image takes the nearest of ``aspects``.

    ``crop``: one (height, width) for all instead. Raises UsageError for one that the network does not take, unless the
    network resizes (``resized``).
    """

    def __init__(
        self,
        spec: InputSpec,
        aspects: Sequence[float],
        crop: tuple[int, int] | None = None,
        *,
        resized: bool = False,
    ) -> None:
        self.aspects = tuple(aspects) if crop is None else (crop[1] / crop[0],)
        self.sizes = [spec.network_size(1000, round(1000 * aspect)) for aspect in self.aspects]
        if crop is not None and resized:
            self.sizes = [crop]
        elif crop is not None:
            taken = spec.size or tuple(-(-side // spec.multiple_of) * spec.multiple_of for side in crop)
            if taken != tuple(crop):
                raise UsageError(
                    f"data.crop: the network takes {taken[0]}x{taken[1]} pixels (height x width), not "
                    f"{crop[0]}x{crop[1]}"
                )
            self.sizes = [crop]

    def of(self, height: int, width: int) -> int:
        """Index of the size for a stored image."""
        return int(np.argmin([abs(np.log(width / height / aspect)) for aspect in self.aspects]))


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """Batches of every epoch, the same number in every epoch and on every rank.

    For each image ``shapes`` is the index of its size in ``sizes``, ``weights`` the mean number of times that it is
    drawn in an epoch.
    """

    shapes: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    weights: Sequence[float]
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def _counts(self) -> dict[int, int]:
        """Batches per size."""
        shapes, weights = np.asarray(self.shapes), np.asarray(self.weights)
        totals = {int(s): float(weights[shapes == s].sum()) for s in np.unique(shapes)}
        return {s: max(1, round(total / self.batch_size)) for s, total in totals.items() if total > 0}

    def __len__(self) -> int:
        return sum(self._counts().values()) // self.world_size or 1

    def epoch(self, epoch: int) -> list[list[Draw]]:
        """The batches of one epoch for this rank."""
        random = np.random.default_rng([self.seed, epoch])
        shapes, weights = np.asarray(self.shapes), np.asarray(self.weights)
        batches = []
        for shape, count in self._counts().items():
            members = np.flatnonzero((shapes == shape) & (weights > 0))
            wanted = count * self.batch_size
            repeats = np.floor(weights[members] + random.random(len(members))).astype(int)
            chosen = random.permutation(np.repeat(members, repeats))[:wanted]
            probabilities = weights[members] / weights[members].sum()
            more = random.choice(members, wanted - len(chosen), p=probabilities)
            chosen = random.permutation(np.concatenate([chosen, more]))
            seeds = random.integers(2**62, size=wanted)
            draws = [Draw(int(i), self.sizes[shape], int(s)) for i, s in zip(chosen, seeds, strict=True)]
            batches += [draws[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
        order = random.permutation(len(batches))
        mine = [batches[i] for i in order[self.rank :: self.world_size]]
        return (mine or [batches[order[0]]])[: len(self)]


def source_weights(sources: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    """A weight for every row, 1 where ``weights`` does not name its source.

    Raises UsageError for a source that no row has, a weight that is not a number from 0 up, and weights that leave no
    row.
    """
    known = set(sources)
    for source, weight in weights.items():
        if source not in known:
            raise UsageError(f"data.weights: no training image has source '{source}': {nearest(source, known)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"data.weights.{source}: {weight} must be a number from 0 up")
    chosen = [weights.get(source, 1.0) for source in sources]
    if not any(chosen):
        raise UsageError("data.weights: no training image has a weight above 0")
    return chosen


def few_shots(scenes: Sequence[int], shots: int, seed: int | None = None) -> list[int]:
    """Places of ``shots`` images of each scene (fewer where there are fewer), in list order.

    ``scenes``: labels, -1 unknown, which are left out. ``seed``: draw them, instead of taking each scene's first ones.
    Raises UsageError when no image has a label.
    """
    labels = np.asarray(scenes)
    order = np.arange(len(labels)) if seed is None else np.random.default_rng(seed).permutation(len(labels))
    chosen = [order[labels[order] == scene][:shots] for scene in np.unique(labels[labels >= 0])]
    if not chosen:
        raise UsageError("data.shots: no training image has a scene label")
    return sorted(int(i) for i in np.concatenate(chosen))


def training_shapes(dataset: RowDataset, sizes: Sizes) -> list[int]:
    """Index of the network size of every row: from the row's stated size, else from the image's header."""

    def shape(row: Row) -> int:
        if row.size is not None:
            return sizes.of(*row.size)
        return sizes.of(*read_size(row.path_rgb))

    return [shape(row) for row in dataset.rows]
