"""The packaged models give the same depth through torch and through ONNX Runtime, whatever is asked for."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import langdepth
from langdepth.errors import CheckpointError, UsageError
from langdepth.prediction.imagination import imagine
from langdepth.runtimes.facts import FORMAT, GraphFacts
from langdepth.runtimes.graph import GraphSystem, thread_count
from langdepth.runtimes.trace import OPSET, state_facts
from langdepth.systems import card
from langdepth.systems.card import MODELS_FOLDER
from langdepth.utils.onnx_files import KEY

PHOTO = str(Path(__file__).parents[2] / "examples" / "desk.jpg")
TOLERANCE = 1e-4
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "text": {"text": "a small bathroom with a sink"},
    "flip": {"flip": True},
    "windows": {"window": (224, 224), "stride": (128, 160)},
}


@pytest.fixture(scope="module", params=["tiny", "wordepth-tiny"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return langdepth.load(request.param, runtime="torch"), langdepth.load(request.param, runtime="onnx")


def far(one: Any, other: Any) -> float:
    return float(np.abs(one.depth / other.depth - 1).max())


@pytest.mark.parametrize("asked", ASKED)
def test_depth(both: tuple[Any, Any], asked: str) -> None:
    torch, onnx = both
    assert isinstance(onnx, GraphSystem)
    first, second = (system.predict(PHOTO, **ASKED[asked]) for system in (torch, onnx))
    assert far(first, second) < TOLERANCE
    assert (first.sigma is None) == (second.sigma is None)
    assert first.sigma is None or np.abs(first.sigma / second.sigma - 1).max() < TOLERANCE
    assert first.scene_probs is None or max(first.scene_probs, key=first.scene_probs.get) == max(
        second.scene_probs, key=second.scene_probs.get
    )
    assert first.provenance["weights"]["licence"] == second.provenance["weights"]["licence"]


def test_scenes_features_and_samples() -> None:
    torch, onnx = (langdepth.load("tiny", runtime=runtime) for runtime in ("torch", "onnx"))
    assert far(torch.predict(PHOTO, scene="kitchen"), onnx.predict(PHOTO, scene="kitchen")) < TOLERANCE
    feature = np.zeros(1024, np.float32)
    feature[7] = 1
    assert far(torch.predict(PHOTO, text=feature), onnx.predict(PHOTO, text=feature)) < TOLERANCE
    assert far(onnx.predict(PHOTO, text=feature), onnx.predict(PHOTO)) > 10 * TOLERANCE
    for wrong in (feature[:5], 3 * feature):
        with pytest.raises(UsageError, match="text features have"):
            onnx.predict(PHOTO, text=wrong)
    with pytest.raises(UsageError, match="draws no depth from words"):
        onnx.predict(PHOTO, samples=3)


def test_the_same_seed_gives_the_same_scenes() -> None:
    torch, onnx = (langdepth.load("wordepth-tiny", runtime=runtime) for runtime in ("torch", "onnx"))
    first, second = (system.predict(PHOTO, samples=3, seed=5) for system in (torch, onnx))
    assert far(first, second) < TOLERANCE
    np.testing.assert_allclose(first.std, second.std, rtol=1e-2, atol=1e-4)
    for one, other in zip(*(imagine(system, "a bedroom", samples=2, seed=3) for system in (torch, onnx)), strict=True):
        assert far(one, other) < TOLERANCE


def test_it_can_be_pickled() -> None:
    system = langdepth.load("tiny")
    assert far(pickle.loads(pickle.dumps(system)).predict(PHOTO), system.predict(PHOTO)) == 0


AFTER_A_FORK = """
import os, signal, sys, threading, langdepth
photo, name, runtime = sys.argv[1:]
system, unused = (langdepth.load(name, runtime=runtime) for _ in range(2))
for one in (system, unused):
    one.predict(photo)
child = os.fork()
if child:
    threading.Timer(60, os.kill, (child, signal.SIGKILL)).start()
    os._exit(os.wait()[1] != 0)
