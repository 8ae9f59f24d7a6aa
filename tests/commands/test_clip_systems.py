"""The CLIP systems as a user meets them: weights in every layout, own words, convert, training."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.data.tools.sample import write_sample
from langdepth.systems import card, registry
from langdepth.systems.base import System
from langdepth.weights import checkpoint
from tests.backbones.test_clip_weights import LAYOUTS, write_openai, write_state_dict
from tests.helpers import Run, logged, ramp, save_image

SMALL: dict[str, dict[str, Any]] = {
    "depthclip": {"architecture": "RN-small", "area": 64 * 96},
    "depthclip-vit": {"architecture": "ViT-small", "area": 64 * 96},
    "clip-adapter": {"architecture": "RN-small", "area": 64 * 96, "image_reduction": 32, "text_reduction": 16},
    "clip-coarse-refined": {"architecture": "RN-small", "size": (64, 96), "hidden": 32},
    "eigen": {"size": (64, 96), "hidden": 32},
    "msa": {"architecture": "RN-small", "area": 64 * 96},
    "msa-sam": {"architecture": "RN-small", "area": 64 * 96, "overlay": True},
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run a command in an empty folder with a photo.png and small systems; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    for name, preset in SMALL.items():
        entry = card.Entry(**{**vars(registry.entry(name)), "preset": preset})
        monkeypatch.setitem(registry.REGISTRY, name, entry)
    save_image(tmp_path / "photo.png", ramp(96, 64))
    return command


@pytest.fixture(scope="module")
def clip() -> dict[str, Tensor]:
    """Tensors of a small CLIP ResNet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_clip_weights("random", "RN-small", True).tensors


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An indexed folder of synthetic images at the small systems' network size; do not write into it."""
    return write_sample(tmp_path_factory.mktemp("data") / "rooms", count=8, size=(64, 96))


def refused(answer: tuple[int, str, str], code: int, *parts: str) -> None:
    """One line on stderr that says all ``parts``."""
    assert answer[0] == code
    assert answer[2].count("\n") == 1
    assert [part for part in parts if part not in answer[2]] == []


# predict


@pytest.mark.parametrize(("architecture", "name", "write"), LAYOUTS)
def test_predict_from_a_file_of_every_layout(architecture: str, name: str, write: Any, run: Run) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(find_clip_weights("random", architecture, True).tensors, Path(name))
    system = "depthclip" if architecture == "RN-small" else "depthclip-vit"
    code, _, err = run("predict", "photo.png", "--system", system, "--clip-weights", name, "--save", "npy", "--flip")
    assert (code, err) == (0, "")
    depth = np.load("depth/photo.npy")
    assert depth.shape == (64, 96)
    assert 1 <= depth.min() <= depth.max() <= 3


def test_predict_with_own_words_bins_and_scenes(run: Run, clip: dict[str, Tensor]) -> None:
    write_state_dict(clip, Path("clip.pt"))
    base = ("predict", "photo.png", "--system", "depthclip", "--clip-weights", "clip.pt", "--save", "npy")
    assert run(*base, "--words", "near, far", "--bins", "5,6")[0] == 0
    assert 5 <= np.load("depth/photo.npy").min() <= np.load("depth/photo.npy").max() <= 6
    Path("own.yaml").write_text("scenes:\n  hall:\n    bin_centers: [11, 12, 13, 14, 15, 16, 17]\n")
    assert run(*base, "--prompts", "own.yaml", "--scene", "hall")[0] == 0
    assert np.load("depth/photo.npy").min() >= 11
    assert run(*base, "--prompts", "depthclip-bins-4")[0] == 0
    assert np.load("depth/photo.npy").min() >= 2
    refused(run(*base, "--words", "near,far"), 2, "2 words but 7 bin_centers")
    refused(run(*base, "--prompts", "depthclip-bin-4"), 2, "did you mean 'depthclip-bins-4'?")
    refused(run(*base, "--scene", "hall"), 2, "takes no scene")
    refused(run(*base, "--text", "a hall"), 2, "takes no sentence")
    refused(run(*base, "--overlay", "photo.png"), 2, "takes no overlay")


