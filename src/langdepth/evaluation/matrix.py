"""Systems x data sets x protocols: every cell a report, all of them one table with the papers' numbers beside ours.

A cell is not run again while its report lies in the output folder and its identity is the same: the weights' content
(with a class of one's own also the module's file), what the rows of the data set are made of (facts, and the size and
time of change of their files), its captions where the system reads them, the hash of the protocol, and the version of
the program and of its metrics.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langdepth._version import __version__
from langdepth.config import to_mapping
from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset, made_of
from langdepth.errors import LangdepthError, UsageError, one_line
from langdepth.evaluation import metrics
from langdepth.evaluation.comparison import Comparing, PerImage, comparisons, intervals, papers_numbers
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.matrix_file import Matrix, MatrixData, MatrixSystem, cause
from langdepth.evaluation.metrics import METRICS
from langdepth.evaluation.predictions import Predictions
from langdepth.evaluation.protocols import Protocol
from langdepth.evaluation.tables import ERRORS, require_own_tables, write_tables
from langdepth.prediction.options import Precision
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import HasFrozenTrunk, TakesBase
from langdepth.text.cache import add_tensors
from langdepth.text.prompts import read_changes
from langdepth.utils.arguments import checked
from langdepth.utils.files import write_json
from langdepth.utils.locks import locked
from langdepth.utils.reading import read_text
from langdepth.weights import checkpoint
from langdepth.weights.stamps import module_stamp

_MOST_BYTES = 100_000_000  # of a cell's report


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A system on a data set under a protocol, or why the system or the data set cannot be used."""

    row: MatrixSystem
    data: MatrixData
    protocol: Protocol
    system: System | Predictions | LangdepthError
    weights: str
    """The system's fingerprint."""
    dataset: RowDataset | LangdepthError
    contents: str
    """What its rows are made of, see ``_contents``."""
    captions: Path | None
    """What the data set was opened with."""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row.label} on {self.data.label}, {self.protocol.name}"

    @property
    def file(self) -> str:
        """Where its report lies in the output folder, without the ending."""
        return f"cells/{_file_name(self.row.label, self.data.label, self.protocol.name)}"

    def facts(self) -> dict[str, Any]:
        """What is known before it is run."""
        name, config = self.row.system, None
        if isinstance(self.system, System):
            config = self.system.config
            name = name if name in registry.REGISTRY else self.system.name  # weights of one that is
        data, count = self.data, 0
        if data.source is None and data.list is None and not isinstance(self.dataset, LangdepthError):
            count = len(self.dataset.rows[: data.limit])
        paper = papers_numbers(name, config, self.protocol.name, data.data, data.kept, count)
        return {
            "system": self.row.label,
            "data": self.data.label,
            "split": self.data.kept,
            "protocol": self.protocol.name,
            "hash": self.protocol.hash,
            "paper": paper.metrics if paper else None,
            "source": paper.source if paper else None,
            "intervals": {},
            "p": None,
            "file": self.file,
        }

    def report(self, out: Path, options: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Its report, and whether it was there already. ``options``: device, dtype and batch_size of ``evaluate``."""
        if isinstance(self.dataset, LangdepthError):
            raise self.dataset
        if isinstance(self.system, LangdepthError):
            raise self.system
        data, dataset = self.data, self.dataset
        identity: dict[str, Any] = {
            "weights": self.weights,
            "data": [data.data, data.kept, data.source, data.limit, data.trust_unit, self.contents],
            "protocol": self.protocol.hash,
            "dtype": options["dtype"],
            "version": [__version__, metrics.DEFINITIONS],
        }
        code = module_stamp(self.system.name) if isinstance(self.system, System) else None
        if code is not None:
            identity["code"] = list(code)
        if self.captions is not None and dataset.captions is not None:
            identity["captions"] = [str(self.captions), dataset.captions.sha256[:16], data.without_caption]
        if isinstance(self.system, System) and self.system.takes_overlay:
            dataset = copy.copy(dataset)
            dataset.rows = with_overlays(dataset.rows[: data.limit], self.system, data.overlay)
            identity["overlays"] = _contents(dataset)
        place = out / self.file
        known = _read_cell(place.with_name(f"{place.name}.json"))
        if known.get("identity") == identity:
            return known["report"], True
        report = evaluate(
            self.system,
            dataset,
            self.protocol,
            limit=data.limit,
            html=place.with_name(f"{place.name}.html"),
            **options,
        )
        write_json({"identity": identity, "report": report}, place.with_name(f"{place.name}.json"))
        return report, False


@checked
def run_matrix(
    matrix: Matrix,
    out: Path,
    *,
    device: str | None = None,
    dtype: Precision = "float32",
    batch_size: int = 1,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Fill ``out`` with a report (JSON, HTML) per cell and the tables matrix.md, matrix.csv, matrix.json.

    Returns:
        The cells: system, data, split, protocol, hash, paper, source (of the paper's number), file, and either ours
        (the report) or why it has none, one line; intervals (95 %, of the image means) and p (of the paired test
        against the best system of its table), see ``comparison``. ``say`` gets a line per cell. The tables are written
        again after every system.
    """
    require_own_tables(out)
    options = {"device": device, "dtype": dtype, "batch_size": batch_size}
    filled: list[dict[str, Any]] = []
    images: list[PerImage | None] = []
    p = Comparing()
    with locked(out):  # that nothing can be written is known before the work
        (out / "cells").mkdir(exist_ok=True)
        opened = [{words: data.open(words) for words in dict.fromkeys((None, data.captions))} for data in matrix.data]
        contents = [_contents(datasets[None]) for datasets in opened]
        nothing = all(isinstance(datasets[None], LangdepthError) for datasets in opened)
        for row in matrix.rows():
            # One system is in memory at a time, whatever the number of data sets
            loaded = LangdepthError("there is no data set") if nothing else _loaded(row)
            weights = fingerprint(loaded) if isinstance(loaded, System) else ""
            for data, datasets, made in zip(matrix.data, opened, contents, strict=True):
                for cell in _cells(row, data, loaded, weights, datasets, made):
                    filled.append(cell.facts())
                    images.append(None)
                    try:
                        report, again = cell.report(out, options)
                        each: PerImage = report.pop("per_image")
                        images[-1] = each
                        filled[-1] |= {"ours": report, "why": None, "intervals": intervals(each)}
                        say(one_line(f"{cell.name}: {'as before' if again else 'done'}"))
                    except Exception as error:  # whatever it is, the other cells go on
                        filled[-1] |= {"ours": None, "why": str(cause(error))}
                        say(one_line(f"{cell.name}: not run: {filled[-1]['why']}"))
            _compare(filled, images, p)
            write_tables(filled, out)
    return filled


def _compare(cells: list[dict[str, Any]], images: list[PerImage | None], p: Comparing) -> None:
    """Fill in p of each cell, table by table."""
    for table in {(cell["data"], cell["hash"]) for cell in cells}:
        places = [place for place, cell in enumerate(cells) if (cell["data"], cell["hash"]) == table]
        for place, found in zip(places, comparisons([images[place] for place in places], p), strict=True):
            cells[place]["p"] = found


def _cells(
    row: MatrixSystem,
    data: MatrixData,
    loaded: System | LangdepthError | None,
    weights: str,
    datasets: dict[Path | None, RowDataset | LangdepthError],
    contents: str,
) -> list[Cell]:
    """The cells of a row and a data set, one for each protocol."""
    system = loaded or _predictions(row, data)
    captions = data.captions if isinstance(system, System) and system.text_per_image else None
    return [
        Cell(
            row=row,
            data=data,
            protocol=rules if row.predictions is None else _applicable(system, rules),
            system=system,
            weights=system.fingerprint() if isinstance(system, Predictions) else weights,
            dataset=datasets[captions],
            contents=contents,
            captions=captions,
        )
        for rules in data.rules()
    ]


def fingerprint(system: System) -> str:
    """Sixteen hex digits that change with the weights or the configuration."""
    facts = [system.name, system.scale_kind, to_mapping(system.config)]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    add_tensors(digest, system.state_dict())
    trunk = system.frozen_trunk() if isinstance(system, TakesBase) and isinstance(system, HasFrozenTrunk) else None
    if trunk is not None:  # the base is no part of the system's own tensors
        add_tensors(digest, trunk[0].state_dict())
    return digest.hexdigest()[:16]


def _loaded(row: MatrixSystem) -> System | LangdepthError | None:
    """The row's system, or why there is none; None for finished predictions, which belong to a data set."""
    try:
        if row.predictions:
            return None
        return checkpoint.load(
            row.system,
            clip_weights=row.clip_weights,
            prompts=read_changes(row.prompts),
            base=row.base,
            depth_kind=row.depth_kind,
        )
    except Exception as error:
        return cause(error)


def _predictions(row: MatrixSystem, data: MatrixData) -> Predictions | LangdepthError:
    """The row's finished depth maps of a data set, or why there are none."""
    folder = (row.predictions or Path()) / data.label
    try:
        return Predictions(folder, data.root, row.depth_kind or "metric", row.prediction_scale)
    except LangdepthError as error:
        return error


def _applicable(system: System | Predictions | LangdepthError, rules: Protocol) -> Protocol:
    """The protocol that finished maps are evaluated under; maps that do not fit it say so when they are."""
    if isinstance(system, Predictions):
        with suppress(UsageError):
            return system.applicable(rules)
    return Predictions.rules(rules)


def _contents(dataset: RowDataset | LangdepthError) -> str:
    """Sixteen hex digits of what the rows are made of."""
    rows = [] if isinstance(dataset, LangdepthError) else made_of(dataset.rows)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _read_cell(path: Path) -> dict[str, Any]:
    """A finished cell; nothing where the file is missing, damaged or lacks what the tables show."""
    try:
        content = json.loads(read_text(path, _MOST_BYTES), parse_constant=_no_number)
        return content if isinstance(content, dict) and _is_whole(content["report"]) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _no_number(name: str) -> None:
    """For NaN and infinity, which no report of ours holds."""
    raise ValueError(f"{name} in a report")


def _is_whole(report: dict[str, Any]) -> bool:
    """Whether a report has what the tables show. Raises KeyError or TypeError where a part is missing."""
    boundaries = {} if report["boundaries"] is None else {name: report["boundaries"][name] for name in ERRORS}
    means = {name: report["image_mean"][name] for name in METRICS}
    counts = {name: report[name] for name in ("images", "skipped")}
    lists = [report["per_image"][name] for name in ("index", *METRICS)]
    numbers = [*(means | boundaries | counts).values(), *(value for values in lists for value in values)]
    return {len(values) for values in lists} == {report["images"]} and all(isinstance(n, int | float) for n in numbers)


def _file_name(*labels: str) -> str:
    """A readable name for a file that no two cells share."""
    plain = "--".join(re.sub(r"[^\w.=+-]+", "_", label) for label in labels)[:120]
    return f"{plain}-{hashlib.sha256(repr(labels).encode()).hexdigest()[:6]}"
