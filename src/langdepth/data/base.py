"""Data sets by name: each is one module with a card and the rows that it finds below a folder.

To add one: a module with ``CARD`` and ``rows`` (see ``Layout``) and a line in ``BUILT_IN``. Decoding, samples,
training, evaluation and ``langdepth data`` are the same for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast, runtime_checkable

from langdepth.data.pairs import ListRules, listed_rows, with_truth_below
from langdepth.data.rows import TRUST, Row, RowDataset, first_process, present
from langdepth.data.truth import impossible_depth, unused_scale, wrong_unit
from langdepth.errors import LangdepthError, UsageError, nearest
from langdepth.records import Sample, WithoutCaption
from langdepth.utils.arguments import checked
from langdepth.utils.plugins import load_target, plugins

if TYPE_CHECKING:
    from langdepth.text.caption_features import Captions

BUILT_IN = {
    "cache": "langdepth.data.sets.frame_cache",
    "ddad": "langdepth.data.sets.ddad",
    "diml-outdoor": "langdepth.data.sets.diml",
    "diode-indoor": "langdepth.data.sets.diode:INDOOR",
    "diode-outdoor": "langdepth.data.sets.diode:OUTDOOR",
    "folder": "langdepth.data.sets.folder",
    "hypersim": "langdepth.data.sets.hypersim",
    "ibims1": "langdepth.data.sets.ibims1",
    "kitti": "langdepth.data.sets.kitti",
    "nyu": "langdepth.data.sets.nyu",
    "sunrgbd": "langdepth.data.sets.sunrgbd",
    "vkitti2": "langdepth.data.sets.vkitti2",
}
DATASETS = BUILT_IN | {name: point.value for name, point in plugins("datasets", tuple(BUILT_IN)).items()}
MANIFEST = "langdepth-manifest.csv"  # of what was prepared
INCOMPLETE = ".langdepth-incomplete"  # lies in a folder that is still being prepared


@runtime_checkable
class DepthDataset(Protocol):
    """Images with ground truth. ``dataset[i]`` raises ImageError, naming the file, when a pair is unusable."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """Facts about a data set."""

    name: str
    title: str
    unit: str
    """How depth is stored, in words."""
    depth_scale: float | None
    """Metres per stored unit; None where an index says it."""
    invalid: str
    """What stands for "no value"."""
    intrinsics: str
    depth_range: tuple[float, float]
    """Metres that the sensor measures."""
    median_range: tuple[float, float]
    """Metres between which the median of some depth maps lies, unless their unit is misunderstood."""
    scenes: str
    """Where scene labels come from."""
    licence: str
    where: str
    """Where to get it."""
    layouts: tuple[str, ...]
    """Files below the root that are understood."""
    splits: Mapping[str, int | None]
    """Split -> number of its pairs, None where the data itself decides."""
    training: tuple[str, ...] = ("train",)
    """The splits that are learned from; the others must share nothing with them."""
    split: str | None
    """What is evaluated unless another is asked for; None: all."""
    protocol: str
    """The evaluation protocol unless another is asked for."""


class Member(NamedTuple):
    """A file that a source gives: where it goes below the folder, its bytes, and what its content is read by.

    info: in an archive what that opens it by, else a function that returns the content. exact: ``size`` is no estimate.
    always_write: even over a whole one.
    """

    path: str
    size: int
    info: Any
    exact: bool = True
    always_write: bool = False

    def is_in(self, out: Path) -> bool:
        """Whether a file lies at its place, of its size where that is known."""
        target = out / self.path
        return target.is_file() and (not self.exact or target.stat().st_size == self.size)


@dataclass(frozen=True)
class Search:
    """Where the pairs of a data set are searched for, and which.

    root: the folder of the data set. split: one of the card's; None: all that are there. problems: where errors about
    single pairs are appended; without it they are raised. truth_root: where the ground truth lies, in the same tree as
    below ``root``, if not there.
    """

    root: Path
    split: str | None = None
    problems: list[LangdepthError] | None = None
    truth_root: Path | None = None


class Layout(Protocol):
    """The module of a data set."""

    CARD: DatasetCard

    def rows(self, search: Search) -> list[Row]:
        """The pairs that are there, in the order of the official list. Listed pairs that are missing are left out.

        Raises:
            LangdepthError: The root has none of the layouts, a list is missing, or all files that it names are.
        """
        ...


Reader = Callable[[Path, str], list[Row]]
"""From a folder and a split to the rows of one layout; none where that layout is not there."""


def layout(name: str) -> Layout:
    """The module of the data set ``name``, or the part of one. Raises UsageError naming the nearest known one."""
    if name not in DATASETS:
        raise UsageError(f"unknown data set '{name}': {nearest(name, DATASETS)}")
    return cast(Layout, load_target(DATASETS[name], f"the data set '{name}'"))


def card_of(name: str, root: str | Path) -> DatasetCard:
    """The card of the data set ``name``; where its module has a function ``card``, the one that fits ``root``."""
    module = layout(name)
    known: Callable[[Path], DatasetCard] | None = getattr(module, "card", None)
    return module.CARD if known is None else known(Path(root))


def find_rows(
    name: str,
    root: str | Path,
    split: str | None = None,
    problems: list[LangdepthError] | None = None,
    *,
    list: str | Path | None = None,
    truth_root: str | Path | None = None,
) -> list[Row]:
    """The rows of the data set ``name`` below ``root``, see ``Layout.rows``.

    Args:
        name: One of ``DATASETS``.
        root: Its folder.
        split: Only this split.
        problems: Where errors about single rows are appended, instead of being raised.
        list: A list file that says which pairs are read, instead of a split (data/pairs.py).
        truth_root: The folder of the ground truth, if it is another one.

    Raises:
        UsageError: A split that the set does not have, a list beside a split, or one for a set that takes none.
        LangdepthError: The data is not there.
    """
    source = layout(name)
    if split is not None and source.CARD.splits and split not in source.CARD.splits:
        raise UsageError(f"{name} has no split '{split}': {nearest(split, source.CARD.splits)}")
    for folder in (root, truth_root):
        if folder is not None and not Path(folder).is_dir():
            raise LangdepthError(f"{folder}: no such folder")
    truth = None if truth_root is None else Path(truth_root)
    if list is None:
        return source.rows(Search(Path(root), split, problems, truth))
    if split is not None:
        raise UsageError(f"{list}: a list says which pairs are read; leave the split '{split}' out")
    rules: ListRules | None = getattr(source, "LISTS", None)
    if rules is None:
        takers = ", ".join(known for known in DATASETS if hasattr(layout(known), "LISTS"))
        raise UsageError(f"{list}: the data set {name} takes no list file; those that do: {takers}")
    found = listed_rows(Path(list), rules, Path(root), truth)
    return present(found, f"{list} below {root}", problems, counted=False)


def first_layout(card: DatasetCard, search: Search, *readers: Reader, folders: Sequence[str] = ("",)) -> list[Row]:
    """What ``Layout.rows`` returns, for sets with several layouts: each split from the first reader that finds it.

    Args:
        card: Of the data set.
        search: What is asked for.
        readers: One per layout.
        folders: Below the root, where the layouts may begin; the first that has a split counts.
    """
    found: list[Row] = []
    root, problems = search.root, search.problems
    known = 0 if problems is None else len(problems)
    bases = [base for folder in folders if (base := root / folder).is_dir()]
    for wanted in card.splits if search.split is None else (search.split,):
        try:
            rows = next((rows for base in bases for read in readers if (rows := read(base, wanted))), [])
        except LangdepthError as error:
            if problems is None:
                raise
            if str(error) not in map(str, problems):
                problems.append(error)
            continue
        if search.truth_root is not None:
            rows = with_truth_below(rows, root, search.truth_root)
        # ``split_counts`` warns of a part where the official number of pairs is known.
        found += present(rows, f"{root}, split {wanted}", problems, counted=card.splits[wanted] is not None)
    if not found and (problems is None or len(problems) == known):
        part = "" if search.split is None else f" split {search.split} of"
        nothing = LangdepthError(f"{root}: holds no{part} {card.title}; known layouts: {'; '.join(card.layouts)}")
        if problems is None:
            raise nothing
        problems.append(nothing)
    return found


@checked
def open_dataset(
    name: str,
    root: str | Path,
    split: str | None = None,
    source: str | None = None,
    *,
    captions: str | Path | Captions | None = None,
    without_caption: WithoutCaption = "stop",
    trust_unit: bool = False,
    list: str | Path | None = None,
    truth_root: str | Path | None = None,
) -> RowDataset:
    """The data set ``name`` below ``root``; ``split`` and ``source`` keep the matching images only.

    ``captions``, ``without_caption``: see ``RowDataset``. ``trust_unit``: take depth as it is, even where its unit
    seems wrong or it cannot be, see ``data.truth``. ``list``, ``truth_root``: see ``find_rows``. Warns of splits that
    have fewer pairs than the official ones. Raises LangdepthError for data that is missing, still being prepared or of
    a wrong unit, UsageError for a choice that keeps nothing.
    """
    stopped = unfinished(Path(root))
    if stopped is not None:
        raise LangdepthError(stopped)
    rows = find_rows(name, root, split, list=list, truth_root=truth_root)
    if first_process():
        for line in split_counts(layout(name).CARD, rows, split):
            advice = (
                "figures of a part do not compare with published ones; 'langdepth data check' names what is missing"
            )
            warnings.warn(f"{root}: {line}; {advice}", stacklevel=3)
    if source is not None:
        rows = keep(rows, "source", source, root)
    card = card_of(name, root)
    unused = next((line for line in map(unused_scale, rows) if line is not None), None)
    if unused is not None and first_process():
        warnings.warn(unused, stacklevel=3)
    if not trust_unit:
        suspicion = wrong_unit(card, rows)
        if suspicion:
            raise LangdepthError(f"{root}: {suspicion}; {TRUST}")
    dataset = RowDataset(name, rows, captions, without_caption, None if trust_unit else partial(impossible_depth, card))
    dataset.split = split if list is None else Path(list).name
    named = {"source": source, "captions": captions if isinstance(captions, str | Path) else None}
    dataset.part = {what: str(value) for what, value in named.items() if value is not None}
    return dataset


def split_counts(card: DatasetCard, rows: list[Row], split: str | None = None) -> list[str]:
    """A line for each split that is there with fewer pairs than the official one; ``split`` must be there."""
    found = {name: sum(row.split == name for row in rows) for name in card.splits}
    return [
        f"{card.name}: {found[name]} of {wanted} pairs of split {name} are there ({found[name] / wanted:.2%})"
        for name, wanted in card.splits.items()
        if wanted is not None and found[name] < wanted and (found[name] or name == split)
    ]


def folder_with(name: str, root: Path) -> Path | None:
    """``root``, or the nearest folder above it, in which ``name`` lies; what was prepared may have folders on top."""
    root = root.absolute()
    return next((folder for folder in (root, *root.parents) if (folder / name).exists()), None)


def unfinished(root: Path) -> str | None:
    """What is wrong with a data set whose preparation, into this folder or one above, was interrupted."""
    place = folder_with(INCOMPLETE, root)
    return None if place is None else f"{place}: 'langdepth data prepare' was interrupted here; run it again"


def keep(rows: list[Row], column: str, wanted: str, root: str | Path) -> list[Row]:
    """The rows whose ``column`` is ``wanted``. Raises UsageError when there is none."""
    known = {getattr(row, column) for row in rows}
    if wanted not in known:
        raise UsageError(f"{root}: no row has {column} '{wanted}': {nearest(wanted, known)}")
    return [row for row in rows if getattr(row, column) == wanted]
