"""Arguments of public functions, and options in records, are of the types that are stated for them."""

from __future__ import annotations

import builtins
import inspect
import itertools
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from langdepth.errors import UsageError, nearest

P = ParamSpec("P")
T = TypeVar("T")

_LARGEST = 2**63  # what torch and NumPy count with is smaller
_NUMBERS: dict[Any, Any] = {int: Integral, float: Real}
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    types.NoneType: "None",
    Callable: "a function",
    Iterable: "an iterable",
    Mapping: "a dictionary",
    Sequence: "a list",
}


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which raises UsageError for arguments of other names or types than its signature states.

    Its warnings need a ``stacklevel`` of one more.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise UsageError(f"{function.__name__.lstrip('_')}: {error}") from None
        _require_types(function, given)
        return function(*args, **kwargs)

    return call


def check_fields(record: object) -> None:
    """Raise UsageError for a field of a dataclass that is of another type than its class states."""
    _require_types(type(record), vars(record))


def _require_types(stated: Any, values: Mapping[str, Any]) -> None:
    hints = _hints(stated)
    for name, value in values.items():
        if not _fits(value, hints.get(name, Any)):
            options = [one for part in (hints[name], *typing.get_args(hints[name])) for one in _choices(part)]
            if options and isinstance(value, str):
                raise UsageError(f"{name}: unknown value {value!r}: {nearest(value, options)}")
            plain = isinstance(value, int | float | str | types.NoneType | tuple | list)
            huge = isinstance(value, int) and abs(value) >= _LARGEST
            found = "one beyond 2^63" if huge else reprlib.repr(value) if plain else type(value).__name__
            raise UsageError(f"{name}: expected {_named(hints[name])}, got {found}")


class _Names(dict[str, Any]):
    """Of a module; one that is known to type checkers alone stands for anything."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


@cache
def _hints(stated: Any) -> dict[str, Any]:
    return typing.get_type_hints(stated, localns=_Names(vars(sys.modules[stated.__module__])))


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        several = arguments[-1] is ...
        kinds = itertools.repeat(arguments[0]) if several else arguments
        fits = isinstance(value, tuple | list) and (several or len(value) == len(arguments))
        return fits and all(map(_fits, value, kinds))
    if origin in (list, Sequence) and isinstance(value, Sequence):  # a text is none of texts
        return not isinstance(value, str | bytes) and all(_fits(one, arguments[0]) for one in value)
    if hint in _NUMBERS:
        small = not isinstance(value, Integral) or abs(int(value)) < _LARGEST
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool) and small
    if hint is bool:
        return type(value).__name__ in ("bool", "bool_")  # Python's or NumPy's
    kind = os.PathLike if hint is Path else origin or hint
    try:
        return kind is Any or issubclass(kind, typing.IO) or isinstance(value, kind)  # no file is an IO of typing
    except TypeError:  # a type variable, a protocol without a check
        return True


def _choices(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def _named(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        *names, last = dict.fromkeys(map(_named, arguments))
        return f"{', '.join(names)} or {last}" if names else last
    if origin is typing.Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        return f"({', '.join('...' if one is ... else _named(one) for one in arguments)})"
    kind = origin or hint
    if kind in (list, Sequence) and typing.get_origin(arguments[0] if arguments else None) is tuple:
        return f"a list of {_named(arguments[0])}"
    name = getattr(kind, "__name__", str(kind))
    return getattr(kind, "kind_in_messages", None) or _WORDS.get(kind, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
