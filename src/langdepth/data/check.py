"""Looking through an indexed folder for everything that would spoil training or evaluation."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langdepth.camera import Camera
from langdepth.data.folder import read_index
from langdepth.data.rows import Row
from langdepth.data.sam import read_overlay
from langdepth.errors import LangdepthError, UsageError, nearest
from langdepth.io import read_depth, read_image

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one row's files hold; None where unreadable. size: (width, height), depth_range: metres."""

    row: Row
    problems: tuple[str, ...]
    size: tuple[int, int] | None = None
    depth_range: tuple[float, float] | None = None
    valid_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """pairs: one per readable row of the index; problems: one line each, in the order of the index."""

    pairs: list[Pair]
    problems: list[str]


def check_folder(root: str | Path, split: str | None = None, progress: Callable[[], Any] = lambda: None) -> Report:
    """Read every picture and depth map of ``root/index.csv`` (or of one ``split``) and compare them with the index.

    ``progress`` is called once per pair. Raises LangdepthError when there is no readable index, UsageError for a split
    that no row has.
    """
    root = Path(root)
    wrong_rows: list[LangdepthError] = []
    rows = read_index(root, wrong_rows)
    repeated = _repeated(rows)
    if split is not None:
        known = {row.split for row in rows}
        if split not in known:
            raise UsageError(f"{root}: no row has split '{split}': {nearest(split, known)}")
        rows = [row for row in rows if row.split == split]
    pairs = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for pair in pool.map(_check_pair, rows):
            pairs.append(pair)
            progress()
    problems = [str(error) for error in wrong_rows]
    for pair in pairs:
        where = f"{root / 'index.csv'} line {pair.row.line}"
        problems += [f"{where}: {text}" for text in (*repeated.get(pair.row.line, ()), *pair.problems)]
    return Report(pairs=pairs, problems=problems)


def summary(pairs: list[Pair]) -> list[str]:
    """A table, one line per source: pairs, those without problems, splits, sizes, depth, valid fraction."""
    by_source = defaultdict(list)
    for pair in pairs:
        by_source[pair.row.source or "(no source)"].append(pair)
    table = [("source", "pairs", "good", "train/val/test", "size", "depth in m", "valid")]
    for source, members in sorted(by_source.items()):
        sizes = sorted({pair.size for pair in members if pair.size})
        ranges = [pair.depth_range for pair in members if pair.depth_range]
        valid = [pair.valid_fraction for pair in members if pair.valid_fraction is not None]
        table.append(
            (
                source,
                str(len(members)),
                str(sum(not pair.problems for pair in members)),
                "/".join(str(sum(pair.row.split == split for pair in members)) for split in SPLITS),
                " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((sizes[0], sizes[-1]))) if sizes else "-",
                f"{min(low for low, _ in ranges):.2f} to {max(high for _, high in ranges):.2f}" if ranges else "-",
                f"{np.mean(valid):.1%}" if valid else "-",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _repeated(rows: list[Row]) -> dict[int, list[str]]:
    """Line -> complaints about files that an earlier line named already."""
    first: dict[Path, int] = {}
    complaints: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        for path in (row.path_rgb, row.path_depth):
            earlier = first.setdefault(path.resolve(), row.line)
            if earlier != row.line:
                complaints[row.line].append(f"{path}: already named in line {earlier}")
    return complaints


def _check_pair(row: Row) -> Pair:
    problems = []
    if row.split and row.split not in SPLITS:
        problems.append(f"unknown split '{row.split}': {nearest(row.split, SPLITS)}")
    size: tuple[int, int] | None = None
    try:
        pixels = read_image(row.path_rgb).pixels
    except LangdepthError as error:
        problems.append(str(error))
    else:
        height, width = pixels.shape[:2]
        size = (width, height)
        problems += _differences(row, {"width": (width, 0), "height": (height, 0)})
        if row.intrinsics is not None:
            fx, fy, cx, cy = row.intrinsics
            try:
                Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height)
            except LangdepthError as error:
                problems.append(str(error))
        if row.path_overlay is not None:
            try:
                read_overlay(row.path_overlay, pixels)
            except LangdepthError as error:
                problems.append(str(error))
    try:
        depth = read_depth(row.path_depth, row.depth_scale, keep_invalid=True)
    except LangdepthError as error:
        return Pair(row=row, size=size, problems=(*problems, str(error)))
    if size is not None and depth.shape != size[::-1]:
        problems.append(
            f"{row.path_depth}: depth is {depth.shape[1]}x{depth.shape[0]}, its picture {size[0]}x{size[1]}"
        )
    bad = {"NaN": np.isnan(depth), "infinite": np.isinf(depth), "negative": depth < 0}
    found = [f"{count} {name}" for name, mask in bad.items() if (count := int(mask.sum()))]
    if found:
        problems.append(f"{row.path_depth}: {', '.join(found)} depth values; use 0 for no value")
    values = depth[np.isfinite(depth) & (depth > 0)]
    if values.size == 0:
        problems.append(f"{row.path_depth}: no pixel has depth")
        return Pair(row=row, size=size, valid_fraction=0.0, problems=tuple(problems))
    low, high, valid = float(values.min()), float(values.max()), values.size / depth.size
    step = max(row.depth_scale, 0.002)  # the index may be rounded to millimetres
    problems += _differences(row, {"min_m": (low, step), "max_m": (high, step), "valid_fraction": (valid, 0.001)})
    return Pair(row=row, size=size, depth_range=(low, high), valid_fraction=valid, problems=tuple(problems))


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
