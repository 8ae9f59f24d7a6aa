"""Scale and shift of a relative map by weighted least squares on the logarithm of depth. Imports no torch.

Each ``Evidence`` states the logarithm of depth at some of the map's values, with a covariance. Depth is
scale x value for maps of depth, and 1 / (scale x value + shift) for inverse depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth.errors import ImageError

Array = npt.NDArray[np.float64]
MAP_ERROR = 0.1  # of a relative map's proportions: standard deviation of the logarithm of depth at a place
NEAREST, FARTHEST = 0.001, 1000.0  # metres
_SHIFT_DEVIATION = 0.2  # of an inverse map's shift, in its median: 0 is near infinity unless something says otherwise
_SHIFT_SURE = 3.0  # deviations; beyond, doubt grows slowly: of a map brought to 0 ... 1 the shift may be many medians
_STEPS, _SMALL = 60, 1e-6
APART = "its values are too far apart to be those of depth"


class Evidence(NamedTuple):
    """Logarithms of depth (N,), in metres, where the map has ``values`` (N,), with their covariance (N, N)."""

    label: str
    values: Array
    logs: Array
    covariance: Array

    @classmethod
    def at(cls, label: str, value: float, metres: float, deviation: float) -> Evidence:
        """A depth at one value; ``deviation`` is of its logarithm, that of the map comes on top."""
        variance = deviation**2 + MAP_ERROR**2
        return cls(label, np.array([value]), np.array([math.log(metres)]), np.array([[variance]]))


class Curve(NamedTuple):
    """How a map's values become depth. ``unit``: a typical value of the map."""

    inverse: bool
    unit: float

    def logs(self, values: Array, parameters: Array) -> Array:
        """Logarithm of depth; the parameters are log scale and, for inverse maps, shift / scale, in units."""
        if not self.inverse:
            return parameters[0] + np.log(values / self.unit)
        shifted = np.maximum(values / self.unit + parameters[1], 1e-9)
        return -parameters[0] - np.log(shifted)  # without the limit, at which a fit would find no way

    def depth(self, values: npt.NDArray[np.float32], parameters: Array) -> npt.NDArray[np.float32]:
        """Metres (H, W) of the map's values."""
        scale = np.float32(math.exp(parameters[0]))
        shift = np.float32(math.exp(parameters[0]) * parameters[1]) if self.inverse else np.float32(0)
        with np.errstate(over="ignore"):  # what is beyond float32 is beyond the limit, too
            scaled = scale * (values / np.float32(self.unit)) + shift
        if not self.inverse:
            return np.minimum(scaled, np.float32(FARTHEST))
        return np.float32(1) / np.maximum(scaled, np.float32(1 / FARTHEST))

    def value(self, depth: float, parameters: Array) -> float:
        """The value of the map that has a depth."""
        if not self.inverse:
            return self.unit * depth / math.exp(parameters[0])
        return self.unit * (1 / depth / math.exp(parameters[0]) - parameters[1])


class Fit(NamedTuple):
    """Parameters of a ``Curve``, their covariance, and how many deviations each piece of evidence is off."""

    parameters: Array
    covariance: Array
    off: tuple[float, ...]

    def deviation(self, curve: Curve, value: float) -> float:
        """Standard deviation of the logarithm of depth at a value of the map."""
        slope = _slopes(lambda p: curve.logs(np.array([value]), p), self.parameters)[0]
        return math.sqrt(float(slope @ self.covariance @ slope))


def fit(curve: Curve, evidence: Sequence[Evidence]) -> Fit:
    """The parameters that the evidence makes likeliest. Where it disagrees, the uncertainty grows by what it is off.

    Raises ImageError for a map whose values are too far apart to say.
    """
    values, logs = (np.concatenate(parts) for parts in zip(*((one.values, one.logs) for one in evidence), strict=True))
    ends = np.cumsum([len(one.values) for one in evidence])
    whiten = [np.linalg.inv(np.linalg.cholesky(one.covariance)) for one in evidence]
    single = np.concatenate([w[0] if w.size == 1 else np.ones(len(w)) for w in whiten])
    joint = [(slice(end - len(w), end), w) for end, w in zip(ends, whiten, strict=True) if w.size > 1]

    def residuals(parameters: Array) -> Array:
        found = (curve.logs(values, parameters) - logs) * single
        for place, w in joint:
            found[place] = w @ found[place]
        return np.concatenate([found, _doubt_of_shift(parameters[1:] / _SHIFT_DEVIATION)])

    first = evidence[-1]
    start = float(np.mean(first.logs - curve.logs(first.values, np.zeros(2))))
    parameters = np.array([-start, 0.0] if curve.inverse else [start])
    damping, found = 1e-3, residuals(parameters)
    for _ in range(_STEPS):
        slopes = _slopes(residuals, parameters)
        normal = slopes.T @ slopes
        try:
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ found)
        except np.linalg.LinAlgError:
            raise ImageError(f"the relative map: {APART}") from None
        tried = residuals(parameters + step)
        if tried @ tried <= found @ found:
            parameters, found, damping = parameters + step, tried, damping / 10
            if np.abs(step).max() < _SMALL:
                break
        else:
            damping *= 10
    slopes = _slopes(residuals, parameters)
    off = tuple(_off(curve, one, parameters) for one in evidence)
    freedom = max(1, len(evidence) - len(parameters))
    growth = max(1.0, sum(one**2 for one in off) / freedom) if len(evidence) > 1 else 1.0
    return Fit(parameters, np.linalg.inv(slopes.T @ slopes) * growth, off)


def _doubt_of_shift(deviations: Array) -> Array:
    """Residuals whose squares go on as a logarithm, so that two measured distances outweigh any shift."""
    beyond = np.maximum(np.abs(deviations) / _SHIFT_SURE, 1)
    grown: Array = np.sign(deviations) * np.sqrt(_SHIFT_SURE**2 + 2 * np.log(beyond))
    return np.where(beyond > 1, grown, deviations)


def _off(curve: Curve, evidence: Evidence, parameters: Array) -> float:
    """How many standard deviations the fitted depth is nearer or farther than the evidence states, in the mean."""
    weights = np.linalg.inv(evidence.covariance).sum(0)
    return float(weights @ (curve.logs(evidence.values, parameters) - evidence.logs) / math.sqrt(weights.sum()))


def _slopes(function: Callable[[Array], Array], parameters: Array) -> Array:
    """(N, P) by central differences."""
    steps = 1e-5 * np.eye(len(parameters))
    return np.stack([(function(parameters + s) - function(parameters - s)) / 2e-5 for s in steps], axis=1)
