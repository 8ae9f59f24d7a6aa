"""Depth models of ``transformers`` by name: their own pipeline's numbers, what these are, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import langdepth
from langdepth import cli
from langdepth.errors import UsageError
from langdepth.prediction.results import DepthResult
from langdepth.weights.checkpoint import load
from langdepth.weights.stamps import system_stamp
from tests.stand_ins import transformers_model

KINDS = {
    "depth_anything": "disparity",
    "depth_pro": "metric",
    "dpt": "disparity",
    "glpn": "metric",
    "tipsv2_dpt": "metric",
    "zoedepth": "metric",
}
CLASSES = {"depth_pro": "DepthProConfig", "tipsv2_dpt": "Tipsv2DptConfig"}  # which older versions do not have


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of each kind, and a photo."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    transformers = pytest.importorskip("transformers")
    for kind in (*KINDS, "dpt_dinov2"):
        if hasattr(transformers, CLASSES.get(kind, "DPTConfig")):
            transformers_model(kind, folder / kind)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)).save(folder / "photo.png")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_predict_gives_the_librarys_own_numbers(models: Path, tmp_path: Path, kind: str) -> None:
    import transformers

    if not (models / kind).is_dir():
        pytest.skip("this version of transformers does not have it")
    system = ["--system", f"transformers:{models / kind}"]
    assert cli.main(["predict", str(models / "photo.png"), *system, "--save", "npz", "--out", str(tmp_path)]) == 0
    own = transformers.pipeline("depth-estimation", model=str(models / kind), device="cpu")
    expected = own(Image.open(models / "photo.png"))["predicted_depth"].detach().numpy().reshape(50, 70)
    with np.load(tmp_path / "photo.npz") as found:
        assert np.array_equal(found["depth"], np.where(expected > 0, expected, 0))
        assert f'"scale_kind": "{KINDS[kind]}"' in str(found["metadata"])


def test_what_is_not_metres_is_not_written_as_metres(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(models / "photo.png"), "--system", f"transformers:{models / 'dpt'}"]
    assert cli.main([*arguments, "--save", "depth16,color", "--out", str(tmp_path)]) == 0
    assert "; disparity " in capsys.readouterr().out
    assert b'"unit": "relative"' in (tmp_path / "photo_depth.png").read_bytes()
    for name, wanted in (("kitti16", "kitti16 holds metres"), ("ply", "ply holds depth")):
        assert cli.main([*arguments, "--save", name, "--out", str(tmp_path / name)]) == 2
        assert wanted in capsys.readouterr().err


def test_near_is_bright_in_depth_and_in_disparity(tmp_path: Path) -> None:
    from langdepth.prediction.results import DepthResult

    depth = np.linspace(1, 9, 240, dtype=np.float32).reshape(1, -1).repeat(220, 0)
    ends = []
    for kind, values in (("relative", depth), ("disparity", 10 - depth)):
        path = tmp_path / f"{kind}_color.png"
        DepthResult(depth=values, valid=values > 0, system="x", unit="relative", scale_kind=kind).save(path)
        pixels = np.asarray(Image.open(path))
        ends.append((pixels[5, 3].tolist(), pixels[5, 236].tolist()))
    assert np.abs(np.subtract(ends[0], ends[1])).max() <= 3


def test_the_kind_is_asked_for_only_where_nobody_can_know_it(models: Path) -> None:
    name = f"transformers:{models / 'dpt_dinov2'}"
    with pytest.raises(UsageError, match="say what its numbers are"):
        load(name)
    assert load(name, depth_kind="metric").scale_kind == "metric"
    assert load(f"transformers:{models / 'glpn'}", depth_kind="relative").scale_kind == "relative"
    with pytest.raises(UsageError, match="knows what its numbers are; leave the depth kind out"):
        load("tiny", depth_kind="metric")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_weights": "random"}, "uses no CLIP weights"),
        ({"prompts": {"words": ["near", "far"]}}, "uses no CLIP weights"),
    ],
)
def test_options_without_a_use_are_refused(models: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(f"transformers:{models / 'glpn'}", **options)


def test_words_are_refused(models: Path) -> None:
    with pytest.raises(UsageError, match="takes no words"):
        load(f"transformers:{models / 'glpn'}").predict(models / "photo.png", text="a kitchen")


def test_words_give_metres_to_disparity(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, name = str(models / "photo.png"), f"transformers:{models / 'depth_anything'}"
    line = ["predict", photo, "--system", name, "--text", "a kitchen with a sink", "--save", "kitti16,npz"]
    assert cli.main([*line, "--out", str(tmp_path)]) == 0
    assert re.search(
        r" m \(min / median / max\); median depth \S+ to \S+ m with 67 %, \S+ to \S+ m with 95 % \(from words\)\n",
        capsys.readouterr().out,
    )
    with np.load(tmp_path / "photo.npz") as file:
        facts = json.loads(str(file["metadata"]))
    assert facts["scale_kind"] == "metric"
    assert facts["provenance"]["scale"]["from"] == ["words"]
    assert cli.main([*line[:4], "--text", "zyxglorp", "--out", str(tmp_path / "none")]) == 2
    assert "none of its words is known" in capsys.readouterr().err
    result = langdepth.predict(photo, name, text="a kitchen with a sink")
    assert isinstance(result, DepthResult)
    assert result.scale_kind == "metric"
    assert result.provenance["scale"] == facts["provenance"]["scale"]


def test_a_changed_model_is_another_one(models: Path) -> None:
    name = f"transformers:{models / 'glpn'}"
    before = system_stamp(name)
    assert system_stamp(name) == before
    config = models / "glpn" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert system_stamp(name) != before
