"""``langdepth data list``, ``prepare``, ``check`` and ``show``: the data sets by name."""

from __future__ import annotations

import json as jsonlib
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

from langdepth.commands.data._progress import progress_bar
from langdepth.data.choice import PairChoice
from langdepth.errors import LangdepthError, UsageError, nearest, one_line, say
from langdepth.utils.tables import columns


def list_sets(name: str | None = None, *, root: Path | None = None) -> None:
    """The data sets that are known: title, splits with their numbers of pairs, and protocol; or all about one.

    Args:
        name: Show everything about this data set.
        root: Say what is there: each set is searched for in the folder of its name below this one, and in the folder
            itself.
    """
    from langdepth.data.base import DATASETS, layout
    from langdepth.utils.plugins import usable

    if root is not None and not root.is_dir():
        raise LangdepthError(f"{root}: no such folder")
    if name is not None:
        for line in _card(name):
            say(one_line(line))
        if root is not None:
            say(one_line(f"found  {_found(name, root)}"))
        return
    table = [("name", "title", "splits", "protocol", *(("found",) if root else ()))]
    for known, card in usable(DATASETS, lambda known: (known, layout(known).CARD)):
        splits = ", ".join(f"{split} {count or ''}".strip() for split, count in card.splits.items()) or "of its index"
        table.append((known, card.title, splits, card.protocol, *((_found(known, root),) if root else ())))
    say(*columns(table))
    say("more about one: langdepth data list NAME")


def _card(name: str) -> list[str]:
    from langdepth.data.base import layout

    card = layout(name).CARD
    low, high = card.depth_range
    facts = [
        ("name", name),
        ("title", card.title),
        ("get it from", card.where),
        ("licence", card.licence),
        ("splits", ", ".join(f"{split} ({count or 'any'} pairs)" for split, count in card.splits.items()) or "any"),
        ("evaluated", f"split {card.split or 'any'} under {card.protocol}"),
        ("depth", f"{card.unit}; no value: {card.invalid}; range {low:g} to {high:g} m"),
        ("intrinsics", card.intrinsics),
        ("scene labels", card.scenes),
        *(("layout", text) for text in card.layouts),
    ]
    return columns(facts)


def _found(name: str, root: Path) -> str:
    """Where below ``root`` the data set is, with its pairs per split."""
    from langdepth.data.base import find_rows

    for place in (root / name, root):
        try:
            rows = find_rows(name, place, problems=[])
        except LangdepthError:
            continue
        if rows:
            counts = Counter(row.split or "no split" for row in rows)
            return f"{place}: " + ", ".join(f"{split} {count}" for split, count in counts.items())
    return "-"


def prepare(name: str, *, source: Path, out: Path) -> int:
    """Unpack or convert what a data set is published as, into a folder that evaluation and training read.

    Archives (zip, tar, also compressed) are unpacked once all their members are found harmless: none may lie outside
    the folder, be a link or a device. The labelled file of NYU becomes images and 16-bit depth maps with an index.csv.
    What an earlier run completed is kept; a manifest records size, checksum and source of every file. The exit code is
    1 when a split is there with fewer pairs than the official one.

    Args:
        name: Which data set, see "langdepth data list".
        source: The archive or file, or a folder with several.
        out: Folder to fill.
    """
    from langdepth.data.base import find_rows, layout, split_counts
    from langdepth.data.tools.prepare import prepare as run
    from langdepth.data.tools.prepare import prepared_root

    with progress_bar("file") as progress:
        work = run(name, source, out, progress)
    errors: list[LangdepthError] = []
    root = prepared_root(name, out)
    rows = find_rows(name, root, problems=errors)
    problems = [*map(str, errors), *split_counts(layout(name).CARD, rows)]
    for problem in problems:
        say(one_line(problem))
    counts = Counter(row.split or "no split" for row in rows)
    say(f"{work.done} files in {out}: " + ", ".join(f"{split} {count} pairs" for split, count in counts.items()))
    say(f"check them with: langdepth data check {name} --root {root}")
    return 1 if problems else 0


