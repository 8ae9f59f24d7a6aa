"""Checking a data set for everything that would spoil training or evaluation."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.data.base import MANIFEST, DatasetCard, card_of, find_rows, folder_with, split_counts, unfinished
from langdepth.data.choice import ALL, PairChoice
from langdepth.data.masks import read_overlay
from langdepth.data.rows import Metres, Row, true_edges, turned_with_image
from langdepth.data.tools.prepare import read_manifest
from langdepth.data.truth import impossible_depth, impossible_median, unused_scale, wrong_unit
from langdepth.errors import LangdepthError, UsageError, first_few, nearest
from langdepth.utils.images import DecodedImage
from langdepth.utils.reading import file_sha256
from langdepth.utils.tables import columns
from langdepth.utils.threads import reading_threads

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """What one row's files hold; None where unreadable. size: (width, height), depth_range: metres.

    digest: of the image's pixels. turned: whether EXIF turns it, and depth and camera with it.
    """

    row: Row
    problems: tuple[str, ...]
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] | None = None
    valid_fraction: float | None = None
    digest: bytes = b""
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """pairs: one per row that can be used; problems, notes: one line each, in the order of the rows.

    overlaps: what splits that must not share anything share, one line each.
    """

    card: DatasetCard
    pairs: list[CheckedPair]
    problems: list[str]
    overlaps: list[str]
    notes: list[str] = field(default_factory=list)

    def splits(self) -> dict[str, tuple[int, int | None]]:
        """Split -> pairs without problems, and how many there should be (None: any number)."""
        good = defaultdict(int, dict.fromkeys(self.card.splits, 0))
        for pair in self.pairs:
            good[pair.row.split] += not pair.problems
        return {split: (count, self.card.splits.get(split)) for split, count in good.items()}


def check_dataset(
    name: str,
    root: str | Path,
    choice: PairChoice = ALL,
    progress: Callable[[], Any] = lambda: None,
) -> CheckReport:
    """Read every image and depth map of a data set (or those of a ``choice``) and compare them with what is stated.

    ``progress`` is called once per pair. Raises LangdepthError when there is nothing to check, UsageError for a split
    that does not exist.
    """
    root = Path(root)
    card = card_of(name, root)
    errors: list[LangdepthError] = []
    split = choice.split
    official = replace(choice, split=split if card.splits else None)
    rows = find_rows(name, root, problems=errors, **vars(official))
    repeated = _repeated(rows)
    if split is not None and not card.splits:
        known = {row.split for row in rows}
        if split not in known:
            raise UsageError(f"{root}: no row has split '{split}': {nearest(split, known)}")
        rows = [row for row in rows if row.split == split]
    problems = [*map(str, errors), *split_counts(card, rows, split), *_manifest_problems(root)]
    suspicion = wrong_unit(card, rows)
    problems += [f"{root}: {suspicion}"] if suspicion else []
    checked = []
    with reading_threads(os.cpu_count()) as pool:
        for pair in pool.map(partial(_check_pair, card), rows):
            checked.append(pair)
            progress()
    for pair in checked:
        row = pair.row
        where = f"{row.table} line {row.line}" if row.stated else f"{row.split} {row.key}"
        problems += [f"{where}: {text}" for text in (*repeated.get(id(row), ()), *pair.problems)]
    turned = sum(pair.turned for pair in checked)
    notes = [f"{turned} images are turned upright as their EXIF says, and with them depth and camera"] if turned else []
    return CheckReport(card=card, pairs=checked, problems=problems, overlaps=_overlaps(card, checked), notes=notes)


def summary(report: CheckReport) -> list[str]:
    """Two tables: a line per split of the card, and a line per source: pairs, sizes, depth, valid fraction."""
    by_source = defaultdict(list)
    for pair in report.pairs:
        by_source[pair.row.source or "(no source)"].append(pair)
    splits = tuple(report.card.splits) or tuple(dict.fromkeys((*SPLITS, *filter(None, report.splits()))))
    table = [("source", "pairs", "good", "/".join(splits), "size", "depth in m", "valid")]
    for source, members in sorted(by_source.items()):
        sizes = sorted({pair.size for pair in members if pair.size})
        ranges = [pair.depth_range for pair in members if pair.depth_range]
        valid = [pair.valid_fraction for pair in members if pair.valid_fraction is not None]
        table.append(
            (
                source,
                str(len(members)),
                str(sum(not pair.problems for pair in members)),
                "/".join(str(sum(pair.row.split == split for pair in members)) for split in splits),
                " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "-",
                f"{min(low for low, _ in ranges):.2f} to {max(high for _, high in ranges):.2f}" if ranges else "-",
                f"{np.mean(valid):.1%}" if valid else "-",
            )
        )
    expected = [("split", "good", "expected")]
    for split, (good, wanted) in report.splits().items():
        expected.append((split, str(good), "any" if wanted is None else str(wanted)))
    return [*(columns(expected) if report.card.splits else ()), *columns(table)]


def as_json(report: CheckReport) -> dict[str, Any]:
    """The report as plain data for JSON."""
    return {
        "dataset": report.card.name,
        "pairs": len(report.pairs),
        "splits": {s: {"good": good, "expected": wanted} for s, (good, wanted) in report.splits().items()},
        "problems": report.problems,
        "overlaps": report.overlaps,
        "notes": report.notes,
    }


def _manifest_problems(root: Path) -> list[str]:
    """What has changed since the set was prepared, and whether that came to its end."""
    stopped = unfinished(root)
    problems = [] if stopped is None else [stopped]
    missing, changed = [], []
    place = folder_with(MANIFEST, root) or root
    for name, written in read_manifest(place).items():
        path = place / name
        if not path.is_relative_to(root.absolute()):
            continue
        if not path.is_file():
            missing.append(name)
        elif path.stat().st_size != written.size or file_sha256(path) != written.sha256:
            changed.append(name)
    for names, what in ((missing, "are missing"), (changed, "differ from what was written")):
        if names:
            problems.append(
                f"{place / MANIFEST}: {len(names)} files {what}: {first_few(names)}; "
                "'langdepth data prepare' writes them again"
            )
    return problems


def _overlaps(card: DatasetCard, pairs: list[CheckedPair]) -> list[str]:
    """Scenes (or drives) and images that are in two splits, unless both are learned from."""
    scenes: dict[str, set[str]] = defaultdict(set)
    images: dict[str, dict[bytes, str]] = defaultdict(dict)
    for pair in pairs:
        if pair.row.scene_run:
            scenes[pair.row.split].add(f"{pair.row.source}/{pair.row.scene_run}".lstrip("/"))
        if pair.digest:
            images[pair.row.split].setdefault(pair.digest, pair.row.key)
    lines = []
    held_out = [split for split in dict.fromkeys((*scenes, *images)) if split and split not in card.training]
    for one, other in (*product(card.training, held_out), *combinations(held_out, 2)):
        same = [images[other][digest] for digest in images[other] if digest in images[one]]
        for names, what in ((sorted(scenes[one] & scenes[other]), "scenes"), (same, "images")):
            if names:
                lines.append(f"{one} and {other} share {len(names)} {what}: {first_few(names)}")
    return lines


def _repeated(rows: list[Row]) -> dict[int, list[str]]:
    """Row's id -> complaints about files that an earlier row named already."""
    first: dict[tuple[str, int | None], Row] = {}
    complaints: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        for path in dict.fromkeys((row.path_rgb, row.path_depth)):
            # Not where links lead: files of the same content are links to one in the cache of the hub.
            earlier = first.setdefault((os.path.abspath(path), row.item), row)
            if earlier is not row:
                where = f"in line {earlier.line}" if earlier.line else f"for {earlier.split} {earlier.key}"
                complaints[id(row)].append(f"{path}: already named {where}")
    return complaints


