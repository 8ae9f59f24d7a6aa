"""What evaluation keeps of the pictures it has judged: one short record each, from which every number follows.

Records are put in the order of the data set before anything is added up, so that two processes that share the pictures
get the very numbers that one gets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from langdepth.errors import LangdepthError
from langdepth.metrics import (
    EDGE_RATIOS,
    METRICS,
    RANGES,
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
    from langdepth.evaluate import Judged
    from langdepth.types import Sample

_MEDIAN_OF = 1 << 12  # evenly spaced pixels of a picture, enough for a point in a plot
_NO_PIXELS = np.zeros(0, np.float32)
_INDEX, _SCENE, _MEDIANS, _BOUNDARIES, _SUMS = 0, 1, slice(2, 4), slice(4, 6), 6  # columns of a record
_NO_EDGES = (math.nan, math.nan)


class Tally:
    """Records of judged pictures (index, scene, median prediction and truth, boundary errors, error sums of each depth
    range), the histogram of errors by range and the counts of edges. Adding is cheap; ``report`` makes all means."""

    def __init__(self) -> None:
        self._records: list[npt.NDArray[np.float64]] = []
        self._errors = error_histogram(_NO_PIXELS, _NO_PIXELS)
        self._edges = np.zeros((len(EDGE_RATIOS), 3), dtype=np.int64)

    def add(self, indices: Sequence[int], samples: Sequence[Sample], judged: Judged) -> list[int]:
        """A judged batch; returns the number of judged pixels of each picture."""
        self._edges += edge_counts(judged.prediction, judged.target, judged.valid)
        prediction, target, valid = (part.numpy() for part in (judged.prediction, judged.target, judged.valid))
        pixels = []
        for place, (index, sample) in enumerate(zip(indices, samples, strict=True)):
            p, t = (depth[place][valid[place]] for depth in (prediction, target))
            pixels.append(len(t))
            self._errors += error_histogram(p, t)
            boundaries = _NO_EDGES
            if judged.edges is not None:
                from langdepth.boundaries import boundary_errors  # SciPy, for the few sets that state edges

                boundaries = boundary_errors(prediction[place, 0], judged.edges[place, 0].numpy())
            self._record(index, sample.scene, p, t, boundaries)
        return pixels

    def skip(self, index: int) -> None:
        """A picture that cannot be read."""
        self._record(index, -1, _NO_PIXELS, _NO_PIXELS)

    def _record(
        self, index: int, scene: int, p: Values, t: Values, boundaries: tuple[float, float] = _NO_EDGES
    ) -> None:
        facts = [index, scene, _median(p), _median(t), *boundaries]
        self._records.append(np.concatenate([facts, range_sums(p, t).reshape(-1)]))

    def gather(self, count: int) -> None:
        """Make this the tally of all processes of the group, which share ``count`` pictures.

        Raises LangdepthError when a picture is there twice or not at all.
        """
        own = self._records, self._errors, self._edges
        parts: list[Any] = [own]
        if distributed.is_available() and distributed.is_initialized():
            parts = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, own)
        records, errors, edges = zip(*parts, strict=True)
        self._records = sorted(itertools.chain(*records), key=lambda record: float(record[_INDEX]))
        self._errors, self._edges = sum(errors), sum(edges)
        if [record[_INDEX] for record in self._records] != list(range(count)):
            raise LangdepthError(f"{len(self._records)} pictures were judged for {count} of the data set")

    def scores(self) -> list[tuple[float, int]]:
        """abs_rel and index of every judged picture, best first."""
        table = self._table()
        return sorted(zip(_means(table)["abs_rel"].tolist(), map(int, table[:, _INDEX]), strict=True))

    def medians(self) -> npt.NDArray[np.float64]:
        """(N, 2): median prediction and median truth of every judged picture, metres."""
        return self._table()[:, _MEDIANS]

    def quartiles(self) -> dict[str, npt.NDArray[Any]]:
        """abs_rel by true depth, see ``metrics.error_quartiles``."""
        return error_quartiles(self._errors)

    def report(self, extra_metrics: Sequence[str] = ()) -> dict[str, Any]:
        """images, skipped, image_mean, pixel_mean, by_scene, by_depth, edges and boundaries of a report, for JSON."""
        table, shown = self._table(), (*METRICS, *extra_metrics)
        ranges = torch.from_numpy(_sums(table).sum(0))
        return {
            "images": len(table),
            "skipped": len(self._records) - len(table),
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
        """Records of the pictures with a judged pixel, (N, columns)."""
        table = np.stack(self._records)
        return table[_sums(table)[:, :, 0].sum(1) > 0]


def _sums(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, ranges, columns of ``error_sums``)."""
    return table[:, _SUMS:].reshape(len(table), len(RANGES) - 1, (table.shape[1] - _SUMS) // (len(RANGES) - 1))


def _means(table: npt.NDArray[np.float64]) -> dict[str, Tensor]:
    return metrics_from_sums(torch.from_numpy(_sums(table).sum(1)))


def _image_mean(table: npt.NDArray[np.float64], shown: Sequence[str]) -> dict[str, float]:
    means = _means(table)
    return {name: float(means[name].numpy().mean()) for name in shown}


def _numbers(metrics: dict[str, Tensor], shown: Sequence[str]) -> dict[str, float]:
    return {name: float(metrics[name]) for name in shown}


def _boundaries(errors: npt.NDArray[np.float64]) -> dict[str, float] | None:
    """Means over the pictures (N, 2) that have true edges."""
    known = errors[~np.isnan(errors[:, 0])]
    if not len(known):
        return None
    return {"images": len(known), **dict(zip(("accuracy", "completeness"), known.mean(0).tolist(), strict=True))}


def _scene_name(scene: int) -> str:
    return SCENES[scene] if scene >= 0 else "(unknown)"


def _median(values: Values) -> float:
    chosen = values[:: 1 + len(values) // _MEDIAN_OF]
    return float(np.median(chosen)) if len(chosen) else math.nan
