"""Which pairs of a data set are read, the same for commands, tools and matrices. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PairChoice:
    """Which pairs of a data set are read. The fields are arguments of ``data.base.find_rows`` and ``open_dataset``.

    Args:
        split: Only this split.
        list: The pairs of this list file instead of a split (image, depth, focal length, a line each, as BTS has them).
        truth_root: Folder of the ground truth, where it lies in a tree of its own.
    """

    split: str | None = None
    list: Path | None = None
    truth_root: Path | None = None

    @property
    def shown(self) -> str | None:
        """The split, or the name of the list, as reports state it."""
        return self.split if self.list is None else self.list.name


ALL = PairChoice()
