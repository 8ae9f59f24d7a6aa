"""The runtime of OpenVINO: the depth of torch, for any system, converted once."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import langdepth
from langdepth.errors import UsageError
from langdepth.runtimes import openvino
from tests.runtimes.helpers import REPOSITORY

PHOTOS = [REPOSITORY / f"examples/{name}.jpg" for name in ("desk", "room")]


@pytest.fixture(scope="module")
def loaded(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LANGDEPTH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield langdepth.load(weights, runtime="openvino")


@pytest.mark.parametrize("options", [{}, {"scene": "street"}, {"text": "a kitchen with a sink"}, {"flip": True}])
def test_it_gives_the_depth_of_torch(loaded: Any, weights: Path, options: dict[str, Any]) -> None:
    expected = langdepth.load(weights, runtime="torch").predict(PHOTOS, sky="keep", **options)
    for found, other in zip(loaded.predict(PHOTOS, sky="keep", **options), expected, strict=True):
        assert found.depth.shape == other.depth.shape
        assert (np.abs(found.depth - other.depth) / other.depth).max() < 1e-4
        assert (np.abs(found.sigma - other.sigma) / other.sigma).max() < 1e-4


def test_it_is_converted_once(loaded: Any, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = loaded.predict(PHOTOS[0]).depth
    monkeypatch.setattr(openvino, "write", None)
    again = langdepth.load(weights, runtime="openvino")
    assert np.array_equal(again.predict(PHOTOS[0]).depth, expected)
    copied = pickle.loads(pickle.dumps(loaded))
    assert np.array_equal(copied.predict(PHOTOS[0]).depth, expected)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_damaged_graph_in_the_cache_is_made_again(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path))
    first, second = (langdepth.load(weights, runtime="openvino") for _ in range(2))
    expected: Any = langdepth.predict(PHOTOS[0], first)
    (file,) = (tmp_path / "openvino").glob(f"*{suffix}")
    file.write_bytes(file.read_bytes()[:5000])
    found: Any = langdepth.predict(PHOTOS[0], second)
    assert np.array_equal(found.depth, expected.depth)


def test_bfloat16_is_on_request(loaded: Any) -> None:
    full, low = (loaded.predict(PHOTOS[0], dtype=dtype).depth for dtype in ("float32", "bfloat16"))
    assert (np.abs(full - low) / full).mean() < 0.1
    assert loaded.for_inference(dtype="bfloat16").graph.dtype == "bfloat16"
    assert loaded.for_inference(dtype="bfloat16") is loaded.for_inference(dtype="bfloat16")  # compiled once
    assert loaded.for_inference() is loaded


def test_it_says_what_is_missing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'langdepth\[openvino\]'"):
        langdepth.load(weights, runtime="openvino")


def test_another_runtime_than_asked_for_never_computes(weights: Path) -> None:
    with pytest.raises(UsageError, match="langdepth export"):
        langdepth.load(weights, runtime="onnx")
    with pytest.raises(UsageError, match="computed by the runtime onnx"):
        langdepth.load("small.onnx", runtime="openvino")
    with pytest.raises(UsageError, match="computes on the CPU, not on 'cuda'"):
        langdepth.load(weights, runtime="openvino", device="cuda")
