"""Train `words-to-scale` on images with sentences and ground truth, and say how well sentences give metres.

    python benchmarks/words_to_scale.py --root rgbd --write --out words-to-scale.json

ROOT is a folder with an index.csv. The sentences lie in src/langdepth/recipes/wordepth-tiny-captions.csv and
words_to_scale_captions.csv beside this script. --write makes src/langdepth/models/words-to-scale.npz anew; without it
the weights in the package are evaluated.

Training uses the images of the split "train", an image of a scene of n images with weight 1 / sqrt(n). Everything is
chosen by cross-validation (ten folds): over their scenes, how uncertainty grows away from the training sentences; over
the scenes of NYUv2 and the other sources, whose scenes are alike, how many standard deviations hold 67 and 95 %. Two
things cannot be, since the embedded model has learned from these images: the deviation of its distances, and how many
deviations hold 67 and 95 % where the photo decides. They are taken from the images of the split "val"; the table's rows
with the photo take both from the other half of its scenes.

The table: scale error, median over the images of |log2(median of predicted / true depth)|, of ideal relative maps
(ground truth / its median), ideal inverse maps (its inverse, in the range 0 to 1) and the relative maps of `tiny`.
"none" gives every image the median depth of the training images; "RSA" is its network (systems/rsa) on the features of
the small sentence encoder, trained on the same images; "distance" is the true depth of one pixel.
"""

from __future__ import annotations

import csv
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from common import ROOT, parser, write
from langdepth.runtimes.opening import load
from langdepth.scaling.evidence import MAP_ERROR, Curve, Evidence, fit
from langdepth.scaling.scale import MEASURED, PHOTO, read, solved, words_evidence
from langdepth.scaling.words import QUANTILES, WEIGHTS, Frame, WordsToScale, kernel, traits_of
from langdepth.utils.depth_files import read_depth
from langdepth.utils.files import atomic_path

Array = npt.NDArray[np.float64]
CAPTIONS = (ROOT / "src/langdepth/recipes/wordepth-tiny-captions.csv", ROOT / "benchmarks/words_to_scale_captions.csv")
ROOMS, FOLDS, DIRECTIONS = "nyuv2_train", 10, 128
NOISE, GROWTHS, PROBABILITIES = 0.2, (0, 1, 2, 4, 8, 16), (0.67, 0.95)
LICENCE = "research and non-commercial use only (training data: NYU Depth V2, KITTI and others)"
STRIDE = 4  # of the pixels that maps are evaluated at


class Image(NamedTuple):
    """An image with its sentence; logs: of the percentiles QUANTILES of its depth."""

    path: str
    source: str
    scene: str
    split: str
    sentence: str
    scale: float
    logs: Array


