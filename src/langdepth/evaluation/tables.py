"""The tables of a matrix: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from langdepth.errors import printable
from langdepth.evaluation.metrics import EXTRA_METRICS, METRICS
from langdepth.evaluation.report import filled_template, require_marked, table_cell
from langdepth.utils.files import atomic_path, write_json

ERRORS = ("accuracy", "completeness")
"""Boundary errors, pixels, of data sets that state true edges, as reports call them."""
BOUNDARIES = tuple(f"boundary_{name}" for name in ERRORS)
SHOWN = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")  # in Markdown; the others hold all
_MARKS = {"matrix.json": b'"ours": ', "matrix.md": b"| system | who |", "matrix.csv": b"system,data,"}


def require_own_tables(out: Path) -> None:
    """Raise LangdepthError where the tables would replace files of somebody else."""
    for name, mark in _MARKS.items():
        require_marked(out / name, mark)


def write_tables(cells: Sequence[Mapping[str, Any]], out: Path) -> None:
    """matrix.json, matrix.md and matrix.csv. ``cells``: what ``matrix.run_matrix`` returns."""
    write_json(list(cells), out / "matrix.json")
    with atomic_path(out / "matrix.md") as temporary:
        temporary.write_text(markdown(cells), encoding="utf-8", errors="backslashreplace")
    with atomic_path(out / "matrix.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_csv_rows(cells))


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """One table per data set and protocol; image means."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    cells = [{**cell, "data": printable(cell["data"]), "system": printable(cell["system"])} for cell in cells]
    sets = list(dict.fromkeys(cell["data"] for cell in cells))
    for cell in sorted(cells, key=lambda cell: sets.index(cell["data"])):
        table = tables.setdefault((cell["data"], cell["protocol"]), {**cell, "columns": SHOWN, "rows": []})
        report, row = cell["ours"], {"system": cell["system"], "who": "ours", "images": "-", "means": {}}
        if report is None:
            row["note"] = table_cell(cell["why"])
        else:
            skipped = f", {report['skipped']} skipped" if report["skipped"] else ""
            row |= {"images": f"{report['images']}{skipped}", "means": _means(report)}
            row["note"] = f"[report]({cell['file']}.html)"
            if report["boundaries"]:
                table["columns"] = (*SHOWN, *BOUNDARIES)
        table["rows"].append(row)
        if cell["paper"]:
            paper = {"who": "paper", "images": "", "means": cell["paper"], "note": table_cell(cell["source"])}
            table["rows"].append(row | paper)
    return filled_template("matrix.md.jinja", tables=list(tables.values()))


def _means(report: Mapping[str, Any]) -> dict[str, float]:
    """The image means of a report, with its boundary errors."""
    errors = report["boundaries"] or {}
    return report["image_mean"] | {f"boundary_{name}": errors[name] for name in ERRORS if name in errors}


def _csv_rows(cells: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    names = (*METRICS, *EXTRA_METRICS, *BOUNDARIES)
    yield ["system", "data", "split", "protocol", "hash", "who", "images", "skipped", *names, "note"]
    for cell in cells:
        start = [cell[key] for key in ("system", "data", "split", "protocol", "hash")]
        report, means = cell["ours"], _means(cell["ours"]) if cell["ours"] else {}
        counts = [report[name] if report else "" for name in ("images", "skipped")]
        yield [*start, "ours", *counts, *(means.get(name, "") for name in names), cell["why"] or ""]
        if cell["paper"]:
            yield [*start, "paper", "", "", *(cell["paper"].get(name, "") for name in names), cell["source"]]
