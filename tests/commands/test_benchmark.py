"""``langdepth benchmark`` as a user meets it: one command, several systems on several data sets of different kind."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langdepth.errors import CheckpointError
from tests.helpers import FakeSystem, Run, write_folder
from tests.miniatures import MINIATURES

MATRIX = """
systems:
  - tiny
  - {system: run/best.safetensors, name: twice as far}
  - wordepth-nyu
  - {predictions: maps, name: perfect maps}
data:
  - {data: ibims1, root: ibims}
  - {data: kitti, root: kitti, limit: 1}
  - {root: rooms, protocols: [full, nyu-eigen], alignment: median}
"""
TABLES = {  # data set and protocol: who has numbers; finished maps cannot be averaged with those of mirror images
    ("ibims1", "ibims1"): ("tiny", "twice as far"),
    ("kitti", "kitti-eigen-garg"): ("tiny", "twice as far"),
    ("kitti", "kitti-eigen-garg+flip=false"): (),
    ("folder", "full+alignment=median"): ("tiny", "twice as far", "perfect maps"),
    ("folder", "nyu-eigen+alignment=median"): ("tiny", "twice as far"),
    ("folder", "nyu-eigen+alignment=median+flip=false"): ("perfect maps",),
}
SYSTEMS = ("tiny", "twice as far", "wordepth-nyu", "perfect maps")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the matrix file, three data sets and the finished maps of one."""
    monkeypatch.chdir(tmp_path)

    def load(name: str, **options: Any) -> FakeSystem:
        if name == "wordepth-nyu":
            raise CheckpointError("no trained weights")
        system = FakeSystem()
        system.scale.data.fill_(1 if name == "tiny" else 2)
        return system

    monkeypatch.setattr("langdepth.weights.checkpoint.load", load)
    MINIATURES["ibims1"]["published"](tmp_path / "ibims", monkeypatch)
    MINIATURES["kitti"]["raw"](tmp_path / "kitti", monkeypatch)
    write_folder(tmp_path / "rooms", [{}, {}])
    (tmp_path / "maps" / "folder").mkdir(parents=True)
    for number in range(2):
        np.save(tmp_path / "maps" / "folder" / f"{number}.npy", np.full((48, 64), 1 + number, np.float32))
    (tmp_path / "matrix.yaml").write_text(MATRIX)
    return tmp_path


