"""The image with masks drawn over it, from file to system: data set, transform, evaluation, prediction, command."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth import cli
from langdepth.data.base import open_dataset
from langdepth.data.overlays import Overlays
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.batch import evaluate_batch
from langdepth.prediction.network import as_float, infer
from langdepth.records import DepthOutput
from tests.helpers import FakeSystem, grey, ramp, save_image, write_folder


class Looker(FakeSystem):
    """depth = 1 + 9 * brightness of the left half of the overlay."""

    name = "looker"
    takes_overlay = True

    def forward(
        self,
        image: Tensor,
        text: list[str] | Tensor | None = None,
        scene: list[str] | None = None,
        overlay: Tensor | None = None,
    ) -> DepthOutput:
        assert overlay is not None
        assert overlay.shape == image.shape
        assert overlay.dtype == torch.float32
        left = overlay[..., : overlay.shape[-1] // 2].mean((1, 2, 3), keepdim=True)
        return DepthOutput(depth=(1 + 9 * left).expand(-1, 1, *image.shape[-2:]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0 and 1; the overlay of 0 is bright on the left half, that of 1 masks over its left half."""
    root = write_folder(tmp_path / "data", [{"path_overlay": "sam_out/0.png"}, {"path_overlay": "sam_out/1.npz"}])
    overlay = grey(0.2)
    overlay[:, :32] = 255
    save_image(root / "sam_out" / "0.png", overlay)
    masks = np.zeros((1, 48, 64), bool)
    masks[..., :32] = True
    np.savez(root / "sam_out" / "1.npz", masks=masks)
    return root


def test_the_index_names_it(folder: Path) -> None:
    first, second = open_dataset("folder", folder)[0], open_dataset("folder", folder)[1]
    assert first.overlay is not None
    assert second.overlay is not None
    assert first.overlay.dtype == torch.float32
    assert first.overlay[:, 0, 0].tolist() == [1, 1, 1]
    image = as_float(second.image)
    assert torch.equal(second.overlay[..., 32:], image[..., 32:])
    assert not torch.equal(second.overlay[..., :32], image[..., :32])
    assert open_dataset("folder", write_folder(folder.parent / "without", [{}]))[0].overlay is None


def test_a_missing_one_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sam_out" / "0.png").unlink()
    (folder / "sam_out" / "1.npz").unlink()
    for index, name in enumerate(("0.png", "1.npz")):
        with pytest.raises(ImageError, match=rf"sam_out/{name}: no such file"):
            open_dataset("folder", folder)[index]
    assert cli.main(["data", "check", str(folder)]) == 1
    found = capsys.readouterr().out.splitlines()
    assert sum("no such file" in line and "sam_out" in line for line in found) == 2


def test_data_check_finds_nothing_wrong_with_good_ones(folder: Path) -> None:
    assert cli.main(["data", "check", str(folder)]) == 0


def test_it_moves_with_its_photo_and_keeps_its_colors(folder: Path) -> None:
    sample = open_dataset("folder", folder)[0]
    sample.image = as_float(sample.image)
    sample.overlay = sample.image.clone()
    colors = ("brightness", "contrast", "saturation", "hue", "colour_probability", "grey", "blur")
    off: dict[str, Any] = dict.fromkeys(colors, 0.0)
    geometry = Augmentation(rotate_probability=1, zoom_probability=1, **off)
    colored = Augmentation(rotate_probability=1, zoom_probability=1, colour_probability=1, erase=1.0)
    for seed in range(6):
        made = []
        for augmentation in (geometry, colored):
            torch.manual_seed(seed)
            made.append(TrainTransform(augmentation, 48 * 64)(sample, (48, 64)))
        plain, changed = made
        assert plain.overlay is not None
        assert changed.overlay is not None
        assert torch.equal(plain.image, plain.overlay)
        assert torch.equal(changed.overlay, plain.overlay)
        assert not torch.equal(changed.image, changed.overlay)


def test_evaluation_shows_it(folder: Path) -> None:
    samples = [open_dataset("folder", folder)[0]]
    plain = evaluate_batch(Looker(), samples, protocols.get("full"))
    assert plain.prediction.mean().item() == pytest.approx(10.0, abs=0.05)
    both = evaluate_batch(Looker(), samples, protocols.get("full").override(flip=True))
    assert both.prediction.mean().item() == pytest.approx((10.0 + 2.8) / 2, abs=0.05)
    samples[0].overlay = None
    with pytest.raises(UsageError, match=r"0\.png: 'looker' needs an overlay, and this sample has none"):
        evaluate_batch(Looker(), samples, protocols.get("full"))


