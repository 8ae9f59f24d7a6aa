"""Systems x data sets x protocols: every cell a report, all of them one table with the papers' numbers beside ours.

A cell is not run again while its report lies in the output folder and its identity is the same: the weights' content,
what the rows of the data set are made of (facts, and the size and time of change of their files), its captions where
the system reads them, the hash of the protocol, and the version of the program and of its metrics.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from langdepth._version import __version__
from langdepth.config import from_mapping, load_yaml, to_mapping
from langdepth.data.base import layout, open_dataset
from langdepth.data.overlays import with_overlays
from langdepth.data.rows import RowDataset, made_of
from langdepth.errors import LangdepthError, UsageError
from langdepth.evaluation import metrics, protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.foreign import PREFIX, Predictions, ScaleKind, load_transformers
from langdepth.evaluation.metrics import EXTRA_METRICS, METRICS
from langdepth.evaluation.protocols import Alignment, Protocol
from langdepth.evaluation.report import require_own, write_json
from langdepth.records import WithoutCaption
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.ensemble import combine
from langdepth.text.cache import add_tensors
from langdepth.utils.files import atomic_path, locked
from langdepth.weights import checkpoint

SHOWN = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")  # of the Markdown table; the others hold all
_ERRORS = ("accuracy", "completeness")  # pixels, of data sets that state true edges, as reports call them
BOUNDARIES = tuple(f"boundary_{name}" for name in _ERRORS)
_LEGEND = """\
Means over images. Of delta1 to delta3 more is better, of all else less; rmse in metres, boundary errors in pixels.
A table holds what was judged on the same data by the same rules: a protocol, with the hash of its switches.
"ours" was measured here, "paper" is what the paper prints under these rules."""


@dataclass(frozen=True, kw_only=True)
class MatrixSystem:
    """A row. ``system``: registry name, weights file, hub id or ``transformers:FOLDER``; or, instead of it,
    ``predictions``: a folder of finished depth maps with one subfolder per data set, called like it in the matrix."""

    system: str = ""
    name: str = ""
    clip_weights: str | None = None
    depth_kind: ScaleKind | None = None
    predictions: Path | None = None
    prediction_scale: float | None = None

    @property
    def label(self) -> str:
        """How the row is called."""
        return self.name or self.system or str(self.predictions)


@dataclass(frozen=True, kw_only=True)
class MatrixData:
    """A data set and the protocols it is judged under; without any, its own.

    ``list``: a list file whose pairs are read instead of a split. ``truth_root``: the folder of the ground truth, where
    it lies in a tree of its own. ``captions``: packed captions, for the systems that read words per image; the others
    see the images alone. ``overlay``: folder of overlays, for the systems that take one.
    ``trust_unit``: take depth as it is, even where its unit looks wrong.
    """

    root: Path
    data: str = "folder"
    name: str = ""
    split: str | None = None
    list: Path | None = None
    truth_root: Path | None = None
    source: str | None = None
    limit: int | None = None
    captions: Path | None = None
    without_caption: WithoutCaption = "stop"
    overlay: Path | None = None
    trust_unit: bool = False
    protocols: tuple[str, ...] = ()
    alignment: Alignment = "none"

    @property
    def label(self) -> str:
        """How the data set is called in the table."""
        return self.name or " ".join(part for part in (self.data, self.source) if part)

    @property
    def kept(self) -> str | None:
        """The split that is judged."""
        return self.list.name if self.list is not None else self.split or layout(self.data).CARD.split

    def open(self, captions: Path | None) -> RowDataset | LangdepthError:
        """The data set with these captions, or why there is none."""
        try:
            return open_dataset(
                self.data,
                self.root,
                self.split if self.list is not None else self.kept,
                self.source,
                captions=captions,
                without_caption=self.without_caption,
                trust_unit=self.trust_unit,
                truth_root=self.truth_root,
                pairs=self.list,
            )
        except Exception as error:
            return _told(error)

    def rules(self) -> Sequence[Protocol]:
        """The protocols with the alignment, each once."""
        names = dict.fromkeys(self.protocols) or (layout(self.data).CARD.protocol,)
        return [protocols.get(name).override(alignment=self.alignment) for name in names]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a matrix file says. Without ``systems``: all of the registry."""

    data: list[MatrixData]
    systems: tuple[MatrixSystem | str, ...] = field(default_factory=lambda: tuple(registry.list_systems()))

    def rows(self) -> list[MatrixSystem]:
        """The systems as records."""
        return [MatrixSystem(system=row) if isinstance(row, str) else row for row in self.systems]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A system on a data set under a protocol, or why the system or the data set is not there."""

    row: MatrixSystem
    data: MatrixData
    protocol: Protocol
    system: System | Predictions | LangdepthError
    dataset: RowDataset | LangdepthError
    contents: str
    """What its rows are made of, in sixteen hex digits."""
    weights: str
    """The system's fingerprint."""
    captions: Path | None
    """What the data set was opened with."""

    @property
    def file(self) -> str:
        """Its report below the output folder, without suffix."""
        return f"cells/{_file_name(self.row.label, self.data.label, self.protocol.name)}"

    def facts(self) -> dict[str, Any]:
        """What is known before it is run."""
        name = self.row.system
        if isinstance(self.system, System) and name not in registry.REGISTRY:  # weights of one that is
            name = self.system.name
        paper = registry.REGISTRY[name].numbers.get(self.protocol.name) if name in registry.REGISTRY else None
        return {
            "system": self.row.label,
            "data": self.data.label,
            "split": self.data.kept,
            "protocol": self.protocol.name,
            "hash": self.protocol.hash,
            "paper": paper.metrics if paper else None,
            "source": paper.source if paper else None,
            "file": self.file,
        }


