"""``langdepth.scale``: a relative map in metres, from words, the photo and known distances. Imports no torch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from langdepth._version import __version__
from langdepth.camera import Camera
from langdepth.errors import ImageError, UsageError
from langdepth.prediction.pipeline import camera_of
from langdepth.prediction.results import DepthResult
from langdepth.runtimes.opening import load
from langdepth.scaling.evidence import APART, FARTHEST, MAP_ERROR, NEAREST, Curve, Evidence, Fit, fit
from langdepth.scaling.floor import floor_of
from langdepth.scaling.words import QUANTILES, WEIGHTS, WordsToScale, words_to_scale
from langdepth.utils.arguments import checked
from langdepth.utils.depth_files import map_numbers, read_map
from langdepth.utils.images import read_image

NAME = "words-to-scale"
_IMAGE_SYSTEM = "tiny"
_POINTS = 20_000  # of a map that are compared with the photo
MEASURED = 0.05  # standard deviation of the logarithm of a known distance or height: 5 %
_CONTRADICTION = 3.0  # standard deviations
_MOSTLY = 0.5  # of an inverse map's pixels: were so many infinitely far, nothing would be left to scale
_DOUBT = 4.0  # by how much the squared deviations of known distances must be larger one way round than the other
_OPPOSED = -0.3  # rank correlation of a map with the photo's depth
_ADVICE = {False: "give --inverse if larger is nearer", True: "leave --inverse out if larger is farther"}


class RelativeMap(NamedTuple):
    """A relative map (H, W), where it is known, and how its values become depth.

    stated: by whom it is said whether larger values are nearer or farther: the file, the user, or nobody.
    """

    values: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]
    curve: Curve
    path: str = ""
    stated: Literal["file", "user", "nobody"] = "file"

    @property
    def name(self) -> str:
        """For messages."""
        return self.path or "relative map"

    @property
    def reading(self) -> str:
        """How its values are read."""
        return "larger is nearer" if self.curve.inverse else "larger is farther"

    def opposite(self) -> RelativeMap | None:
        """The map read the other way, None where its file says which is right or it cannot be read so."""
        if self.stated == "file":
            return None
        try:
            return _relative(np.where(self.valid, self.values, np.float32(np.nan)), not self.curve.inverse, self.path)
        except ImageError:
            return None

    def at(self, quantiles: Sequence[float]) -> npt.NDArray[np.float64]:
        """The values where depth has these quantiles."""
        shares = [1 - q for q in quantiles] if self.curve.inverse else list(quantiles)
        return np.quantile(self.values[self.valid], shares).astype(np.float64)

    @property
    def size(self) -> str:
        """Width x height."""
        return "x".join(map(str, self.values.shape[::-1]))


@checked
def scale(
    relative: Any,
    text: str | None = None,
    *,
    image: Any = None,
    inverse: bool = False,
    known: Sequence[tuple[float, float, float]] = (),
    camera: Camera | Callable[[int, int], Camera] | None = None,
    camera_height: float | None = None,
) -> DepthResult:
    """A relative depth map in metres, with how uncertain they are.

    At least one of ``text``, ``image``, ``known`` and ``camera_height`` is needed. All that are given are combined by
    weighted least squares on the logarithm of depth; what contradicts the rest brings a warning.

    Args:
        relative: An array (H, W), or a file: .npy, .npz, .exr, or 16-bit .png (0: no value).
        text: A sentence about the image.
        image: The photo the map was made of, as ``utils.images.read_image`` takes it; the embedded model estimates
            distances from it.
        inverse: Whether larger values are nearer, as MiDaS and Depth Anything give them, not farther. Files that
            ``langdepth predict`` wrote say it themselves, .npy ones apart.
        known: Distances (x, y, metres) along the optical axis at pixels of the map, (0, 0) at its top left.
        camera: Intrinsics, or a function of (width, height) that makes them; needed for ``camera_height``.
        camera_height: Metres from the camera to the floor, which must be in view.

    Returns:
        Depth in metres. ``provenance["scale"]`` holds the median depth, its intervals and what they come from.

    Raises:
        UsageError: For options that make no sense.
        ImageError: For a map or photo that cannot be used.
    """
    if text is None and image is None and not known and camera_height is None:
        raise UsageError("nothing says how far things are; give a text, the photo, a known distance or camera height")
    if camera_height is not None and camera is None:
        raise UsageError("a camera height needs the camera: give the intrinsics (fx,fy,cx,cy) or the field of view")
    given = read(relative, inverse)
    height, width = given.values.shape
    camera = camera_of(camera, width, height, given.name)
    head = words_to_scale()
    evidence = _points(given, known)
    _doubt_order(given, known)
    if image is not None:
        evidence.append(_photo(given, image, camera, head, bool(known) or camera_height is not None))
    if text is not None or not evidence:
        evidence.append(words_evidence(given, head, text))
    if camera_height is not None:
        assert camera is not None
        evidence.append(_height(given, camera, camera_height, evidence, head))
        evidence = [one for one in evidence if one.label != _ANY]
    return _result(given, evidence, text, camera, head)


def scaled(result: DepthResult, text: str) -> DepthResult:
    """A relative result in metres by a sentence; it keeps its camera, image and the rest of its provenance."""
    values, known = result.depth, result.valid
    inverse = result.scale_kind == "disparity"
    given = _relative(np.where(known, values, np.float32(np.nan)), inverse, str(result.provenance.get("path") or ""))
    head = words_to_scale()
    found = _result(given, [words_evidence(given, head, text)], text, result.camera, head)
    provenance = result.provenance | {"text": text, "scale": found.provenance["scale"]}
    return replace(found, system=result.system, image=result.image, provenance=provenance)


def in_metres(results: DepthResult | list[DepthResult], text: Any) -> DepthResult | list[DepthResult]:
    """Relative results in metres: by one sentence, or by one each. Raises UsageError for anything else."""
    every = results if isinstance(results, list) else [results]
    texts = [text] * len(every) if isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or len(texts) != len(every) or not all(isinstance(t, str) for t in texts):
        raise UsageError("text: metres for relative depth need a sentence, one for all images or one for each")
    found = [scaled(result, sentence) for result, sentence in zip(every, texts, strict=True)]
    return found if isinstance(results, list) else found[0]


def read(relative: Any, inverse: bool) -> RelativeMap:
    """The map in a file or array. Raises ImageError for one that cannot be used, UsageError for metres."""
    if not isinstance(relative, str | Path):
        return _relative(map_numbers(_array(relative)), inverse, stated="user" if inverse else "nobody")
    values, stated = read_map(relative)
    if stated == "metric":
        raise UsageError(f"{relative}: holds metres already")
    if stated == "relative" and inverse:
        raise UsageError(f"{relative}: states that it holds depth, not its inverse; leave --inverse out")
    has_holes = stated is not None or Path(relative).suffix.lower() not in (".npy", ".npz", ".exr")
    known = np.where(values == 0, np.float32(np.nan), values) if has_holes else values
    by = "file" if stated is not None else "user" if inverse else "nobody"
    return _relative(known, inverse or stated == "disparity", str(relative), by)


def _array(relative: Any) -> npt.NDArray[Any]:
    """The map in memory; NaN where it is masked. Raises ImageError for what is no array."""
    if isinstance(relative, np.ma.MaskedArray):
        return np.ma.filled(relative.astype(np.float32), np.nan)
    try:
        values = np.asarray(relative.detach().cpu() if hasattr(relative, "detach") else relative)
    except Exception:  # whatever it raises that is asked for numbers
        values = np.array(None)
    if values.dtype.kind in "OSU":
        raise ImageError(f"a relative map is a file or an array of numbers (H, W), got {type(relative).__name__}")
    return values


def _relative(values: npt.NDArray[np.float32], inverse: bool, path: str = "", stated: Any = "file") -> RelativeMap:
    name = f"{path}: " if path else ""
    valid = np.isfinite(values)
    if not inverse:
        negative = (values[valid] < 0).mean() if valid.any() else 0
        if 0 < negative < 1:
            _note(f"{name}{negative:.1%} of its values are below 0, as depth never is, and left out; {_ADVICE[False]}")
        valid &= values > 0
    if not valid.any():
        raise ImageError(f"{name}no pixel of the relative map has a value")
    least = float(values[valid].min())
    with np.errstate(over="ignore"):
        shifted = values - np.float32(least) if inverse and least < 0 else values  # its shift is unknown anyway
    if not np.isfinite(shifted[valid]).all():
        raise ImageError(f"{name}{APART}")
    end = (shifted[valid] == 0).mean() if inverse else 0
    if _MOSTLY < end < 1:
        _note(f"{name}{end:.0%} of its pixels have its smallest value, which is infinitely far; they count as no value")
        valid &= shifted > 0
    unit = float(np.median(shifted[valid])) or float(shifted[valid].max())
    if unit == 0:
        raise ImageError(f"{name}the relative map has the same value everywhere")
    return RelativeMap(shifted, valid, Curve(inverse, unit), path, stated)


def _note(text: str) -> None:
    warnings.warn(text, stacklevel=6)


# -- what says how far things are ------------------------------------------------------------------------------------

PHOTO = "photo"
_ANY, _DISTANCE, _HEIGHT = "any image", "distance", "camera height"


def words_evidence(given: RelativeMap, head: WordsToScale, text: str | None) -> Evidence:
    """What a sentence says about the map's depth, or without one what is known of any image."""
    mean, covariance = head.belief(text)
    return Evidence(_ANY if text is None else "words", given.at(QUANTILES), mean, covariance + MAP_ERROR**2 * np.eye(3))


