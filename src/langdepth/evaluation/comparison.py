"""How sure a number is, and what may stand beside it: intervals, paired tests, and the papers' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.data.base import layout
from langdepth.systems import registry
from langdepth.systems.card import Numbers

COMPARED = "abs_rel"
"""The metric whose image means are compared between systems."""
RESAMPLES, FLIPS = 2000, 9999
_BATCH = 100  # resamples in memory at a time

PerImage = Mapping[str, Sequence[float]]
""""index" of the image in the data set, and its metrics."""


def intervals(images: PerImage) -> dict[str, list[float]]:
    """95 % intervals [low, high] of image means: percentile bootstrap over the images, the same at every call.

    Empty for fewer than two images.
    """
    from scipy.stats import bootstrap

    names = [name for name in images if name != "index"]
    values = np.array([images[name] for name in names], np.float64)
    if values.shape[-1] < 2:
        return {}
    found = bootstrap(
        (values,),
        np.mean,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return {name: [float(found.low[i]), float(found.high[i])] for i, name in enumerate(names)}


def p_value(images: PerImage, others: PerImage) -> float | None:
    """How likely a difference of the mean ``COMPARED`` as large as this is between equal systems.

    Two-sided permutation test on the images that both have: each image's pair of values is exchanged or not. The same
    at every call; None for fewer than two common images.
    """
    from scipy.stats import permutation_test

    _, ours, theirs = np.intersect1d(images["index"], others["index"], return_indices=True)
    if len(ours) < 2:
        return None
    pair = np.asarray(images[COMPARED], np.float64)[ours], np.asarray(others[COMPARED], np.float64)[theirs]
    if np.array_equal(*pair):
        return 1.0

    def difference(a: Any, b: Any, axis: int) -> npt.NDArray[np.float64]:
        return np.mean(a - b, axis=axis)

    found = permutation_test(
        pair,
        difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=FLIPS,
        batch=_BATCH,
        random_state=np.random.default_rng(0),
    )
    return float(found.pvalue)


def least_p(images: int) -> float:
    """What ``p_value`` is at least for so many images, however different the systems are: 2 of all exchanges."""
    return 2 / min(2**images, FLIPS + 1)


class Comparing:
    """``p_value``, computed once for each pair of tables; takes seconds for some thousand images."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[PerImage, PerImage, float | None]] = {}

    def __call__(self, images: PerImage, others: PerImage) -> float | None:
        pair = id(images), id(others)  # of tables that are kept, so that no other one gets their number
        if pair not in self._known:
            self._known[pair] = images, others, p_value(images, others)
        return self._known[pair][2]


def comparisons(
    images: Sequence[PerImage | None], p: Callable[[PerImage, PerImage], float | None] = p_value
) -> list[float | None]:
    """``p`` of each system of one table against the best of them; None for that one and for missing ones."""
    known = {place: float(np.mean(found[COMPARED])) for place, found in enumerate(images) if found is not None}
    if not known:
        return [None] * len(images)
    best = min(known, key=known.__getitem__)
    return [
        None if found is None or place == best else p(found, images[best] or {}) for place, found in enumerate(images)
    ]


def papers_numbers(name: str, config: Any, protocol: str, data: str, split: str | None, count: int) -> Numbers | None:
    """What the paper prints for a system where it compares: same configuration, data set, split and number of images.

    Args:
        name: Of the system in the registry.
        config: Its configuration, None where it could not be loaded: then that of the registry.
        protocol: Name of the protocol.
        data: Name of the data set's kind.
        split: Of the data set.
        count: How many of its images are evaluated.
    """
    known = registry.REGISTRY.get(name)
    numbers = known.numbers.get(protocol) if known is not None else None
    if numbers is None or data != numbers.data:
        return None
    card = layout(data).CARD
    same_images = split == card.split and split is not None and count == card.splits[split]
    return numbers if same_images and (config is None or config == registry.config(name)) else None