del unused
print(system.predict(photo).depth.shape, flush=True)
if runtime == "onnx":
    os._exit(0)  # as processes of multiprocessing end; onnxruntime itself, once imported, lets no other child end
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_it_predicts_after_a_fork(runtime: str, weights: Path) -> None:
    system = "tiny" if runtime == "onnx" else str(weights)
    command, threads = [sys.executable, "-c", AFTER_A_FORK, PHOTO, system, runtime], {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(480, 640)\n"), done.stderr


@pytest.mark.parametrize(("stated", "threads"), [("3", 3), ("2,4", 2), ("100000", 1024)])
def test_threads_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, stated: str, threads: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", stated)
    assert thread_count() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= thread_count() < 1024


def test_what_a_runtime_cannot_do_is_said_in_one_line(tmp_path: Path) -> None:
    system = langdepth.load("tiny")
    with pytest.raises(AttributeError, match="runtime='torch'"):
        system.save(tmp_path / "a.safetensors")  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="computes on the CPU, not on 'cuda'"):
        system.predict(PHOTO, device="cuda")  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="in float32, not in bfloat16"):
        system.predict(PHOTO, dtype="bfloat16")  # type: ignore[attr-defined]
    for name in ("tiny", MODELS_FOLDER / "tiny.onnx"):
        with pytest.raises(UsageError, match="computes on the CPU, not on 'cuda'"):
            langdepth.load(name, runtime="onnx", device="cuda")
    with pytest.raises(UsageError, match="in float32, not in bfloat16"):
        langdepth.load(MODELS_FOLDER / "tiny.onnx", dtype="bfloat16")
    with pytest.raises(UsageError, match="runtime: unknown value 'tensorrt'"):
        langdepth.load("tiny", runtime="tensorrt")  # type: ignore[arg-type]


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    damaged = tmp_path / "a.onnx"
    damaged.write_bytes((MODELS_FOLDER / "tiny.onnx").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"a.onnx: damaged, truncated or not an ONNX file"):
        langdepth.load(damaged)
    with pytest.raises(CheckpointError, match="no such file"):
        langdepth.load(tmp_path / "none.onnx")
    with pytest.raises(CheckpointError, match="is a part of other files"):
        langdepth.load(MODELS_FOLDER / "tiny-words.onnx")


def small_graph(path: Path, rank: int, **stated: Any) -> Path:
    """A file that doubles an input ``image`` of that rank, and states what a system's graph does."""
    sides = ["batch", 3, "height", "width", "more"][:rank]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sides)] for name in ("image", "depth")
    )
    node = onnx.helper.make_node("Add", ["image", "image"], ["depth"])
    graph = onnx.helper.make_graph([node], "small", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    state_facts(model, GraphFacts(kind="network", system="small"))
    content = json.loads(model.metadata_props[0].value) | stated
    onnx.helper.set_model_props(model, {KEY: json.dumps(content)})
    onnx.save(model, path)
    return path


def test_a_file_of_a_newer_format(tmp_path: Path) -> None:
    newer = small_graph(tmp_path / "newer.onnx", 4, format=FORMAT + 1)
    with pytest.raises(
        CheckpointError, match=rf"newer.onnx: its format {FORMAT + 1} is not known .*; update langdepth"
    ):
        langdepth.load(newer)


@pytest.mark.parametrize("rank", [2, 5])
def test_a_file_whose_input_has_another_rank(tmp_path: Path, rank: int) -> None:
    with pytest.raises(CheckpointError, match=rf"flat.onnx: its graph .*of {rank} axes are not .*of 4 axes"):
        langdepth.load(small_graph(tmp_path / "flat.onnx", rank))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 3, 64, 64), (1, 4, 64, 64)])
def test_an_image_of_another_rank(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"images have shape \(.*'tiny' takes \(B, 3, height, width\)"):
        langdepth.load("tiny")(np.zeros(shape, np.float32))


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_damaged_files_of_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    for file in MODELS_FOLDER.glob("tiny*"):
        content = bytearray(file.read_bytes())
        if file.name == f"tiny{suffix}":
            content[-1] ^= 1
        (tmp_path / file.name).write_bytes(content)
    monkeypatch.setattr(card, "MODELS_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=rf"tiny{suffix} is damaged"):
        langdepth.load("tiny")
