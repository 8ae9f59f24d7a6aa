"""System names and what is known about each: from the card.yaml of every folder here, and of installed plug-ins.

Reading the cards imports no system and no torch. It is done when a name is asked for, see ``_Names``.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from langdepth.config import MAX_YAML_BYTES
from langdepth.errors import LangdepthError, UsageError, first_line, nearest
from langdepth.systems.card import Entry, PublishedRecord, read_card
from langdepth.utils.plugins import load_target, plugins, source_of
from langdepth.utils.reading import read_text

if TYPE_CHECKING:
    from langdepth.systems.base import System
    from langdepth.systems.capabilities import DepthSystem

TRANSFORMERS = "transformers:"  # of the names of models of that library
OWN_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "module:Class", of a file of one's own


Read: TypeAlias = tuple[list[Entry], dict[str, str], dict[str, PublishedRecord]]
What = TypeVar("What")


def _cards(name: str | None = None) -> Iterator[Read]:
    """All cards, or of our own those alone that have the name."""
    has_name = None if name is None else re.compile(rf"^  {re.escape(name)}:", re.MULTILINE)
    for path in sorted(Path(__file__).parent.glob("*/card.yaml")):
        if has_name is None or has_name.search(read_text(path, MAX_YAML_BYTES)):
            yield _card(path, f"langdepth.systems.{path.parent.name}")
    for point in plugins("systems").values():
        try:
            spec = find_spec(point.value)
            if spec is None or not spec.submodule_search_locations:
                raise LangdepthError(f"'{point.value}' is no package with a card.yaml")
            path = Path(next(iter(spec.submodule_search_locations)), "card.yaml")
            yield _card(path, point.value, source_of(point))
        except (LangdepthError, ImportError, ValueError) as error:  # one bad package ends nothing
            warnings.warn(f"the systems of {source_of(point)} are left out: {error}", stacklevel=2)


_card = cache(read_card)


@cache
def _read(name: str | None = None) -> tuple[dict[str, Entry], dict[str, str], dict[str, PublishedRecord]]:
    entries: dict[str, Entry] = {}
    pipelines: dict[str, str] = {}
    published: dict[str, PublishedRecord] = {}
    for systems, images, weights in _cards(name):
        for found in systems:
            if entries.setdefault(found.name, found) is not found:
                warnings.warn(f"{found.package}: the system name '{found.name}' is taken; it is left out", stacklevel=2)
        pipelines = images | pipelines
        published = weights | published
    return entries, pipelines, published


class _Names(MutableMapping[str, What]):
    """What cards say by name: systems, pipelines or published weights. To know one name takes the card that has it."""

    def __init__(self, part: int) -> None:
        self._part = part
        self._set: dict[str, What] = {}  # by others than cards

    def __getitem__(self, name: str) -> What:
        if name in self._set:
            return self._set[name]
        if not isinstance(name, str):
            raise KeyError(name)
        found: dict[str, What] = _read(name)[self._part]  # type: ignore[assignment]
        return found[name]

    def _all(self) -> dict[str, What]:
        return {**_read()[self._part], **self._set}  # type: ignore[dict-item]

    def __setitem__(self, name: str, value: What) -> None:
        self._set[name] = value

    def __delitem__(self, name: str) -> None:
        del self._set[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


REGISTRY: MutableMapping[str, Entry] = _Names(0)
PIPELINES: MutableMapping[str, str] = _Names(1)
PUBLISHED: MutableMapping[str, PublishedRecord] = _Names(2)


def systems_with(capability: type[DepthSystem]) -> list[str]:
    """The names of the systems that have a capability (a class of ``systems.capabilities``). Imports every system."""
    return [name for name in list_systems() if issubclass(entry(name).system_class(), capability)]


def list_systems() -> list[str]:
    """All registry names, sorted."""
    return sorted(REGISTRY)


def entry(name: str) -> Entry:
    """The entry called ``name``; of "module:Class", a new one, for a class in a module of one's own.

    Raises:
        UsageError: There is none; the message names the nearest known name.
    """
    if name not in REGISTRY and OWN_CLASS.fullmatch(name):
        REGISTRY[name] = _own_entry(name)
    try:
        return REGISTRY[name]
    except KeyError:
        raise UsageError(f"unknown system '{name}': {nearest(name, REGISTRY)}") from None


def search_current_folder() -> None:
    """Let modules be found in the current folder, where an installed command does not search."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _own_entry(name: str) -> Entry:
    """The entry of "module:Class", whose module may also lie in the current folder."""
    from langdepth.systems.base import System

    search_current_folder()
    found = Entry(name=name, target=name, summary="a class of one's own", paper="none")
    try:
        cls = found.system_class()
    except LangdepthError as error:
        raise UsageError(str(error)) from error
    if not (isinstance(cls, type) and issubclass(cls, System)):
        raise UsageError(f"'{name}' is no system: derive the class from langdepth.System")
    return found


def pipeline(name: str) -> Callable[..., Any]:
    """What makes the training images called ``name``. Raises UsageError naming the nearest known one."""
    if name not in PIPELINES:
        raise UsageError(f"unknown pipeline '{name}': {nearest(name, ('standard', *PIPELINES))}")
    found: Callable[..., Any] = load_target(PIPELINES[name], f"the pipeline '{name}'")
    return found


def config(name: str, options: dict[str, Any] | None = None) -> Any:
    """The configuration of a system: its preset and ``options`` over it."""
    from langdepth.config import from_mapping, merged

    found = entry(name)
    cls: Any = found.system_class()
    return from_mapping(cls.Config, merged(found.preset, options or {}), where="system.options.")


def with_prompts(name: str, options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` of a system with other distance words: fields of ``text.prompts.PromptSet`` over its own.

    Raises:
        UsageError: It has none, or the words do not fit.
    """
    from langdepth.config import to_mapping
    from langdepth.systems.capabilities import TakesPrompts
    from langdepth.text.prompts import find_prompts

    if not changes:
        return dict(options)
    if not issubclass(entry(name).system_class(), TakesPrompts):
        raise UsageError(f"the system '{name}' {TakesPrompts.lacking}")
    prompts = find_prompts(config(name, dict(options)).prompts).changed(changes)
    return {**options, "prompts": to_mapping(prompts)}


def build(name: str, options: dict[str, Any] | None = None) -> System:
    """A system with its preset and ``options`` over it; parameters freshly initialised, no weights loaded."""
    from langdepth.systems import capabilities

    if systems_with not in capabilities.systems_with:
        capabilities.systems_with.append(systems_with)
    found = entry(name)
    cls: Any = found.system_class()  # every system is made from its config alone
    try:
        system: System = cls(config(name, options))
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"system.options: {error}") from None
    except (RuntimeError, TypeError, IndexError, ArithmeticError, AssertionError) as error:  # of a layer's own
        raise UsageError(f"system.options: no network of '{name}' has such sizes ({first_line(error)})") from None
    system.name, system.about, system.package = name, found.about, found.package
    return system
