"""The training and validation images of a recipe."""

from __future__ import annotations

import copy
from functools import partial

from langdepth.data.base import find_rows, keep, layout, open_dataset
from langdepth.data.hold_out import held_out
from langdepth.data.rows import Row, RowDataset
from langdepth.text.caption_features import open_captions
from langdepth.training.sampling import few_shots
from langdepth.training.sections import DataSection


def open_sets(data: DataSection) -> tuple[RowDataset, RowDataset]:
    """The images to learn from and those to validate on.

    Raises UsageError and LangdepthError, see ``data.base.open_dataset`` and ``data.hold_out.held_out``.
    """
    captions = None if data.captions is None else open_captions(data.captions, sentences_alone=True)
    opened = partial(open_dataset, captions=captions, without_caption=data.without_caption, trust_unit=data.trust_unit)
    main = partial(opened, data.name, data.root, truth_root=data.truth_root)
    split = None if data.train_list is not None or _unsplit(data) else data.train_split
    learned = main(split, list=data.train_list)
    validated = copy.copy(learned)
    if data.val_list is not None or data.val_split is not None:
        val_split = None if data.val_list is not None else data.val_split
        validated = main(val_split, data.val_source, list=data.val_list)
    else:
        learned.rows, validated.rows = _divided(data, learned.rows)
        validated.split = data.validation
        validated.part = {} if data.val_source is None else {"source": data.val_source}
    for other in data.more:
        learned.rows += opened(other.name, other.root, other.split, truth_root=other.truth_root).rows
    if data.shots is not None:
        learned.rows = [learned.rows[place] for place in _shots(data, learned.rows)]
    return learned, validated


def _divided(data: DataSection, rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows to learn from and those that are held out, of ``data.val_source`` only where it is named."""
    choice = rows if data.val_source is None else keep(rows, "source", data.val_source, data.root)
    needed = _shots(data, choice) if data.shots is not None else []
    held = [choice[place] for place in held_out(choice, data.hold_out or 0, needed)]
    ids = {id(row) for row in held}
    return [row for row in rows if id(row) not in ids], held


def _shots(data: DataSection, rows: list[Row]) -> list[int]:
    return few_shots([row.scene for row in rows], data.shots or 0, data.shots_seed)


def _unsplit(data: DataSection) -> bool:
    """Whether this is a folder whose index has no splits: then all of it is divided."""
    if layout(data.name).CARD.splits or data.validation_named or data.train_list is not None:
        return False
    return not any(row.split for row in find_rows(data.name, data.root, truth_root=data.truth_root))