def test_a_prompt_file_means_the_same_in_every_command(run: Run, clip: dict[str, Tensor], rooms: Path) -> None:
    write_state_dict(clip, Path("clip.pt"))
    Path("own.yaml").write_text("words: [near, middling, far]\nbin_centers: [5, 6, 7]\n")
    plain = ("--clip-weights", "clip.pt")
    own = (*plain, "--prompts", "own.yaml")
    image = sorted(rooms.rglob("*.jpg"))[0]

    assert run("predict", str(image), "--system", "depthclip", *own, "--save", "npy")[0] == 0
    predicted = np.load(f"depth/{image.stem}.npy")
    assert 5 <= predicted.min() <= predicted.max() <= 7
    assert (
        run("convert", "clip.pt", "--system", "depthclip", "--prompts", "own.yaml", "--out", "own.safetensors")[0] == 0
    )
    assert run("predict", str(image), "--system", "own.safetensors", "--save", "npy", "--out", "again")[0] == 0
    np.testing.assert_array_equal(np.load(f"again/{image.stem}.npy"), predicted)

    evaluate = ("evaluate", "--root", str(rooms), "--protocol", "full", "--limit", "1", "--out")
    assert run(*evaluate, "own.json", "--system", "depthclip", *own, "--save", "npy")[0] == 0
    assert all(np.load(path).min() >= 5 for path in Path("own_maps").rglob("*.npy"))
    rows = [{"system": "depthclip", "clip_weights": "clip.pt", "prompts": "own.yaml", "name": "own"}]
    rows.append({"system": "own.safetensors"})
    data = [{"root": str(rooms), "protocols": ["full"], "limit": 1}]
    Path("matrix.yaml").write_text(yaml.safe_dump({"systems": rows, "data": data}))
    assert run("benchmark", "matrix.yaml", "--out", "matrix")[0] == 0
    means = [json.loads(Path("own.json").read_text())["image_mean"]]
    means += [cell["ours"]["image_mean"] for cell in json.loads(Path("matrix/matrix.json").read_text())]
    assert means[0] == means[1] == means[2]

    code, out, _ = run("prompts", str(image), "--system", "depthclip", *own)
    assert (code, "middling" in out) == (0, True)
    section = {"out": "run", "epochs": 1, "max_steps": 1}
    system = {"name": "clip-adapter", "prepare": {"clip_weights": "clip.pt"}}
    recipe = {"system": system, "data": {"root": str(rooms)}, "train": section}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    train = ("train", "--config", "recipe.yaml", "--prompts", "own.yaml")
    code, _, err = run(*train)
    assert code == 0, err
    assert checkpoint.load("run/last.safetensors").config.prompts.words == ("near", "middling", "far")

    refused(run(*train, "--system.name", "eigen"), 2, "'eigen' has no distance words")
    refused(run("convert", "clip.pt", "--system", "eigen", "--words", "a,b", "--out", "x.safetensors"), 2, "eigen")
    finished = ("--predictions", "own_maps", "--prompts", "own.yaml")
    refused(run(*evaluate, "x.json", *finished), 2, "--prompts is for systems")


def test_wrong_weights_are_one_line(run: Run, clip: dict[str, Tensor]) -> None:
    write_state_dict(clip, Path("clip.pt"))
    Path("half.pt").write_bytes(Path("clip.pt").read_bytes()[:5000])
    predict = ("predict", "photo.png", "--system")
    refused(run(*predict, "depthclip", "--clip-weights", "none.pt"), 1, "none.pt: no such file")
    refused(run(*predict, "depthclip", "--clip-weights", "half.pt"), 1, "half.pt", "damaged")
    refused(run(*predict, "depthclip-vit", "--clip-weights", "clip.pt"), 1, "clip.pt", "ViT-small")
    refused(run(*predict, "msa", "--clip-weights", "clip.pt"), 1, "no trained weights", "langdepth train")
    refused(run(*predict, "depthclip"), 2, "--clip-weights")
    assert not Path("depth/photo_depth.png").exists()


def test_evaluate_takes_clip_weights(run: Run, clip: dict[str, Tensor], sample_folder: Path) -> None:
    write_state_dict(clip, Path("clip.pt"))
    wanted = ("--protocol", "nyu-eigen", "--limit", 2, "--out", "result.json")
    code, out, err = run(
        "evaluate", "--root", sample_folder, "--system", "depthclip", "--clip-weights", "clip.pt", *wanted
    )
    assert (code, err.count("skipped")) == (0, 0)
    assert "depthclip on folder" in out


# convert