def check(
    name: str,
    *,
    root: Path | None = None,
    choice: PairChoice,
    json: bool = False,
) -> int:
    """Read every image and depth map of a data set, and report what is missing, damaged or at odds with its card.

    One line per problem, then what training and evaluation splits share, then tables with a line per split and per
    source. The exit code is 0 when nothing is missing or damaged, 1 otherwise.

    Args:
        name: Which data set, see "langdepth data list"; or a folder with an index.csv, then without --root.
        root: Folder of the data set.
        choice: Which pairs.
        json: Print the report as JSON.
    """
    from tqdm import tqdm

    from langdepth.data.tools.check import as_json, check_dataset, summary

    with tqdm(unit="pair", disable=not sys.stderr.isatty(), leave=False) as bar:
        place = _name_and_root(name, root)
        report = check_dataset(*place, choice, progress=bar.update)
    count = len(report.problems)
    if json:
        say(*jsonlib.dumps(as_json(report), indent=2).split("\n"))
        return 1 if count else 0
    for line in (*report.problems, *report.notes, *report.overlaps, *summary(report)):
        say(one_line(line))
    say(f"{len(report.pairs)} pairs checked, {f'{count} problems' if count != 1 else '1 problem'}")
    return 1 if count else 0


def cache(
    name: str,
    *,
    root: Path,
    out: Path,
    choice: PairChoice,
    frame: Literal["stored", "kb"] = "stored",
    trust_unit: bool = False,
) -> int:
    """Decode the images of a data set once, into files that training and evaluation map into memory.

    The folder is then a data set of its own, called "cache": "langdepth train --data.name cache --data.root DIR",
    "langdepth evaluate --data cache --root DIR". A run that was stopped goes on where it was. Images that changed
    since are detected, and a second run decodes them again. The exit code is 1 when a pair could not be used.

    Args:
        name: Which data set, see "langdepth data list".
        root: Folder of the data set.
        out: Folder to fill; an image of 640x480 takes 1.5 MB.
        choice: Which pairs.
        frame: What is kept of an image; "kb" is the KITTI benchmark's bottom 352 rows and middle 1216 columns.
    """
    from langdepth.data.tools.cache import write_cache

    with progress_bar("pair") as progress:
        written = write_cache(name, root, out, choice, frame=frame, trust_unit=trust_unit, progress=progress)
    for error in written.errors:
        say(f"left out: {error}")
    say(f"{written.frames} frames in {out}, {written.added} of them new; use it as the data set cache")
    return 1 if written.errors else 0


def show(
    name: str,
    *,
    out: Path,
    root: Path | None = None,
    choice: PairChoice,
    count: int = 8,
) -> None:
    """Draw a contact sheet: images from all over a data set, each with its depth and a legend in metres.

    Args:
        name: Which data set, see "langdepth data list"; or a folder with an index.csv, then without --root.
        out: Image to write, for example sheet.png.
        root: Folder of the data set.
        choice: Which pairs.
        count: How many images.
    """
    from langdepth.data.base import find_rows
    from langdepth.data.tools.show import write_sheet

    if count < 1:
        raise UsageError(f"--count must be at least 1, got {count}")
    dataset, place = _name_and_root(name, root)
    shown = write_sheet(find_rows(dataset, place, **vars(choice)), out, count)
    say(f"{shown} images in {out}")


def _name_and_root(name: str, root: Path | None) -> tuple[str, Path]:
    """A data set with its folder, or a folder alone."""
    from langdepth.data.base import DATASETS

    if root is not None:
        return name, root
    if name in DATASETS and not Path(name).is_dir():
        raise UsageError(f"say where {name} is: --root DIR")
    if not Path(name).is_dir() and "/" not in name:
        raise UsageError(f"'{name}' is neither a folder nor a data set: {nearest(name, DATASETS)}")
    return "folder", Path(name)
