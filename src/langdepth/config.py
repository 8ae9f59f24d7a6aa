"""Strict configuration: frozen keyword-only dataclasses filled from YAML.

An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from langdepth.errors import MissingConfigError, UsageError, nearest, text_flaw
from langdepth.utils.reading import read_text

T = TypeVar("T")


MAX_YAML_BYTES = 4_000_000
MAX_YAML_VALUES = 200_000  # with every alias written out
_PLAIN = {
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)",
}
_STARTS = {"bool": [*"tTfF"], "int": [*"-+0123456789"], "float": [*"-+.0123456789"]}


def load_yaml(path: str | Path, what: str = "recipe") -> dict[str, Any]:
    """Read a YAML mapping (plain data: no tags, no key twice). Raises UsageError naming file and line of a mistake.

    ``what``: what the file should hold, for the messages.
    """
    path = Path(path)
    try:
        text = read_text(path, MAX_YAML_BYTES)
    except FileNotFoundError:
        raise MissingConfigError(f"{path}: no such file; give the path of a {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({text_flaw(error)})") from None
    content = parse_yaml(text, str(path))
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"{type(content).__name__}"
        raise UsageError(f"{path}: a {what} is a mapping of keys to values, found {found}")
    return content


def plain_loader(base: Any) -> Any:
    """The loader class ``base`` with numbers in plain decimals, true and false alone, as in YAML 1.2.

    YAML 1.1 makes 90 of 1:30, 15 of 017, 3 of 0b11, 1000 of 1_000, false of ``no``, and a date of 2024-01-31; here
    these stay texts.
    """

    class Plain(base):
        pass

    def decimal(loader: Any, node: Any) -> Any:
        kind, text = node.tag.rpartition(":")[2], loader.construct_scalar(node)
        if not re.fullmatch(_PLAIN[kind], text):
            raise ValueError(f"{text!r} is no plain {kind}")
        return base.yaml_constructors[node.tag](loader, node)

    kept = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    Plain.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag in kept]
        for first, known in base.yaml_implicit_resolvers.items()
    }
    for kind, pattern in _PLAIN.items():
        tag = f"tag:yaml.org,2002:{kind}"
        Plain.add_implicit_resolver(tag, re.compile(f"(?:{pattern})$"), _STARTS[kind])
        Plain.add_constructor(tag, decimal)
    Plain.add_constructor("tag:yaml.org,2002:timestamp", base.construct_yaml_str)
    return Plain


class _Flaw(Exception):
    """A place in a YAML text (or None) and what is wrong there."""


@lru_cache
def _strict_loader() -> Any:
    """``plain_loader`` for one document of plain data and a limited size."""
    import yaml

    class Loader(plain_loader(yaml.SafeLoader)):  # type: ignore[misc]
        """Refuses a key that stands twice in one mapping, of which YAML would silently keep the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[Any] = set()
            for key, _ in node.value:
                name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
                if name in seen:
                    raise _Flaw(key.start_mark, f"key '{name}' stands twice in one mapping")
                seen.add(name)
            return super().construct_mapping(node, deep)

        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, OverflowError, TypeError, LookupError, AttributeError):
                raise _Flaw(node.start_mark, "the value cannot be read as a number or as what its tag says") from None

        def construct_document(self, node: yaml.Node) -> Any:
            _require_few_values(node)
            return super().construct_document(node)

    plain = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp")
    Loader.yaml_constructors = {
        tag: function
        for tag, function in Loader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in plain
    }
    return Loader


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML text: mappings, lists, texts, numbers, true, false, null, see ``plain_loader``.

    Raises UsageError naming ``where``, line and column for anything else, a key that stands twice, and aliases that
    stand for far more than the text.
    """
    import yaml

    problems = {
        yaml.reader.ReaderError: "holds a character that YAML does not allow",
        yaml.composer.ComposerError: "an alias without its anchor, or a second document",
        yaml.constructor.ConstructorError: "only texts, numbers, true, false, null, lists and mappings are read, "
        "and of these only single values as keys",
        yaml.MarkedYAMLError: "cannot be understood from there on; check indentation, brackets and quotes, which a "
        "text with ': ' or ' #' in it needs",
    }
    try:
        return yaml.load(text, _strict_loader())
    except _Flaw as flaw:
        mark, problem = flaw.args
    except RecursionError:
        mark, problem = None, "is nested too deeply"
    except yaml.YAMLError as error:
        problem = next(problem for kind, problem in problems.items() if isinstance(error, kind))
        mark = getattr(error, "problem_mark", None)
        if isinstance(error, yaml.reader.ReaderError):
            before = text[: error.position].split("\n")
            mark = yaml.Mark("", error.position, len(before) - 1, len(before[-1]), None, 0)
    place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise UsageError(f"{where}: not valid YAML{place}: {problem}")


def dump_yaml(config: Any) -> str:
    """A dataclass as YAML that ``parse_yaml`` reads back."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes texts that YAML 1.1 does not take for numbers: 1e-4."""

    plain = re.compile(f"(?:{_PLAIN['float']})$")
    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", plain, _STARTS["float"])
    text: str = yaml.dump(to_mapping(config), Dumper=Dumper, sort_keys=False)
    return text


