"""Foreign models and finished depth maps under our protocols."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth import protocols
from langdepth.data.base import open_dataset
from langdepth.errors import LangdepthError, UsageError
from langdepth.evaluate import evaluate
from langdepth.foreign import Foreign, Predictions, ScaleKind, load_transformers
from langdepth.matrix import load_system
from tests.helpers import write_folder

FULL = protocols.get("full")


class Shades:
    """4 m on the left, 8 m on the right, or their disparity after a scale and a shift."""

    def __init__(self, scale_kind: ScaleKind) -> None:
        self.scale_kind = scale_kind

    def predict_depth(self, image: Tensor) -> Tensor:
        depth = torch.tensor([4.0, 8.0]).repeat_interleave(32).expand(len(image), 1, 48, 64)
        return 5 / depth - 0.3 if self.scale_kind == "disparity" else depth


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pictures whose truth is 4 m on the left and 8 m on the right."""
    root = write_folder(tmp_path / "data", [{}, {}])
    depth = np.repeat(np.array([4000, 8000], np.uint16), 32)[None].repeat(48, 0)
    for number in range(2):
        Image.fromarray(depth).save(root / f"{number}_depth.png")
    return root


def test_a_foreign_model_is_judged_like_a_system(root: Path) -> None:
    report = evaluate(Foreign(Shades("metric"), "shades"), open_dataset("folder", root), FULL, progress=False)
    assert report["system"] == "shades"
    assert report["image_mean"]["abs_rel"] == 0
    assert report["edges"] == {"precision": 1, "recall": 1, "f1": 1}


def test_disparity_is_no_depth(root: Path) -> None:
    model = Foreign(Shades("disparity"), "shades")
    for kind in ("none", "median", "least_squares"):
        with pytest.raises(UsageError, match="tells disparity, which is no depth; give the alignment disparity"):
            evaluate(model, open_dataset("folder", root), FULL.override(alignment=kind), progress=False)
    report = evaluate(model, open_dataset("folder", root), FULL.override(alignment="disparity"), progress=False)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_predictions_are_found_by_path(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    depth = Shades("metric").predict_depth(torch.zeros(1, 3, 48, 64))[0, 0].numpy()
    np.save(folder / "0.npy", depth)
    Image.fromarray((depth * 500).astype(np.uint16)).save(folder / "1.png")
    predictions = Predictions(folder, root, png_scale=1 / 500)
    report = evaluate(predictions, open_dataset("folder", root), protocols.get("nyu-eigen"), progress=False)
    assert report["image_mean"]["abs_rel"] == 0
    assert report["protocol"]["name"] == "nyu-eigen+flip=false"
    assert report["system"] == f"predictions ({folder})"
    old = predictions.fingerprint()
    assert Predictions(folder, root, png_scale=1 / 500).fingerprint() == old
    assert Predictions(folder, root, png_scale=1 / 256).fingerprint() != old
    assert Predictions(folder, root, "relative", 1 / 500).fingerprint() != old
    np.save(folder / "0.npy", depth[:24])
    assert predictions.fingerprint() != old


def test_missing_predictions_are_counted_and_the_first_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{}] * 8)
    folder = tmp_path / "predictions"
    folder.mkdir()
    np.save(folder / "3.npy", np.ones((48, 64), np.float32))
    with pytest.raises(LangdepthError, match=r"7 of 8 pictures have no prediction: .*0.png(, .*\.png){4}, \.\.\.$"):
        evaluate(Predictions(folder, root), open_dataset("folder", root), FULL, progress=False)


def test_wrong_predictions_cost_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match="no such folder"):
        Predictions(tmp_path / "gone", root)
    with pytest.raises(UsageError, match="must be above 0"):
        Predictions(root, root, png_scale=0)
    with pytest.raises(UsageError, match="finished depth maps cannot obey"):
        Predictions(root, root).rules(protocols.get("scaledepth-nk-nyu-reference"))


def test_options_of_foreign_models() -> None:
    with pytest.raises(UsageError, match="say what its numbers are"):
        load_system("transformers:dpt")
    with pytest.raises(UsageError, match="leave the depth kind out"):
        load_system("tiny", depth_kind="metric")


def test_a_model_of_transformers_from_a_folder(root: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=28, out_indices=[1, 2],
        reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=12, patch_size=14, reassemble_factors=[2, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_in_channels=8, head_hidden_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(tmp_path / "model")
    processor = transformers.DPTImageProcessor(size={"height": 42, "width": 56}, do_resize=True)
    processor.save_pretrained(tmp_path / "model")
    system = load_transformers(str(tmp_path / "model"), "disparity")
    rules = FULL.override(alignment="disparity")
    report = evaluate(system, open_dataset("folder", root), rules, batch_size=2, progress=False)
    assert report["images"] == 2
    assert re.fullmatch(r"transformers:.*model", report["system"])
    with pytest.raises(LangdepthError, match="no depth model of 'transformers' can be loaded here"):
        load_transformers(str(tmp_path / "empty"), "metric")
