"""The matrix of systems and data sets: what is run, what is not run again, and why a cell is empty."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from langdepth.data.base import layout, open_dataset
from langdepth.errors import CheckpointError, UsageError
from langdepth.evaluation.matrix import fingerprint, run_matrix
from langdepth.evaluation.matrix_file import Matrix, MatrixData, MatrixSystem, read_matrix
from langdepth.evaluation.metrics import EXTRA_METRICS, METRICS
from langdepth.evaluation.protocols import PROTOCOLS
from langdepth.evaluation.tables import markdown
from langdepth.records import DepthOutput, InputSpec
from langdepth.systems import registry
from langdepth.text.captions import Caption, pack
from tests import miniatures
from tests.helpers import FakeSystem, write_folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """What every name but wordepth-nyu loads."""
    system = FakeSystem()

    def load(name: str, **options: Any) -> FakeSystem:
        if name == "wordepth-nyu":
            raise CheckpointError("no trained\nweights")
        return system

    monkeypatch.setattr("langdepth.weights.checkpoint.load", load)
    return system


def matrix_of(root: Path, *systems: MatrixSystem | str, **options: Any) -> Matrix:
    return Matrix(data=[MatrixData(root=root, **options)], systems=systems)


def quiet(line: str) -> None:
    pass


def test_cells_are_filled_and_those_without_weights_say_why(tmp_path: Path, loaded: FakeSystem) -> None:
    root = write_folder(tmp_path / "rooms", [{}, {}])
    out = tmp_path / "out"
    said: list[str] = []
    matrix = Matrix(
        data=[
            MatrixData(root=root, protocols=("full", "depthclip-reference")),
            MatrixData(root=tmp_path / "nowhere", name="gone"),
        ],
        systems=("depthclip", "wordepth-nyu"),
    )
    cells = run_matrix(matrix, out, say=said.append)
    assert [bool(cell["ours"]) for cell in cells] == [True, True, False, False, False, False]
    assert [cell["why"] for cell in cells[3:5]] == ["no trained\\nweights"] * 2
    assert "nowhere: no such folder" in cells[2]["why"]
    assert len(said) == 6
    assert [cell["paper"] for cell in cells] == [None] * 6  # of own images no paper speaks
    table = (out / "matrix.md").read_text()
    assert PROTOCOLS["full"].hash in table
    assert "| wordepth-nyu | ours | - | - | - | - | - | - | - |  | no trained\\\\nweights |" in table
    with (out / "matrix.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["who"] for row in rows if row["system"] == "depthclip"][:4] == ["ours", "95 % low", "95 % high", "ours"]
    assert json.loads((out / "matrix.json").read_text()) == cells
    for cell in cells[:2]:
        assert (out / f"{cell['file']}.html").is_file()


def test_a_finished_cell_is_not_run_again_unless_something_changed(
    tmp_path: Path, loaded: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "rooms", [{}, {}, {}])
    out = tmp_path / "out"

    def runs(**options: Any) -> int:
        loaded.batches.clear()
        run_matrix(matrix_of(root, "tiny", **options), out, say=quiet)
        return len(loaded.batches)

    first = runs()
    assert first > 0
    assert runs() == 0
    assert runs(limit=2) > 0
    assert runs() > 0  # the cell holds the other one now
    assert runs(alignment="median") > 0
    loaded.scale.data.fill_(1.5)
    assert runs() > 0
    for suffix in (".png", "_depth.png"):
        os.utime(root / f"1{suffix}", (0, 0))
        assert runs() > 0
    index = root / "index.csv"
    index.write_text(index.read_text().replace("0.001", "0.002"))
    assert runs() > 0
    monkeypatch.setattr("langdepth.evaluation.metrics.DEFINITIONS", 1000)
    assert runs() > 0
    monkeypatch.setattr("langdepth.evaluation.matrix.__version__", "another")
    assert runs() > 0
    next((out / "cells").glob("*full-*.json")).write_text("{cut")
    assert runs() > 0
    assert runs() == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report.pop("skipped"),
        lambda report: report["image_mean"].pop("rmse"),
        lambda report: report.pop("boundaries"),
        lambda report: report.update(boundaries={"accuracy": 1.0}),
        lambda report: report.update(images="many"),
        lambda report: report["image_mean"].update(rmse=float("nan")),
        lambda report: report.update(image_mean=None),
        lambda report: report.pop("per_image"),
        lambda report: report["per_image"].update(rmse=[]),
        lambda report: report["per_image"].update(abs_rel=["x"]),
    ],
)
def test_a_finished_cell_that_is_not_whole_is_run_again(
    tmp_path: Path, loaded: FakeSystem, damage: Callable[[dict[str, Any]], Any]
) -> None:
    matrix = matrix_of(write_folder(tmp_path / "rooms", [{}]), "tiny")
    before = run_matrix(matrix, tmp_path / "out", say=quiet)[0]["ours"]
    path = next((tmp_path / "out" / "cells").glob("*.json"))
    content = json.loads(path.read_text())
    damage(content["report"])
    path.write_text(json.dumps(content))
    after = run_matrix(matrix, tmp_path / "out", say=quiet)[0]["ours"]
    assert after["image_mean"] == before["image_mean"]
    known = json.loads(path.read_text())["report"]
    assert known.pop("per_image")["index"] == [0]
    assert known == after


def test_an_error_of_any_kind_is_reported_in_its_cell(tmp_path: Path, loaded: FakeSystem) -> None:
    """A model from elsewhere that fails in its own way, on the second data set only."""
    forward = loaded.forward

    def fails(image: Tensor, *words: Any) -> DepthOutput:
        if image.shape[-1] > 64:
            raise ZeroDivisionError("of its\nown")
        return forward(image, *words)

    loaded.forward = fails  # type: ignore[method-assign]
    loaded.input_spec = InputSpec(multiple_of=1)
    sets = [
        MatrixData(root=write_folder(tmp_path / str(width), [{"size": (48, width)}]), name=str(width))
        for width in (64, 80)
    ]
    cells = run_matrix(Matrix(data=[*sets, replace(sets[0], name="again")], systems=("tiny",)), tmp_path, say=quiet)
    assert [cell["why"] for cell in cells] == [None, "ZeroDivisionError: of its", None]


def test_a_name_that_no_file_has_and_one_that_steers_a_terminal(tmp_path: Path, loaded: FakeSystem) -> None:
    sets = [MatrixData(root=Path("x" * 5000), name="\u202eleft")]
    said: list[str] = []
    (cell,) = run_matrix(Matrix(data=sets, systems=("tiny",)), tmp_path, say=said.append)
    assert re.fullmatch(r"[^ ]+ \.\.\. x+[^ ]*: File name too long", cell["why"])
    assert all(line.isprintable() for line in markdown([cell]).split("\n"))
    assert said[0].startswith(r"tiny on \u202eleft, full: not run: /")


def test_an_unusual_unit_is_refused_unless_trusted(tmp_path: Path, loaded: FakeSystem) -> None:
    root = write_folder(tmp_path / "rooms", [{"depth_scale": 0.5}])  # 500 m
    cells = [
        run_matrix(matrix_of(root, "tiny", trust_unit=trusted), tmp_path / "out", say=quiet)[0]
        for trusted in (False, True)
    ]  # in one folder: a cell of the other is not taken again
    assert "the unit seems wrong" in cells[0]["why"]
    assert (cells[1]["why"], cells[1]["ours"]["images"]) == (None, 1)


def test_trust_in_the_unit_is_part_of_a_cells_identity(tmp_path: Path, loaded: FakeSystem) -> None:
    root = write_folder(tmp_path / "rooms", [{}, {}])
    for trusted in (False, True, False):
        loaded.batches.clear()
        run_matrix(matrix_of(root, "tiny", trust_unit=trusted), tmp_path / "out", say=quiet)
        assert loaded.batches


def test_captions_go_to_systems_that_read_words_per_image(tmp_path: Path, loaded: FakeSystem) -> None:
    root, folder = write_folder(tmp_path / "rooms", [{}, {}]), tmp_path / "captions"

    def score(*sentences: str, feature: tuple[int, int] = (1, 0)) -> tuple[float, bool]:
        loaded.batches.clear()
        if sentences:
            words = [Caption(str(i), sentence) for i, sentence in enumerate(sentences)]
            pack(words, dict.fromkeys(sentences, np.array(feature, np.float16)), folder)
        matrix = matrix_of(root, "tiny", captions=folder if sentences else None)
        cell = run_matrix(matrix, tmp_path / "out", say=quiet)[0]
        assert ("captions" in cell["ours"]["dataset"]) == (bool(sentences) and loaded.text_per_image)
        return cell["ours"]["image_mean"]["abs_rel"], bool(loaded.batches)

    bare, _ = score()
    worded, ran = score("a room", "a hall")
    assert ran
    assert worded != bare  # FakeSystem's depth is twice as large with words
    assert score("a room", "a hall") == (worded, False)
    assert score("a room", "a kitchen") == (worded, True)
    assert score("a room", "a kitchen", feature=(0, 1)) == (worded, True)
    loaded.text_per_image = False  # type: ignore[misc]
    assert score("a room", "a kitchen") == (bare, True)


def test_weights_and_configuration_make_the_fingerprint() -> None:
    one, two = FakeSystem(), FakeSystem()
    assert fingerprint(one) == fingerprint(two)
    two.scale_kind = "relative"
    assert fingerprint(one) != fingerprint(two)
    two.scale_kind = one.scale_kind
    two.scale.data.fill_(2)
    assert fingerprint(one) != fingerprint(two)


NYU = {"data": "nyu", "split": "test"}


@pytest.fixture
def nyu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All three test images of a small NYU Depth v2."""
    root = miniatures.nyu_exported(tmp_path / "nyu", monkeypatch)
    card = layout("nyu").CARD
    count = len(open_dataset("nyu", root, "test"))
    monkeypatch.setattr("langdepth.data.sets.nyu.CARD", replace(card, splits={**card.splits, "test": count}))
    return root