@contextmanager
def _added_to(problems: list[str]) -> Iterator[None]:
    """What is wrong inside becomes a line of ``problems``."""
    try:
        yield
    except LangdepthError as error:
        problems.append(str(error))


def _check_pair(card: DatasetCard, row: Row) -> CheckedPair:
    problems: list[str] = []
    facts: dict[str, Any] = {}
    image: DecodedImage | None = None
    depth: Metres | None = None
    split = row.stated.get("split")
    if split is not None and split not in SPLITS:
        problems.append(f"unknown split '{split}': {nearest(split, SPLITS)}")
    with _added_to(problems):
        image = row.decoder.image(row)
        height, width = image.pixels.shape[:2]
        digest = hashlib.blake2b(image.pixels.data, digest_size=16).digest()
        facts = {"size": (width, height), "digest": digest, "turned": image.orientation != 1}
        problems += _stated_size(row, image)
        if row.path_overlay is not None:
            read_overlay(row.path_overlay, image.pixels)
    with _added_to(problems):
        decoded = row.decoder.depth(row)
        true_edges(row, decoded.shape)
        depth = decoded
    if depth is not None:
        with _added_to(problems):
            if image is not None:
                turned_with_image(row, image, depth)
        facts |= _measured(card, row, depth, problems)
    return CheckedPair(row=row, problems=tuple(problems), **facts)


def _measured(card: DatasetCard, row: Row, depth: Metres, problems: list[str]) -> dict[str, Any]:
    """Range and known share of a depth map, a line of ``problems`` for each of its values that cannot be right."""
    bad = {"NaN": np.isnan(depth), "infinite": np.isinf(depth), "negative": depth < 0}
    found = [f"{count} {name}" for name, mask in bad.items() if (count := int(mask.sum()))]
    if found and row.stated:  # an index states its own rule; published sets may mark "no value" so
        problems.append(f"{row.path_depth}: {', '.join(found)} depth values; use 0 for no value")
    values = depth[np.isfinite(depth) & (depth > 0)]
    if values.size == 0:
        problems.append(f"{row.path_depth}: no pixel has depth")
        return {"valid_fraction": 0.0}
    median = float(np.median(values))
    doubts = unused_scale(row), impossible_depth(card, row, values), impossible_median(card, row, median)
    problems += [doubt for doubt in doubts if doubt is not None]
    low, high, valid = float(values.min()), float(values.max()), values.size / depth.size
    step = max(row.depth_scale, 0.002)  # the index may be rounded to millimetres
    problems += _differences(row, {"min_m": (low, step), "max_m": (high, step), "valid_fraction": (valid, 0.001)})
    return {"depth_range": (low, high), "valid_fraction": valid}


def _stated_size(row: Row, image: DecodedImage) -> list[str]:
    """What is wrong with the width and height that an index states, which count the pixels as they are stored."""
    height, width = image.pixels.shape[:2]
    if image.orientation < 5:
        return _differences(row, {"width": (width, 0), "height": (height, 0)})
    if "width" not in row.stated and "height" not in row.stated:
        return []
    return ["EXIF turns this image on its side: leave width and height out of the index, training goes by them"]


def _differences(row: Row, measured: dict[str, tuple[float, float]]) -> list[str]:
    """Where the index states another number than was measured; ``measured``: column -> (value, tolerance)."""
    problems = []
    for column, (value, tolerance) in measured.items():
        text = row.stated.get(column)
        if text is None:
            continue
        try:
            agrees = abs(float(text) - value) <= tolerance  # False for NaN
        except ValueError:
            agrees = False
        if not agrees:
            problems.append(f"{column} is '{text}' in the index, but {value:.4g} in the file")
    return problems
