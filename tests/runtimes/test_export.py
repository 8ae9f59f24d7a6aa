"""``langdepth export``: files that other programs run, compared with torch before they are written."""

from __future__ import annotations

import errno
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import langdepth
from langdepth.errors import UsageError
from langdepth.runtimes import export as exporting
from langdepth.runtimes.facts import GraphFacts
from langdepth.runtimes.openvino import OpenvinoGraph
from langdepth.systems import registry
from langdepth.utils.reading import file_sha256
from tests.helpers import Run
from tests.runtimes.helpers import REPOSITORY, session
from tests.systems import test_clip_adapters, test_depthclip

PHOTO = REPOSITORY / "examples/desk.jpg"


@pytest.fixture(scope="module")
def result(weights: Path) -> Any:
    return langdepth.load(weights).predict(np.array(Image.open(PHOTO)))


@pytest.fixture(scope="module")
def depth(result: Any) -> Any:
    return result.depth


@pytest.mark.parametrize("photos", [[], ["--check", str(REPOSITORY / "examples")]])
def test_the_file_gives_the_depth_of_the_library(
    command: Run, weights: Path, depth: Any, result: Any, tmp_path: Path, photos: list[str]
) -> None:
    out = tmp_path / "small.onnx"
    code, shown, problem = command("export", weights, "--out", out, *photos)
    assert (code, problem) == (0, "")
    assert "input  image: uint8 (batch, height, width, 3)" in shown
    assert "output depth: float (batch, height, width)" in shown
    assert "opset: 18" in shown
    assert f"in {12 if photos else 6} images" in shown
    image = np.array(Image.open(PHOTO))[None]
    run = session(out)
    found = run.run(["depth"], {"image": np.concatenate([image, image])})[0]
    assert found.shape == (2, *depth.shape)
    assert (np.abs(found - depth) / depth).mean() < 1e-4
    facts = GraphFacts.from_metadata(run.get_modelmeta().custom_metadata_map, "it")
    assert (facts.kind, facts.system, facts.inputs) == ("whole", "tiny", ("text", "scene"))
    assert facts.words == "small-words.onnx"
    assert (tmp_path / facts.words).is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small-words.onnx"}
    assert facts.words_sha256 == file_sha256(tmp_path / facts.words)
    again: Any = langdepth.load(out).predict(np.array(Image.open(PHOTO)), text="a kitchen")
    assert again.depth.shape == depth.shape
    own: Any = langdepth.load(out).predict(np.array(Image.open(PHOTO)))
    assert (np.abs(own.sigma - result.sigma) / result.sigma).mean() < 1e-4
    # A window would be enlarged inside, and come out at another depth.
    with pytest.raises(UsageError, match="the exported file of 'tiny' resizes whatever it gets"):
        langdepth.predict(PHOTO, out, window=(64, 64))


def test_openvino_gives_the_depth_of_the_library(command: Run, weights: Path, depth: Any, tmp_path: Path) -> None:
    out = tmp_path / "small.xml"
    code, shown, problem = command("export", weights, "--to", "openvino", "--out", out)
    assert (code, problem) == (0, "")
    assert "relative difference from torch" in shown
    graph = OpenvinoGraph(out)
    words = {"text": np.zeros((1, 1024), np.float32), "scene": np.array([-1])}
    found = graph({"image": np.array(Image.open(PHOTO))[None], **words})["depth"][0]
    assert (np.abs(found - depth) / depth).mean() < 1e-4
    assert graph.facts.system == "tiny"


def test_eight_bits_state_their_error(
    command: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_CALIBRATION", 1)
    out = tmp_path / "small.onnx"
    code, shown, problem = command("export", weights, "--out", out, "--int8", REPOSITORY / "examples")
    assert (code, problem) == (0, "")
    assert "in 8 bits: " in shown
    model = onnx.load(out)
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in model.graph.initializer)
    found = session(out).run(["depth"], {"image": np.array(Image.open(PHOTO))[None]})[0]
    assert found.shape == (1, 480, 640)
    assert langdepth.load(out).name == "tiny"
    assert langdepth.load(out).provenance["int8"] == "1 images"


def test_eight_bits_of_a_system_with_overlays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system: Any = registry.build("msa-sam", test_clip_adapters.TestMsa.options)
    system.load_foundation("random")
    done = exporting.export(system.eval(), "onnx", tmp_path / "small.onnx", calibration=[PHOTO])
    assert done.quantised is not None
    assert done.quantised.mean < 0.2


