"""The tables of a matrix: Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from langdepth.errors import printable
from langdepth.evaluation.comparison import COMPARED, FLIPS, RESAMPLES, least_p
from langdepth.evaluation.metrics import EXTRA_METRICS, METRICS
from langdepth.evaluation.report import filled_template
from langdepth.utils.files import atomic_path, require_marked, write_json

ERRORS = ("accuracy", "completeness")
"""Boundary errors, pixels, of data sets that state true edges, as reports call them."""
_METHOD = {"resamples": RESAMPLES, "flips": FLIPS, "compared": COMPARED}
BOUNDARIES = tuple(f"boundary_{name}" for name in ERRORS)
SHOWN = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")  # in Markdown; the others hold all
_MARKS = {
    "matrix.json": b'"ours": ',
    "matrix.md": b"| system | who |",
    "matrix.tex": b"% langdepth benchmark",
    "matrix.csv": b"system,data,",
}
INTERVAL = "95 %"
_SIGNIFICANT = 0.05  # p below it is commonly taken for a difference


def require_own_tables(out: Path) -> None:
    """Raise LangdepthError where the tables would replace files of somebody else."""
    for name, mark in _MARKS.items():
        require_marked(out / name, mark)


def write_tables(cells: Sequence[Mapping[str, Any]], out: Path) -> None:
    """matrix.json, .md, .tex and .csv. ``cells``: what ``matrix.run_matrix`` returns."""
    write_json(list(cells), out / "matrix.json")
    for name, text in (("matrix.md", markdown(cells)), ("matrix.tex", latex(cells))):
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    with atomic_path(out / "matrix.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_csv_rows(cells))


def markdown(cells: Sequence[Mapping[str, Any]]) -> str:
    """One table per data set and protocol; image means, their intervals and the papers' numbers."""
    return filled_template("matrix.md.jinja", tables=_tables(cells), **_METHOD)


def latex(cells: Sequence[Mapping[str, Any]]) -> str:
    """The same tables for LaTeX with the package booktabs, without notes and without systems that were not run."""
    tables = _tables(cells)
    for table in tables:
        table["rows"] = [row for row in table["rows"] if row["means"]]
    return filled_template("matrix.tex.jinja", tables=[table for table in tables if table["rows"]], **_METHOD)


def _tables(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the templates show: of each table its data, split, protocol, hash, columns and rows."""
    tables: dict[tuple[str, str], dict[str, Any]] = {}
    cells = [{**cell, "data": printable(cell["data"]), "system": printable(cell["system"])} for cell in cells]
    sets = list(dict.fromkeys(cell["data"] for cell in cells))
    for cell in sorted(cells, key=lambda cell: sets.index(cell["data"])):
        table = tables.setdefault((cell["data"], cell["hash"]), {**cell, "columns": SHOWN, "rows": [], "note": ""})
        report = cell["ours"]
        row: dict[str, Any] = {"system": cell["system"], "who": "ours", "images": "-", "means": {}, "p": cell["p"]}
        row |= {"file": None, "note": ""}
        if report is None:
            row["note"] = cell["why"]
        else:
            skipped = f", {report['skipped']} skipped" if report["skipped"] else ""
            row |= {"images": f"{report['images']}{skipped}", "means": _means(report), "file": cell["file"]}
            if cell["p"] is not None and least_p(report["images"]) > _SIGNIFICANT:
                table["note"] = f"With {report['images']} images p is at least {least_p(report['images']):.3f}."
            if report["boundaries"]:
                table["columns"] = (*SHOWN, *BOUNDARIES)
        table["rows"].append(row)
        beside = {"images": "", "p": None, "file": None}
        if cell["intervals"]:
            table["rows"].append(row | beside | {"who": INTERVAL, "means": cell["intervals"]})
        if cell["paper"]:
            table["rows"].append(row | beside | {"who": "paper", "means": cell["paper"], "note": cell["source"]})
    return list(tables.values())


def _means(report: Mapping[str, Any]) -> dict[str, float]:
    """The image means of a report, with its boundary errors."""
    errors = report["boundaries"] or {}
    return report["image_mean"] | {f"boundary_{name}": errors[name] for name in ERRORS if name in errors}


def _csv_rows(cells: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    names = (*METRICS, *EXTRA_METRICS, *BOUNDARIES)
    yield ["system", "data", "split", "protocol", "hash", "who", "images", "skipped", *names, "p", "note"]
    for cell in cells:
        start = [cell[key] for key in ("system", "data", "split", "protocol", "hash")]
        report, means = cell["ours"], _means(cell["ours"]) if cell["ours"] else {}
        counts = [report[name] if report else "" for name in ("images", "skipped")]
        p = "" if cell["p"] is None else cell["p"]
        yield [*start, "ours", *counts, *(means.get(name, "") for name in names), p, cell["why"] or ""]
        for end, place in (("low", 0), ("high", 1)) if cell["intervals"] else ():
            bounds = {name: interval[place] for name, interval in cell["intervals"].items()}
            yield [*start, f"{INTERVAL} {end}", "", "", *(bounds.get(name, "") for name in names), "", ""]
        if cell["paper"]:
            yield [*start, "paper", "", "", *(cell["paper"].get(name, "") for name in names), "", cell["source"]]