def read_matrix(path: Path) -> Matrix:
    """A matrix file (YAML). Raises UsageError for unknown keys, wrong values, and two rows or columns of one name."""
    matrix = from_mapping(Matrix, load_yaml(path, "matrix"))
    if not matrix.data:
        raise UsageError(f"{path}: data names no data set")
    if not matrix.systems:
        raise UsageError(f"{path}: systems names no system; leave the key out to run all of them")
    for what, labels in (("systems", [row.label for row in matrix.rows()]), ("data", [d.label for d in matrix.data])):
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise UsageError(f"{path}: two of {what} are called '{twice}'; give each a name")
    for row in matrix.rows():
        if bool(row.system) == (row.predictions is not None):
            raise UsageError(f"{path}: '{row.label}' needs either system or predictions")
        if row.predictions is None and row.prediction_scale is not None:
            raise UsageError(f"{path}: '{row.label}' is a system; prediction_scale is for predictions, leave it out")
        if row.predictions is not None and row.clip_weights is not None:
            raise UsageError(f"{path}: '{row.label}' are predictions; clip_weights is for systems, leave it out")
    for data in matrix.data:
        data.rules()  # wrong names are known before the work
    return matrix


def load_system(
    name: str | Sequence[str], clip_weights: str | None = None, depth_kind: ScaleKind | None = None
) -> System:
    """A system of ours or, under ``transformers:FOLDER``, one of that library; of several names their mean.

    Raises UsageError for wrong options.
    """
    if not isinstance(name, str):
        return combine([load_system(one, clip_weights, depth_kind) for one in name])
    if name.startswith(PREFIX):
        if depth_kind is None:
            raise UsageError(f"'{name}': say what its numbers are: metric, relative or disparity (depth kind)")
        return load_transformers(name.removeprefix(PREFIX), depth_kind)
    if depth_kind is not None:
        raise UsageError(f"'{name}' knows what its numbers are; leave the depth kind out")
    return checkpoint.load(name, clip_weights=clip_weights)


def fingerprint(system: System | Predictions) -> str:
    """Sixteen hex digits that change with the weights or the configuration, or with the depth maps and their scale."""
    if isinstance(system, Predictions):
        return system.fingerprint()
    facts = [system.name, system.scale_kind, to_mapping(system.config)]
    digest = hashlib.sha256(json.dumps(facts, default=str).encode())
    add_tensors(digest, system.state_dict())
    return digest.hexdigest()[:16]


