"""Data sets by name: every one yields ``Sample`` records at the stored size."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from langdepth.errors import UsageError, nearest
from langdepth.types import Sample

DATASETS = {"folder": "langdepth.data.folder:FolderDataset"}


class DepthDataset(Protocol):
    """Pictures with ground truth. ``dataset[i]`` raises ImageError, naming the file, when a pair is unusable."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_dataset(
    name: str, root: str | Path, split: str | None = None, source: str | None = None, **options: Any
) -> DepthDataset:
    """The data set ``name`` below ``root``; ``split`` and ``source`` keep the matching pictures only.

    ``options``: further ones of the data set's class.
    """
    if name not in DATASETS:
        raise UsageError(f"unknown data set '{name}': {nearest(name, DATASETS)}")
    module, _, attribute = DATASETS[name].partition(":")
    dataset: DepthDataset = getattr(import_module(module), attribute)(root, split=split, source=source, **options)
    return dataset
