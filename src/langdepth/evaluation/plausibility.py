"""Whether predictions are what they are said to be: disparity, or another unit, shows against the ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from langdepth.evaluation.metrics import Values
from langdepth.evaluation.protocols import Alignment

IMAGES = 20  # the first ones, which show it as well as all
_PIXELS = 2000  # of each, evenly spaced
_ENOUGH = 10  # below this a rank correlation means nothing
_AGAINST = -0.5  # rank correlation; no depth network, however bad, falls where the depth rises in every image
_TIMES = 20.0  # that the median may be off; centimetres are 100 times


class Plausibility:
    """Rank correlations and ratios of medians of the first images."""

    def __init__(self, scale_kind: str, alignment: Alignment) -> None:
        self.scale_kind = scale_kind
        self.alignment = alignment
        self._correlations: list[float] = []
        self._ratios: list[float] = []

    def add(self, prediction: Values, target: Values) -> None:
        """The valid pixels (N,) of one image: what the system gave, before any fit or limit, and metres."""
        if len(self._ratios) == IMAGES or len(target) < _ENOUGH:
            return
        p, t = (values[:: 1 + len(values) // _PIXELS].astype(np.float64) for values in (prediction, target))
        ranks = _ranks(p), _ranks(t)
        if min(rank.std() for rank in ranks) > 0:
            self._correlations.append(float(np.corrcoef(*ranks)[0, 1]))
        self._ratios.append(float(np.median(p) / np.median(t)))

    def warnings(self) -> list[str]:
        """What does not fit, one line each."""
        found, known = [], bool(self._correlations)
        against = known and max(self._correlations) < _AGAINST
        along = known and min(self._correlations) > -_AGAINST
        mean = f"rank correlation {np.mean(self._correlations):.2f}" if known else ""
        if against and self.scale_kind != "disparity":
            found.append(
                f"the predictions fall where the true depth rises ({mean}), as disparity does: --depth-kind disparity "
                "--alignment disparity"
            )
        elif along and self.scale_kind == "disparity":
            found.append(
                f"the predictions rise with the true depth ({mean}), as no disparity does: --depth-kind metric or "
                "relative"
            )
        elif self._ratios and self.scale_kind == "metric" and self.alignment == "none":
            ratio = float(np.median(self._ratios))
            if not 1 / _TIMES <= ratio <= _TIMES:
                found.append(
                    f"the median prediction is {ratio:.3g} times the median true depth: the unit of one of them seems "
                    "wrong (--prediction-scale for PNGs, depth_scale of the data; .npy holds metres)"
                )
        return found


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """The place of each value (N,) in their order; equal ones share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
