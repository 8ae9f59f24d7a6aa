"""Pairs that a list file of the user names, and ground truth in a tree of its own.

A list has a line per pair, in columns split at blanks: image, depth, and what may follow, such as the focal length (the
form of BTS, on which many repositories build). Paths start at the root of the data set, with or without a leading
slash, or are absolute; ``..`` may lead out of the root. Lines whose depth is None have no ground truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from langdepth.data.lists import Listing, require_two
from langdepth.data.rows import Row, first_process
from langdepth.errors import LangdepthError, text_flaw
from langdepth.utils.reading import read_text

_SUFFIXES = (".png", ".jpg")  # an image may have been stored in the other format
_PROBED = 20  # rows by which the place in the tree of the ground truth is found


@dataclass(frozen=True, kw_only=True)
class ListRules:
    """How a data set reads list files.

    images, truths: folders below the root that the lines' paths may start from, "" for the root itself.
    row: key, image, depth and split to the row. key: a line's image to the name that official lists have for it.
    """

    images: tuple[str, ...] = ("",)
    truths: tuple[str, ...] = ("",)
    row: Callable[[str, Path, Path, str], Row]
    key: Callable[[str], str]


def listed_rows(file: Path, rules: ListRules, root: Path, truth_root: Path | None = None) -> list[Row]:
    """The rows of a list file, in its order; their split is the file's name. Warns of lines without ground truth.

    Raises LangdepthError for a list that is missing, empty or not of this form.
    """
    there = Listing()
    images = [root / folder for folder in rules.images]
    truths = (
        images
        if truth_root is None and rules.truths == rules.images
        else [(truth_root or root) / folder for folder in rules.truths]
    )
    found, without, lines = [], 0, list(_lines(file))
    pairs = [pair for _, pair in lines if pair[1] != "None"]
    homes = _home((image for image, _ in pairs), images, there), _home((depth for _, depth in pairs), truths, there)
    for number, (image, depth) in lines:
        if depth == "None":
            without += 1
            continue
        files = _place(image, images, homes[0], there, _SUFFIXES), _place(depth, truths, homes[1], there)
        found.append(replace(rules.row(rules.key(image), *files, file.name), table=file, line=number))
    if without and first_process():
        share = f"{without} of {len(lines)} lines have no ground truth (None)"
        warnings.warn(f"{file}: {share} and are left out", stacklevel=2)
    if not found:
        raise LangdepthError(f"{file}: names no pair of an image and its ground truth")
    return found


def _lines(file: Path) -> Iterator[tuple[int, tuple[str, str]]]:
    """Number, image and depth of every line that is not empty."""
    try:
        content = read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise LangdepthError(f"{file}: not readable as a list of pairs ({text_flaw(error)})") from None
    for number, line in enumerate(content.splitlines(), 1):
        columns = line.split()
        if columns and (len(columns) < 2 or "\0" in line):
            raise LangdepthError(
                f"{file} line {number}: a line names an image and its depth, with a blank between them"
            )
        if columns:
            require_two(columns[0], columns[1], f"{file} line {number}")
            yield number, (columns[0], columns[1])


def _home(texts: Iterable[str], folders: Sequence[Path], there: Listing) -> Path:
    """The folder in which the first file lies that is there, else the first folder; files that lack are named in it."""
    places = (folder for text in texts for folder in folders if folder / text.lstrip("/") in there)
    return next(places, folders[0])


def _place(text: str, folders: Iterable[Path], home: Path, there: Listing, suffixes: Sequence[str] = ()) -> Path:
    """Where a line's path lies: below the first of ``folders`` that has it, where its text alone says, or in ``home``.

    ``suffixes``: a file with another one of them is as good.
    """
    inside = [folder / text.lstrip("/") for folder in folders]
    absolute = [Path(text)] if text.startswith("/") else []
    candidates = [*inside, *absolute]
    others = [path.with_suffix(suffix) for path in candidates for suffix in suffixes if path.suffix in suffixes]
    return next((path for path in (*candidates, *others) if path in there), home / text.lstrip("/"))


def with_truth_below(rows: list[Row], root: Path, truth_root: Path) -> list[Row]:
    """``rows`` with their ground truth below ``truth_root``, in the tree that it would have below ``root``.

    That tree may start further down: ``root/official_splits/test/kitchen`` is also found in ``truth_root/kitchen``. The
    files that depth comes from beside its map, such as masks, are taken from there where they exist.
    """
    below = [row for row in rows if row.path_depth.is_relative_to(root)]
    if not below or below[0].path_depth.is_relative_to(truth_root):
        return rows  # the reader has found it already
    there = Listing()

    def moved(path: Path, levels: int) -> Path:
        return truth_root.joinpath(*path.relative_to(root).parts[levels:])

    depths = range(min(len(row.path_depth.relative_to(root).parts) for row in below))
    probed = below[:: max(1, len(below) // _PROBED)]
    levels = next((n for n in depths if any(moved(row.path_depth, n) in there for row in probed)), 0)
    found = []
    for row in rows:
        facts: dict[str, Any] = {}
        if row.path_depth.is_relative_to(root):
            facts["path_depth"] = moved(row.path_depth, levels)
        needs = [moved(path, levels) if path.is_relative_to(root) else path for path in row.needs]
        facts["needs"] = tuple(new if new in there else old for new, old in zip(needs, row.needs, strict=True))
        found.append(replace(row, **facts))
    return found