def test_several_systems_on_several_data_sets(place: Path, command: Run) -> None:
    code, out, err = command("benchmark", "matrix.yaml", "--out", "out", "--device", "cpu")
    assert code == 1  # some cells have no report
    assert err.splitlines()[-1] == "langdepth benchmark: 6 of 16 cells have no report, see the notes"
    cells = json.loads(Path("out/matrix.json").read_text())
    assert len(cells) == 4 * len(SYSTEMS)
    assert {(cell["data"], cell["protocol"]) for cell in cells} == TABLES.keys()
    assert {
        key: tuple(c["system"] for c in cells if (c["data"], c["protocol"]) == key and c["ours"]) for key in TABLES
    } == TABLES
    for cell in cells:
        assert cell["hash"] in Path("out/matrix.md").read_text()
        if cell["ours"]:
            assert (cell["protocol"], cell["hash"]) == tuple(cell["ours"]["protocol"][key] for key in ("name", "hash"))
    assert {cell["data"]: cell["split"] for cell in cells} == {"ibims1": "test", "kitti": "test", "folder": None}
    reasons = {cell["system"]: cell["why"] for cell in cells if cell["data"] == "kitti"}
    assert reasons["wordepth-nyu"] == "no trained weights"
    assert "maps/kitti: no such folder" in reasons["perfect maps"]

    numbers = {(cell["system"], cell["data"], cell["protocol"]): cell["ours"] for cell in cells}
    with Path("out/matrix.csv").open(newline="") as file:
        ours = {(r["system"], r["data"], r["protocol"]): r for r in csv.DictReader(file) if r["who"] == "ours"}
    assert ours.keys() == numbers.keys()
    assert [ours[key]["hash"] for key in ours] == [cell["hash"] for cell in cells]
    for key, report in numbers.items():
        if report is None:
            assert (ours[key]["abs_rel"], ours[key]["note"]) == ("", reasons[key[0]].replace("kitti", key[1]))
            continue
        assert {name: float(ours[key][name]) for name in report["image_mean"]} == report["image_mean"]
        stated = {kind: ours[key][f"boundary_{kind}"] for kind in ("accuracy", "completeness")}
        found = report["boundaries"] or dict.fromkeys(stated, "")
        assert stated == {kind: str(found[kind]) for kind in stated}
        assert bool(report["boundaries"]) == (key[1] == "ibims1")
    assert numbers["perfect maps", "folder", "full+alignment=median"]["image_mean"]["abs_rel"] == 0

    table = Path("out/matrix.md").read_text()
    assert table in out
    assert re.findall("^## (.*?)(?: \\(split test\\))?, (.*) \\(", table, re.MULTILINE) == [*TABLES]
    assert "| perfect maps | ours | 2 | 1.000 | 1.000 | 1.000 | 0.000 | 0.000 | 0.000 |" in table
    assert "| log10 | boundary_accuracy | boundary_completeness | p | note |" in table.partition("## kitti")[0]
    assert "boundary" not in table.partition("## kitti")[2]
    tex = Path("out/matrix.tex").read_text()
    assert r"perfect maps & ours & 2 & 1.000 & 1.000 & 1.000 & 0.000" in tex
    assert "wordepth" not in tex  # it was not run
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == sum(map(bool, TABLES.values()))
    for cell in cells:
        page = Path("out", f"{cell['file']}.html")
        assert page.is_file() == bool(cell["ours"])
        if cell["ours"]:
            assert ("Boundary errors" in page.read_text()) == (cell["data"] == "ibims1")

    # A second run does what is missing and nothing else, and tells the same
    Path("out", f"{cells[1]['file']}.json").unlink()
    code, again, _ = command("benchmark", "matrix.yaml", "--out", "out", "--device", "cpu")
    assert (code, again.count(": as before\n"), again.count(": done\n")) == (1, 9, 1)
    assert "tiny on kitti, kitti-eigen-garg: done" in again
    assert Path("out/matrix.md").read_text() == table


def test_a_changed_class_of_ones_own_is_evaluated_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: Run
) -> None:
    system = FakeSystem()
    system.name = "module_of_ones_own:Net"
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: system)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("matrix.yaml").write_text("systems: ['module_of_ones_own:Net']\ndata: [{root: rooms}]")
    for source in ("# one", "# another"):
        Path("module_of_ones_own.py").write_text(source)
        for done in ("done", "as before"):
            assert f": {done}\n" in command("benchmark", "matrix.yaml", "--out", "out", "--device", "cpu")[1]


def test_without_a_single_number_the_exit_code_is_1(place: Path, command: Run) -> None:
    Path("matrix.yaml").write_text("systems: [wordepth-nyu]\ndata: [{root: rooms}]")
    code, out, _ = command("benchmark", "matrix.yaml", "--out", "out", "--device", "cpu")
    assert code == 1
    assert "| wordepth-nyu | ours | - | - | - | - | - | - | - |  | no trained weights |" in out


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    place: Path, monkeypatch: pytest.MonkeyPatch, command: Run
) -> None:
    monkeypatch.setattr("langdepth.weights.checkpoint.load", lambda name, **options: pytest.fail("began to work"))
    code, _, err = command("benchmark", "matrix.yaml", "--out", "matrix.yaml")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "matrix.yaml" in err


@pytest.mark.parametrize("name", ["matrix.md", "matrix.tex", "matrix.csv", "matrix.json"])
def test_a_file_that_is_no_table_of_ours_is_not_replaced(place: Path, command: Run, name: str) -> None:
    Path("out").mkdir()
    (Path("out") / name).write_text("mine")
    code, _, err = command("benchmark", "matrix.yaml", "--out", "out", "--device", "cpu")
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"{name} exists and was not written by langdepth" in err
    assert (Path("out") / name).read_text() == "mine"
