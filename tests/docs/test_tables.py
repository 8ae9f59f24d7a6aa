"""The tables of the documentation are those that docs/tables.py writes, and name only what exists."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import re

import pytest

from langdepth import cli
from langdepth.commands.data import VERBS
from langdepth.data.base import DATASETS
from langdepth.evaluation import protocols
from langdepth.systems import registry
from langdepth.systems.capabilities import Trainable
from langdepth.training import sections
from langdepth.training.recipe import RECIPES
from tests.docs.things import ROOT

TEXT = (ROOT / "docs" / "coming-from-the-papers.md").read_text(encoding="utf-8")
# The right-hand columns of the tables: what is ours.
OURS = [cell for line in TEXT.splitlines() if line.startswith("| ") for cell in line.split("|")[2:3]]
CODE = [code for cell in OURS for code in re.findall(r"`([^`]+)`", cell)]


def fields_of(record: type, prefix: str = "") -> set[str]:
    """Dotted names of a recipe's fields."""
    return {prefix + field.name for field in dataclasses.fields(record)}


@pytest.fixture(scope="module")
def dotted() -> set[str]:
    """Everything that may be set in a recipe."""
    named = {"system": sections.SystemSection, "data": sections.DataSection, "optim": sections.OptimSection}
    known = set().union(*(fields_of(record, f"{name}.") for name, record in named.items()))
    known |= fields_of(sections.TrainSection, "train.")
    for system in {entry.target: entry.system_class() for entry in registry.REGISTRY.values()}.values():
        known |= fields_of(system.Config, "system.options.")
        if issubclass(system, Trainable):
            known |= {f"system.prepare.{name}" for name in inspect.signature(system.prepare_training).parameters}
    return known


@pytest.fixture(scope="module")
def options() -> set[str]:
    """The options of all commands."""

    known: set[str] = set()
    for verbs in [*((name,) for name in cli.COMMANDS), *(("data", verb) for verb in VERBS)]:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            cli.main([*verbs, "--help"])
        known |= set(re.findall(r"--[a-z][a-z-]*", out.getvalue()))
    return known


def test_generated_tables_are_current() -> None:
    specification = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert specification is not None
    assert specification.loader is not None
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    texts = {page: page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md")}
    assert [page.name for page, text in texts.items() if tables.current(text) != text] == [], "python docs/tables.py"
    used = {name for text in texts.values() for name in re.findall(r"<!-- table: (\w+) -->", text)}
    assert used == set(tables.TABLES)


def test_options_and_fields_exist(options: set[str], dotted: set[str]) -> None:
    named = {word for code in CODE for word in re.findall(r"--([a-z_][\w.-]*)", code)}
    named |= {word for code in CODE for word in re.findall(r"^((?:system|data|optim|train)\.[\w.]+)", code)}
    assert len(named) > 40
    known = dotted | {f"options.{name.removeprefix('system.options.')}" for name in dotted} | {"a.b"}  # of convert; any
    unknown = {name for name in named - known if f"--{name}" not in options}
    assert not unknown


def test_files_systems_and_protocols_exist() -> None:
    for code in CODE:
        for name in re.findall(r"--config ([\w-]+)(?![\w/.])", code):
            assert name == "NAME" or (RECIPES / f"{name}.yaml").is_file(), name
        for name in re.findall(r"--protocol ([\w-]+)", code):
            assert name == "NAME" or protocols.get(name), name
        for name in re.findall(r"--system(?:\.name)? ([a-z][\w-]+)", code):
            assert registry.entry(name), name
        for name in re.findall(r"--data ([a-z][\w-]*)", code):
            assert name in DATASETS, name
