"""Golden cases under our code: every array that a case computes is compared with the array of that name in a file.

A case is a function ``(arrays, weights, case) -> iterator of (array name, our value, tolerance)``: ``arrays`` are all
arrays of the file, ``weights`` the checkpoint of its keys file (None where it has none). What it reads of ``arrays``
is its input; sizes, batches and sub-sampling follow from the arrays, so any file of the same layout will do.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from langdepth.errors import UsageError, nearest
from tests.parity.keyed_weights import state_dict

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Tolerance:
    """An entry e may differ by rtol * abs(e) + rtol_of_max * (largest entry) + atol; a share ``outliers`` by more."""

    rtol: float = 0.0
    atol: float = 0.0
    rtol_of_max: float = 0.0
    outliers: float = 0.0

    def __str__(self) -> str:
        parts = {"rtol": self.rtol, "of max": self.rtol_of_max, "atol": self.atol, "outliers": self.outliers}
        return ", ".join(f"{name} {value:g}" for name, value in parts.items() if value) or "exact"


Compared = Iterator[tuple[str, Tensor | np.ndarray, Tolerance]]
CaseFunction = Callable[[dict[str, np.ndarray], dict[str, Tensor] | None, str], Compared]


@dataclass(frozen=True)
class Case:
    """A family of case names (shell pattern), the function that computes it, and the case whose keys file it uses.

    ``variants``: of a case with several checkpoints, the ends of their keys files' names; the tensors of each then
    have the variant and a slash before their own name. The variant "" is the keys file without an end, whose tensors
    keep their names. ``slow``: it takes more than a few seconds. ``uncompared``: arrays that are no part of ours.
    """

    pattern: str
    function: CaseFunction
    keys: str | None = None
    variants: tuple[str, ...] = ()
    slow: bool = False
    uncompared: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The pattern without its star."""
        return self.pattern.rstrip("*")


@dataclass(frozen=True)
class Reference:
    """A protocol of published numbers: its hash, the committed case of the published metrics, rules around the network.

    ``around``: switches that the case cannot see (frame, windows, mirroring, resizing), where they are not the default.
    """

    hash: str
    case: str
    around: Mapping[str, Any]


def _modules() -> list[ModuleType]:
    names = sorted(path.stem for path in Path(__file__).parent.glob("cases_*.py"))
    return [import_module(f"tests.parity.{name}") for name in names]


@cache
def cases() -> tuple[Case, ...]:
    """The CASES of every module ``cases_*.py`` here that has any."""
    return tuple(case for module in _modules() for case in getattr(module, "CASES", ()))


def references() -> dict[str, Reference]:
    """The REFERENCES of these modules, by the name of the protocol."""
    return {name: found for module in _modules() for name, found in getattr(module, "REFERENCES", {}).items()}


def find_case(name: str) -> Case:
    """The case whose pattern fits ``name``, the longest of several. Raises UsageError naming the nearest known one."""
    fitting = [case for case in cases() if fnmatchcase(name, case.pattern)]
    if not fitting:
        raise UsageError(f"unknown case '{name}': {nearest(name, [case.stem for case in cases()])}")
    return max(fitting, key=lambda case: len(case.pattern))


