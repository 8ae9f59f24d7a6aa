"""Command lines from typed functions, the same way for every command. Imports no torch."""

from __future__ import annotations

import inspect
import logging
import re
import sys
import types
import typing
import warnings
from argparse import SUPPRESS, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from langdepth.errors import FileWarning, UsageError, first_line, nearest


def run(function: Callable[..., int | None], arguments: Sequence[str], prog: str, example: str) -> int:
    """Parse ``arguments`` for ``function``, call it, and return its exit code (None counts as 0).

    Parameters before ``*`` are words on the command line: one each, optional if they have a default, any number if
    typed ``list[str]``. Keyword-only parameters are options: ``batch_size: int = 4`` is ``--batch-size 8``,
    ``flip: bool = False`` a switch ``--flip``, one without a default is required, ``system: list[str] | None = None``
    may be given several times. Types are checked. The help comes
    from the docstring (Google style, section "Args:") and ends with ``example``, one command per line.

    Warnings during the call cost one line on stderr, too. Raises UsageError (one line) for anything the command line
    gets wrong.
    """
    parser = build_parser(function, prog, example)
    try:
        values = parser.parse_args([word.translate(_AWAY) for word in arguments])
    except ArgumentError as error:
        raise UsageError(_explain(str(error), function, parser, prog, arguments).translate(_BACK)) from None
    except OverflowError:
        flag, _ = max((pair for pair in _typed(arguments) if pair[0][:2] == "--"), key=lambda pair: len(pair[1]))
        raise UsageError(f"{flag}: expected a number that is not so large") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # YAML's readers, of "!!int"
        raise UsageError(f"a value is not understood ({first_line(error)}); see '{prog} --help'") from None
    for flag, value in _typed(arguments):
        if not value and values.get(flag.removeprefix("--").replace("-", "_")) == Path():
            raise UsageError(f"{flag}: expected a path, got ''")  # an empty variable of a shell, not this folder
        _require_number(flag, values.get(flag.removeprefix("--").replace("-", "_")))

    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if isinstance(message, FileWarning):
            if message.text in shown:
                return
            shown.add(message.text)
        print(f"{prog}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata that nobody uses
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # whose errors are told with the file's name
        warnings.showwarning = show
        return int(function(**{name: _back(values[name]) for name in inspect.signature(function).parameters}) or 0)


def _require_number(flag: str, value: Any) -> None:
    """Raise UsageError for a whole number of hundreds of digits, which no calculation takes."""
    if isinstance(value, int) and abs(value) >= 10**300:
        raise UsageError(f"{flag}: expected a number that is not so large")


# Bytes of names that are not UTF-8, which the parser cannot read, and characters in their place that nobody types.
_AWAY = {0xDC00 + byte: chr(0x10FE00 + byte) for byte in range(128, 256)}
_BACK = {ord(kept): chr(byte) for byte, kept in _AWAY.items()}


def _back(value: Any) -> Any:
    """A parsed value with the bytes of its names."""
    if isinstance(value, str):
        return value.translate(_BACK)
    if isinstance(value, Path):
        return Path(str(value).translate(_BACK))
    return [_back(part) for part in value] if isinstance(value, list) else value


def build_parser(function: Callable[..., Any], prog: str, example: str) -> Any:
    """The jsonargparse parser that ``run`` uses."""
    import docstring_parser
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the line breaks of the example."""

    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    meaning = {parameter.arg_name: parameter.description for parameter in doc.params}
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    parser = ArgumentParser(
        prog=prog,
        description=doc.description,
        epilog=f"example:\n{lines}",
        exit_on_error=False,
        formatter_class=Formatter,
    )
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        hint, optional = hints[name], parameter.default is not parameter.empty
        settings: dict[str, Any] = {"help": meaning.get(name), "type": _given(hint)}
        if optional:
            settings["default"] = parameter.default
        if parameter.kind is parameter.KEYWORD_ONLY:
            flag = "--" + name.replace("_", "-")
            if hint is bool and parameter.default is False:
                settings["action"] = "store_true"
                del settings["type"]
            elif not optional:
                settings["required"] = True
            if any(typing.get_origin(kind) is list for kind in (hint, *typing.get_args(hint))):
                settings |= {"type": str, "action": "append"}
        else:
            flag = name
            if typing.get_origin(hint) is list:
                settings |= {"type": typing.get_args(hint)[0], "nargs": "*" if optional else "+"}
            elif optional:
                settings["nargs"] = "?"
        parser.add_argument(flag, **settings)
    return parser


def _given(hint: Any) -> Any:
    """The type of an option that is given: without None, as which YAML reads "#kitchen", "~" and "null"."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and len(kinds) == 1:
        return kinds[0]
    return hint


def members(systems: list[str] | None) -> list[str]:
    """What ``--system`` names, by default tiny. Raises UsageError for names run together."""
    for name in systems or ():
        if "," in name and not Path(name).exists():
            raise UsageError(f"--system: '{name}' is no file; of several systems give each its own --system")
    return systems or ["tiny"]


def size(option: str, text: str | None) -> tuple[int, int] | None:
    """(height, width) from HEIGHTxWIDTH. Raises UsageError naming the option."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise UsageError(f"{option}: expected HEIGHTxWIDTH in pixels, for example 352x512, got '{text}'")
    return int(sides[0]), int(sides[1])


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The plain options, and the dotted ones (``--optim.lr 1e-4``, ``--optim.lr=1e-4``), whose values are YAML."""
    from langdepth.config import Typed, parse_yaml

    plain: list[str] = []
    overrides: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not (name.startswith("--") and "." in name):
            plain.append(word)
            continue
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value")
            value = rest.pop(0)
        parsed = parse_yaml(value, f"{name} '{value}'")
        if isinstance(parsed, int | float):  # also true and false
            parsed = Typed(parsed, value)
        overrides[name[2:]] = value if _lost(value, parsed) else parsed
    return plain, overrides


def _lost(text: str, parsed: Any) -> bool:
    """Whether YAML has dropped a part of a text, which it takes for a comment or the name of a node."""
    if parsed is None:
        return text.strip().lower() not in ("null", "~", "")
    return isinstance(parsed, str) and text[:1] not in ("'", '"') and parsed != text.strip()


def list_or_show(
    noun: str, action: str, name: str | None, table: Callable[[], str], describe: Callable[[str], str], example: str
) -> None:
    """Print the table of all for the action "list", the description of one for "show". Raises UsageError."""
    command = f"langdepth {noun}s show"
    if action == "show":
        if name is None:
            raise UsageError(f"show: name the {noun}, for example: {command} {example}")
        print(describe(name))
    elif name is not None:
        raise UsageError(f"list takes no name; to see one {noun}: {command} {name}")
    else:
        print(table())


def _explain(message: str, function: Callable[..., Any], parser: Any, prog: str, arguments: Sequence[str]) -> str:
    """The parser's complaint in one line, in the words the user typed."""
    message = " ".join(message.split())
    unknown = re.match(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if unknown:
        word = unknown[1].partition("=")[0]
        if not word.startswith("-"):
            return f"'{word}' is not understood there; write all names together, before the options"
        flags = [f for a in parser._actions for f in a.option_strings if f.startswith("--") and a.help != SUPPRESS]
        return f"unknown option '{word}': {nearest(word, flags)}"
    wrong = re.match(r'Parser key "(\w+)":(?:.*value: ?(.*)|.*)', message)
    if wrong:
        name, value = wrong.groups()
        option = inspect.signature(function).parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        place = "--" + name.replace("_", "-") if option else name
        if value in ("None", None):  # what YAML makes of it, or the parser says something else
            value = next((typed for flag, typed in _typed(arguments) if flag == place), value)
        return f"{place}: expected {_kind(typing.get_type_hints(function)[name])}, got '{value}'"
    lacking = re.match(r"Option '([\w.-]+)' is required", message)  # as jsonargparse says it in some versions
    if lacking:
        message = f"the following arguments are required: {lacking[1]}"
    if message.startswith("the following arguments are required"):
        return f"{message}; see '{prog} --help'"
    return message


def _typed(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and the values that follow them."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        yield flag, value if equals else following


def _kind(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if arguments:
        return " or ".join(_kind(a) for a in arguments if a is not type(None))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