def main() -> None:
    """Parse, train, evaluate, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, required=True, help="folder with an index.csv")
    arguments.add_argument("--write", action="store_true", help="train, and write the weights in the package")
    options = arguments.parse_args()
    warnings.simplefilter("ignore")
    images = described(options.root)
    train, val = ([one for one in images if one.split == split] for split in ("train", "val"))
    system = load("tiny")
    maps = [Maps.of(options.root, one, system) for one in val]
    if options.write:
        arrays = fitted(train, deviation_of(photo_errors(maps)))
        save(arrays)
        save(arrays | {"photo_deviations": np.quantile(photo_off(val, maps), PROBABILITIES)})
    numbers = evaluate(train, val, maps)
    show(numbers)
    write(numbers, options.out)


def described(root: Path) -> list[Image]:
    """The images with a sentence."""
    sentences: dict[str, str] = {}
    for path in CAPTIONS:
        with path.open(newline="", encoding="utf-8") as file:
            sentences |= {row["path_rgb"]: row["text"] for row in csv.DictReader(file)}
    found = []
    with (root / "index.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if sentence := sentences.get(row["path_rgb"]):
                scale = float(row["depth_scale"])
                depth = read_depth(root / row["path_depth"], scale)
                logs = np.log(np.quantile(depth[depth > 0], QUANTILES))
                scene = f"{row['source']}/{row['scene']}"
                found.append(Image(row["path_rgb"], row["source"], scene, row["split"], sentence, scale, logs))
    return found


# -- training --------------------------------------------------------------------------------------------------------


class Regression(NamedTuple):
    """Gaussian process regression from a kernel matrix: ``base`` + kernel @ ``weights``; ``inverse`` for variances."""

    base: Array
    weights: Array
    inverse: Array

    @classmethod
    def of(cls, kernels: Array, logs: Array, counts: Array) -> Regression:
        base = (counts[:, None] * logs).sum(0) / counts.sum()
        inverse = np.linalg.inv(kernels + NOISE * np.diag(1 / counts))
        return cls(base, inverse @ (logs - base), inverse)

    def __call__(self, across: Array, own: Array) -> tuple[Array, Array]:
        """Means (N, 3) and variances (N,) for kernels (N, M) with the training images and with themselves (N,)."""
        return self.base + across @ self.weights, own - ((across @ self.inverse) * across).sum(1)


def fitted(train: Sequence[Image], image_deviation: float) -> dict[str, Any]:
    """The head's arrays."""
    logs, traits = np.array([one.logs for one in train]), traits_of([one.sentence for one in train])
    counts = Counter(one.scene for one in train)
    weights = np.array([1 / math.sqrt(counts[one.scene]) for one in train])
    weights /= weights.mean()
    frame = frame_of(traits)
    kernels = kernel(frame.normalised(traits), frame.normalised(traits))
    means, variances = held_out([one.scene for one in train], kernels, logs, weights)
    growth, covariance = spread(logs - means, variances, weights)
    regression = Regression.of(kernels, logs, weights)
    common = np.var(logs[:, 1])
    # Scenes of one source are alike, and users have others: without the source, how far off is it?
    sources = [one.scene if one.source == ROOMS else one.source for one in train]
    far_means, far_variances = held_out(sources, kernels, logs, weights)
    limits = deviations(logs, far_means, covariance, 1 + growth * far_variances, weights)
    return {
        **frame._asdict(),
        "sentences": np.array([one.sentence for one in train]),
        "features": frame.normalised(traits).features.astype(np.float16),
        **regression._asdict(),
        "inverse": regression.inverse.astype(np.float32),
        "growth": np.float64(growth),
        "covariance": covariance,
        "any_mean": np.median(logs, axis=0),
        "any_covariance": covariance * (1 + growth * variances.mean()) + common,
        "probabilities": np.array(PROBABILITIES),
        "deviations": limits,
        "photo_deviations": limits,
        "image_deviation": np.float64(image_deviation),
        "licence": np.array(LICENCE),
    }


def held_out(groups: Sequence[str], kernels: Array, logs: Array, weights: Array) -> tuple[Array, Array]:
    """Means (N, 3) and variances (N,) by regressions that have not had an image's group."""
    names = sorted(set(groups))
    folds = dict(zip(np.random.default_rng(0).permutation(names), np.arange(len(names)) % FOLDS, strict=True))
    fold = np.array([folds[group] for group in groups])
    means, variances = np.zeros_like(logs), np.zeros(len(logs))
    for number in range(FOLDS):
        mine, others = fold == number, fold != number
        regression = Regression.of(kernels[np.ix_(others, others)], logs[others], weights[others])
        means[mine], variances[mine] = regression(kernels[np.ix_(mine, others)], np.diag(kernels)[mine])
    return means, variances


