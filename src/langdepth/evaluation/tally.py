"""What evaluation keeps of the images it has judged: 19 numbers each, and sums over all of them.

No number depends on the order in which images are judged: records are put in the order of the data set before means
are made of them, and the sums of the depth ranges are added exactly, as integers. So two processes that share the
images get the very numbers that one gets.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from langdepth.errors import LangdepthError
from langdepth.evaluation.metrics import (
    EDGE_RATIOS,
    METRICS,
    RANGES,
    SUMS,
    Values,
    edge_counts,
    edge_scores,
    error_histogram,
    error_quartiles,
    metrics_from_sums,
    range_sums,
)
from langdepth.text.scenes import SCENES

if TYPE_CHECKING:
    from langdepth.evaluation.evaluate import Judged
    from langdepth.records import Sample

_MEDIAN_OF = 1 << 12  # evenly spaced pixels of an image, enough for a point in a plot
_NO_PIXELS = np.zeros(0, np.float32)
_NO_EDGES = (math.nan, math.nan)
_INDEX, _SCENE, _MEDIANS, _BOUNDARIES, _SUMS = 0, 1, slice(2, 4), slice(4, 6), slice(6, 6 + SUMS)  # of a record
_LENGTH = _SUMS.stop
_UNIT = 1 << 1127  # the least float64 is a multiple of 1 / this, and so are all others


class Tally:
    """Records of judged images (index, scene, median prediction and truth, boundary errors, error sums), and of all
    images together the error sums of each depth range, the histogram of errors by range and the counts of edges.
    Adding is cheap; ``report`` makes all means."""

    def __init__(self) -> None:
        self._records = array("d")
        self._ranges = _exact(range_sums(_NO_PIXELS, _NO_PIXELS))
        self._errors = error_histogram(_NO_PIXELS, _NO_PIXELS)
        self._edges = np.zeros((len(EDGE_RATIOS), 3), dtype=np.int64)

    def add(self, indices: Sequence[int], samples: Sequence[Sample], judged: Judged) -> list[int]:
        """A judged batch; returns the number of judged pixels of each image."""
        self._edges += edge_counts(judged.prediction, judged.target, judged.valid)
        prediction, target, valid = (part.numpy() for part in (judged.prediction, judged.target, judged.valid))
        pixels = []
        for place, (index, sample) in enumerate(zip(indices, samples, strict=True)):
            p, t = (depth[place][valid[place]] for depth in (prediction, target))
            pixels.append(len(t))
            self._errors += error_histogram(p, t)
            boundaries = _NO_EDGES
            if judged.edges is not None:
                from langdepth.evaluation.boundaries import boundary_errors  # SciPy, for the few sets that state edges

                boundaries = boundary_errors(prediction[place, 0], judged.edges[place, 0].numpy())
            self._record(index, sample.scene, p, t, boundaries)
        return pixels

    def skip(self, index: int) -> None:
        """An image that cannot be read."""
        self._record(index, -1, _NO_PIXELS, _NO_PIXELS)

    def _record(
        self, index: int, scene: int, p: Values, t: Values, boundaries: tuple[float, float] = _NO_EDGES
    ) -> None:
        sums = range_sums(p, t)
        self._ranges += _exact(sums)
        self._records.extend((index, scene, _median(p), _median(t), *boundaries, *sums.sum(0)))

    def gather(self, count: int) -> None:
        """Make this the tally of all processes of the group, which share ``count`` images.

        Raises LangdepthError when an image is there twice or not at all.
        """
        own = self._records, self._ranges, self._errors, self._edges
        parts: list[Any] = [own]
        if distributed.is_available() and distributed.is_initialized():
            parts = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, own)
        records, ranges, errors, edges = zip(*parts, strict=True)
        self._ranges, self._errors, self._edges = sum(ranges), sum(errors), sum(edges)
        table = np.concatenate([np.frombuffer(part).reshape(-1, _LENGTH) for part in records])
        table = table[table[:, _INDEX].argsort()]
        if not np.array_equal(table[:, _INDEX], np.arange(count)):
            raise LangdepthError(f"{len(table)} images were judged for {count} of the data set")
        self._records = array("d", table.tobytes())

    def scores(self) -> list[tuple[float, int]]:
        """abs_rel and index of every judged image, best first."""
        table = self._table()
        return sorted(zip(_means(table)["abs_rel"].tolist(), map(int, table[:, _INDEX]), strict=True))

    def medians(self) -> npt.NDArray[np.float64]:
        """(N, 2): median prediction and median truth of every judged image, metres."""
        return self._table()[:, _MEDIANS]

    def quartiles(self) -> dict[str, npt.NDArray[Any]]:
        """abs_rel by true depth, see ``metrics.error_quartiles``."""
        return error_quartiles(self._errors)

    def report(self, extra_metrics: Sequence[str] = ()) -> dict[str, Any]:
        """images, skipped, image_mean, pixel_mean, by_scene, by_depth, edges and boundaries of a report, for JSON."""
        table, shown = self._table(), (*METRICS, *extra_metrics)
        ranges = torch.from_numpy(_rounded(self._ranges))
        return {
            "images": len(table),
            "skipped": len(self._records) // _LENGTH - len(table),
            "image_mean": _image_mean(table, shown),
            "pixel_mean": _numbers(metrics_from_sums(ranges.sum(0)), shown),
            "by_scene": {
                _scene_name(scene): {"images": int(chosen.sum()), **_image_mean(table[chosen], shown)}
                for scene in np.unique(table[:, _SCENE]).astype(int).tolist()
                for chosen in [table[:, _SCENE] == scene]
            },
            "by_depth": [
                {
                    "from": float(low),
                    "to": float(high) if math.isfinite(high) else None,
                    "pixels": int(sums[0]),
                    **_numbers(metrics_from_sums(sums), shown),
                }
                for (low, high), sums in zip(itertools.pairwise(RANGES), ranges, strict=True)
                if sums[0] > 0
            ],
            "edges": edge_scores(self._edges),
            "boundaries": _boundaries(table[:, _BOUNDARIES]),
        }

    def _table(self) -> npt.NDArray[np.float64]:
        """Records of the images with a judged pixel, (N, columns)."""
        table = np.frombuffer(self._records).reshape(-1, _LENGTH)
        return table[table[:, _SUMS.start] > 0]


def _exact(sums: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Numbers as integers of 1 / ``_UNIT``, for sums that no order of adding changes."""
    mantissa, exponent = np.frexp(sums)
    return (mantissa * 2**53).astype(np.int64).astype(object) << (exponent + 1074).astype(object)


