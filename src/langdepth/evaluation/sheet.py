"""The images of a report's sheet: the best, the worst and some near the median, kept while the evaluation runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from langdepth.evaluation.records import EvaluatedBatch
from langdepth.evaluation.tally import Table, image_metrics
from langdepth.prediction import viz
from langdepth.records import Sample
from langdepth.utils.processes import gathered

ROWS = 2  # of the best, the median and the worst each
_SPREAD = 16  # images kept for the median, evenly spread over the data set
_SHOWN = ("abs_rel", "rmse", "delta1")


def sheet_row(batch: EvaluatedBatch, place: int, title: str) -> viz.SheetRow:
    """An image of an evaluated batch as a row of a contact sheet."""
    return viz.SheetRow(
        image=batch.pixels(place),
        target=torch.where(batch.valid, batch.target, 0)[place, 0].numpy(),
        prediction=batch.prediction[place, 0].numpy(),
        title=title,
    )


class Sheet:
    """Keeps a few images of an evaluation, so that none has to be evaluated again for the report's sheet.

    The median of the scores is known at the end only. Images are therefore kept evenly spread over the data set, and
    the nearest to the median among them are shown; up to 16 images the nearest are the median ones.
    """

    def __init__(self) -> None:
        self._rows: dict[int, viz.SheetRow] = {}
        self._scores: dict[int, float] = {}
        self._every = 1

    def add(self, records: Table, samples: Sequence[Sample], batch: EvaluatedBatch) -> None:
        """Add an evaluated batch with its records, see ``Tally.add``."""
        metrics = image_metrics(records)
        for place, sample in enumerate(samples):
            index, score = int(records["index"][place]), float(metrics["abs_rel"][place])
            if np.isnan(score):
                continue
            self._scores[index] = score
            self._drop()
            if index in self._scores:
                numbers = "  ".join(f"{name} {metrics[name][place]:.3f}" for name in _SHOWN)
                row = sheet_row(batch, place, f"{numbers}  {'/'.join(Path(sample.path).parts[-2:])}")
                self._rows[index] = copy.deepcopy(row)  # a view would keep the whole batch

    def _drop(self) -> None:
        """Forget all but the best, the worst and the spread ones."""
        order = sorted(self._scores, key=lambda index: self._scores[index])
        spread = [index for index in order if index % self._every == 0]
        if len(spread) > _SPREAD:
            self._every *= 2
            spread = [index for index in spread if index % self._every == 0]
        for index in set(order) - {*order[:ROWS], *order[-ROWS:], *spread}:
            del self._scores[index]
            self._rows.pop(index, None)

    def gather(self, table: Table) -> list[viz.SheetRow]:
        """The rows of the sheet, best first, from all processes of the group. ``table``: the records of all images."""
        metric = image_metrics(table)["abs_rel"]
        order = table["index"][metric.argsort(kind="stable")].tolist()
        rows = {index: row for part in gathered(self._rows) for index, row in part.items()}
        chosen = chosen_images(order, list(rows))
        return [rows[index]._replace(title=f"{place}:  {rows[index].title}") for place, index in chosen]


def chosen_images(order: Sequence[int], kept: Sequence[int]) -> list[tuple[str, int]]:
    """Names and indices of the images of a sheet.

    Args:
        order: All images, best first.
        kept: Those that can be shown, the first and the last of ``order`` among them.
    """
    each = min(ROWS, max(1, len(order) // 3))
    best, worst = list(order[:each]), list(order[max(each, len(order) - each) :])
    rank = {index: place for place, index in enumerate(order)}
    middle = (len(order) - 1) / 2
    inner = [index for index in kept if index not in best and index not in worst]
    nearest = sorted(inner, key=lambda index: (abs(rank[index] - middle), rank[index]))
    median = sorted(nearest[:each], key=rank.__getitem__)
    names = [_numbered("best", place) for place in range(len(best))]
    names += ["median"] * len(median)
    names += [_numbered("worst", place) for place in reversed(range(len(worst)))]
    return list(zip(names, [*best, *median, *worst], strict=True))


def _numbered(name: str, place: int) -> str:
    return f"{place + 1}nd {name}" if place else name