def _require_few_values(root: Any) -> None:
    """Raise _Flaw where a document has too many values, each alias counted as what it stands for."""
    import yaml

    counted: dict[int, int] = {}

    def count(node: Any) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        if id(node) in counted:
            if not counted[id(node)]:
                raise _Flaw(node.start_mark, "an alias stands for itself")
            return counted[id(node)]
        counted[id(node)] = 0  # until it is known
        parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        total = 1 + sum(map(count, parts))
        if total > MAX_YAML_VALUES:
            raise _Flaw(node.start_mark, f"more than {MAX_YAML_VALUES} values")
        counted[id(node)] = total
        return total

    count(root)


@dataclasses.dataclass(frozen=True)
class Typed:
    """A value of the command line as YAML reads it; fields that take only a text get it as it was typed."""

    value: Any
    text: str


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``, section by section."""
    both = {
        key: merged(base[key], value) if isinstance(value, Mapping) and isinstance(base.get(key), Mapping) else value
        for key, value in over.items()
    }
    return {**base, **both}


def to_mapping(config: Any) -> dict[str, Any]:
    """A dataclass as plain nested dictionaries and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, Path):
            return str(value)
        return value

    result: dict[str, Any] = plain(config)
    return result


def from_mapping(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from plain data.

    ``where`` is the dotted place that messages name ("data." for the data section). Raises UsageError for unknown keys,
    missing required keys, and values of the wrong type.
    """
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{where.rstrip('.') or 'recipe'}: expected a mapping of keys to values, got {mapping!r}")
    hints = _type_hints(cls)  # type: ignore[arg-type]
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in mapping:
        if key not in fields:
            raise UsageError(f"unknown key '{where}{key}': {nearest(str(key), fields)}")
    values = {key: _convert(hints[key], value, f"{where}{key}") for key, value in mapping.items()}
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UsageError(f"key '{where}{name}' is required")
    try:
        return cls(**values)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{where.rstrip('.') or 'recipe'}: {error}") from None


@lru_cache
def _type_hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``hint``. Raises UsageError naming ``where`` for a value of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Typed):
        try:
            return _convert(hint, value.value, where)
        except UsageError:
            with suppress(UsageError):
                return _convert(hint, value.text, where)
            raise
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_mapping(hint, value, where + ".")
    if origin is typing.Literal:
        if value not in arguments:
            raise UsageError(f"{where}: unknown value {value!r}: {nearest(str(value), map(str, arguments))}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise UsageError(f"{where}: expected a list, got {value!r}")
        kinds = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        if len(value) != len(kinds):
            raise UsageError(f"{where}: expected {len(kinds)} values, got {len(value)}")
        return origin(_convert(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: expected a mapping, got {value!r}")
        return {_convert(arguments[0], k, where): _convert(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    return _convert_plain(hint, value, where)


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """``value`` as the first of ``kinds`` that takes it; the error is that of the first one."""
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _convert(kind, value, where)
            except UsageError as error:
                errors.append(error)
    raise errors[0]


def _convert_plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with suppress(OverflowError):
            return float(value)
    if kind is Path and isinstance(value, str):
        if "\0" in value:
            raise UsageError(f"{where}: {value!r} is no path, it holds a zero byte")
        return Path(value)
    if (kind is int and isinstance(value, bool)) or not isinstance(value, kind):
        advice = "; put it in quotes" if kind in (str, Path) and isinstance(value, int | float) else ""
        raise UsageError(f"{where}: expected {kind.__name__}, got {value!r}{advice}")
    if kind is float and value != value:
        raise UsageError(f"{where}: expected a number, got nan")
    return value
