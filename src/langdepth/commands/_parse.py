"""Command lines from typed functions, the same way for every command. Imports no torch."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
import types
import typing
import warnings
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter, _AppendAction
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from langdepth.errors import FileWarning, LangdepthError, UsageError, first_few, nearest, one_line, say
from langdepth.utils.numbers import plain_number

_LARGEST = 1e300  # beyond it no calculation goes
SHARED = {
    "device": "auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.",
    "dtype": "Precision of the network.",
    "batch_size": "How many images of one size go through the network at once.",
    "clip_weights": "CLIP weights for systems that stand on them: OpenAI's archive, open_clip's or Hugging Face's "
    "file, or the word random; without it open_clip downloads them.",
    "trust_unit": "Take depth as it is, even where its unit seems wrong.",
    "words": "Distance words from near to far, with commas, for systems that compare with such words.",
    "bins": "The distance each of them stands for, metres with commas, rising.",
}
"""Options of several commands, whose docstrings need not repeat what they mean."""


def run(function: Callable[..., int | None], arguments: Sequence[str], prog: str, example: str) -> int:
    """Parse ``arguments`` for ``function``, call it, and return its exit code (None counts as 0).

    Parameters before ``*`` are words on the command line: one each, optional if they have a default, any number if
    typed ``list[str]``. Keyword-only parameters are options: ``batch_size: int = 4`` is ``--batch-size 8``,
    ``flip: bool = False`` a switch ``--flip``, ``window: tuple[int, int]`` takes HEIGHTxWIDTH, one without a default is
    required, ``system: list[str] | None = None`` may be given several times; of a dataclass each field is an option.
    Types are checked. The help comes from the docstrings (Google style, section "Args:") and ``SHARED``, and ends with
    ``example``, one command per line.

    Each warning during the call is one line on stderr.

    Raises:
        UsageError: For anything the command line gets wrong.
    """
    parser = build_parser(function, prog, example, described=not {"-h", "--help"}.isdisjoint(arguments))
    values = vars(parser.parse_args(arguments))
    for name, hint in typing.get_type_hints(function).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            values[name] = hint(**{field.name: values.pop(field.name) for field in dataclasses.fields(hint)})
    shown: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if isinstance(message, FileWarning):
            if message.text in shown:
                return
            shown.add(message.text)
            text = str(message)  # with the file's name as it is
        say(f"{prog}: warning: {one_line(text)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of metadata that nobody uses
        logging.getLogger("PIL").addHandler(logging.NullHandler())  # its errors are reported with the file's name
        warnings.showwarning = show
        return int(function(**values) or 0)


class _Parser(ArgumentParser):
    """Raises UsageError in one line for what argparse would print with the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._given: set[str] = set()

    def _get_values(self, action: Any, arg_strings: list[str]) -> Any:
        if action.option_strings and action.nargs is None and not isinstance(action, _AppendAction):
            if action.dest in self._given:  # argparse would drop the first value in silence
                self.error(f"{action.option_strings[0]} is given twice")
            self._given.add(action.dest)
        if action.option_strings and arg_strings == ["--"]:  # of which argparse makes an empty list
            self.error(f"{action.option_strings[0]}: expected one argument, got '--'")
        return super()._get_values(action, arg_strings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, which lists what is left over without saying where one name ends."""
        values, rest = self.parse_known_args(args, namespace)
        if rest:
            raise UsageError(self._not_understood(rest))
        return values

    def _not_understood(self, rest: list[str]) -> str:
        """What is wrong with the words that are left over."""
        options = list(dict.fromkeys(word.partition("=")[0] for word in rest if word.startswith("-")))
        if options:
            flags = [f for a in self._actions for f in a.option_strings if f.startswith("--") and a.help != SUPPRESS]
            several = f"; also unknown: {first_few(options[1:])}" if len(options) > 1 else ""
            return f"unknown option '{options[0]}': {nearest(options[0], flags)}{several}"
        words = first_few([f"'{word}'" for word in rest])
        places = [action for action in self._actions if not action.option_strings]
        if any(action.nargs in ("*", "+") for action in places):
            return (
                f"{words}: not understood after an option; write all names before the options, and a text of several "
                "words in quotes"
            )
        takes = ", ".join(f"one {action.dest}" for action in places) + " and options" if places else "options alone"
        return f"{words}: too much; '{self.prog}' takes {takes}, and a text of several words in quotes"

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse says nothing where it cannot be written

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        message = re.sub(r"ignored explicit argument .*", "is a switch, which takes no value", message, flags=re.DOTALL)
        if message.startswith("the following arguments are required"):
            message += f"; see '{self.prog} --help'"
        raise UsageError(message.removeprefix("argument "))


def build_parser(function: Callable[..., Any], prog: str, example: str, *, described: bool = True) -> ArgumentParser:
    """The parser that ``run`` uses; ``described``: with what only its help shows."""
    description, meaning = _described(function) if described else (None, {})
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=f"example:\n{lines}",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser._negative_number_matcher = re.compile(r"-[0-9.,]")  # also -1,5 is a value, not an option
    for parameter in _parameters(function):
        flag, settings = _argument(parameter, meaning.get(parameter.name, ""))
        parser.add_argument(flag, **settings)
    return parser


def _described(function: Callable[..., Any]) -> tuple[str | None, dict[str, str]]:
    """What the docstrings state of a function and of its parameters."""
    import docstring_parser

    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    hints = typing.get_type_hints(function).values()
    kinds = [kind for hint in hints if dataclasses.is_dataclass(hint) for kind in reversed(inspect.getmro(hint))]  # type: ignore[arg-type]
    params = [param for kind in kinds for param in docstring_parser.parse(kind.__doc__ or "").params]
    return doc.description, SHARED | {param.arg_name: param.description or "" for param in (*params, *doc.params)}


def _parameters(function: Callable[..., Any]) -> Iterator[inspect.Parameter]:
    """The parameters of a function with their types; in place of one whose type is a dataclass, that one's fields."""
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(hints[name]):
            yield from _parameters(typing.cast("Callable[..., Any]", hints[name]))
        else:
            yield parameter.replace(annotation=_given(hints[name]))


def _argument(parameter: inspect.Parameter, meaning: str) -> tuple[str, dict[str, Any]]:
    """The name of a parameter on the command line, and what argparse is to know of it."""
    hint, optional = parameter.annotation, parameter.default is not parameter.empty
    several = typing.get_origin(hint) is list
    settings: dict[str, Any] = {"help": meaning.replace("%", "%%"), "type": _reader(hint)}
    if optional:
        settings["default"] = parameter.default
        if parameter.default not in (None, False):
            settings["help"] += f" (default: {parameter.default})"
    if parameter.kind is not parameter.KEYWORD_ONLY:
        if several or optional:
            settings["nargs"] = "?" if not several else "*" if optional else "+"
        return parameter.name, settings
    settings |= {"required": not optional, "dest": parameter.name, "metavar": _metavar(parameter.name, hint)}
    if several:
        settings["action"] = "append"
    if hint is bool and parameter.default is False:
        settings["action"] = "store_true"
        del settings["type"], settings["metavar"]
    return "--" + parameter.name.replace("_", "-"), settings


def _given(hint: Any) -> Any:
    """The type of an option that is given: without None."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType) and len(kinds) == 1:
        return kinds[0]
    return hint


def _metavar(name: str, hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    return name.upper() if typing.get_origin(hint) is not tuple else "HEIGHTxWIDTH"


def _reader(hint: Any) -> Callable[[str], Any]:
    """What makes a value of the type ``hint`` of the text that was typed."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return _reader(arguments[0])
    if origin is typing.Literal:
        return lambda text: _refuse("one of " + ", ".join(arguments), text) if text not in arguments else text
    if origin is tuple:
        return _size
    return {int: _whole_number, float: _number, bool: _truth, Path: _path}.get(hint, _text)


def _refuse(expected: str, text: str) -> NoReturn:
    raise ArgumentTypeError(f"expected {expected}, got '{text}'")


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        _refuse("a whole number", text)
    return int(text) if abs(_number(text)) < _LARGEST else 0


def _number(text: str) -> float:
    try:
        number = plain_number(text)
    except ValueError:
        _refuse("a number", text)
    if "n" not in text.lower() and abs(number) >= _LARGEST:
        raise ArgumentTypeError("expected a number that is not so large")
    return number


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        _refuse("true or false", text)
    return text.lower() == "true"


def _text(text: str) -> str:
    if not text:
        _refuse("a value", text)  # an empty variable of a shell; not "not given", and not this folder
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(re.fullmatch("[0-9]{1,9}", side) for side in sides):
        _refuse("HEIGHTxWIDTH in pixels, for example 352x512", text)
    return int(sides[0]), int(sides[1])


def members(systems: list[str] | None) -> list[str]:
    """What ``--system`` names, by default tiny. Raises UsageError for names run together."""
    for name in systems or ():
        if "," in name and not Path(name).exists():
            raise UsageError(f"--system: '{name}' is no file; of several systems give each its own --system")
    return systems or ["tiny"]


def images_in(folder: Path | None, option: str) -> list[Path]:
    """The images in the folder that an option names, none without it. Raises LangdepthError."""
    from langdepth.prediction.inputs import find_images

    if folder is None:
        return []
    if not folder.is_dir():
        raise UsageError(f"{option} {folder}: no such folder")
    found = find_images([str(folder)], Path(), recursive=None)
    for problem in found.problems:
        raise LangdepthError(f"{option}: {problem}")
    return [Path(file) for file, _ in found.files]


def require_use(used: bool, reason: str, **given: Any) -> None:
    """Raise UsageError for an option that is given and has no use, for the ``reason`` that its message states."""
    for name, value in given.items():
        if value is not None and not used:
            raise UsageError(f"--{name.replace('_', '-')} {reason}")


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The plain options, and the dotted ones (``--optim.lr 1e-4``, ``--optim.lr=1e-4``), whose values are YAML.

    Raises UsageError for a dotted option without a value, or given twice.
    """
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
        if name[2:] in overrides:
            raise UsageError(f"{name} is given twice")
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
        say(*describe(name).split("\n"))
    elif name is not None:
        raise UsageError(f"list takes no name; to see one {noun}: {command} {name}")
    else:
        say(*table().split("\n"))


def set_dotted(content: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the field that an option's dotted name leads to. Raises UsageError where the way ends at a value."""
    *sections, key = dotted.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UsageError(f"--{dotted}: '{section}' is a value, not a section")
    content[key] = value