def official(system: System, clip: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """A checkpoint as the authors' scripts write it: every name under ``module.``, CLIP whole under ``clip.``."""
    own = {
        theirs + key.removeprefix(ours): torch.randn_like(value)
        for key, value in system.state_dict().items()
        for ours, theirs in names.items()
        if key.startswith(ours)
    }
    whole = {f"clip.{key}": value for key, value in clip.items()}
    return {f"module.{key}": value for key, value in {**whole, **own}.items()}


def test_convert_an_openai_archive(run: Run, clip: dict[str, Tensor]) -> None:
    write_openai(clip, Path("RN50.pt"))
    code, out, err = run("convert", "RN50.pt", "--system", "depthclip", "--out", "depthclip.safetensors")
    assert (code, err) == (0, "")
    assert "written: depthclip.safetensors" in out
    saves = ("--save", "npy", "--out")
    assert run("predict", "photo.png", "--system", "depthclip.safetensors", *saves, "a")[0] == 0
    assert run("predict", "photo.png", "--system", "depthclip", "--clip-weights", "RN50.pt", *saves, "b")[0] == 0
    assert np.array_equal(np.load("a/photo.npy"), np.load("b/photo.npy"))


def test_convert_official_checkpoints(run: Run, clip: dict[str, Tensor]) -> None:
    adapters = {"image_adapter.": "image_adapter.", "text_adapter.": "text_adapter."}
    tensors = official(registry.build("clip-adapter"), clip, adapters)
    torch.save({"state_dict": {**tensors, "module.unknown.weight": torch.ones(1)}, "epoch": 3}, "best.pth")
    code, out, err = run("convert", "best.pth", "--system", "clip-adapter", "--out", "adapter.safetensors")
    assert (code, err) == (0, "")
    assert "ignored: 1 tensors (unknown.weight)" in out
    loaded = checkpoint.load("adapter.safetensors")
    assert torch.equal(loaded.state_dict()["image_adapter.fc.0.weight"], tensors["module.image_adapter.fc.0.weight"])
    assert torch.equal(loaded.state_dict()["tower.conv1.weight"], clip["visual.conv1.weight"])
    assert bool(loaded.state_dict()["word_bins.text"].any())
    del tensors["module.text_adapter.fc.0.weight"]
    torch.save(tensors, "lacking.pth")
    refused(
        run("convert", "lacking.pth", "--system", "clip-adapter", "--out", "x.safetensors"),
        1,
        "lacking.pth: does not fit",
        "'text_adapter.fc.0.weight' is missing",
    )
    assert not Path("x.safetensors").exists()


def test_convert_refuses_what_it_does_not_know(run: Run, clip: dict[str, Tensor]) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path("ran").touch, ()

    torch.save({"state_dict": Code()}, "code.pth")
    torch.save([1, 2], "list.pth")
    torch.save({"weight": torch.ones(2)}, "other.pth")
    write_state_dict(clip, Path("clip.pt"))
    to = ("--out", "x.safetensors", "--system")
    refused(run("convert", "code.pth", *to, "clip-adapter"), 1, "code.pth: holds Python objects other than tensors")
    refused(run("convert", "list.pth", *to, "clip-adapter"), 1, "list.pth: unknown layout")
    refused(run("convert", "other.pth", *to, "clip-adapter"), 1, "has no CLIP model in it")
    refused(run("convert", "other.pth", *to, "depthclip"), 1, "holds no CLIP model")
    refused(run("convert", "clip.pt", *to, "clip-adapter"), 1, "has no CLIP model in it")
    refused(run("convert", "none.pth", *to, "clip-adapter"), 1, "none.pth: no such file")
    refused(run("convert", "clip.pt", *to, "depthclp"), 2, "did you mean 'depthclip'?")
    refused(run("convert", "clip.pt", *to, "depthclip", "--options.aera", "9"), 2, "did you mean 'area'?")
    refused(run("convert", "clip.pt", "--system", "depthclip", "--out", "x.pt"), 2, "x.pt")
    assert not Path("ran").exists()
    assert not Path("x.safetensors").exists()


# train


def recipe(name: str, root: Path, **sections: Any) -> str:
    """Write ``name``.yaml for a short run on the same batch, not varied, in every epoch; returns its path."""
    content: dict[str, Any] = {
        "system": {"name": name},
        "data": {"root": str(root), "batch_size": 6, "workers": 0, "aspects": [1.5]},
        "optim": {"optimiser": "adamw", "lr": 1e-3, "schedule": "constant", "warm_up": 0.0},
        "train": {"out": f"runs/{name}", "epochs": 3, "accelerator": "cpu", "previews": 0, "log_every": 1},
    }
    content["data"]["augmentation"] = dict.fromkeys(VARIED, 0.0)
    for section, fields in sections.items():
        content[section] |= fields
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    return f"{name}.yaml"


VARIED = ("flip", "zoom_probability", "rotate", "colour_probability", "grey", "blur")
RANDOM = {"prepare": {"clip_weights": "random"}}


@pytest.mark.filterwarnings("ignore:.*RANDOM")
@pytest.mark.parametrize(
    ("name", "system", "optim"),
    [
        ("clip-adapter", {**RANDOM, "options": {"losses": {"bins": 0.1}}}, {"optimiser": "sgd", "lr": 0.1}),
        ("msa", RANDOM, {}),
        ("clip-coarse-refined", {**RANDOM, "options": {"stage": "coarse"}}, {}),
        ("eigen", {"options": {"stage": "coarse"}}, {}),
    ],
)
def test_a_short_training(name: str, system: dict[str, Any], optim: dict[str, Any], run: Run, rooms: Path) -> None:
    config = recipe(name, rooms, system=system, optim=optim)
    code, _, err = run("train", "--config", config)
    assert code == 0, err
    losses = logged(f"runs/{name}", "train/depth")
    assert len(losses) == 3
    assert losses[2] < losses[1] < losses[0]
    best = f"runs/{name}/last.safetensors"
    assert run("predict", "photo.png", "--system", best, "--save", "npy")[0] == 0
    first = np.load("depth/photo.npy")
    trained = checkpoint.load(best)
    assert trained.provenance["training"]["optimiser"].startswith("SGD" if "optimiser" in optim else "AdamW")
    copy = trained.save("copy.safetensors")
    assert run("predict", "photo.png", "--system", copy, "--save", "npy", "--out", "again")[0] == 0
    assert np.array_equal(first, np.load("again/photo.npy"))
    if "coarse" in name:
        sections = {"system": {"prepare": {"coarse": best}}, "train": {"out": "runs/refined", "epochs": 1}}
        assert run("train", "--config", recipe(name, rooms, **sections))[0] == 0
        refined, coarse = checkpoint.load("runs/refined/last.safetensors"), checkpoint.load(best)
        assert torch.equal(
            refined.state_dict()["coarse.fc.hidden.weight"], coarse.state_dict()["coarse.fc.hidden.weight"]
        )


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_msa_sam_trains_and_predicts_with_overlays(run: Run, rooms: Path, tmp_path: Path) -> None:
    root = tmp_path / "drawn"
    root.mkdir()
    with (rooms / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["path_overlay"] = f"sam_out/{Path(row['path_rgb']).with_suffix('.jpg')}"
        for column in ("path_rgb", "path_depth"):
            save = root / row[column]
            save.parent.mkdir(parents=True, exist_ok=True)
            save.write_bytes((rooms / row[column]).read_bytes())
        drawn = Image.open(root / row["path_rgb"]).convert("RGB").rotate(180)
        (root / row["path_overlay"]).parent.mkdir(parents=True, exist_ok=True)
        drawn.save(root / row["path_overlay"])
    with (root / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    code, _, err = run("train", "--config", recipe("msa-sam", root, system=RANDOM, train={"epochs": 1}))
    assert code == 0, err
    trained = "runs/msa-sam/last.safetensors"
    noise = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    save_image(tmp_path / "drawn" / "photo.png", noise)
    refused(run("predict", "photo.png", "--system", trained), 2, "needs an overlay", "langdepth data sam")
    for number, overlay in enumerate(("photo.png", "drawn/photo.png", "drawn")):
        answer = run(
            "predict", "photo.png", "--system", trained, "--overlay", overlay, "--save", "npy", "--out", number
        )
        assert answer[0] == 0, answer[2]
    alone, other, named = (np.load(f"{number}/photo.npy") for number in range(3))
    assert np.array_equal(other, named)
    assert not np.array_equal(alone, other)
    answer = run("predict", "photo.png", "--system", trained, "--overlay", "runs", "--save", "npy")
    refused(answer, 1, "photo.jpg")
    refused(run("train", "--config", recipe("msa-sam", rooms, system=RANDOM)), 2, "holds a run already")