@dataclass(frozen=True)
class Row:
    """One compared array: largest absolute difference, largest relative one, and whether it is within tolerance."""

    name: str
    absolute: float
    relative: float
    tolerance: Tolerance
    good: bool
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What was compared; the arrays that the case read; those it neither read nor compared."""

    rows: list[Row]
    inputs: list[str]
    unused: list[str]

    @property
    def good(self) -> bool:
        """Something was compared and everything compared is within tolerance."""
        return bool(self.rows) and all(row.good for row in self.rows)


class _Arrays(dict[str, np.ndarray]):
    """The arrays of a file; remembers which were read."""

    def __init__(self, arrays: Mapping[str, np.ndarray], path: Path) -> None:
        super().__init__(arrays)
        self.path = path
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return super().__getitem__(name)

    def __missing__(self, name: str) -> np.ndarray:
        raise UsageError(f"{self.path}: has no array '{name}', which the case needs: {nearest(name, self)}")


def run_case(case: str, path: Path, keys: Path | None = None) -> Report:
    """Compare what our code computes for ``case`` with the arrays of the file.

    ``keys``: the checkpoint's keys file; None looks beside the arrays and then among the committed ones. Raises
    UsageError for an unknown case and for files that are missing, damaged or without the needed arrays.
    """
    found = find_case(case)
    arrays = _Arrays(_read(path), path)
    weights = _weights(found, case, path, keys)
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, ours, tolerance in found.function(arrays, weights, case):
            expected = arrays.get(name)
            if expected is not None:
                rows.append(compare(name, ours, expected, tolerance))
    compared = {row.name for row in rows}
    inputs = [name for name in arrays if name in arrays.read - compared]
    return Report(rows, inputs, [name for name in arrays if name not in arrays.read | compared])


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give the .npz file of the case") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is no readable .npz file of arrays ({error})") from None


def _weights(found: Case, case: str, path: Path, keys: Path | None) -> dict[str, Tensor] | None:
    if found.variants:
        return {
            f"{variant}/{name}" if variant else name: tensor
            for variant in found.variants
            for name, tensor in _of_variant(found, case, path, keys, variant).items()
        }
    return None if found.keys is None and keys is None else _of_variant(found, case, path, keys)


def _of_variant(found: Case, case: str, path: Path, keys: Path | None, variant: str = "") -> dict[str, Tensor]:
    """The checkpoint of a keys file: of ``keys``, or beside it, the one of the variant, or the first that is found."""
    if keys is not None:
        stem = keys.name.removesuffix(".keys.json")
        end = next((f"_{one}" for one in found.variants if one and stem.endswith(f"_{one}")), "")
        name = "_".join(part for part in (stem.removesuffix(end), variant) if part)
        return dict(_checkpoint(keys.with_name(f"{name}.keys.json") if found.variants else keys))
    names = list(_keys_names(found, case, path, variant))
    places = [folder / name for folder in (path.parent, DATA) for name in names]
    for place in places:
        if place.is_file():
            return dict(_checkpoint(place))
    raise UsageError(f"no keys file for case '{case}': looked for {places[0]} and {places[-1]}; give one with --keys")


def _keys_names(found: Case, case: str, path: Path, variant: str) -> Iterator[str]:
    """Names of a keys file, the most special first.

    A twin may have an ending, "_twin" in x_twin.npz, which its keys file then has, too: before or after the variant.
    """
    end = f"_{variant}" if variant else ""
    own = (name for name in (path.stem, case) if name.startswith(found.stem))
    for name in dict.fromkeys(own):
        twin = name.removeprefix(found.stem)
        for family in (found.stem, found.keys or found.stem):
            yield f"{family}{twin}{end}.keys.json"
            yield f"{family}{end}{twin}.keys.json"
    yield f"{found.keys or found.stem}{end}.keys.json"


@lru_cache(maxsize=1)
def _checkpoint(keys: Path) -> dict[str, Tensor]:
    """Kept for the next case: two may share a checkpoint that takes long to draw."""
    return state_dict(keys)


def compare(name: str, ours: Tensor | np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> Row:
    """One row of the report. NaN equals NaN; another shape is a miss."""
    value = ours.detach().cpu().numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    if value.shape != expected.shape:
        return Row(name, np.inf, np.inf, tolerance, False, f"shape {value.shape}, expected {expected.shape}")
    if expected.dtype.kind == "U":  # texts count as 1 where they are the same
        value, expected = value == expected, np.ones(expected.shape)
    value, wanted = value.astype(np.float64), expected.astype(np.float64)
    same = (value == wanted) | (np.isnan(value) & np.isnan(wanted))
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(same, 0, np.abs(value - wanted))
        relative = np.where(same, 0, difference / np.abs(wanted))
        largest = np.abs(wanted, where=np.isfinite(wanted), out=np.zeros_like(wanted)).max(initial=0)
        allowed = tolerance.rtol * np.abs(wanted) + tolerance.rtol_of_max * largest + tolerance.atol
        beyond = ~same & ~(difference <= allowed)  # so that NaN and infinity are beyond
    share = beyond.mean() if beyond.size else 0.0
    note = f"{beyond.sum()} of {beyond.size} beyond" if beyond.any() else ""
    good = bool(share <= tolerance.outliers)
    return Row(name, float(difference.max(initial=0)), float(relative.max(initial=0)), tolerance, good, note)


_EVERY = r"_every(\d+)(?:st|nd|rd|th)"
_SUFFIXES = re.compile(rf"(?:_even_channels|{_EVERY})?(?:_s(\d+))?")


def subsampled(arrays: Mapping[str, np.ndarray], base: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The arrays of a file that hold ``base`` or a part of it: their names and the same parts of ``value``.

    ``_everyNth`` means every Nth channel, ``_even_channels`` every second one (axis 1 of four, the last of fewer),
    a ``_sN`` after it every Nth row and column.
    """
    for name in arrays:
        suffix = _SUFFIXES.fullmatch(name.removeprefix(base)) if name.startswith(base) else None
        if suffix is None:
            continue
        part = value
        if "_ev" in suffix[0]:
            axis = 1 if part.ndim == 4 else -1
            part = part.transpose(0, axis)[:: int(suffix[1] or 2)].transpose(0, axis)
        if suffix[2]:
            part = part[..., :: int(suffix[2]), :: int(suffix[2])]
        yield name, part


def outputs_of(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """What each of the modules gave last, by its name, from their next forward passes on."""
    found: dict[str, Any] = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda module, inputs, output, name=name: found.update({name: output}))
    return found


def print_report(report: Report) -> None:
    """A row per array, then what was not compared."""
    width = max((len(row.name) for row in report.rows), default=5)
    for row in report.rows:
        verdict = "ok" if row.good else "MISS"
        line = f"{row.name:{width}}  abs {row.absolute:8.2e}  rel {row.relative:8.2e}  ({row.tolerance})  {verdict}"
        print(f"{line}  {row.note}".rstrip())
    print(f"input: {', '.join(report.inputs) or 'none'}")
    print(f"neither input nor compared: {', '.join(report.unused) or 'none'}")
    missed = sum(not row.good for row in report.rows)
    print(f"{len(report.rows)} arrays compared, {missed} missed" if report.rows else "nothing to compare in this file")