def run_matrix(
    matrix: Matrix,
    out: Path,
    *,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 1,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Fill ``out`` with a report (JSON, HTML) per cell and the tables matrix.md, matrix.csv, matrix.json.

    Returns the cells: system, data, split, protocol, hash, paper, source (of the paper's number), file, and either ours
    (the report) or why it has none, one line. ``say`` gets a line per cell. The tables are written again after every
    system.
    """
    for name, mark in (
        ("matrix.json", b'"ours": '),
        ("matrix.md", b"| system | who |"),
        ("matrix.csv", b"system,data,"),
    ):
        require_own(out / name, mark)
    with locked(out):  # that nothing can be written is known before the work
        (out / "cells").mkdir(exist_ok=True)
        return _run_matrix(matrix, out, device, dtype, batch_size, say)


def _run_matrix(
    matrix: Matrix, out: Path, device: str | None, dtype: str, batch_size: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    opened = [{words: data.open(words) for words in dict.fromkeys((None, data.captions))} for data in matrix.data]
    contents = [_contents(datasets[None]) for datasets in opened]
    nothing = all(isinstance(datasets[None], LangdepthError) for datasets in opened)
    cells: list[dict[str, Any]] = []
    for row in matrix.rows():
        # One system is in memory at a time, whatever the number of data sets
        loaded = LangdepthError("there is no data set") if nothing else _loaded(row)
        known = fingerprint(loaded) if isinstance(loaded, System) else ""
        for data, datasets, made in zip(matrix.data, opened, contents, strict=True):
            system = loaded or _predictions(row, data)
            captions = data.captions if isinstance(system, System) and system.text_per_image else None
            for rules in data.rules():
                protocol = rules if row.predictions is None else _obeyed(system, rules)
                cell = Cell(
                    row=row,
                    data=data,
                    protocol=protocol,
                    system=system,
                    dataset=datasets[captions],
                    contents=made,
                    weights=system.fingerprint() if isinstance(system, Predictions) else known,
                    captions=captions,
                )
                facts = cell.facts()
                cells.append(facts)
                try:
                    report, again = _filled(cell, out, device=device, dtype=dtype, batch_size=batch_size)
                    facts |= {"ours": report, "why": None}
                    say(f"{row.label} on {data.label}, {protocol.name}: {'as before' if again else 'done'}")
                except Exception as error:  # whatever it is, the other cells go on
                    facts |= {"ours": None, "why": str(_told(error))}
                    say(f"{row.label} on {data.label}, {protocol.name}: not run: {facts['why']}")
        _write_tables(cells, out)
    return cells


def _told(error: Exception) -> LangdepthError:
    """What a cell says of an error; those of other libraries with their kind."""
    return error if isinstance(error, LangdepthError) else LangdepthError(f"{type(error).__name__}: {error}")


def _loaded(row: MatrixSystem) -> System | LangdepthError | None:
    """The row's system, or why there is none; None for finished predictions, which belong to a data set."""
    try:
        return None if row.predictions else load_system(row.system, row.clip_weights, row.depth_kind)
    except Exception as error:
        return _told(error)


def _predictions(row: MatrixSystem, data: MatrixData) -> Predictions | LangdepthError:
    """The row's finished depth maps of a data set, or why there are none."""
    folder = (row.predictions or Path()) / data.label
    try:
        return Predictions(folder, data.root, row.depth_kind or "metric", row.prediction_scale)
    except LangdepthError as error:
        return error


def _obeyed(system: System | Predictions | LangdepthError, rules: Protocol) -> Protocol:
    """The protocol that finished maps are evaluated under; maps that do not fit it say so when they are."""
    if isinstance(system, Predictions):
        with suppress(UsageError):
            return system.obeyed(rules)
    return Predictions.rules(rules)


def _contents(dataset: RowDataset | LangdepthError) -> str:
    rows = [] if isinstance(dataset, LangdepthError) else made_of(dataset.rows)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _filled(cell: Cell, out: Path, *, device: str | None, dtype: str, batch_size: int) -> tuple[dict[str, Any], bool]:
    """The report of a cell, and whether it lay there already."""
    if isinstance(cell.dataset, LangdepthError):
        raise cell.dataset
    if isinstance(cell.system, LangdepthError):
        raise cell.system
    data, dataset = cell.data, cell.dataset
    identity: dict[str, Any] = {
        "weights": cell.weights,
        "data": [data.data, data.kept, data.source, data.limit, cell.contents],
        "protocol": cell.protocol.hash,
        "dtype": dtype,
        "version": [__version__, metrics.DEFINITIONS],
    }
    if cell.captions is not None and cell.dataset.captions is not None:
        identity["captions"] = [str(cell.captions), cell.dataset.captions.sha256[:16], data.without_caption]
    if isinstance(cell.system, System) and cell.system.takes_overlay:
        dataset = copy.copy(dataset)
        dataset.rows = with_overlays(dataset.rows[: data.limit], cell.system, data.overlay)
        identity["overlays"] = _contents(dataset)
    path = out / f"{cell.file}.json"
    known = _read_cell(path)
    if known.get("identity") == identity:
        report: dict[str, Any] = known["report"]
        return report, True
    report = evaluate(
        cell.system,
        dataset,
        cell.protocol,
        split=data.kept,
        source=data.source,
        captions=cell.captions,
        limit=data.limit,
        html=out / f"{cell.file}.html",
        device=device,
        dtype=dtype,
        batch_size=batch_size,
    )
    write_json({"identity": identity, "report": report}, path)
    return report, False


def _read_cell(path: Path) -> dict[str, Any]:
    """A finished cell; nothing where the file is missing, damaged or lacks what the tables show."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        return content if isinstance(content, dict) and _is_whole(content["report"]) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _no_number(name: str) -> None:
    """For NaN and infinity, which no report of ours holds."""
    raise ValueError(f"{name} in a report")


def _is_whole(report: dict[str, Any]) -> bool:
    """Whether a report has what the tables show. Raises KeyError or TypeError where a part is missing."""
    boundaries = {} if report["boundaries"] is None else {name: report["boundaries"][name] for name in _ERRORS}
    means = {name: report["image_mean"][name] for name in METRICS}
    counts = {name: report[name] for name in ("images", "skipped")}
    return all(isinstance(value, int | float) for value in (means | boundaries | counts).values())


def _file_name(*labels: str) -> str:
    """A readable name for a file that no two cells share."""
    plain = "--".join(re.sub(r"[^\w.=+-]+", "_", label) for label in labels)[:120]
    return f"{plain}-{hashlib.sha256(repr(labels).encode()).hexdigest()[:6]}"


# The tables


def _write_tables(cells: Sequence[dict[str, Any]], out: Path) -> None:
    write_json(list(cells), out / "matrix.json")
    with atomic_path(out / "matrix.md") as temporary:
        temporary.write_text(markdown(cells), encoding="utf-8", errors="backslashreplace")
    with atomic_path(out / "matrix.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_csv_rows(cells))


def markdown(cells: Sequence[dict[str, Any]]) -> str:
    """One table per data set and protocol; image means."""
    lines = [_LEGEND, ""]
    sets = list(dict.fromkeys(cell["data"] for cell in cells))
    tables = dict.fromkeys((cell["data"], cell["protocol"]) for cell in cells)
    for data, protocol in sorted(tables, key=lambda table: sets.index(table[0])):
        own = [cell for cell in cells if (cell["data"], cell["protocol"]) == (data, protocol)]
        with_edges = any(cell["ours"] and cell["ours"]["boundaries"] for cell in own)
        shown = (*SHOWN, *BOUNDARIES) if with_edges else SHOWN
        split = f" (split {_text(own[0]['split'])})" if own[0]["split"] else ""
        lines += [f"## {_text(data)}{split}, {protocol} ({own[0]['hash']})", ""]
        lines += [
            f"| system | who | images | {' | '.join(shown)} | note |",
            "|---|---|" + "---:|" * (1 + len(shown)) + "---|",
        ]
        for cell in own:
            report = cell["ours"]
            values = {} if report is None else _means(report)
            skipped = f", {report['skipped']} skipped" if report and report["skipped"] else ""
            images = f"{report['images']}{skipped}" if report else "-"
            note = f"[report]({cell['file']}.html)" if report else _text(cell["why"])
            lines.append(_line(f"{_text(cell['system'])} | ours | {images}", shown, values, note))
            if cell["paper"]:
                lines.append(_line(f"{_text(cell['system'])} | paper | ", shown, cell["paper"], _text(cell["source"])))
        lines.append("")
    return "\n".join(lines)


def _means(report: dict[str, Any]) -> dict[str, float]:
    """The image means of a report, with its boundary errors."""
    errors = report["boundaries"]
    return report["image_mean"] | (dict(zip(BOUNDARIES, (errors[e] for e in _ERRORS), strict=True)) if errors else {})


def _line(start: str, shown: Sequence[str], values: dict[str, float], note: str) -> str:
    numbers = " | ".join(f"{values[name]:.3f}" if name in values else "-" for name in shown)
    return f"| {start} | {numbers} | {note} |"


def _text(text: str) -> str:
    """Plain text inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _csv_rows(cells: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    names = (*METRICS, *EXTRA_METRICS, *BOUNDARIES)
    yield ["system", "data", "split", "protocol", "hash", "who", "images", "skipped", *names, "note"]
    for cell in cells:
        start = [cell[key] for key in ("system", "data", "split", "protocol", "hash")]
        report = cell["ours"]
        if report is None:
            yield [*start, "ours", "", "", *[""] * len(names), cell["why"]]
        else:
            means = _means(report)
            yield [*start, "ours", report["images"], report["skipped"], *(means.get(name, "") for name in names), ""]
        if cell["paper"]:
            yield [*start, "paper", "", "", *(cell["paper"].get(name, "") for name in names), cell["source"]]
