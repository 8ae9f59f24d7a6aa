"""Strict configuration: what is right comes through, and every mistake is one line that says where."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from langdepth.config import dump_yaml, from_mapping, load_yaml, parse_yaml, to_mapping
from langdepth.errors import UsageError
from langdepth.training.sections import DataSection


@dataclass(frozen=True, kw_only=True)
class Optim:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "poly"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Run:
    root: Path
    epochs: int = 3
    flip: bool = False
    note: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    layers: list[int] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    width: int | str = 1
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError("epochs must be at least 1")


# Values


def test_every_kind_of_value_gets_its_type() -> None:
    run = from_mapping(
        Run,
        {
            "root": "data",
            "epochs": 5,
            "flip": True,
            "note": "hello",
            "sizes": [3, 4, 5],
            "layers": (1, 2),
            "weights": {"nyu": 2},
            "options": {"anything": [1, {"deep": None}]},
            "width": "auto",
            "optim": {"rate": 1e-4, "betas": [0, 1], "schedule": "poly"},
        },
    )
    assert run == Run(
        root=Path("data"),
        epochs=5,
        flip=True,
        note="hello",
        sizes=(3, 4, 5),
        layers=[1, 2],
        weights={"nyu": 2.0},
        options={"anything": [1, {"deep": None}]},
        width="auto",
        optim=Optim(rate=1e-4, betas=(0.0, 1.0), schedule="poly"),
    )
    numbers = [*run.weights.values(), run.optim.rate, *run.optim.betas]
    assert all(type(number) is float for number in numbers)
    assert isinstance(run.sizes, tuple)
    assert isinstance(run.layers, list)


def test_what_is_left_out_keeps_its_default() -> None:
    assert from_mapping(Run, {"root": "x", "optim": {"rate": 2}}) == Run(root=Path("x"), optim=Optim(rate=2.0))
    assert from_mapping(Run, {"root": "x", "note": None}).note is None


def test_a_ready_section_is_taken_as_it_is() -> None:
    section = Optim(rate=0.5)
    assert from_mapping(Run, {"root": "x", "optim": section}).optim is section


def test_a_config_survives_the_way_through_yaml(tmp_path: Path) -> None:
    run = Run(root=Path("a/b"), note="x: y", weights={"nyu": 0.5}, layers=[7], optim=Optim(betas=(0.1, 0.2)))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(to_mapping(run)))
    assert from_mapping(Run, load_yaml(path)) == run


# Mistakes


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"epoch": 3}, "unknown key 'epoch': did you mean 'epochs'?"),
        ({"optim": {"raet": 1}}, "unknown key 'optim.raet': did you mean 'rate'?"),
        ({"optim": {"zzzzzz": 1}}, "unknown key 'optim.zzzzzz': known: betas, rate, schedule"),
        ({7: 1}, "unknown key '7'"),
        ({"epochs": "many"}, "epochs: expected int, got 'many'"),
        ({"epochs": 2.5}, "epochs: expected int, got 2.5"),
        ({"epochs": True}, "epochs: expected int, got True"),
        ({"flip": 1}, "flip: expected bool, got 1"),
        ({"note": 3}, "note: expected str, got 3"),
        ({"width": 1.5}, "width: expected int, got 1.5"),
        ({"width": None}, "width: expected int, got None"),
        ({"optim": {"rate": "fast"}}, "optim.rate: expected float, got 'fast'"),
        ({"optim": {"rate": True}}, "optim.rate: expected float, got True"),
        ({"optim": {"rate": None}}, "optim.rate: expected float, got None"),
        ({"optim": {"rate": 10**400}}, "optim.rate: expected float, got 1000"),
        ({"optim": {"betas": [0.1]}}, "optim.betas: expected 2 values, got 1"),
        ({"optim": {"betas": 0.1}}, "optim.betas: expected a list, got 0.1"),
        ({"optim": {"betas": [0.1, "x"]}}, "optim.betas[1]: expected float, got 'x'"),
        ({"optim": {"schedule": "cosin"}}, "optim.schedule: unknown value 'cosin': did you mean 'cosine'?"),
        ({"optim": 3}, "optim: expected a mapping of keys to values, got 3"),
        ({"sizes": "12"}, "sizes: expected a list, got '12'"),
        ({"sizes": [1, None]}, "sizes[1]: expected int, got None"),
        ({"layers": 1}, "layers: expected a list, got 1"),
        ({"layers": ["a"]}, "layers[0]: expected int, got 'a'"),
        ({"weights": ["nyu"]}, "weights: expected a mapping, got ['nyu']"),
        ({"weights": {"nyu": "much"}}, "weights.nyu: expected float, got 'much'"),
        ({"weights": {3: 1.0}}, "weights: expected str, got 3"),
        ({"root": 3}, "root: expected Path, got 3"),
        ({"epochs": 0}, "recipe: epochs must be at least 1"),
    ],
)
def test_mistakes_name_the_place_and_what_was_expected(values: dict[Any, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(Run, {"root": "x", **values})
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_messages_start_where_the_caller_says() -> None:
    with pytest.raises(UsageError, match=r"^unknown key 'system\.options\.raet': did you mean 'rate'\?$"):
        from_mapping(Optim, {"raet": 1}, where="system.options.")
    with pytest.raises(UsageError, match=r"^system\.options: expected a mapping of keys to values, got \[\]$"):
        from_mapping(Optim, [], where="system.options.")  # type: ignore[arg-type]


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(UsageError, match=r"^key 'root' is required$"):
        from_mapping(Run, {})


# Files


def yaml_error(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        load_yaml(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "a: 1\nb: [1, 2\nc: 3\n",
            "not valid YAML in line 3, column 2: cannot be understood from there on",
        ),
        ("a: 1\n\tb: 2\n", "not valid YAML in line 2, column 1: cannot be understood"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "not valid YAML in line 5, column 3: key 'c' stands twice"),
        ("a: !!binary aGk=\n", "not valid YAML in line 1, column 4: only texts, numbers"),
        ("a: !!set {b}\n", "not valid YAML in line 1, column 4: only texts, numbers"),
        ("a: &a [*a]\n", "not valid YAML in line 1, column 4: an alias stands for itself"),
        (
            "a: &a [x, x]\n"
            + "".join(
                f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
                for p, n in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "not valid YAML in line 7, column 4: more than 200000 values",
        ),
        ("a: 1" + "0" * 5000 + "\n", "not valid YAML in line 1, column 4: the value cannot be read as a number"),
        ("[" * 5000, "not valid YAML: is nested too deeply"),
        ("a: 1\nb: !!bool yep\n", "not valid YAML in line 2, column 4: the value cannot be read"),
        ("a: *b\n", "not valid YAML in line 1, column 4: an alias without its anchor"),
        ("a: \x01\n", "not valid YAML in line 1, column 4: holds a character that YAML does not allow"),
        (b"a: \xff\xfe\n", "cannot be read as text"),
        ("", "a recipe is a mapping of keys to values, found nothing"),
        ("- a\n- b\n", "a recipe is a mapping of keys to values, found list"),
        ("a: 1\n? [1]\n: 2\n", "not valid YAML in line 2, column 3: only texts"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, content: str | bytes, expected: str) -> None:
    assert yaml_error(tmp_path / "r.yaml", content).startswith(expected)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{}]",
        "!!python/object/apply:os.mkdir ['{}']",
        "!!python/name:os.system",
        "!anything x",
    ],
)
def test_python_tags_are_refused_and_not_executed(tmp_path: Path, value: str) -> None:
    trace = tmp_path / "trace"
    text = yaml_error(tmp_path / "r.yaml", f"a: 1\nb: {value.format(trace)}\n")
    assert text.startswith("not valid YAML in line 2, column 4: only texts")
    assert not trace.exists()


def test_missing_files_and_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file; give the path of a recipe"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="no such file; give the path of a matrix"):
        load_yaml(tmp_path / "none.yaml", "matrix")
    with pytest.raises(UsageError, match="cannot be read as text"):
        load_yaml(tmp_path)


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base: &b {lr: 1, wd: 2}\nrun:\n  <<: *b\n  lr: 3\n")
    assert load_yaml(path)["run"] == {"lr": 3, "wd": 2}


@pytest.mark.parametrize("text", ["1:30", "0b11", "017", "0x10", "1_000", "0_1e-2", "1:30.5", "no", "On", "2024-01-31"])
def test_what_yaml_1_1_makes_of_texts(text: str) -> None:
    assert parse_yaml(f"a: {text}", "x") == {"a": text}
    with pytest.raises(UsageError, match=f"^rate: expected float, got '{text}'$"):
        from_mapping(Optim, parse_yaml(f"rate: {text}", "x"))
    with pytest.raises(UsageError, match="the value cannot be read as a number"):
        parse_yaml(f"a: !!int {text}", "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("+3", 3),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("1E3", 1000.0),
        ("-.inf", -math.inf),
        ("0", 0),
    ],
)
def test_plain_numbers(text: str, value: float) -> None:
    found = parse_yaml(text, "x")
    assert (found, type(found)) == (value, type(value))


def test_texts_that_look_like_numbers_survive() -> None:
    for text in ("1e-4", "1:30", "no", "017", ".5", "3", "null"):
        run = Run(root=Path("x"), note=text)
        assert from_mapping(Run, parse_yaml(dump_yaml(run), "x")) == run


def test_dates_stay_texts_and_aliases_are_read() -> None:
    text = "a: 2024-01-31\nb: !!timestamp 2001-12-14t21:59:43Z\nc: &c [1, 2]\nd: *c\n"
    assert parse_yaml(text, "x") == {"a": "2024-01-31", "b": "2001-12-14t21:59:43Z", "c": [1, 2], "d": [1, 2]}


def test_a_path_with_a_zero_byte() -> None:
    with pytest.raises(UsageError, match=r"^root: 'a\\x00b' is no path, it holds a zero byte$"):
        from_mapping(DataSection, {"root": "a\0b"})
