"""Command lines from typed functions: what is typed is used as it is, or refused."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from langdepth.commands import _parse
from langdepth.config import Typed, from_mapping
from langdepth.errors import FileWarning, UsageError
from langdepth.training.sections import DataSection

ODD = ["#kitchen", "~", "null", "1e3", "yes", "[a]", "a: b", "007", "1.0", "&x", "*x", "a #b", "2020-01-01", "é"]


def _called(*arguments: str) -> dict[str, Any]:
    """What a command with options of all kinds gets from a command line."""
    got: dict[str, Any] = {}

    def command(
        word: Path | None = None,
        *,
        text: str | None = None,
        name: str = "plain",
        file: Path | None = None,
        out: Path = Path("here"),
        many: list[str] | None = None,
        number: float | None = None,
        count: int | None = None,
        flag: bool | None = None,
        choice: Literal["a", "b"] | None = None,
    ) -> None:
        """Keeps what it is given."""
        got.update(locals())

    _parse.run(command, arguments, "command", "command")
    return got


@pytest.mark.parametrize("value", ODD)
def test_texts_and_paths_are_what_was_typed(value: str) -> None:
    assert _called("--text", value)["text"] == value
    assert _called(f"--name={value}")["name"] == value
    assert _called("--file", value)["file"] == Path(value)
    assert _called("--out", value)["out"] == Path(value)
    assert _called("--many", value, "--many", value)["many"] == [value, value]
    assert _called(value)["word"] == Path(value)


@pytest.mark.parametrize(
    ("option", "first", "second"), [("--text", "a", "b"), ("--number", "1", "1"), ("--out", "a", "b")]
)
def test_an_option_given_twice_is_refused(option: str, first: str, second: str) -> None:
    with pytest.raises(UsageError, match=f"^{option} is given twice$"):
        _called(option, first, f"{option}={second}")
    with pytest.raises(UsageError, match=r"^--a\.b is given twice$"):
        _parse.split_overrides(["--a.b", first, f"--a.b={second}"])


@pytest.mark.parametrize("option", ["--number", "--count", "--flag", "--choice"])
@pytest.mark.parametrize("value", ["null", "~", "#5", "&x"])
def test_an_option_that_is_given_is_not_taken_as_left_out(option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}: expected .*, got '{value}'$"):
        _called(option, value)


@pytest.mark.parametrize("value", ["1:30", "0b11", "0x1f", "1_000", "1.5", "1e3", "²"])
def test_whole_numbers_are_decimal_digits(value: str) -> None:
    """YAML reads 1:30 as 90, 0b11 as 3 and 010 as 8."""
    with pytest.raises(UsageError, match=r"^--count: expected a whole number, got '"):
        _called("--count", value)
    got = _called("--count", "010", "--number", "1e-3")
    assert (got["count"], got["number"]) == (10, 0.001)


@pytest.mark.parametrize("value", ["1:0", "1_0", "0x1f", "1,5", ".", "!!int"])
def test_numbers_are_decimal(value: str) -> None:
    with pytest.raises(UsageError, match=r"^--number: expected a number, got '"):
        _called("--number", value)


@pytest.mark.parametrize("option", ["--file", "--out", "--text", "--name", "--many"])
def test_an_empty_value_is_neither_the_current_folder_nor_left_out(option: str) -> None:
    with pytest.raises(UsageError, match=f"^{option}: expected a value, got ''$"):
        _called(option, "")


@pytest.mark.parametrize("count", [1, 0.5])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_of_hundreds_of_digits(count: float, sign: str) -> None:
    kind = type(count)

    def command(*, count: float = 1) -> None:
        """Nothing."""

    command.__annotations__["count"] = kind
    words = [f"--count={sign}{'9' * 400}"]
    with pytest.raises(UsageError, match=r"^--count: expected a number that is not so large$"):
        _parse.run(command, words, "langdepth x", "")


@pytest.mark.parametrize("value", ["", " ", "\t", "?", "[1", "{", "!!int x"])
def test_what_is_no_number(value: str) -> None:
    def command(*, count: int = 1) -> None:
        """Nothing."""

    with pytest.raises(UsageError, match=r"^--count: expected a whole number, got '"):
        _parse.run(command, ["--count", value], "langdepth x", "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#kitchen", "#kitchen"),
        ("a #b", "a #b"),
        ("&x", "&x"),
        ("null", None),
        ("~", None),
        ("1e-4", Typed(1e-4, "1e-4")),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("'quoted'", "quoted"),
        ("7", Typed(7, "7")),
        ("007", "007"),
        ("plain", "plain"),
    ],
)
def test_fields_of_a_recipe_lose_nothing(text: str, value: Any) -> None:
    assert _parse.split_overrides(["--data.root", text]) == ([], {"data.root": value})
    assert _parse.split_overrides([f"--data.root={text}"]) == ([], {"data.root": value})


@pytest.mark.parametrize("text", ["007", "1_000", "1:30", "1.50", "yes", ".inf", "'007'"])
def test_a_name_that_reads_as_another_value_is_used_as_it_was_typed(text: str) -> None:
    words = [word for field in ("root", "val_source", "train_split") for word in (f"--data.{field}", text)]
    values = _parse.split_overrides([*words, "--data.shots", "8"])[1]
    section = from_mapping(DataSection, {key.removeprefix("data."): value for key, value in values.items()})
    plain = text.strip("'")
    assert (section.root, section.val_source, section.train_split, section.shots) == (Path(plain), plain, plain, 8)
    for text, value in (("010", "'010'"), ("1:30", "'1:30'"), ("true", "True")):
        with pytest.raises(UsageError, match=f"shots: expected int, got {value}"):
            from_mapping(DataSection, {"shots": _parse.split_overrides(["--data.shots", text])[1]["data.shots"]})
    with pytest.raises(UsageError, match="root: expected Path, got 7; put it in quotes"):  # a file's value has no text
        from_mapping(DataSection, {"root": 7})


def test_a_switch_takes_no_value() -> None:
    def command(*, flip: bool = False) -> None:
        """Nothing."""

    with pytest.raises(UsageError, match=r"^--flip: is a switch, which takes no value$"):
        _parse.run(command, ["--flip=yes\nno"], "langdepth x", "")


@pytest.mark.parametrize("flag", ["--fov", "--name", "--names"])
def test_two_dashes_are_no_value(flag: str) -> None:
    def command(*, fov: float = 1.0, name: str = "", names: list[str] | None = None) -> None:
        """Nothing."""

    with pytest.raises(UsageError, match=rf"^{flag}: expected one argument"):
        _parse.run(command, [f"{flag}=--"], "langdepth x", "")


def test_options_of_several_commands_are_explained_once() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        """Base.

        Args:
            near: Of the base.
        """

        near: int = 0

    @dataclass(frozen=True, kw_only=True)
    class Outer(Inner):
        """More.

        Args:
            far: Of the class.
        """

        far: int = 1

    def command(*, device: str = "auto", dtype: str = "own", record: Any) -> None:
        """Do it.

        Args:
            dtype: Its own words.
            record: Both.
        """

    command.__annotations__["record"] = Outer
    text = " ".join(_parse.build_parser(command, "it", "it").format_help().split())
    for words in (_parse.SHARED["device"], "Its own words.", "Of the base.", "Of the class."):
        assert words in text
    assert _parse.SHARED["dtype"] not in text


def test_warnings_are_one_line_that_steers_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def command(*, name: str) -> None:
        """Warns."""
        warnings.warn(f"{name}: two\n  lines", stacklevel=2)
        warnings.warn(FileWarning(name, "is odd"), stacklevel=2)

    _parse.run(command, ["--name", "a\x1b[31m\nb"], "command", "command")
    before = "command: warning: a\\x1b[31m"
    assert capsys.readouterr().err == f"{before} b: two lines\n{before}\\nb: is odd\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a", "--flag", "b", "c"],
            "'b', 'c': not understood after an option; write all names before the options, and",
        ),
        (["a", "--flagg", "--naem", "x"], "unknown option '--flagg': did you mean '--flag'?; also unknown: --naem"),
    ],
)
def test_what_is_left_over_is_named_whole(arguments: list[str], message: str) -> None:
    def command(names: list[str], *, flag: bool = False) -> None:
        """Do it."""

    with pytest.raises(UsageError, match=f"^{re.escape(message)}"):
        _parse.run(command, arguments, "test", "")


def test_one_name_is_all_that_a_command_takes() -> None:
    def command(action: str, name: str = "") -> None:
        """Do it."""

    with pytest.raises(
        UsageError, match=r"^'c d': too much; 'test' takes one action, one name and options, and a text"
    ):
        _parse.run(command, ["a", "b", "c d"], "test", "")
