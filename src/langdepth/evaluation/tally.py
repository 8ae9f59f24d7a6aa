"""What evaluation keeps of the images it has evaluated: one record each, and counts over all of them.

No number depends on the order of the images or on how processes share them: the sums over images are added exactly
(``math.fsum``), everything else in the order of the data set.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    metrics_from_sums,
    range_sums,
)
from langdepth.evaluation.records import EvaluatedBatch
from langdepth.records import Sample
from langdepth.text.scenes import SCENES
from langdepth.utils.processes import gathered

RECORD = np.dtype(
    [
        ("index", np.int64),
        ("scene", np.int64),
        ("medians", np.float64, 2),  # of prediction and target, metres
        ("boundaries", np.float64, 2),  # accuracy and completeness, pixels
        ("sums", np.float64, (len(RANGES) - 1, SUMS)),  # metrics.range_sums
    ]
)
Table = npt.NDArray[Any]  # of RECORD
_MEDIAN_OF = 1 << 12  # evenly spaced pixels of an image, enough for a point in a plot
_NO_PIXELS = np.zeros(0, np.float32)
_NO_EDGES = (math.nan, math.nan)


class Tally:
    """A record of each image, the histogram of errors by depth and the counts of depth edges.

    Adding is cheap; ``report`` makes all means.
    """

    def __init__(self) -> None:
        self._records: list[Table] = []
        self._all = np.zeros(0, RECORD)
        self.errors = error_histogram(_NO_PIXELS, _NO_PIXELS)
        self._edges = np.zeros((len(EDGE_RATIOS), 3), dtype=np.int64)

    def add(self, indices: Sequence[int], samples: Sequence[Sample], batch: EvaluatedBatch) -> Table:
        """Add an evaluated batch; returns its records (B,)."""
        self._edges += edge_counts(batch.prediction, batch.target, batch.valid)
        prediction, target, valid = (part.numpy() for part in (batch.prediction, batch.target, batch.valid))
        for place, (index, sample) in enumerate(zip(indices, samples, strict=True)):
            p, t = (depth[place][valid[place]] for depth in (prediction, target))
            self.errors += error_histogram(p, t)
            boundaries = _NO_EDGES
            if batch.edges is not None:
                from langdepth.evaluation.boundaries import boundary_errors  # SciPy, for the few sets that state edges

                boundaries = boundary_errors(prediction[place, 0], batch.edges[place, 0].numpy())
            self._record(index, sample.scene, p, t, boundaries)
        return np.concatenate(self._records[-len(samples) :])

    def skip(self, index: int) -> None:
        """An image that cannot be read."""
        self._record(index, -1, _NO_PIXELS, _NO_PIXELS, _NO_EDGES)

    def _record(self, index: int, scene: int, p: Values, t: Values, boundaries: tuple[float, float]) -> None:
        medians = (_median(p), _median(t))
        self._records.append(np.array([(index, scene, medians, boundaries, range_sums(p, t))], RECORD))

    def gather(self, count: int) -> None:
        """Make this the tally of all processes of the group, which share ``count`` images.

        Raises:
            LangdepthError: An image is there twice or not at all.
        """
        own = np.concatenate([self._all, *self._records]), self.errors, self._edges
        parts: list[Any] = gathered(own)
        records, errors, edges = zip(*parts, strict=True)
        self.errors, self._edges = sum(errors), sum(edges)
        table = np.concatenate(records)
        self._all = table[table["index"].argsort()]
        if not np.array_equal(self._all["index"], np.arange(count)):
            raise LangdepthError(f"{len(table)} images were evaluated for {count} of the data set")

    def table(self) -> Table:
        """The records of the images with an evaluated pixel, once they are gathered."""
        return self._all[self._all["sums"][..., 0].sum(1) > 0]

    def report(self, extra_metrics: Sequence[str] = ()) -> dict[str, Any]:
        """images, skipped, image_mean, pixel_mean, by_scene, by_depth, edges and boundaries of a report, for JSON."""
        table, shown = self.table(), (*METRICS, *extra_metrics)
        ranges = torch.from_numpy(np.apply_along_axis(math.fsum, 0, table["sums"]))
        return {
            "images": len(table),
            "skipped": len(self._all) - len(table),
            "image_mean": _image_mean(table, shown),
            "pixel_mean": _numbers(ranges.sum(0), shown),
            "by_scene": {
                SCENES[scene] if scene >= 0 else "(unknown)": {"images": len(chosen), **_image_mean(chosen, shown)}
                for scene in np.unique(table["scene"]).tolist()
                for chosen in [table[table["scene"] == scene]]
            },
            "by_depth": [
                {
                    "from": float(low),
                    "to": float(high) if math.isfinite(high) else None,
                    "pixels": int(sums[0]),
                    **_numbers(sums, shown),
                }
                for (low, high), sums in zip(itertools.pairwise(RANGES), ranges, strict=True)
                if sums[0] > 0
            ],
            "edges": edge_scores(self._edges),
            "boundaries": _boundaries(table["boundaries"]),
        }


def per_image(table: Table, extra_metrics: Sequence[str] = ()) -> dict[str, list[float]]:
    """ "index" and the metrics of each record, for JSON."""
    metrics = image_metrics(table)
    return {"index": table["index"].tolist(), **{name: metrics[name].tolist() for name in (*METRICS, *extra_metrics)}}


def image_metrics(table: Table) -> dict[str, npt.NDArray[np.float64]]:
    """The metrics of each record, (N,)."""
    metrics = metrics_from_sums(torch.from_numpy(table["sums"].sum(-2)))
    return {name: values.numpy() for name, values in metrics.items()}


def _image_mean(table: Table, shown: Sequence[str]) -> dict[str, float]:
    metrics = image_metrics(table)
    return {name: float(metrics[name].mean()) for name in shown}


def _numbers(sums: Tensor, shown: Sequence[str]) -> dict[str, float]:
    metrics = metrics_from_sums(sums)
    return {name: float(metrics[name]) for name in shown}


def _boundaries(errors: npt.NDArray[np.float64]) -> dict[str, float] | None:
    """Means over the images (N, 2) that have true edges."""
    known = errors[~np.isnan(errors[:, 0])]
    if not len(known):
        return None
    return {"images": len(known), **dict(zip(("accuracy", "completeness"), known.mean(0).tolist(), strict=True))}


def _median(values: Values) -> float:
    chosen = values[:: 1 + len(values) // _MEDIAN_OF]
    return float(np.median(chosen)) if len(chosen) else math.nan