def _rounded(sums: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The floats nearest to what ``_exact`` numbers add up to."""
    return (sums / _UNIT).astype(np.float64)


def _means(table: npt.NDArray[np.float64]) -> dict[str, Tensor]:
    return metrics_from_sums(torch.from_numpy(table[:, _SUMS]))


def _image_mean(table: npt.NDArray[np.float64], shown: Sequence[str]) -> dict[str, float]:
    means = _means(table)
    return {name: float(means[name].numpy().mean()) for name in shown}


def _numbers(metrics: dict[str, Tensor], shown: Sequence[str]) -> dict[str, float]:
    return {name: float(metrics[name]) for name in shown}


def _boundaries(errors: npt.NDArray[np.float64]) -> dict[str, float] | None:
    """Means over the images (N, 2) that have true edges."""
    known = errors[~np.isnan(errors[:, 0])]
    if not len(known):
        return None
    return {"images": len(known), **dict(zip(("accuracy", "completeness"), known.mean(0).tolist(), strict=True))}


def _scene_name(scene: int) -> str:
    return SCENES[scene] if scene >= 0 else "(unknown)"


def _median(values: Values) -> float:
    chosen = values[:: 1 + len(values) // _MEDIAN_OF]
    return float(np.median(chosen)) if len(chosen) else math.nan
