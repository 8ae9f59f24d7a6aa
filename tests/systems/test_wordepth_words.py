"""How WorDepth gets its words: from CLIP, from its own small encoder, from the package's, from packed captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from langdepth.cli import main
from langdepth.data.base import open_dataset
from langdepth.errors import UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.prediction.network import as_float
from langdepth.prediction.predictor import predict_images
from langdepth.systems import registry
from langdepth.systems.wordepth.model import WorDepth
from langdepth.text.caption_features import open_captions
from langdepth.text.captions import Caption, pack
from langdepth.training.recipe import read_recipe
from langdepth.training.start import prepare_system
from langdepth.weights import checkpoint
from tests.helpers import FakeSystem, grey, write_folder
from tests.miniatures import nyu_sync, published_captions

SENTENCES = ["a bed in a room", "a car on a street"]


def build(**options: Any) -> WorDepth:
    """A small one that spreads what words say, so that they matter."""
    torch.manual_seed(0)
    small = {"encoder": "swin-mini", "resolution": (64, 64), "widths": (16, 12, 8), "latent": 8}
    system = registry.build("wordepth-s", small | options)
    assert isinstance(system, WorDepth)
    return system.eval()


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """What stands in for CLIP's text tower: sentence -> feature."""
    features = dict(zip(SENTENCES, torch.nn.functional.normalize(torch.randn(2, 1024)), strict=True))

    class Clip:
        def __init__(self, clip_weights: str | Path) -> None:
            assert clip_weights == "RN50.pt"

        def encode(self, sentences: list[str]) -> torch.Tensor:
            return torch.stack([features[sentence] for sentence in sentences])

    monkeypatch.setattr("langdepth.systems.wordepth.model.ClipSentences", Clip)
    return features


@pytest.mark.filterwarnings("ignore:text 'a car:UserWarning")
def test_clip_reads_the_text_of_a_loaded_system(clip: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = build(vocabulary=("a", "bed", "car")).save(tmp_path / "w.safetensors")
    plain, with_clip = checkpoint.load(path), checkpoint.load(path, clip_weights="RN50.pt")
    image = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        described = with_clip(image, SENTENCES).depth
        assert torch.equal(described, with_clip(image, torch.stack(list(clip.values()))).depth)
        with pytest.warns(UserWarning, match="unknown words are ignored: in, room"):
            assert not torch.equal(described, plain(image, SENTENCES).depth)
    assert set(with_clip.state_dict()) == set(plain.state_dict())
    result: Any = predict_images(with_clip, grey(0.5), text=SENTENCES[0])
    assert result.provenance["text"] == SENTENCES[0]


def test_weights_without_an_encoder_borrow_that_of_the_package_and_say_so(tmp_path: Path) -> None:
    system = build()
    image = torch.rand(1, 3, 64, 64)
    tiny: Any = checkpoint.load("tiny")
    feature = tiny.sentences.encode(SENTENCES[:1])
    names = set(system.state_dict())
    with torch.inference_mode():
        with pytest.warns(
            UserWarning, match="hold no sentence encoder: the small one of the package .* --clip-weights"
        ):
            described = system(image, SENTENCES[:1]).depth
        torch.testing.assert_close(described, system(image, feature).depth)
    assert set(system.state_dict()) == names
    with pytest.raises(UsageError, match="none of its words is known"):
        system(image, ["xyzzy"])


def test_systems_that_need_no_clip_say_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiny: holds all weights of 'tiny'; leave the CLIP weights out"):
        checkpoint.load("tiny", clip_weights="RN50.pt")


def packed(folder: Path, features: np.ndarray) -> Path:
    captions = [Caption(f"{i}", sentence) for i, sentence in enumerate(SENTENCES)]
    pack(captions, dict(zip(SENTENCES, features, strict=True)), folder)
    return folder


def test_evaluation_and_training_read_packed_captions(clip: dict[str, torch.Tensor], tmp_path: Path) -> None:
    features = torch.stack(list(clip.values())).half()
    root = write_folder(tmp_path / "data", [{"size": (64, 64)}, {"size": (64, 64)}])
    dataset = open_dataset("folder", root, captions=packed(tmp_path / "captions", features.numpy()))
    system, protocol = build(), protocols.get("full")
    samples = [dataset[0], dataset[1]]
    evaluated = evaluate_batch(system, samples, protocol)
    with torch.inference_mode():
        expected = system(as_float(torch.stack([sample.image for sample in samples])), features.float()).depth
    torch.testing.assert_close(evaluated.prediction, expected)
    bare = evaluate_batch(system, [open_dataset("folder", root)[i] for i in (0, 1)], protocol)
    assert not torch.equal(evaluated.prediction, bare.prediction)


def test_the_commands_take_packed_captions(
    clip: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = torch.stack(list(clip.values())).half().numpy()
    rows = [{"size": (64, 64), "split": split} for split in ("train", "val")]
    root, captions = write_folder(tmp_path / "data", rows), packed(tmp_path / "captions", features)
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        f"system: {{name: wordepth-s, weights: {build().save(tmp_path / 'w.safetensors')}}}\n"
        f"data: {{root: {root}, captions: {captions}, batch_size: 1, workers: 0, aspects: [1.0]}}\n"
        f"train: {{out: {run}, epochs: 1, accelerator: cpu, previews: 0}}\n"
    )
    other = write_folder(tmp_path / "other", rows * 2)
    assert main(["train", "--config", str(recipe), "--data.root", str(other)]) == 1
    assert "has no caption in" in capsys.readouterr().err
    assert main(["train", "--config", str(recipe)]) == 0
    evaluation = ["evaluate", "--system", run / "best.safetensors", "--root", root, "--out", tmp_path / "report.json"]
    assert main([*map(str, evaluation), "--captions", str(captions)]) == 0
    assert f"captions {captions}" in json.loads((tmp_path / "report.json").read_text())["dataset"]


def test_captions_of_another_width_and_systems_for_which_they_are_no_words(tmp_path: Path) -> None:
    narrow = torch.nn.functional.normalize(torch.randn(2, 8)).half().numpy()
    root = write_folder(tmp_path / "data", [{"size": (64, 64)}, {"size": (64, 64)}])
    dataset = open_dataset("folder", root, captions=packed(tmp_path / "captions", narrow))
    with pytest.raises(UsageError, match=r"text features have shape \(1, 8\); 'wordepth-s' takes .* \(1, 1024\)"):
        evaluate_batch(build(), [dataset[0]], protocols.get("full"))

    class Wordy(FakeSystem):
        text_per_image = False

    with pytest.raises(UsageError, match="'fake' takes no captions of images"):
        evaluate_batch(Wordy(), [dataset[0]], protocols.get("full"))


# Training from the authors' captions


NARROW = {"encoder": "swin-mini", "resolution": [32, 64], "widths": [8, 8, 8], "latent": 4, "text_features": 16}


def authors_captions(folder: Path) -> Path:
    """The published trees for the frames of the small NYU: three captions, each with its feature."""
    rows = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0))).half().numpy()
    images = (
        "nyu/train/kitchen_0028b/rgb_00045",
        "nyu/train/living_room_0019/rgb_00111",
        "nyu/test/bathroom/rgb_00000",
    )
    sentences = ("A kitchen with a sink.", "A couch in a living room.", "A bathroom with a sink.")
    published_captions(folder, dict(zip(images, zip(sentences, rows, strict=True), strict=True)))
    return folder


