"""What other installed packages add by entry points, found by name. Nothing of them is imported until it is asked for.

Groups: ``langdepth.systems`` (a package with a card.yaml), ``langdepth.datasets`` (a module, or a part of one, with a
CARD and rows), ``langdepth.protocols`` (a ``Protocol``), ``langdepth.formats`` (a ``prediction.results.Writer``).
CONTRIBUTING.md shows one of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from langdepth.errors import LangdepthError, UsageError, first_line, missing_package

T = TypeVar("T")


@cache
def plugins(group: str, own: tuple[str, ...] = ()) -> dict[str, EntryPoint]:
    """Entry points of a group, for example "datasets", by name. Warns of those whose name is taken, also by ``own``."""
    known: dict[str, EntryPoint] = {}
    for point in _installed().select(group=f"langdepth.{group}"):
        if known.setdefault(point.name, point).value != point.value:
            first = source_of(known[point.name])
            warnings.warn(f"{source_of(point)}: '{point.name}' is of {first} already; it is left out", stacklevel=2)
    for name in set(known) & set(own):
        warnings.warn(f"{source_of(known[name])}: the name '{name}' is taken; it is left out", stacklevel=2)
    return {name: point for name, point in known.items() if name not in own}


@cache
def _installed() -> Any:
    """Entry points of all groups: to find those of one, the files of all packages are read as well."""
    return entry_points()


def source_of(point: EntryPoint) -> str:
    """The package that adds an entry point, as pip calls it."""
    return point.dist.name if point.dist is not None else point.value


def usable(names: Iterable[str], load: Callable[[str], T]) -> Iterator[T]:
    """What ``load`` makes of each name. Warns of those that cannot be loaded: a bad plug-in costs itself alone."""
    for name in names:
        try:
            yield load(name)
        except LangdepthError as error:
            warnings.warn(str(error), stacklevel=2)


@contextmanager
def needs_packages() -> Iterator[None]:
    """An import inside that fails for a package of an extra, as UsageError naming the extra."""
    try:
        yield
    except ImportError as error:
        advice = missing_package(error)
        if advice is None:
            raise
        raise UsageError(advice) from None


def load_target(target: str, what: str) -> Any:
    """What "module" or "module:attribute" names.

    Args:
        target: The name.
        what: What it is, for the message.

    Raises:
        LangdepthError: It cannot be imported.
    """
    module, _, attribute = target.partition(":")
    try:
        found = import_module(module)
        return getattr(found, attribute) if attribute else found
    except LangdepthError:
        raise
    except (Exception, SystemExit) as error:  # a module of others may fail in any way
        raise LangdepthError(f"{what} cannot be imported: {first_line(error)}") from error
