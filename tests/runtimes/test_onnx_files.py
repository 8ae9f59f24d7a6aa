"""ONNX files of others' making: damaged, hostile, or asked for what they cannot do. Each is refused in one line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from PIL import Image

import langdepth
from langdepth.errors import CheckpointError, MissingCheckpointError, UsageError
from langdepth.runtimes.facts import GraphFacts
from langdepth.systems.card import MODELS_FOLDER
from langdepth.utils.onnx_files import KEY, OnnxFlaw, files_of, require_sound
from langdepth.utils.reading import file_sha256
from langdepth.weights.stamps import system_stamp
from tests.helpers import Run

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IMAGE = np.random.default_rng(0).integers(1, 255, (48, 64, 3), dtype=np.uint8)


def finished(graph: onnx.GraphProto, **facts: Any) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    stated = json.loads(GraphFacts(kind="network", system="small", inputs=("text",)).to_json())
    helper.set_model_props(model, {KEY: json.dumps({**stated, **facts})})
    return model


def network(weight: onnx.TensorProto | None = None, **facts: Any) -> onnx.ModelProto:
    """depth = (1 + mean color) * weight * (1 + mean of the text's feature); two scenes, always the same."""
    text = numpy_helper.from_array(np.zeros((1, 4), np.float32), "text")
    weight = weight or numpy_helper.from_array(np.full((1,), 2, np.float32), "weight")
    cast = helper.make_node("Cast", [weight.name], ["factor"], to=FLOAT)
    nodes = [
        cast,
        helper.make_node("ReduceMean", ["image", "one_axis"], ["gray"], keepdims=1),
        helper.make_node("ReduceMean", ["text", "one_axis"], ["word"], keepdims=1),
        helper.make_node("Add", ["gray", "one"], ["bright"]),
        helper.make_node("Add", ["word", "one"], ["said"]),
        helper.make_node("Mul", ["bright", "said"], ["product"]),
        helper.make_node("Mul", ["product", "factor"], ["depth"]),
        helper.make_node("ReduceMean", ["image", "places"], ["colors"], keepdims=0),
        helper.make_node("Slice", ["colors", "zero", "two", "one_axis"], ["scene_probs"]),
    ]
    constants = {"one": np.ones((1,), np.float32), "one_axis": np.array([1]), "places": np.array([2, 3])}
    constants |= {"zero": np.array([0]), "two": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("image", FLOAT, ["b", 3, "h", "w"]),
            helper.make_tensor_value_info("text", FLOAT, ["rows", 4]),
        ],
        [
            helper.make_tensor_value_info("depth", FLOAT, ["b", 1, "h", "w"]),
            helper.make_tensor_value_info("scene_probs", FLOAT, ["b", 2]),
        ],
        [text, weight, *(numpy_helper.from_array(value, name) for name, value in constants.items())],
    )
    return finished(graph, **{"scenes": ["kitchen", "street"], **facts})


def save_apart(model: onnx.ModelProto, path: Path) -> None:
    """With the weight in small.bin."""
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    set_external_data(weight, "small.bin")
    path.with_name("small.bin").unlink(missing_ok=True)
    onnx.save(model, path)