def save(arrays: dict[str, Any]) -> None:
    """Write the weights."""
    with atomic_path(WEIGHTS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    print(f"{WEIGHTS}: {len(arrays['sentences'])} sentences, {WEIGHTS.stat().st_size / 1e6:.1f} MB")


def frame_of(traits: Any) -> Frame:
    """What brings the traits to a common size."""
    centre = traits.features.mean(0)
    directions = np.linalg.svd(traits.features - centre, full_matrices=False)[2][:DIRECTIONS]
    mean, deviation = np.nanmean(traits.distances, 0), np.nanstd(traits.distances, 0)
    # As stored, so that training and prediction compute the same.
    return Frame(mean, deviation, centre.astype(np.float32), directions.astype(np.float16).astype(np.float64))


def spread(errors: Array, variances: Array, weights: Array) -> tuple[float, Array]:
    """How the errors' covariance grows with the variance of the regression, and what it is without; the likeliest."""
    best = (-math.inf, 0.0, np.eye(3))
    for growth in GROWTHS:
        factor = 1 + growth * variances
        covariance = np.einsum("i,ij,ik->jk", weights / factor, errors, errors) / weights.sum()
        squares = np.einsum("ij,jk,ik->i", errors, np.linalg.inv(covariance), errors) / factor
        terms = squares + 3 * np.log(factor) + np.log(np.linalg.det(covariance))
        best = max(best, (float(-(weights * terms).sum()), float(growth), covariance), key=lambda one: one[0])
    return best[1], best[2]


def deviations(logs: Array, means: Array, covariance: Array, factors: Array, weights: Array) -> Array:
    """How many standard deviations hold PROBABILITIES of the images, from ideal maps scaled by words."""
    off = []
    for true, mean, factor in zip(logs, means, factors, strict=True):
        curve = Curve(False, 1.0)
        words = Evidence("words", np.exp(true - true[1]), mean, covariance * factor + MAP_ERROR**2 * np.eye(3))
        found = fit(curve, [words])
        off.append(abs(float(found.parameters[0] - true[1])) / found.deviation(curve, 1.0))
    order = np.argsort(off)
    share = np.cumsum(weights[order]) / weights.sum()
    return np.interp(PROBABILITIES, share, np.array(off)[order])


# -- evaluation ------------------------------------------------------------------------------------------------------


class Maps(NamedTuple):
    """True depth, 0 where unknown, and the embedded model's, of every STRIDE-th pixel."""

    true: npt.NDArray[np.float32]
    estimated: npt.NDArray[np.float32]

    @classmethod
    def of(cls, root: Path, image: Image, system: Any) -> Maps:
        depth = read_depth((root / image.path).with_suffix(".png"), image.scale)
        estimate = system.predict(root / image.path).depth
        return cls(depth[::STRIDE, ::STRIDE], estimate[::STRIDE, ::STRIDE])

    def relative(self, kind: str) -> Any:
        """A relative map of a kind of KINDS, NaN where there is no ground truth."""
        true = np.where(self.true > 0, self.true, np.nan)
        if kind == "inverse":
            nearest, farthest = 1 / np.nanmin(true), 1 / np.nanmax(true)
            return read((1 / true - farthest) / (nearest - farthest), True)
        return read(
            np.where(self.true > 0, self.estimated, np.nan) if kind == "tiny" else true / np.nanmedian(true), False
        )


KINDS = ("truth", "inverse", "tiny")


def photo_errors(maps: Sequence[Maps]) -> Array:
    """Errors of the embedded model's median depth, natural logarithm."""
    return np.array([math.log(np.median(m.estimated[m.true > 0]) / np.median(m.true[m.true > 0])) for m in maps])


def deviation_of(errors: Array) -> float:
    """Standard deviation, not moved by the few that are far off."""
    return float(1.4826 * np.median(np.abs(errors)))


def photo_evidence(given: Any, maps: Maps, deviation: float) -> Evidence:
    """As ``langdepth.scale`` makes it of the photo."""
    median = np.median(maps.estimated[maps.true > 0])
    return Evidence(PHOTO, given.at([0.5]), np.log([median]), np.array([[deviation**2]]))


def distance_evidence(given: Any, maps: Maps, seed: int) -> Evidence:
    """The true depth of a pixel, drawn for each image."""
    place = np.random.default_rng(seed).choice(np.flatnonzero((maps.true > 0) & given.valid))
    value, metres = float(given.values.flat[place]), float(maps.true.flat[place])
    return Evidence.at("distance", value, metres, MEASURED)


def off(one: Image, facts: dict[str, Any]) -> float:
    """How many standard deviations the true median depth is off."""
    return abs(math.log(facts["median"]) - float(one.logs[1])) / float(facts["deviation"])


def photo_off(val: Sequence[Image], maps: Sequence[Maps]) -> list[float]:
    """``off`` of ideal maps scaled by sentence and photo."""
    head, found = WordsToScale(), []
    for one, both in zip(val, maps, strict=True):
        given = both.relative("truth")
        evidence = [photo_evidence(given, both, head.image_deviation), words_evidence(given, head, one.sentence)]
        found.append(off(one, solved(given, evidence, head)[1]))
    return found


def evaluate(train: Sequence[Image], val: Sequence[Image], maps: Sequence[Maps]) -> dict[str, Any]:
    """Row (map, evidence) -> errors and coverage over all validation images and over ROOMS."""
    head = WordsToScale()
    order = np.random.default_rng(0).permutation(len(val))
    wrong = [
        next(val[i].sentence for i in np.roll(order, -k) if val[i].scene != one.scene) for k, one in enumerate(val)
    ]
    halves = np.array([sum(map(ord, one.scene)) % 2 for one in val])
    errors = photo_errors(maps)
    usual = math.exp(float(np.median([one.logs[1] for one in train])))
    rsa = rsa_depths(train, val)
    rows: dict[str, Any] = {}
    for kind in KINDS:
        found: dict[str, list[tuple[float, float]]] = {}
        for index, (one, both) in enumerate(zip(val, maps, strict=True)):
            given = both.relative(kind)
            photo = photo_evidence(given, both, deviation_of(errors[halves != halves[index]]))
            right, other = (words_evidence(given, head, text) for text in (one.sentence, wrong[index]))
            ways = {"words": [right], "wrong words": [other], "photo": [photo], "words and photo": [photo, right]}
            ways["words and distance"] = [distance_evidence(given, both, index), right]
            for name, evidence in ways.items():
                depth, facts = solved(given, evidence, head)
                found.setdefault(name, []).append((ratio(depth, both.true), off(one, facts)))
            if kind == "inverse":
                found.setdefault("RSA", []).append((ratio(rsa(index, both.true), both.true), math.nan))
            else:
                plain = given.values * np.float32(usual / given.curve.unit)
                found.setdefault("none", []).append((ratio(plain, both.true), math.nan))
        for name, values in found.items():
            limits = np.tile(head.deviations, (len(val), 1))
            if "photo" in name:
                offs = np.array([value[1] for value in values])
                limits = np.array([np.quantile(offs[halves != half], PROBABILITIES) for half in halves])
            rows[f"{kind}: {name}"] = summary(val, values, limits)
    return {"images": len(val), "rooms": sum(one.source == ROOMS for one in val), "rows": rows}


def ratio(depth: Any, true: Any) -> float:
    """log2 of the median of predicted over true depth."""
    known = (true > 0) & (depth > 0)
    return math.log2(float(np.median(depth[known] / true[known])))


def summary(val: Sequence[Image], values: Sequence[tuple[float, float]], limits: Array) -> dict[str, float]:
    """Median and mean errors, and how often the true median depth is at most ``limits`` deviations off."""
    found: dict[str, float] = {}
    errors, offs = np.abs([value[0] for value in values]), np.array([value[1] for value in values])
    for name, kept in (("all", np.ones(len(val), bool)), ("rooms", np.array([one.source == ROOMS for one in val]))):
        found[f"{name} error"], found[f"{name} mean error"] = float(np.median(errors[kept])), float(errors[kept].mean())
        for share, limit in zip(PROBABILITIES, limits.T, strict=True):
            if np.isfinite(offs).all():
                found[f"{name} inside {100 * share:.0f} %"] = float((offs <= limit)[kept].mean())
    return found


def rsa_depths(train: Sequence[Image], val: Sequence[Image]) -> Any:
    """RSA's head, trained here; gives the depth of ideal inverse maps, which are 1 / depth in the range 0 to 1."""
    import torch

    from langdepth.systems import registry
    from langdepth.systems.rsa.model import Rsa

    torch.manual_seed(0)
    system = registry.build("rsa")
    assert isinstance(system, Rsa)
    features = torch.from_numpy(traits_of([one.sentence for one in (*train, *val)]).features).float() * 10
    depth = torch.tensor(np.exp([one.logs for one in train]), dtype=torch.float32)
    relative = (1 / depth - 1 / depth[:, 2:]) / (1 / depth[:, :1] - 1 / depth[:, 2:])
    optimiser = torch.optim.Adam(system.parameters(), lr=1e-4, weight_decay=1e-2)
    for _ in range(60):
        for chosen in torch.randperm(len(train)).split(8):
            scale, shift = system.scale_and_shift(features[chosen])
            metres = system.metres(relative[chosen][:, None, None], scale, shift)[:, 0, 0]
            kept = depth[chosen] < 80
            loss = ((metres - depth[chosen]).abs() * kept).sum() / 3
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.inference_mode():
        scales, shifts = (one.flatten().numpy() for one in system.scale_and_shift(features[len(train) :]))

    def depth_of(index: int, true: npt.NDArray[np.float32]) -> Any:
        low, high = (float(np.exp(-val[index].logs[place])) for place in (2, 0))
        inverse = (1 / np.where(true > 0, true, np.nan) - low) / (high - low)
        return 1 / np.maximum(scales[index] * inverse + shifts[index], 1e-3)

    return depth_of


def show(numbers: dict[str, Any]) -> None:
    """The table."""
    print(
        f"\n{numbers['images']} images, {numbers['rooms']} of {ROOMS}; scale error in log2, share inside the interval\n"
    )
    columns = [
        f"{name} {what}" for name in ("all", "rooms") for what in ("error", "mean error", "inside 67 %", "inside 95 %")
    ]
    print(f"{'map: evidence':<26}" + "".join(f"{column:>18}" for column in columns))
    for name, row in numbers["rows"].items():
        print(f"{name:<26}" + "".join(f"{row[c]:>18.3f}" if c in row else f"{'':>18}" for c in columns))


if __name__ == "__main__":
    main()