def train_on_nyu(root: Path, out: Path, *arguments: object) -> int:
    recipe = {
        "system": {"name": "wordepth-s", "options": NARROW},
        "data": {"name": "nyu", "root": str(root), "train_split": "sync", "val_split": "test", "workers": 0},
        "train": {"epochs": 1, "accelerator": "cpu", "previews": 0, "out": str(out)},
    }
    out.with_suffix(".json").write_text(json.dumps(recipe))
    return main(["train", "--config", str(out.with_suffix(".json")), *map(str, arguments)])


@pytest.mark.filterwarnings("ignore:.*RANDOM", "ignore:.*pairs of split")
def test_the_authors_trees_train_with_and_without_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``data.captions`` is all that is named, and what continues from weights needs no file at all."""
    root, trees = nyu_sync(tmp_path / "nyu", monkeypatch), authors_captions(tmp_path / "WorDepth")
    packing = ["--text", trees / "text", "--features", trees / "text_feat", "--out", tmp_path / "packed"]
    assert main(["data", "pack-captions", *map(str, packing)]) == 0
    weights = []
    neutral = ["--data.without_caption", "neutral"]  # one of the images to validate on has no caption
    for form in (trees, tmp_path / "packed"):
        assert train_on_nyu(root, tmp_path / f"run-{form.name}", "--data.captions", form, *neutral) == 0
        trained = checkpoint.load(tmp_path / f"run-{form.name}/last.safetensors")
        assert isinstance(trained, WorDepth)
        assert "couch" in trained.config.vocabulary
        weights.append(trained.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())
    both = ["--data.captions", trees, "--system.prepare.text_features", tmp_path / "packed"]
    assert train_on_nyu(root, tmp_path / "both", *both, *neutral) == 0
    assert train_on_nyu(root, tmp_path / "more", "--system.weights", tmp_path / "both/last.safetensors") == 0


def test_captions_of_the_data_go_to_systems_that_start_from_some_and_to_no_others(tmp_path: Path) -> None:
    captions = open_captions(packed(tmp_path / "captions", np.eye(2, 8, dtype=np.float16)))
    recipe = read_recipe({"data": {"root": "x", "captions": str(tmp_path / "captions")}})
    seen: list[Any] = []

    class Starts(FakeSystem):
        def prepare_training(self, text_features: Any = None) -> None:
            seen.append(text_features)

    class Plain(FakeSystem):
        def prepare_training(self) -> None:
            seen.append("nothing")

    class Wordless(FakeSystem):
        text_per_image = False

    prepare_system(Starts(), recipe, captions)
    prepare_system(Plain(), recipe, captions)
    own = read_recipe({"system": {"prepare": {"text_features": "own.npz"}}, "data": {"root": "x"}})
    prepare_system(Starts(), own, captions)
    assert seen == [captions, "nothing", "own.npz"]
    with pytest.raises(UsageError, match=r"data\.captions: 'fake' takes no captions of images; leave them out"):
        prepare_system(Wordless(), recipe, captions)


def test_without_any_captions_one_line_says_how_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = nyu_sync(tmp_path / "nyu", monkeypatch)
    assert train_on_nyu(root, tmp_path / "run") == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if "starts from captions" in line]
    assert len(printed) == 1
    assert "system.prepare.text_features or data.captions" in printed[0]


@pytest.mark.filterwarnings("ignore:.*pairs of split")
def test_evaluation_reads_the_authors_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, trees = nyu_sync(tmp_path / "nyu", monkeypatch), authors_captions(tmp_path / "WorDepth")
    weights = registry.build("wordepth-s", NARROW).save(tmp_path / "w.safetensors")
    command = ["evaluate", "--system", weights, "--data", "nyu", "--root", root, "--out", tmp_path / "r.json"]
    assert main([*map(str, command), "--captions", str(trees)]) == 1  # kitchen/rgb_00001 has none
    assert main([*map(str, command), "--captions", str(trees), "--without-caption", "neutral"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 2
