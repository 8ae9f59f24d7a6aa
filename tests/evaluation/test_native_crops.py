"""Training images at their own resolution, the KITTI frame, stripes of depth, gamma, and the effective batch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langdepth.data.base import open_dataset
from langdepth.data.transforms import Augmentation, TrainTransform, depth_stripe
from langdepth.errors import UsageError
from langdepth.records import InputSpec, Sample
from langdepth.systems import registry
from langdepth.training.recipe import Recipe, read_recipe
from langdepth.training.run import train
from langdepth.training.sampling import Sizes
from langdepth.weights import checkpoint
from tests.helpers import LEARNER

OFF: dict[str, Any] = {field.name: 0.0 for field in fields(Augmentation)} | {"zoom": 1.0, "random_crop": True}


def sample(height: int, width: int, source: str = "") -> Sample:
    """Every pixel's color and depth tell its row and column."""
    rows, columns = torch.meshgrid(torch.arange(height) + 1.0, torch.arange(width) + 1.0, indexing="ij")
    depth = (rows * 1000 + columns)[None]
    image = torch.stack([rows / height, columns / width, torch.full_like(rows, 0.5)])
    return Sample(image=image, depth=depth, mask=depth > 0, source=source)


def transform(size: tuple[int, int], image: Sample, seed: int = 0, **options: Any) -> Sample:
    torch.manual_seed(seed)
    kb_sources = options.pop("kb_sources", ())
    return TrainTransform(Augmentation(**(OFF | options)), 100, resized=False, kb_sources=kb_sources)(image, size)


def test_a_part_keeps_its_pixels_and_its_metres() -> None:
    places = set()
    for seed in range(20):
        found = transform((30, 50), sample(40, 60), seed)
        top, left = divmod(int(found.depth[0, 0, 0]), 1000)
        places.add((top, left))
        assert torch.equal(found.depth, sample(40, 60).depth[:, top - 1 : top + 29, left - 1 : left + 49])
        assert torch.equal(found.image, sample(40, 60).image[:, top - 1 : top + 29, left - 1 : left + 49])
    assert len(places) > 10
    assert {1 <= top <= 11 and 1 <= left <= 11 for top, left in places} == {True}


def test_a_smaller_image_is_filled_with_black_at_the_bottom_and_the_right() -> None:
    found = transform((50, 70), sample(40, 60), flip=1.0, brightness=0.5, colour_probability=1.0)
    assert found.image.shape == (3, 50, 70)
    assert torch.equal(found.depth[:, :40, :60], sample(40, 60).depth.flip(-1))
    assert not found.mask[:, 40:].any()
    assert not found.mask[..., 60:].any()
    assert (found.image[:, 40:] == 0).all()
    assert (found.image[..., 60:] == 0).all()


def test_only_named_sources_are_cut_to_the_kitti_frame() -> None:
    kitti = transform((400, 1300), sample(375, 1242, "kitti"), kb_sources=("kitti",))
    assert int(kitti.mask.sum()) == 352 * 1216
    assert kitti.depth[0, 0, 0] == 24 * 1000 + 14
    assert int(transform((400, 1300), sample(375, 1242, "nyu"), kb_sources=("kitti",)).mask.sum()) == 375 * 1242


def test_a_stripe_shows_the_depth() -> None:
    image = sample(12, 20)
    metres = (image.depth + 0.6) / 1000  # a millimetre that has begun counts as none
    for wraps, grey in ((False, metres / metres.max()), (True, image.depth % 256 / 255)):
        mixed = depth_stripe(image.image, metres, 0.5, 0.8, wraps=wraps)
        assert torch.equal(mixed[..., :10], image.image[..., :10])
        assert torch.equal(mixed[..., 16:], image.image[..., 16:])
        torch.testing.assert_close(mixed[..., 10:16], grey[..., 10:16].expand(3, -1, -1))
    found = transform((12, 20), image, depth_mix=1.0)
    assert not torch.equal(found.image, image.image)
    assert torch.equal(found.depth, image.depth)


def test_gamma_changes_half_of_the_images_within_its_range() -> None:
    exponents = [_exponent(transform((12, 20), sample(12, 20), seed, gamma=0.2).image) for seed in range(60)]
    changed = [e for e in exponents if abs(e - 1) > 1e-4]
    assert 15 < len(changed) < 45
    assert 0.8 <= min(changed) < 0.87
    assert 1.13 < max(changed) <= 1.2


def _exponent(image: Tensor) -> float:
    return float(image[2, 0, 0].log() / torch.tensor(0.5).log())


@pytest.mark.parametrize(
    ("spec", "crop", "message"),
    [
        (InputSpec(area=100, multiple_of=32), (40, 64), "the network takes 64x64 pixels"),
        (InputSpec(size=(64, 96)), (32, 64), "the network takes 64x96 pixels"),
    ],
)
def test_a_crop_must_suit_the_network(spec: InputSpec, crop: tuple[int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sizes(spec, (1.0,), crop)


def test_one_crop_for_images_of_every_shape() -> None:
    assert Sizes(InputSpec(size=(32, 32)), (1.0,), (50, 70), resized=True).sizes == [(50, 70)]
    sizes = Sizes(InputSpec(area=100, multiple_of=32), (1.0, 3.0), (96, 64))
    assert (sizes.sizes, sizes.of(375, 1242), sizes.of(480, 640)) == ([(96, 64)], 0, 0)


# Recipes


def recipe(**sections: dict[str, Any]) -> Recipe:
    return read_recipe({"data": {"root": Path("x")} | sections.pop("data", {}), **sections})


@pytest.mark.parametrize(("devices", "batch", "accumulate"), [(4, 6, 1), (1, 6, 4), (2, 3, 4), (1, 24, 1)])
def test_the_effective_batch_is_kept(devices: int, batch: int, accumulate: int) -> None:
    found = recipe(data={"batch_size": batch}, optim={"effective_batch": 24}, train={"devices": devices})
    assert found.accumulate == accumulate


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"batch_size": 5}, "optim": {"effective_batch": 24}}, "24 images per step cannot be made of 5"),
        ({"optim": {"effective_batch": 24, "accumulate": 3}}, "left out with effective_batch"),
        ({"data": {"crop": [480, 480]}}, "crop must be two positive numbers, .* zoom 1"),
        ({"data": {"crop": [480]}}, "crop"),
        ({"data": {"pipeline": "nyu-adapters", "kb_sources": ["kitti"]}}, "kb_sources must be left out"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        recipe(**sections)


def test_a_run_of_crops_from_two_data_sets_with_the_effective_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    found = recipe(
        system={"name": "learner"},
        data={
            "root": str(sample_folder),
            "more": [{"name": "folder", "root": str(sample_folder), "split": "val"}],
            "crop": [64, 96],
            "batch_size": 2,
            "workers": 0,
            "augmentation": {"zoom": 1.0, "depth_mix": 0.5},
        },
        optim={"effective_batch": 4},
        train={"out": str(tmp_path / "run"), "epochs": 1, "accelerator": "cpu", "previews": 0},
    )
    folder = train(found)
    assert "4 images per step: 2 at once on each of 1 devices, 2 times" in capfd.readouterr().out
    training = checkpoint.load(folder / "last.safetensors").provenance["training"]
    both = [len(open_dataset("folder", sample_folder, split=split)) for split in ("train", "val")]
    assert training["images"] == sum(both)
    assert training["batch_size"] == 4
    assert training["steps"] == -(-round(sum(both) / 2) // 2)