def test_prediction_takes_files_arrays_and_lists(folder: Path) -> None:
    system, photo = Looker(), ramp(80, 60)
    file = folder / "sam_out" / "0.png"
    for overlay in (file, str(file), np.asarray(Image.open(file)), Image.open(file)):
        result = system.predict(photo, overlay=overlay)
        assert not isinstance(result, list)
        assert result.depth.shape == (60, 80)
        assert result.depth.mean() == pytest.approx(10.0, abs=0.1)
    many = system.predict([photo, photo], overlay=[grey(0.0, 80, 60), file])
    assert isinstance(many, list)
    assert [round(float(one.depth.mean())) for one in many] == [1, 10]
    with torch.inference_mode():
        whole = infer(system, torch.zeros(2, 3, 60, 80), overlay=torch.ones(2, 3, 60, 80))
    assert whole.depth.unique().tolist() == pytest.approx([10.0])


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    photo = grey(0.5)
    with pytest.raises(UsageError, match="'looker' needs an overlay"):
        Looker().predict(photo)
    with pytest.raises(UsageError, match="overlay: 1 given for 2 images"):
        Looker().predict([photo, photo], overlay=photo)
    with pytest.raises(UsageError, match="'fake' takes no overlay; leave it out"):
        FakeSystem().predict(photo, overlay=photo)
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        Looker().predict(photo, overlay="none.png")


def test_the_folder_of_overlays_may_hold_published_or_own_names(tmp_path: Path) -> None:
    photo = Path("kitchen/rgb_00045.jpg")
    assert Overlays(tmp_path).find(photo) is None
    for name in ("rgb_00045.npz", "rgb_00045.jpg", "00045.npz", "00045.jpg"):  # later ones go before
        path = tmp_path / "kitchen" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        assert Overlays(tmp_path).find(photo) == path


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three photos in ``photos``; two of them have an overlay in ``sam_out``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda *_, **__: Looker())
    for name in ("rgb_1", "rgb_2", "rgb_3"):
        save_image(Path("photos/hall") / f"{name}.png", grey(0.5))
    save_image(Path("sam_out/hall/1.jpg"), grey(1.0))
    save_image(Path("sam_out/hall/rgb_2.png"), grey(0.0))
    return tmp_path


def test_the_command_finds_each_photos_own(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "photos", "--recursive", "--save", "npy"]
    assert cli.main([*arguments, "--overlay", "sam_out"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "langdepth predict: photos/hall/rgb_3.png: its overlay sam_out/hall/3.jpg: no such file\n"
    found = {path.stem: float(np.load(path).mean()) for path in Path("depth").rglob("*.npy")}
    assert found == {"rgb_1": pytest.approx(10.0, abs=0.1), "rgb_2": pytest.approx(1.0, abs=0.1)}
    assert cli.main(["predict", "photos/hall/rgb_3.png", "--save", "npy", "--overlay", "sam_out/hall/1.jpg"]) == 0


def test_the_command_says_what_is_missing(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "photos", "--recursive", "--save", "npy"]
    assert cli.main(arguments) == 2
    assert "'looker' needs an overlay" in capsys.readouterr().err
    assert cli.main([*arguments, "--overlay", "sam_out/hall/1.jpg"]) == 2
    assert "is no folder, but there are 3 images" in capsys.readouterr().err
    assert not list(Path().rglob("*.npy"))


def test_training_asks_for_every_one_before_it_starts(folder: Path) -> None:
    from langdepth.training.recipe import read_recipe
    from langdepth.training.run import train

    with (folder / "index.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["3.png", "0_depth.png", "0.001", ""])
    small = {"architecture": "RN-small", "area": 64 * 96}
    recipe = {
        "system": {"name": "msa-sam", "options": small, "prepare": {"clip_weights": "random"}},
        "data": {"root": str(folder), "train_split": "", "val_split": "", "workers": 0},
        "train": {"out": str(folder / "run"), "accelerator": "cpu"},
    }
    with (
        pytest.warns(UserWarning, match="RANDOM weights"),
        pytest.raises(LangdepthError, match=r"'msa-sam' needs .* 1 of 3 have none in .*sam_out: .*data/3\.png;"),
    ):
        train(read_recipe(recipe))
    assert not (folder / "run" / "start.safetensors").exists()
