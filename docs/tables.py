"""Writes the tables of the documentation that restate what the package knows: `python docs/tables.py`.

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; NAME is a function below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from langdepth.data.base import DATASETS, layout
from langdepth.evaluation.protocols import PROTOCOLS, SWITCHES
from langdepth.systems.registry import REGISTRY

DOCS = Path(__file__).parent
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)
_BRACES = re.compile(r"{(\w+)}")


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    cells = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (head, ["---"] * len(head), *rows))
    return "".join(f"| {row} |\n" for row in cells)


TABLES: dict[str, Callable[[], str]] = {maker.__name__: maker for maker in (protocols, switches, data_sets, systems)}


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
