"""A package of its own adds a system, a data set, a protocol and training images; a file adds a class."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import langdepth
from tests.helpers import ramp, save_image

HERE = Path(__file__).parent
SOURCE = Path(langdepth.__file__).parents[1]
RUN = """
import contextlib, io, json, sys
from langdepth.cli import main
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
TRAIN = {"epochs": 1, "previews": 0}


def rooms(root: Path) -> Path:
    """Four training pairs and two to validate on, in the layout of example-rooms."""
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            save_image(root / split / f"{i}.png", ramp(128, 48, seed=i))
            Image.fromarray(np.full((48, 128), 1000 * (1 + i), np.uint16)).save(root / split / f"{i}_depth.png")
    return root


def recipe(folder: Path, system: dict[str, Any], data: dict[str, Any], **train: Any) -> None:
    """Write recipe.yaml of a short run."""
    sections = {"system": system, "data": {**data, "batch_size": 2, "workers": 0}, "train": {**TRAIN, **train}}
    (folder / "recipe.yaml").write_text(json.dumps(sections))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(HERE, folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True, capture_output=True)
    return folder / "site"


def run(place: Path, *commands: list[str], path: Path | None = None) -> list[tuple[int, str, str]]:
    """What commands give one after the other in a process: exit code, stdout, stderr."""
    paths = [str(SOURCE)] if path is None else [str(path), str(SOURCE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, json.dumps(commands)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[tuple[int, str, str]] = [tuple(one) for one in json.loads(done.stdout.splitlines()[-1])]
    return found


def test_a_package_adds_a_system_a_data_set_and_a_protocol(installed: Path, tmp_path: Path) -> None:
    rooms(tmp_path / "rooms")
    data = ["--data", "example-rooms", "--root", "rooms"]
    recipe(
        tmp_path,
        {"name": "example-wide"},
        {"name": "example-rooms", "root": "rooms", "pipeline": "example-half"},
        protocol="example-near",
    )
    steps: dict[str, list[str]] = {
        "systems": ["systems"],
        "show": ["systems", "show", "example-wide"],
        "sets": ["data", "list"],
        "protocols": ["protocols"],
        "train": ["train", "--config", "recipe.yaml"],
        "predict": ["predict", "rooms/val/0.png", "--system", "runs/run/last.safetensors", "--save", "npy,example-csv"],
        "evaluate": ["evaluate", "--system", "runs/run/last.safetensors", *data, "--out", "report.json"],
    }
    found = dict(zip(steps, run(tmp_path, *steps.values(), path=installed), strict=True))
    assert {name: err for name, (code, _, err) in found.items() if code} == {}
    assert re.search(r"^example-wide +none +example with 16 channels", found["systems"][1], re.MULTILINE)
    assert "channels: 16" in found["show"][1]
    assert "package: langdepth-example" in found["show"][1]
    assert "Rooms of the example" in found["sets"][1]
    assert "example-near" in found["protocols"][1]
    depth = np.load(tmp_path / "depth/0.npy")
    np.testing.assert_allclose(np.loadtxt(tmp_path / "depth/0_depth.csv", delimiter=","), depth, atol=6e-4)
    assert depth.shape == (48, 128)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert report["protocol"]["name"] == "example-near"
    assert report["images"] == 2

    # Where the package is not installed, its weights name it, and everything else works.
    without = run(tmp_path, ["predict", "rooms/val/0.png", "--system", "runs/run/last.safetensors"], ["systems"])
    assert without[0][0] == 1
    assert "holds the system 'example-wide' of the package 'langdepth-example', which is not installed" in without[0][2]
    assert without[0][2].count("\n") == 1
    assert "example" not in without[1][1].replace("for example", "")


def test_a_bad_card_costs_its_own_package_alone(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "site")
    card = tmp_path / "site/langdepth_example/card.yaml"
    card.write_text(card.read_text().replace("summary", "sumary"))
    module = tmp_path / "site/langdepth_example/protocols.py"
    module.write_text("import nothing_like_this")
    systems, protocols = run(tmp_path, ["systems"], ["protocols"], path=tmp_path / "site")
    assert (systems[0], protocols[0]) == (0, 0)
    assert "tiny" in systems[1]
    assert "the systems of langdepth-example are left out" in systems[2]
    assert "did you mean 'summary'?" in systems[2]
    assert "nyu-eigen" in protocols[1]
    assert "the protocol 'example-near'" in protocols[2]


def test_a_class_in_a_file_of_ones_own(tmp_path: Path) -> None:
    rooms(tmp_path / "rooms")
    shutil.copy(HERE / "langdepth_example/model.py", tmp_path / "my_depth.py")
    weights = "runs/run/last.safetensors"
    image = "rooms/val/0.png"
    recipe(tmp_path, {"name": "my_depth:Example"}, {"name": "folder", "root": "rooms"})
    pairs = [f"train/{i}" for i in range(4)] + [f"val/{i}" for i in range(2)]
    rows = [f"{pair}.png,{pair}_depth.png,0.001,{pair.partition('/')[0]}" for pair in pairs]
    (tmp_path / "rooms/index.csv").write_text("\n".join(["path_rgb,path_depth,depth_scale,split", *rows]))
    done = run(
        tmp_path,
        ["train", "--config", "recipe.yaml"],
        ["predict", image, "--system", f"my_depth:Example@{weights}", "--save", "npy"],
        ["predict", image, "--system", "my_depth:Example"],
        ["predict", image, "--system", "my_depth:ExampleConfig"],
        ["predict", image, "--system", "my_dept:Example"],
    )
    assert [code for code, _, _ in done] == [0, 0, 1, 2, 2], done
    assert np.load(tmp_path / "depth/0.npy").shape == (48, 128)
    assert "'my_depth:Example' has no trained weights" in done[2][2]
    assert "derive the class from langdepth.System" in done[3][2]
    assert "'my_dept:Example' cannot be imported" in done[4][2]
    # A file alone does not say which code to run.
    ((code, _, err),) = run(tmp_path, ["predict", image, "--system", weights])
    assert code == 1
    assert f"name it too: my_depth:Example@{weights}" in err


def test_contributing_quotes_the_package() -> None:
    page = (HERE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = [
        path.read_text(encoding="utf-8") for path in HERE.glob("**/*") if path.suffix in (".py", ".toml", ".yaml")
    ]
    quoted = re.findall(r"```(?:python|toml|yaml)\n(.*?)```", page, re.DOTALL)
    assert len(quoted) == 9
    for block in quoted:
        assert any(block in source for source in sources), block