def words(value: float) -> onnx.ModelProto:
    """Every sentence has the feature ``value``, four times."""
    nodes = [
        helper.make_node("Cast", ["tokens"], ["numbers"], to=FLOAT),
        helper.make_node("ReduceMean", ["numbers", "one_axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zeros"], ["nothing"]),
        helper.make_node("Add", ["nothing", "feature"], ["features"]),
    ]
    constants = {"feature": np.full((1, 4), value, np.float32), "zeros": np.zeros((1, 4), np.float32)}
    constants |= {"one_axis": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("tokens", INT64, [1, "n"])],
        [helper.make_tensor_value_info("features", FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return finished(graph, kind="words", inputs=[], vocabulary=["kitchen"], max_words=4)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def test_the_small_file_is_good(small: Path) -> None:
    result: Any = langdepth.predict(IMAGE, small)
    np.testing.assert_allclose(result.depth, 2 + 2 * IMAGE.mean(-1) / 255, rtol=0.3)
    assert set(result.scene_probs) == {"kitchen", "street"}


# What an exported file cannot do


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("prompts", {"words": ["near", "far"]}, "distance words and bins"),
        ("clip_weights", "RN50.pt", "CLIP weights"),
        ("base", "tiny", "base"),
        ("depth_kind", "metric", "depth kind"),
    ],
)
def test_options_that_change_a_system_are_refused(small: Path, option: str, value: Any, named: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be changed; leave the {named} out"):
        langdepth.load(small, **{option: value})


@pytest.mark.parametrize(
    "option",
    [("--words", "near,far"), ("--bins", "1,2"), ("--clip-weights", "a.pt"), ("--base", "tiny")],
)
def test_predict_refuses_them(command: Run, small: Path, tmp_path: Path, option: tuple[str, str]) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    code, _, problem = command("predict", tmp_path / "a.png", "--system", small, "--out", tmp_path / "out", *option)
    assert code == 2
    assert "leave the" in problem
    assert problem.count("\n") == 1


def test_what_needs_weights_says_what_the_file_is(command: Run, small: Path, sample_folder: Path) -> None:
    into = small.parent
    evaluate = ("evaluate", "--data", "folder", "--root", sample_folder, "--out", into / "a.json", "--system")
    asked: list[tuple[Any, ...]] = [
        (*evaluate, small),
        (*evaluate, "tiny", "--system", small),
        ("convert", small, "--system", "clip-adapter", "--out", into / "a.safetensors"),
        ("export", small, "--out", into / "b.onnx"),
    ]
    for arguments in asked:
        code, _, problem = command(*arguments)
        assert code == 1
        assert "small.onnx: is a graph for ONNX, not weights" in problem
        assert problem.count("\n") == 1


@pytest.mark.parametrize("name", ["nope.onnx", "./nope.onnx", "exp/nope.onnx"])
def test_a_missing_file_is_called_missing(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(IMAGE).save("a.png")
    code, _, problem = command("predict", "a.png", "--system", name)
    assert (code, problem) == (1, f"langdepth predict: {name.removeprefix('./')}: no such file\n")


# Damage


def halves_as_numbers(value: float) -> onnx.TensorProto:
    bits = [int(np.array(one, np.float16).view(np.uint16)) for one in (1, value)]
    return onnx.TensorProto(name="weight", data_type=TensorProto.FLOAT16, dims=[2], int32_data=bits)


def bfloats(value: float) -> onnx.TensorProto:
    bits = (np.array([1, value], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return onnx.TensorProto(name="weight", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=bits.tobytes())


WAYS: dict[str, Callable[[float], onnx.TensorProto]] = {
    "float32": lambda value: numpy_helper.from_array(np.array([1, value], np.float32), "weight"),
    "float32 as numbers": lambda value: helper.make_tensor("weight", FLOAT, [2], [1, value]),
    "float16": lambda value: numpy_helper.from_array(np.array([1, value], np.float16), "weight"),
    "float16 as numbers": halves_as_numbers,
    "bfloat16": bfloats,
    "float64": lambda value: numpy_helper.from_array(np.array([1, value], np.float64), "weight"),
    "float64 as numbers": lambda value: helper.make_tensor("weight", TensorProto.DOUBLE, [2], [1, value]),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, way: str) -> None:
    path = tmp_path / "small.onnx"
    for value in (np.nan, np.inf, -np.inf):
        onnx.save(network(WAYS[way](value)), path)
        with pytest.raises(CheckpointError, match=r"small.onnx: tensor 'weight' holds values that are not finite"):
            langdepth.load(path)
    onnx.save(network(WAYS[way](60000)), path)
    require_sound(path)


def test_tensors_in_another_file_are_checked_there(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    for value, refused in ((1.0, False), (np.inf, True)):
        save_apart(network(WAYS["float32"](value)), path)
        if refused:
            with pytest.raises(CheckpointError, match="tensor 'weight' holds values"):
                langdepth.load(path)
        else:
            assert files_of(path) == [path, tmp_path / "small.bin"]
            langdepth.load(path)
    (tmp_path / "small.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lie beyond the end of small\.bin"):
        langdepth.load(path)
    (tmp_path / "small.bin").unlink()
    with pytest.raises(CheckpointError, match=r"small\.onnx: cannot be read .*small\.bin"):
        langdepth.load(path)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "C:\\secret.bin", "a/../../secret.bin"])
def test_tensors_outside_the_folder_are_not_read(tmp_path: Path, place: str) -> None:
    model = network()
    weight = next(one for one in model.graph.initializer if one.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    (tmp_path / "small.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="tensor 'weight' is said to lie outside its folder"):
        langdepth.load(tmp_path / "small.onnx")


def test_a_file_that_is_cut_or_changed_anywhere_is_read_or_refused(small: Path) -> None:
    content = small.read_bytes()
    random = np.random.default_rng(0)
    for place in range(0, len(content), 3):
        changed = bytearray(content)
        changed[place] = random.integers(256)
        for one in (content[:place], bytes(changed)):
            small.write_bytes(one)
            files_of(small)
            with suppress(OnnxFlaw, OSError):
                require_sound(small)


def test_loops_and_branches_are_refused_before_they_run(tmp_path: Path) -> None:
    model = network()
    again = helper.make_node("Identity", ["more"], ["still"])
    body = helper.make_graph(
        [again],
        "body",
        [
            helper.make_tensor_value_info("step", INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "steps"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.insert(0, helper.make_node("Loop", ["steps", "yes"], [], body=body))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="a node of the kind 'Loop', which langdepth never exports"):
        langdepth.load(tmp_path / "a.onnx")


def test_what_the_package_holds_is_sound() -> None:
    for path in MODELS_FOLDER.glob("*.onnx"):
        require_sound(path)
    names = {path.name for path in files_of(MODELS_FOLDER / "wordepth-tiny.onnx")}
    parts = {f"wordepth-tiny{part}.onnx" for part in ("", "-imagine", "-draw")}
    assert names == {*parts, "wordepth-tiny.safetensors", "tiny-words.onnx", "tiny.safetensors"}


# What a file states


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        ({"scenes": ["a", "b", "c"]}, "scene_probs .* are not of its 3 scenes"),
        ({"scenes": []}, "scene_probs .* are not of its 0 scenes"),
        ({"scenes": ["a", "a"]}, "'scenes' has an entry twice"),
        ({"input_spec": {"multiple_of": 0}}, "no network has this size"),
        ({"input_spec": {"size": [0, 4]}}, "no network has this size"),
        ({"input_spec": {"size": [-64, -64]}}, "no network has this size"),
        ({"input_spec": {"max_aspect": 0}}, "no network has this size"),
        ({"input_spec": {"std": [1, 0, 1]}}, "colors cannot be normalized"),
        ({"scale_kind": "foo"}, "unknown scale_kind 'foo'"),
        ({"kind": "whole"}, r"inputs image tensor\(float\) of 4 axes"),
        ({"kind": "words", "max_words": 3}, "inputs"),
        ({"kind": "words"}, "no sentence has 0 words"),
        ({"takes_overlay": True}, "inputs .* are not .*overlay"),
        ({"inputs": []}, "inputs .*text.* are not image"),
        ({"inputs": ["text", "scene"]}, "inputs .* are not .*scene"),
        ({"words": "../other.onnx"}, "no name of a file beside it"),
        ({"words": ""}, "no name of a file beside it"),
        ({"provenance": {"loss": float("nan")}}, "what it states about itself is damaged"),
        ({"network_size": [0, 0]}, "no network has the size"),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path: Path, facts: dict[str, Any], problem: str) -> None:
    onnx.save(network(**facts), tmp_path / "small.onnx")
    with pytest.raises(CheckpointError, match=problem) as caught:
        langdepth.load(tmp_path / "small.onnx")
    assert "small.onnx: " in str(caught.value)


@pytest.mark.parametrize("newer", ["opset", "ir_version"])
def test_a_newer_onnx_is_called_so(tmp_path: Path, newer: str) -> None:
    model = network()
    if newer == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    onnx.save(model, tmp_path / "small.onnx")
    with pytest.raises(
        CheckpointError, match=r"small.onnx: written for a newer ONNX than the installed onnxruntime reads"
    ):
        langdepth.load(tmp_path / "small.onnx")


def test_depth_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].attribute[0].i = 1  # three channels of depth
    next(one for one in model.graph.initializer if one.name == "one").CopyFrom(
        numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "one")
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for name in "bchw":
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_param=name)
    onnx.save(model, tmp_path / "small.onnx")
    with pytest.raises(CheckpointError, match="its graph gives"):
        langdepth.predict(IMAGE, tmp_path / "small.onnx")


# Every file that is read counts


@pytest.fixture
def with_words(tmp_path: Path) -> Path:
    onnx.save(network(words="st-words.onnx"), tmp_path / "st.onnx")
    onnx.save(words(0.5), tmp_path / "st-words.onnx")
    return tmp_path / "st.onnx"


def test_the_suffix_may_be_in_capitals(with_words: Path) -> None:
    other = with_words.rename(with_words.with_name("ST.ONNX"))
    assert langdepth.predict(IMAGE, other, text="kitchen")
    assert files_of(other) == [other, with_words.with_name("st-words.onnx")]


def test_the_current_folder_may_change(with_words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(with_words.parent)
    system: Any = langdepth.load(with_words.name)
    stored = pickle.dumps(system)
    monkeypatch.chdir("/")
    system.predict(IMAGE, text="kitchen")
    pickle.loads(stored).predict(IMAGE, text="kitchen")


def test_a_part_of_another_kind_or_another_file_is_refused(with_words: Path) -> None:
    own, beside = with_words, with_words.with_name("st-words.onnx")
    onnx.save(network(words="st-words.onnx", words_sha256=file_sha256(beside)), own)
    assert langdepth.predict(IMAGE, own, text="kitchen")
    onnx.save(words(0.25), beside)
    with pytest.raises(
        CheckpointError, match=r"st-words.onnx: is not the file that was written with the one that names"
    ):
        langdepth.predict(IMAGE, own, text="kitchen")
    onnx.save(network(words=own.name), own)
    with pytest.raises(CheckpointError, match=r"st.onnx: is not the file that was written with the one that names"):
        langdepth.predict(IMAGE, own, text="kitchen")
    onnx.save(network(imagine=own.name, draw=own.name), own)
    with pytest.raises(CheckpointError, match=r"st.onnx: is not the file that was written with the one that names"):
        langdepth.predict(IMAGE, own, samples=2)


def test_another_encoder_of_words_is_noticed(command: Run, with_words: Path) -> None:
    folder = with_words.parent
    Image.fromarray(IMAGE).save(folder / "a.png")
    asked = ("predict", folder / "a.png", "--system", with_words, "--text", "kitchen", "--save", "npy")
    asked = (*asked, "--out", folder / "out", "--resume")
    depths = []
    for value in (0.5, 0.25):
        onnx.save(words(value), folder / "st-words.onnx")
        assert command(*asked)[0] == 0
        depths.append(np.load(folder / "out" / "a.npy"))
        found: Any = langdepth.predict(IMAGE, with_words, text="kitchen")
        np.testing.assert_allclose(found.depth, depths[-1], rtol=1e-6)
    assert depths[0].mean() > 1.1 * depths[1].mean()
    assert "1 of 1 images were already done" in command(*asked)[1]


def test_files_with_tensors_are_part_of_the_stamp(tmp_path: Path) -> None:
    path, tensors = tmp_path / "small.onnx", tmp_path / "small.bin"
    save_apart(network(), path)
    before = system_stamp(path)
    assert system_stamp(path) == before
    tensors.write_bytes(tensors.read_bytes() + b"more")
    assert system_stamp(path) != before


def test_names_that_cannot_be_are_one_line() -> None:
    with pytest.raises(MissingCheckpointError, match="no such file"):
        langdepth.load("a\0b.onnx")
    with pytest.raises(CheckpointError, match="cannot be read"):
        langdepth.load("a" * 5000 + ".onnx")


def test_a_node_cannot_ask_for_more_than_the_machine_has(tmp_path: Path) -> None:
    model = network()
    sides = {"side": np.array([150, 200]), "hundred": np.array([100, 100])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in sides.items())
    model.graph.node[-3].output[0] = "plain"
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["side", "hundred"], ["sides"]),
            helper.make_node("ConstantOfShape", ["sides"], ["huge"]),  # 1.2 GB
            helper.make_node("ReduceMax", ["huge"], ["nothing"], keepdims=0),
            helper.make_node("Add", ["plain", "nothing"], ["depth"]),
        ]
    )
    onnx.save(model, tmp_path / "huge.onnx")
    code = (
        "import numpy as np, sys, langdepth\n"
        "from langdepth.runtimes import onnx\n"
        "onnx._machine_memory = lambda: int(sys.argv[2])\n"
        "image = np.full((48, 64, 3), 9, np.uint8)\n"
        "try: print(langdepth.load(sys.argv[1]).predict(image).depth.shape)\n"
        "except langdepth.LangdepthError as error: print(error)\n"
        "from langdepth.runtimes.bench import _peak_bytes; print(_peak_bytes() // 10**6)"
    )

    def run(memory: int) -> list[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "huge.onnx"), str(memory)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    said, megabytes = run(1 << 30)
    assert said.endswith("huge.onnx: not enough memory for the network")
    assert int(megabytes) < 700
    assert run(1 << 33)[0] == "(48, 64)"
