"""A report as files: JSON, plots, a sheet of images, and one HTML page that holds everything and loads nothing."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image

from langdepth.evaluation.plots import plot_error_by_range, plot_medians
from langdepth.evaluation.tally import Tally
from langdepth.prediction import viz
from langdepth.prediction.options import ColorScale
from langdepth.utils.files import atomic_path, require_marked, write_json
from langdepth.utils.png import PNG_TAG, write_own_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The content policy of the page: nothing is loaded, no script runs."""
_OWN_PNG = (PNG_TAG.encode() + b"\0", b"Software\0Matplotlib")  # the latter: plots of earlier versions
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("langdepth.evaluation"),
    autoescape=lambda name: name is not None and ".html" in name,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)


def table_cell(text: str) -> str:
    """Plain text inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


_TEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",  # at the beginning of a row it and * would belong to the end of the one before
        "*": "{*}",
    }
)


def _tex(text: str) -> str:
    """Plain text inside LaTeX."""
    return text.translate(_TEX)


def _number(value: float | Sequence[float] | jinja2.Undefined) -> str:
    """A mean, an interval of one, or nothing."""
    if isinstance(value, jinja2.Undefined):
        return "-"
    return f"{value:.3f}" if isinstance(value, int | float) else "[" + ", ".join(f"{end:.3f}" for end in value) + "]"


def _p(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


_TEMPLATES.filters |= {"cell": table_cell, "tex": _tex, "number": _number, "p": _p}


def require_own_report(out: Path | None, html: Path | None) -> None:
    """Raise LangdepthError where writing the report to these places would replace a file of somebody else."""
    if out is not None:
        require_marked(out, b'"image_mean": {')
        for name in _images_beside(out):
            require_marked(name, *_OWN_PNG)
        require_marked(_table_beside(out), b"index,")
    if html is not None:
        require_marked(html, b"img-src data:; style-src")


def _images_beside(out: Path) -> tuple[Path, Path]:
    """The plot and the sheet of a report."""
    return out.with_name(f"{out.stem}_error_by_range.png"), out.with_name(f"{out.stem}_sheet.png")


def _table_beside(out: Path) -> Path:
    """The metrics of each image of a report."""
    return out.with_name(f"{out.stem}_images.csv")


def write_report(
    report: Mapping[str, Any],
    tally: Tally,
    rows: Sequence[viz.SheetRow],
    out: Path,
    colors: ColorScale,
    names: Sequence[str] | None,
) -> None:
    """The report as JSON and, beside it, each image's metrics, the plot of errors by depth and the sheet of images.

    ``names``: of the images, by index.
    """
    plot, sheet = _images_beside(out)
    write_json({key: value for key, value in report.items() if key != "per_image"}, out)
    columns = dict(report["per_image"])
    if names is not None:
        columns = {"index": columns["index"], "image": [names[index] for index in columns["index"]], **columns}
    with (
        atomic_path(_table_beside(out)) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])
    with atomic_path(plot) as temporary:
        tag = {PNG_TAG: json.dumps({"kind": "plot"})}
        plot_error_by_range(tally.errors, report).savefig(temporary, dpi=120, metadata=tag)
    with atomic_path(sheet) as temporary, open(temporary, "wb") as image:
        write_own_png(image, viz.sheet(rows, colors=colors), kind="sheet")


def write_html(
    report: Mapping[str, Any], tally: Tally, rows: Sequence[viz.SheetRow], path: Path, colors: ColorScale
) -> None:
    """The report as one self-contained page: numbers, rules, plots and the images of ``rows``."""
    by_depth = []
    for part in report["by_depth"]:
        numbers = dict(part)
        low, high = numbers.pop("from"), numbers.pop("to")
        by_depth.append((f"{low:g} to {high:g} m" if high else f"from {low:g} m", numbers))
    page = filled_template(
        "report.html.jinja",
        report=report,
        by_depth=by_depth,
        switches={key: value for key, value in report["protocol"].items() if key not in ("name", "hash")},
        policy=POLICY,
        error_by_range=_figure(plot_error_by_range(tally.errors, report)),
        medians=_figure(plot_medians(tally.table()["medians"])),
        images=[(row.title, _embedded(row, colors)) for row in rows],
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def filled_template(template: str, **values: Any) -> str:
    """Fill in a template of this package."""
    return _TEMPLATES.get_template(template).render(values)


def _figure(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _embedded(row: viz.SheetRow, colors: ColorScale) -> str:
    buffer = io.BytesIO()
    Image.fromarray(viz.sheet([row._replace(title="")], colors=colors)).save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