def test_another_depth_than_torchs_is_not_written(
    command: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exporting.whole_graph

    def spoilt(network: onnx.ModelProto, facts: GraphFacts) -> onnx.ModelProto:
        from dataclasses import replace

        return whole(network, replace(facts, input_spec=replace(facts.input_spec, enlarge="bilinear-aligned")))

    monkeypatch.setattr(exporting, "whole_graph", spoilt)
    code, _, problem = command("export", weights, "--out", tmp_path / "small.onnx")
    assert code == 1
    assert "differs from torch" in problem
    assert problem.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "to"), [("x.onnx", "onnx"), ("x-words.onnx", "onnx"), ("x.xml", "openvino"), ("x.bin", "openvino")]
)
def test_files_of_others_and_folders_are_refused_before_the_work(
    command: Run,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    to: Literal["onnx", "openvino"],
) -> None:
    monkeypatch.setattr(exporting, "_checked", lambda *_: pytest.fail("began to work"))
    target = tmp_path / name
    out = tmp_path / f"x{exporting.SUFFIXES[to]}"
    target.write_bytes(b"mine")
    code, _, problem = command("export", weights, "--to", to, "--out", out)
    assert (code, problem.count("\n")) == (1, 1)
    assert f"{name} exists and was not written by langdepth" in problem
    assert target.read_bytes() == b"mine"
    target.unlink()
    target.mkdir()
    assert f"{name}: is a folder" in command("export", weights, "--to", to, "--out", out)[2]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_own_files_are_replaced(command: Run, weights: Path, tmp_path: Path) -> None:
    for to, name in (("onnx", "x.onnx"), ("openvino", "x.xml")) * 2:
        assert command("export", weights, "--to", to, "--out", tmp_path / name)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["tiny", "--out", "tiny.xml"], "a file for onnx ends in .onnx"),
        (["tiny", "--out", "tiny.onnx", "--to", "openvino"], "a file for openvino ends in .xml"),
        (["tiny", "--out", "tiny.xml", "--to", "openvino", "--int8", str(REPOSITORY / "examples")], "--to onnx"),
        (["tiny", "--out", "tiny.onnx", "--check", "nowhere"], "--check nowhere: no such folder"),
        (["tiny", "--out", "tiny.onnx", "--check", "."], "--check: .: no images in this folder\n"),
        (["tinny", "--out", "tiny.onnx"], "did you mean 'tiny'"),
        (["tiny", "--out", "tiny.onnx", "--to", "tensorrt"], "tensorrt"),
    ],
)
def test_wrong_usage_is_one_line(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, shown = command("export", *arguments)
    assert code in (1, 2)
    assert problem in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "to"), [("onnx", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_its_extra(
    command: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, to: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    if package == "onnx":
        monkeypatch.delitem(sys.modules, "langdepth.runtimes.export", raising=False)
    code, _, shown = command("export", weights, "--to", to, "--out", tmp_path / f"a{exporting.SUFFIXES[to]}")
    assert code == 2
    assert "pip install 'langdepth[" in shown
    assert package in shown
    assert shown.count("\n") == 1


def test_the_packages_photo_is_that_of_the_examples() -> None:
    assert exporting.PHOTO.read_bytes() == PHOTO.read_bytes()


@pytest.mark.parametrize("photo", [np.s_[:], np.s_[::9, ::7]])  # made smaller, and larger
def test_bicubic_resizing_is_pillows(weights: Path, tmp_path: Path, photo: Any) -> None:
    system = langdepth.load(weights, runtime="torch")
    system.input_spec = replace(system.input_spec, size=(96, 128), area=None, shrink="bicubic")
    path = tmp_path / "photo.png"
    Image.fromarray(np.ascontiguousarray(np.array(Image.open(PHOTO))[photo])).save(path)
    done = exporting.export(system, "onnx", tmp_path / "small.onnx", [path])
    assert done.difference.mean < 2e-4


def test_a_system_of_one_size_is_exported_for_that(tmp_path: Path) -> None:
    torch.manual_seed(0)
    system: Any = registry.build("depthclip-vit", test_depthclip.TestDepthClipViT.options)
    system.load_foundation("random")
    done = exporting.export(system.eval(), "onnx", tmp_path / "small.onnx")
    assert done.network_size == system.input_spec.network_size(480, 640)
    assert done.difference.mean < 1e-3
    found = session(tmp_path / "small.onnx").run(["depth"], {"image": np.zeros((2, 300, 200, 3), np.uint8)})[0]
    assert found.shape == (2, 300, 200)
    langdepth.predict(PHOTO, tmp_path / "small.onnx", window=(240, 320))


@pytest.mark.parametrize("how", ["onnx", "openvino", "int8"])
def test_a_full_disk_is_called_so_and_nothing_is_written(
    command: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    to = "openvino" if how == "openvino" else "onnx"
    out = tmp_path / f"x{exporting.SUFFIXES[to]}"

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("Exception from src/core.cpp:135:\nbasic_ios::clear: iostream error")

    def full_for_python(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if how == "onnx":
        monkeypatch.setattr(Path, "write_bytes", full_for_python)
    monkeypatch.setattr("openvino.save_model", full)
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", full)
    monkeypatch.setattr("langdepth.utils.files.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    options = ["--int8", REPOSITORY / "examples"] if how == "int8" else []
    code, _, problem = command("export", weights, "--to", to, "--out", out, *options)
    assert (code, problem) == (1, f"langdepth export: {out}: cannot be written (No space left on device)\n")
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_an_export_are_there_all_or_none(
    command: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.xml"
    assert command("export", weights, "--to", "openvino", "--out", out)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"x.xml", "x.bin", "x-words.onnx"}
    monkeypatch.setattr("langdepth.utils.files._flush", lambda path: path.suffix != ".xml" or full(path))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    assert "x.xml: cannot be written (No space" in command("export", weights, "--to", "openvino", "--out", out)[2]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
