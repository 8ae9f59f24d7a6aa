"""A report as files: JSON, plots, a sheet of images, and one HTML page that holds everything and loads nothing."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from langdepth.errors import LangdepthError
from langdepth.prediction import viz
from langdepth.prediction.options import AUTOMATIC, ColorScale
from langdepth.utils.files import atomic_path
from langdepth.utils.png import PNG_TAG, own_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from langdepth.evaluation.evaluate import Judged

SHEET_ROWS = 2  # images each of the best, the median and the worst


_OWN_PNG = (PNG_TAG.encode() + b"\0", b"Software\0Matplotlib")  # the latter: plots of earlier versions


def require_own(path: Path, *marks: bytes) -> None:
    """Raise LangdepthError where ``path`` is somebody else's file: not empty, and none of ``marks`` near its start."""
    if path.is_file() and path.stat().st_size > 0:
        with path.open("rb") as file:
            start = file.read(1 << 16)
        if any(mark in start for mark in marks):
            return
    elif not path.exists() or path.is_file():
        return
    raise LangdepthError(f"{path}: is there already and no report of langdepth; give another name, or remove it")


def require_own_report(out: Path | None, html: Path | None) -> None:
    """Raise LangdepthError where writing the report to these places would replace a file of somebody else."""
    if out is not None:
        require_own(out, b'"image_mean": {')
        for name in images_beside(out):
            require_own(name, *_OWN_PNG)
    if html is not None:
        require_own(html, escape(_POLICY).encode())


def images_beside(out: Path) -> tuple[Path, Path]:
    """The plot and the sheet of a report."""
    return out.with_name(f"{out.stem}_error_by_range.png"), out.with_name(f"{out.stem}_sheet.png")


def write_json(content: Any, path: Path) -> None:
    """Plain data as indented JSON; NaN is refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def plot_error_by_range(ranges: dict[str, npt.NDArray[Any]], report: Mapping[str, Any]) -> Figure:
    """What ``metrics.error_quartiles`` returned: abs_rel and the share of pixels against true depth."""
    from matplotlib.figure import Figure

    share = 100 * ranges["count"] / ranges["count"].sum()
    seen = share >= 0.01  # rarer depths would stretch the axes without meaning anything
    first, last = np.flatnonzero(seen)[[0, -1]]
    edges = ranges["edges"][first : last + 2]
    low, middle, high = np.where(seen, ranges["quartiles"], np.nan)[:, first : last + 1]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    error, pixels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    error.stairs(high, edges, baseline=low, fill=True, alpha=0.3, label="quartiles")
    error.stairs(middle, edges, baseline=None, linewidth=2, label="median")
    error.axhline(report["pixel_mean"]["abs_rel"], color="0.4", linestyle="--", linewidth=1, label="mean of all pixels")
    error.set(
        ylabel="|prediction - truth| / truth",
        xscale="log",
        xlim=(edges[0], edges[-1]),
        ylim=(0, max(0.05, error.get_ylim()[1])),
    )
    error.set_title(
        f"{report['system']} on {report['dataset']}, {report['images']} images\n"
        f"{report['protocol']['name']} ({report['protocol']['hash']})"
    )
    error.legend(loc="upper right")
    pixels.stairs(share[first : last + 1], edges, fill=True, color="0.6")
    pixels.set(xlabel="true depth (m)", ylabel="pixels (%)", ylim=(0, None))
    pixels.xaxis.set_major_locator(_ticks(edges[0], edges[-1]))
    pixels.xaxis.set_major_formatter("{x:g}")
    pixels.minorticks_off()
    for axes in (error, pixels):
        axes.grid(alpha=0.3)
    return figure


def plot_medians(medians: npt.NDArray[np.float64]) -> Figure:
    """Median prediction against median truth of every image, (N, 2) metres: whether the scale is right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    low, high = medians.min() / 1.2, medians.max() * 1.2
    axes.plot((low, high), (low, high), color="0.4", linewidth=1)
    for factor in (1.25, 1 / 1.25):
        axes.plot((low, high), (factor * low, factor * high), color="0.4", linestyle=":", linewidth=1)
    axes.scatter(medians[:, 1], medians[:, 0], s=12, alpha=0.6)
    axes.set(xlabel="median true depth (m)", ylabel="median predicted depth (m)", xscale="log", yscale="log")
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title="One point an image; dotted: 25 % off")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_ticks(low, high))
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """A figure as PNG."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={PNG_TAG: json.dumps({"kind": "plot"})})


def _ticks(low: float, high: float) -> Any:
    """Round metres: 1, 2, 5 per decade, or evenly spaced ones where these are few."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    ticks = [m * 10.0**k for k in range(-2, 4) for m in (1, 2, 5) if low <= m * 10.0**k <= high]
    if len(ticks) < 4:
        ticks = [t for t in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= t <= high]
    return FixedLocator(ticks)


def sheet_row(judged: Judged, title: str) -> viz.SheetRow:
    """The first image of a judged batch as a row of a contact sheet."""
    image = judged.image[0]
    pixels = image if image.dtype == torch.uint8 else image.mul(255).round().byte()
    return viz.SheetRow(
        image=pixels.permute(1, 2, 0).numpy(),
        truth=torch.where(judged.valid, judged.target, 0)[0, 0].numpy(),
        prediction=judged.prediction[0, 0].numpy(),
        title=title,
    )


