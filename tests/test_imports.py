"""Imports go one way: no circle of modules, and no arrow against the order of the rooms.

All imports count, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import langdepth

ROOT = Path(langdepth.__file__).parent

# From top to bottom; a module may import what stands in its own line or below it. The longest name that fits counts.
ROOMS = (
    ("", "__main__", "cli", "commands"),
    ("serving", "demo"),
    ("api",),
    ("training",),
    ("evaluation",),
    ("scaling",),
    ("runtimes",),
    ("data.tools",),
    ("systems",),  # the papers, which only the registry's table names
    ("weights",),
    ("systems.registry", "systems.card", "systems.ensemble", "systems.foreign"),
    ("systems.base",),
    ("prediction",),
    ("systems.capabilities",),
    ("systems.contract",),
    ("weights.files", "weights.card", "weights.hub"),
    ("data",),
    ("evaluation.protocols", "evaluation.switches"),
    ("text", "backbones", "parts", "losses"),
    ("utils", "config", "records", "camera", "lenses"),
    ("errors", "_version"),
)
RANK = {name: rank for rank, line in enumerate(ROOMS) for name in line}


def module_name(path: Path) -> str:
    """Dotted name below the package, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def rank_of(module: str) -> int:
    name = module
    while name not in RANK:
        name = name.rpartition(".")[0]
        assert name, f"no room has a place for {module}; add it to ROOMS"
    return RANK[name]


def imported(source: str) -> Iterator[str]:
    """Modules of the package that a source imports, by their names below it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, inside = name.partition(".")
            if top == "langdepth":
                yield inside if inside in MODULES else inside.rpartition(".")[0]


ARROWS = {
    name: sorted({target for target in imported(path.read_text(encoding="utf-8")) if target != name})
    for name, path in MODULES.items()
}


def upward(arrows: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(name, to) for name, targets in arrows.items() for to in targets if rank_of(to) < rank_of(name)]


def test_imports_go_one_way() -> None:
    assert sorted(upward(ARROWS)) == [], "imports against the order of the rooms (see ROOMS)"


def test_no_circle() -> None:
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        raise AssertionError("these modules import each other: " + " <- ".join(error.args[1])) from None


def test_all_kinds_of_imports_are_found() -> None:
    source = """
from __future__ import annotations
import langdepth.camera
from langdepth.systems import registry
from langdepth import errors
if TYPE_CHECKING:
    from langdepth.records import Batch
def late():
    from langdepth.weights.checkpoint import load
"""
    assert set(imported(source)) == {"camera", "systems.registry", "errors", "records", "weights.checkpoint"}
    assert upward({"errors": ["records"], "prediction.words": ["systems.base", "systems.capabilities"]}) == [
        ("errors", "records"),
        ("prediction.words", "systems.base"),
    ]