@pytest.mark.parametrize(
    ("change", "compares"),
    [
        ({}, True),
        ({"limit": 1}, False),
        ({"name": "mine"}, True),
        ({"split": "train"}, False),
        ({"protocols": ("nyu-eigen",)}, False),
        ({"alignment": "median"}, False),
    ],
)
def test_a_papers_numbers_stand_where_they_compare(
    tmp_path: Path, loaded: FakeSystem, nyu: Path, change: dict[str, Any], compares: bool
) -> None:
    loaded.name, loaded.config = "depthclip", registry.config("depthclip")  # type: ignore[assignment]
    matrix = matrix_of(nyu, "best.safetensors", **{**NYU, "protocols": ("depthclip-reference",), **change})
    (cell,) = run_matrix(matrix, tmp_path / "out", say=quiet)
    assert cell["paper"] == (
        registry.REGISTRY["depthclip"].numbers["depthclip-reference"].metrics if compares else None
    )
    line = "| depthclip-words | paper |  | 0.394 | 0.683 | 0.851 | 0.388 | 1.167 | 0.156 |"
    assert (line.replace("depthclip-words", "best.safetensors") in (tmp_path / "out/matrix.md").read_text()) is compares


def test_own_words_are_not_the_papers_configuration(tmp_path: Path, loaded: FakeSystem, nyu: Path) -> None:
    matrix = matrix_of(nyu, "depthclip", **NYU, protocols=("depthclip-reference",))
    loaded.name = "depthclip"
    own = registry.config("depthclip", {"prompts": "depthclip-words-2"})
    for config, compares in ((registry.config("depthclip"), True), (own, False)):
        loaded.config = config
        (cell,) = run_matrix(matrix, tmp_path / "out", say=quiet)
        assert (cell["paper"] is not None) is compares


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: [{root: x, splitt: val}]", "unknown key 'data.*splitt'"),
        ("systems: [tiny]", "key 'data' is required"),
        ("data: []", "data names no data set"),
        ("data: [{root: x}]\nsystems:", "systems: expected a list"),
        ("data: [{root: x}]\nsystems: []", "systems names no system; leave the key out to run all of them"),
        ("data: [{root: x}, {root: y}]", "two of data are called 'folder'"),
        ("data: [{root: x, protocols: [nyu-eigne]}]", "did you mean 'nyu-eigen'"),
        ("data: [{root: x}]\nsystems: [{name: a}]", "'a' needs either system or predictions"),
        ("data: [{root: x}]\nsystems: [{system: tiny, prediction_scale: 1}]", "prediction_scale is for predictions"),
        ("data: [{root: x}]\nsystems: [{predictions: x, clip_weights: y}]", "clip_weights is for systems"),
        ("data: [{root: x}]\nsystems: [{system: tiny, class: os.system}]", "unknown key"),
        ("data: [{root: x}]\nsystems: [{predictions: x, base: y}]", "base is for systems"),
        ("data: [{root: x, without_caption: neutral}]", "without_caption is of captions"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_matrix(tmp_path / "m.yaml")


def test_without_systems_all_are_meant(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("data: [{root: x}]")
    assert [row.system for row in read_matrix(tmp_path / "m.yaml").rows()] == registry.list_systems()


def test_nothing_is_loaded_for_data_sets_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: pytest.fail("was loaded"))
    cells = run_matrix(matrix_of(tmp_path / "nowhere", "tiny", "depthclip"), tmp_path / "out", say=quiet)
    assert [cell["why"] for cell in cells] == [f"{tmp_path / 'nowhere'}: no such folder"] * 2


def test_a_protocol_named_twice_is_run_once(tmp_path: Path, loaded: FakeSystem) -> None:
    root = write_folder(tmp_path / "rooms", [{}])
    cells = run_matrix(matrix_of(root, "tiny", protocols=("full", "nyu-eigen", "full")), tmp_path / "out", say=quiet)
    assert [cell["protocol"] for cell in cells] == ["full", "nyu-eigen"]


def test_paper_numbers_speak_of_known_protocols_and_metrics() -> None:
    tables = [table for entry in registry.REGISTRY.values() for table in entry.numbers.items()]
    assert len(tables) >= 30
    for protocol, row in tables:
        assert protocol in PROTOCOLS, row
        assert set(row.metrics) <= {*METRICS, *EXTRA_METRICS}, row
