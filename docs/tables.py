"""Writes the tables of the documentation that restate what the package knows: `python docs/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is a function below.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser

from langdepth.data.base import DATASETS, layout
from langdepth.evaluation.metrics import EXTRA_METRICS, HIGHER_IS_BETTER, METRICS
from langdepth.evaluation.protocols import PROTOCOLS
from langdepth.evaluation.switches import SWITCHES
from langdepth.prediction.results import WRITERS
from langdepth.prediction.video.writing import CLIP_FORMATS
from langdepth.systems.registry import PIPELINES, PUBLISHED, REGISTRY, pipeline
from langdepth.training.recipe import CIRCUMSTANCES, Recipe

DOCS = Path(__file__).parent
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
_BRACES = re.compile(r"{(\w+)}")
# Words of a field's documentation that lead to a page, the first time they stand in it.
_LINKS = {
    "A list file": "data.md#list-files-and-separate-roots",
    "held out": "#validating-without-a-validation-split",
    "overlays": "data.md#overlays",
    "one of their forms": "systems/wordepth.md#captions",
    "frozen trunk": "#a-frozen-trunk-run-once",
    "a paper's own": "#pipelines",
}


def protocols() -> str:
    """All presets."""
    rows = []
    for protocol in PROTOCOLS.values():
        metres = f"{protocol.min_depth:g} to {protocol.max_depth:g}"
        flip, clamp = ("yes" if switch else "no" for switch in (protocol.flip, protocol.clamp_prediction))
        rows.append((f"`{protocol.name}`", protocol.hash, protocol.frame, protocol.crop, metres, flip, clamp))
    return table(("name", "hash", "frame", "crop", "range (m)", "flip", "clamp"), rows)


def switches() -> str:
    """Every switch of a protocol."""
    rows = []
    for name, switch in SWITCHES.items():
        means = {str(value).lower(): _BRACES.sub(r"`\1`", text) for value, text in switch.means.items()}
        values = "; ".join(f"`{value}`: {text}" for value, text in means.items()).replace("`set`", "a value")
        rows.append((f"`{name}`", f"`{str(getattr(PROTOCOLS['full'], name)).lower()}`", switch.help, values))
    return table(("switch", "default", "what it does", "its values"), rows)


def data_sets() -> str:
    """All data sets."""
    rows = []
    for name in DATASETS:
        card = layout(name).CARD
        splits = ", ".join(f"{split} {count:,}" if count else split for split, count in card.splits.items())
        rows.append(
            (f"`{name}`", card.title, card.split or "all", splits or "as the data states", f"`{card.protocol}`")
        )
    return table(("name", "data set", "evaluated split", "splits", "protocol"), rows)


def systems() -> str:
    """All systems."""
    rows = []
    for name, entry in REGISTRY.items():
        weights = entry.weights.licence if entry.weights else "none in the package"
        rows.append((f"`{name}`", entry.summary, entry.paper, weights))
    return table(("name", "what it is", "paper", "weights, their licence"), rows)


def published() -> str:
    """The authors' weights by name."""
    rows = []
    for name, record in sorted(PUBLISHED.items()):
        where = record.source if record.open_clip else f"[`{record.file}`]({record.source})"
        rows.append((f"`{name}`", record.summary, record.licence, where))
    return table(("name", "what it is", "licence", "file"), rows)


def recipe_fields() -> str:
    """Every field of a recipe."""
    rows = [(f"`{name}`", f"`{default}`", _field_text(text), mark) for name, default, text, mark in _fields(Recipe)]
    return table(("field", "default", "meaning", "may change"), rows)


def _fields(section: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Dotted name, default, documentation, and "yes" where a run may continue with another value."""
    documented = {param.arg_name: param.description for param in docstring_parser.parse_from_object(section).params}
    hints = get_type_hints(section)
    for field in dataclasses.fields(section):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(hints[field.name], f"{name}.")
        else:
            yield name, _default(field), documented[field.name], "yes" if name in CIRCUMSTANCES else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, tuple):
        return str([round(number, 3) for number in field.default])
    if field.default is None or isinstance(field.default, bool):
        return json.dumps(field.default)
    return str(field.default)


def _field_text(text: str) -> str:
    """A docstring as Markdown, with links."""
    text = " ".join(text.split()).replace("``", "`")
    for words, target in _LINKS.items():
        text = text.replace(words, f"[{words}]({target})", 1)
    return text


def formats() -> str:
    """The files that predict and evaluate write of a depth map."""
    rows = [(f"`{name}`", f"`NAME{writer.suffix}`", writer.content) for name, writer in WRITERS.items()]
    return table(("`--save`", "file", "content"), rows)


def clip_formats() -> str:
    """The files that predict writes of a whole clip."""
    rows = [(f"`{name}`", f"`NAME{one.suffix}`", one.content) for name, one in CLIP_FORMATS.items()]
    return table(("`--save`", "file", "content"), rows)


def pipelines() -> str:
    """The training images of papers."""
    rows = [(f"`{name}`", (pipeline(name).__doc__ or "").partition("\n")[0]) for name in PIPELINES]
    return table(("`data.pipeline`", "what it does to an image"), rows)


def metrics() -> str:
    """The standard metrics."""
    return _metrics(METRICS)


def extra_metrics() -> str:
    """The metrics of some papers."""
    return _metrics(EXTRA_METRICS)


def _metrics(formulas: Mapping[str, str]) -> str:
    rows = [(name, formula, "higher" if HIGHER_IS_BETTER[name] else "lower") for name, formula in formulas.items()]
    return table(("key", "formula", "better"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ["---"] * len(head), *rows))
    return "".join(f"| {row} |\n" for row in cells)


_OF_NAMES = (protocols, switches, data_sets, systems, published, formats, clip_formats, recipe_fields, pipelines)
_MAKERS = (*_OF_NAMES, metrics, extra_metrics)
TABLES: dict[str, Callable[[], str]] = {maker.__name__: maker for maker in _MAKERS}


def current(text: str) -> str:
    """A page with its tables as they should be."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def main() -> None:
    """Write the tables of all pages."""
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if current(text) != text:
            page.write_text(current(text), encoding="utf-8")
            print(page)


if __name__ == "__main__":
    main()