def write_sheet(rows: Sequence[viz.SheetRow], path: Path, colors: ColorScale = AUTOMATIC) -> None:
    """Rows as one PNG."""
    with atomic_path(path) as temporary:
        Image.fromarray(viz.sheet(rows, colors=colors)).save(temporary, "PNG", pnginfo=own_png(kind="sheet"))


def extremes(ordered: list[tuple[float, int]]) -> list[tuple[str, int]]:
    """Place and index of the best, median and worst few of a sorted list; each image once."""
    middle = max(0, (len(ordered) - SHEET_ROWS) // 2)
    parts = {  # with few images the later name holds
        "median": ordered[middle : middle + SHEET_ROWS],
        "worst": ordered[-SHEET_ROWS:],
        "best": ordered[:SHEET_ROWS],
    }
    place = {index: name for name, part in parts.items() for _, index in part}
    return [(place[index], index) for _, index in ordered if index in place]


# The page

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1420px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; margin: .6em 0; } caption { text-align: left; color: #555; padding: .2em 0; }
td, th { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right; } th:first-child { text-align: left; }
th { font-weight: 600; } td.text { text-align: left; }
.scroll { overflow-x: auto; } figure { margin: 1.2em 0; } img { max-width: 100%; height: auto; }
figcaption { color: #555; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is loaded, no script runs


def write_html(
    report: Mapping[str, Any],
    ranges: dict[str, npt.NDArray[Any]],
    medians: npt.NDArray[np.float64],
    rows: Sequence[viz.SheetRow],
    path: Path,
    colors: ColorScale = AUTOMATIC,
) -> None:
    """The report as one self-contained page: numbers, rules, plots and the images of ``rows``.

    ``ranges``: what ``metrics.error_quartiles`` returned; ``medians``: see ``plot_medians``.
    """
    title = f"{report['system']} on {report['dataset']}"
    rules = report["protocol"]
    facts = {
        "system": report["system"],
        "data": report["dataset"],
        "split": report["split"] or "all",
        "images": f"{report['images']}, {report['skipped']} skipped",
        "protocol": f"{rules['name']} ({rules['hash']})",
    }
    sections = [
        f"<h1>{escape(title)}</h1>",
        _facts(facts),
        "<h2>Metrics</h2>",
        _table({name.replace("_", " "): report[name] for name in ("image_mean", "pixel_mean")}, "mean"),
    ]
    if report["edges"] is not None:
        sections += ["<h2>Edges</h2>", _table({"depth edges": report["edges"]}, "")]
    if report["boundaries"] is not None:
        sections += ["<h2>Boundary errors</h2>", _table({"pixels": report["boundaries"]}, "distance")]
    by_depth = {
        f"{part['from']:g} to {part['to']:g} m" if part["to"] else f"from {part['from']:g} m": {
            key: value for key, value in part.items() if key not in ("from", "to")
        }
        for part in report["by_depth"]
    }
    sections += ["<h2>By true depth</h2>", _table(by_depth, "depth")]
    sections.append(_figure(plot_error_by_range(ranges, report), "abs_rel against true depth"))
    if len(report["by_scene"]) > 1:
        sections += ["<h2>By scene</h2>", _table(report["by_scene"], "scene")]
    sections += ["<h2>Scale</h2>", _figure(plot_medians(medians), "Median predicted against median true depth")]
    sections += ["<h2>Best, median and worst images by abs_rel</h2>"]
    sections += ["<p>Photo, judged truth, prediction, error from 0 (dark) to 50 % (bright); grey is not judged.</p>"]
    for row in rows:
        sections.append(_embedded(viz.sheet([row._replace(title="")], colors=colors), row.title))
    switches = {key: value for key, value in rules.items() if key not in ("name", "hash")}
    sections += ["<h2>The protocol's switches</h2>", _facts(switches)]
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n<style>{_STYLE}</style>\n</head>\n'
        "<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def _facts(facts: Mapping[str, Any]) -> str:
    cells = (f'<tr><th>{escape(key)}</th><td class="text">{escape(_shown(v))}</td></tr>' for key, v in facts.items())
    return f"<table>{''.join(cells)}</table>"


def _table(lines: Mapping[str, Mapping[str, Any]], corner: str) -> str:
    """A table with a row per key."""
    columns = list(next(iter(lines.values())))
    head = "".join(f"<th>{escape(name)}</th>" for name in (corner, *columns))
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(_shown(line[c]))}</td>' for c in columns)}</tr>"
        for name, line in lines.items()
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    return _image("image/png", buffer.getvalue(), caption)


def _embedded(pixels: viz.Pixels, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88)
    return _image("image/jpeg", buffer.getvalue(), caption)


def _image(kind: str, content: bytes, caption: str) -> str:
    data, text = base64.b64encode(content).decode(), escape(caption)
    return f'<figure><img alt="{text}" src="data:{kind};base64,{data}"><figcaption>{text}</figcaption></figure>'