@cache
def _image_system() -> Any:
    return load(_IMAGE_SYSTEM)


def _photo(given: RelativeMap, image: Any, camera: Camera | None, head: WordsToScale, measured: bool) -> Evidence:
    """The median depth of the embedded model over the map's pixels; it counts for less beside what was measured."""
    decoded = read_image(image)
    pixels = decoded.pixels
    if pixels.shape[:2] != given.values.shape:
        photo = "x".join(map(str, pixels.shape[1::-1]))
        raise ImageError(f"{given.name}: is {given.size}, its photo {photo}; resize the map to the photo's size")
    estimate = _image_system().predict(pixels, camera=camera or decoded.camera, sky="keep")
    both = np.stack([estimate.depth[given.valid], given.values[given.valid]])
    ranks = both[:, :: max(1, both.shape[1] // _POINTS)].argsort(1).argsort(1)
    alike = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if ranks.shape[1] > 1 else 0.0
    if given.stated != "file" and (-alike if given.curve.inverse else alike) < _OPPOSED:
        _doubt(given, "photo")
    median = float(np.median(estimate.depth[given.valid]))
    far_off = float(head.photo_deviations[-1] / head.deviations[-1]) if measured else 1.0
    variance = (head.image_deviation * far_off) ** 2
    return Evidence(PHOTO, given.at([0.5]), np.array([math.log(median)]), np.array([[variance]]))


def _points(given: RelativeMap, known: Sequence[tuple[float, float, float]]) -> list[Evidence]:
    found, (height, width) = [], given.values.shape
    for x, y, metres in known:
        label = f"{x:g},{y:g}={metres:g}"
        if not NEAREST <= metres <= FARTHEST:
            raise UsageError(f"known distance {label}: a distance is from {NEAREST:g} to {FARTHEST:g} metres")
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise UsageError(f"known distance {label}: lies outside the map, which is {given.size}")
        column, row = math.floor(x + 0.5), math.floor(y + 0.5)
        if not given.valid[row, column]:
            raise UsageError(f"known distance {label}: the map has no value at this pixel; give another one")
        found.append(Evidence.at(f"{_DISTANCE} {label}", float(given.values[row, column]), metres, MEASURED))
    return found


def _doubt(given: RelativeMap, by: str) -> None:
    """Warn that a map seems to be read the wrong way round."""
    _note(f"{given.name}: is read as '{given.reading}', which the {by} contradicts; {_ADVICE[given.curve.inverse]}")


def _doubt_order(given: RelativeMap, known: Sequence[tuple[float, float, float]]) -> None:
    """Warn where distances fit the map read the other way round, and not as it is."""
    other = given.opposite()
    if other is None or len(known) < 2:
        return
    with suppress(UsageError, ImageError):  # without a value there, or with none that make sense
        off = [sum(one**2 for one in fit(m.curve, _points(m, known)).off) for m in (given, other)]
        if off[0] > off[1] + _DOUBT:
            _doubt(given, "order of the known distances")


def _height(
    given: RelativeMap, camera: Camera, metres: float, evidence: list[Evidence], head: WordsToScale
) -> Evidence:
    """The median depth of the floor, if the camera is that high above it."""
    if not NEAREST <= metres <= FARTHEST:
        raise UsageError(f"camera height must be from {NEAREST:g} to {FARTHEST:g} metres, got {metres:g}")
    so_far = fit(given.curve, evidence)
    floor = floor_of(given.curve.depth(given.values, so_far.parameters), given.valid, camera)
    if floor is None:
        other, hint = given.opposite(), ""
        if other is not None:
            usual = fit(other.curve, [words_evidence(other, head, None)])
            shown = floor_of(other.curve.depth(other.values, usual.parameters), other.valid, camera)
            hint = f"; read the other way round it shows one: {_ADVICE[given.curve.inverse]}" if shown else ""
        raise ImageError(f"{given.name}: shows no floor, so the camera height tells no scale{hint}")
    height, depth = floor
    value = given.curve.value(depth, so_far.parameters)
    return Evidence.at(f"{_HEIGHT} {metres:g}", value, depth * metres / height, MEASURED)


# -- the result ------------------------------------------------------------------------------------------------------


def _result(
    given: RelativeMap, evidence: list[Evidence], text: str | None, camera: Camera | None, head: WordsToScale
) -> DepthResult:
    depth, facts = solved(given, evidence, head)
    return DepthResult(
        depth=depth,
        valid=given.valid,
        system=NAME,
        camera=camera,
        provenance={
            "langdepth_version": __version__,
            "weights": {"weights": WEIGHTS.name, "licence": head.licence},
            "path": given.path,
            "text": text,
            "scale": facts,
        },
    )


def solved(
    given: RelativeMap, evidence: list[Evidence], head: WordsToScale
) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
    """Depth (H, W) in metres, 0 where there is none; its median, the intervals of that, and what they come from."""
    found = fit(given.curve, evidence)
    _warn(given, evidence, found)
    depth = np.where(given.valid, given.curve.depth(given.values, found.parameters), np.float32(0))
    cut = float((depth[given.valid] >= FARTHEST).mean())
    if cut > 0:
        name = f"{given.name}: " if given.path else ""
        _note(f"{name}{cut:.1%} of its pixels come out beyond {FARTHEST:g} m and are set to that; is it in metres?")
    median, deviation = float(np.median(depth[given.valid])), found.deviation(given.curve, float(given.at([0.5])[0]))
    measured = any(one.label.startswith((_DISTANCE, _HEIGHT)) for one in evidence)
    photo = any(one.label == PHOTO for one in evidence) and not measured
    intervals = {
        f"interval_{100 * share:.0f}": [min(median * math.exp(sign * times * deviation), FARTHEST) for sign in (-1, 1)]
        for share, times in zip(head.probabilities, head.photo_deviations if photo else head.deviations, strict=True)
    }
    facts = {"median": median, "deviation": deviation, **intervals, "from": [one.label for one in evidence]}
    return depth, facts | {"map": given.reading, "map_stated_by": given.stated}


def _warn(given: RelativeMap, evidence: list[Evidence], found: Fit) -> None:
    """Warn where one piece of evidence contradicts the others."""
    off = max(zip(map(abs, found.off), evidence, strict=True), key=lambda one: one[0])
    if len(evidence) > 1 and off[0] > _CONTRADICTION:
        stated, fitted = (
            min(float(np.exp(np.mean(logs))), FARTHEST)
            for logs in (off[1].logs, given.curve.logs(off[1].values, found.parameters))
        )
        others = ", ".join(one.label for one in evidence if one is not off[1])
        warnings.warn(
            f"{off[1].label}: says {stated:.2f} m, together with {others} it is {fitted:.2f} m; one of them is wrong",
            stacklevel=6,
        )


def interval_line(result: DepthResult) -> str:
    """How sure the metres are, for people."""
    facts = result.provenance["scale"]
    intervals = {name.removeprefix("interval_"): ends for name, ends in facts.items() if name.startswith("interval_")}
    parts = [f"{low:.2f} to {high:.2f} m with {share} %" for share, (low, high) in intervals.items()]
    return f"median depth {', '.join(parts)} (from {', '.join(facts['from'])})"
