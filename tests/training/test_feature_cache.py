"""Features of a frozen trunk: the same training from files, and never from files of something else."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file
from torch import Tensor

from langdepth.data.base import open_dataset
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.training.features import FeatureCache
from langdepth.training.loaders import TrainingSet, collate
from langdepth.training.recipe import read_recipe
from langdepth.training.run import train
from langdepth.training.sampling import Draw
from tests.helpers import LEARNER
from tests.systems.test_depthclip import with_words

MIRRORED: dict[str, Any] = {"random_crop": False, "flip": 0.5} | dict.fromkeys(
    ("zoom_probability", "rotate_probability", "colour_probability", "grey", "blur"), 0.0
)
SIZE = (32, 64)  # of another shape than the images
SMALL = {"architecture": "RN-small", "area": 32 * 64}
Make = Callable[..., FeatureCache]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def build(name: str = "clip-adapter", **options: Any) -> Any:
    torch.manual_seed(0)
    if name == "clip-adapter":
        options = {"image_reduction": 32, "text_reduction": 16} | options
    return with_words(registry.build(name, SMALL | options)).train()


def dataset(root: Path) -> TrainingSet:
    return TrainingSet(
        open_dataset("folder", root, "train"), TrainTransform(Augmentation(**MIRRORED), SIZE[0] * SIZE[1])
    )


def cache(system: System, images: TrainingSet, flip: float = 0.5) -> FeatureCache:
    return FeatureCache(system, images, dict.fromkeys(range(len(images)), SIZE), flip, batch_size=4)


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


# Features


@pytest.mark.parametrize("name", ["clip-adapter", "refine-clip", "few-shot-clip"])
def test_a_batch_gets_what_the_trunk_would_give(name: str, sample_folder: Path, folder: Path) -> None:
    system = build(name, **({"size": list(SIZE)} if name == "refine-clip" else {}))
    images = dataset(sample_folder)
    made = cache(system, images)
    assert made.fill(system) == 12  # six images and their mirror images
    samples = [images[Draw(index, SIZE, seed)] for index, seed in ((4, 1), (0, 2), (4, 3), (1, 5))]
    assert len({sample.mirrored for sample in samples}) == 2
    plain = collate(samples)
    batch = made.add(plain)
    expected = {"features": system.frozen_features(plain.image)}
    if system.learns_from_mirror:
        expected["mirror_features"] = system.frozen_features(plain.image.flip(-1))
    else:
        assert batch.mirror_features is None
    for name, features in expected.items():
        torch.testing.assert_close(getattr(batch, name), features, rtol=1e-5, atol=1e-5)
        for key, value in getattr(batch[1:2], name).items():
            assert torch.equal(value, getattr(batch, name)[key][1:2])
    torch.testing.assert_close(system.loss(batch), system.loss(plain), rtol=1e-5, atol=1e-6)


def test_only_the_views_that_are_used_are_kept(sample_folder: Path) -> None:
    images, uses_both = dataset(sample_folder), build()
    plain = build("few-shot-clip")
    counts = [len(cache(plain, images, flip).views) for flip in (0.0, 0.5, 1.0)]
    assert counts == [1, 2, 1]
    assert [len(cache(uses_both, images, flip).views) for flip in (0.0, 0.5, 1.0)] == [2, 2, 2]


def test_files_are_made_once_and_shared(sample_folder: Path, folder: Path, tmp_path: Path) -> None:
    system, images = build(), dataset(sample_folder)
    assert cache(system, images).fill(system) == 12
    before = stamps(folder)
    assert len(before) == 12
    moved = shutil.copytree(sample_folder, tmp_path / "moved")
    other = build(image_reduction=64, losses={"smoothness": 0.1})  # what is trained on the features may change
    assert cache(other, dataset(moved)).fill(other) == 0
    assert stamps(folder) == before


def test_processes_share_the_work(sample_folder: Path, folder: Path) -> None:
    system, images = build(), dataset(sample_folder)
    caches = [cache(system, images) for _ in range(2)]
    assert [made.fill(system, rank, 2) for rank, made in enumerate(caches)] == [6, 6]
    assert caches[0].files == caches[1].files
    assert all(path.is_file() for path in caches[0].files.values())


def test_what_has_changed_is_never_read(sample_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_folder, tmp_path / "images")
    system = build()
    assert cache(system, dataset(root)).fill(system) == 12
    photo = open_dataset("folder", root, "train").rows[0].path_rgb
    Image.new("RGB", Image.open(photo).size, "red").save(photo)
    assert cache(system, dataset(root)).fill(system) == 2
    with torch.no_grad():
        system.tower.layer1[0].bn1.running_mean[0] += 1
    assert cache(system, dataset(root)).fill(system) == 12
    other = build(mean=[0.5, 0.5, 0.5])
    other.load_state_dict(system.state_dict())
    assert cache(other, dataset(root)).fill(other) == 12
    few = build("few-shot-clip")
    few.tower.load_state_dict(system.tower.state_dict())
    assert cache(few, dataset(root)).fill(few) == 12


@pytest.mark.parametrize("damage", ["shorter", "a bit", "empty", "gone"])
def test_damaged_files_are_made_again(damage: str, sample_folder: Path, folder: Path) -> None:
    system, images = build(), dataset(sample_folder)
    first = cache(system, images)
    first.fill(system)
    path = sorted(stamps(folder))[0]
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        spoilt = {
            "shorter": content[:-5],
            "a bit": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
            "empty": b"",
        }
        path.write_bytes(spoilt[damage])
    if damage != "a bit":  # which costs too much to look for at every step
        with pytest.raises(LangdepthError, match=rf"{path.name}: features cannot be read; .*--resume"):
            first.add(collate([images[Draw(index, SIZE, 0)] for index in range(6)]))
    assert cache(system, images).fill(system) == 1
    torch.testing.assert_close(load(path.read_bytes()), load(content), rtol=1e-5, atol=1e-5)


def test_a_full_disk_is_noticed_before_it_is_full(sample_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, images = build(), dataset(sample_folder)
    usage = shutil.disk_usage(sample_folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(LangdepthError, match=r"features need .* GB, 0\.0 GB are free.*LANGDEPTH_CACHE"):
        cache(system, images).fill(system)


def test_an_unusable_image_is_named(sample_folder: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_folder, tmp_path / "images")
    photo = open_dataset("folder", root, "train").rows[0].path_rgb
    photo.write_bytes(photo.read_bytes()[:50])
    system = build()
    with pytest.raises(ImageError, match=photo.name):
        cache(system, dataset(root)).fill(system)


# Training


def run(root: Path, out: Path, system: str = "clip-adapter", **data: Any) -> Path:
    options = SMALL | ({"image_reduction": 32, "text_reduction": 16} if system == "clip-adapter" else {})
    content = {
        "system": {"name": system, "options": options, "prepare": {"clip_weights": "random"}},
        "data": {"root": str(root), "batch_size": 2, "workers": 0, "aspects": [2.0], "augmentation": MIRRORED} | data,
        "optim": {"lr": 0.05},
        "train": {"out": str(out), "epochs": 2, "accelerator": "cpu", "log_every": 1, "previews": 0, "ema": 0.5},
    }
    return train(read_recipe(content))


def rows(out: Path) -> list[dict[str, float]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.filterwarnings("ignore:.*random.*", "ignore:.*RANDOM.*")
def test_training_from_features_is_the_same_training(
    sample_folder: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = run(sample_folder, tmp_path / "plain")
    passes: Counter[str] = Counter()
    features = type(build()).frozen_features

    def counted(self: Any, image: Tensor) -> dict[str, Tensor]:
        passes["training" if self.training else "validation"] += len(image)
        return features(self, image)

    monkeypatch.setattr(type(build()), "frozen_features", counted)
    cached = run(sample_folder, tmp_path / "cached", cache="features")
    assert "12 views of images have features in" in capsys.readouterr().out
    assert passes["training"] == 12
    found, expected = rows(cached), rows(plain)
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    ends = [load_file(out / "last.safetensors") for out in (cached, plain)]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_kept_is_one_line(sample_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    with pytest.raises(UsageError, match=r"data\.cache: .* set data\.pipeline: standard"):
        run(sample_folder, tmp_path / "a", cache="features", pipeline="nyu-adapters", augmentation={})
    varied = MIRRORED | {"random_crop": True, "zoom_probability": 0.5, "grey": 0.1}
    message = r"set data\.augmentation\.random_crop: false, data\.augmentation\.zoom_probability: 0\.0, data\.aug.*grey"
    with pytest.raises(UsageError, match=message):
        run(sample_folder, tmp_path / "b", cache="features", augmentation=varied)
    content = {
        "system": {"name": "learner"},
        "data": {"root": str(sample_folder), "augmentation": MIRRORED, "cache": "features"},
        "train": {"out": str(tmp_path / "c"), "accelerator": "cpu"},
    }
    with pytest.raises(UsageError, match=r"^data\.cache: 'learner' .* set data\.cache to none$"):
        train(read_recipe(content))
    with pytest.raises(UsageError, match=r"^data\.cache: 'clip-adapter' "):
        cache(build(clip_bn="train"), dataset(sample_folder))


def test_the_middle_is_cut_out_unless_the_place_is_random(sample_folder: Path) -> None:
    sample = open_dataset("folder", sample_folder)[0]
    still = TrainTransform(Augmentation(**MIRRORED | {"flip": 0.0}), SIZE[0] * SIZE[1])
    first = still(sample, SIZE)
    assert torch.equal(first.image, still(sample, SIZE).image)
    assert not first.mirrored
    mirrored = TrainTransform(Augmentation(**MIRRORED | {"flip": 1.0}), SIZE[0] * SIZE[1])(sample, SIZE)
    assert mirrored.mirrored
    assert torch.equal(mirrored.image, first.image.flip(-1))
    assert torch.equal(mirrored.depth, first.depth.flip(-1))
    band = replace(sample, image=sample.image.clone())
    band.image[:, 24:, :] = 0  # the lower half of 48 rows
    seen = still(band, SIZE).image.mean((0, 2)) > 0.02
    assert seen[: SIZE[0] // 2 - 1].all()
    assert not seen[SIZE[0] // 2 + 1 :].any()
