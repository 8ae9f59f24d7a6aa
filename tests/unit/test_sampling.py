"""Batches: weighted, of one shape, fixed by the seed, disjoint between ranks, resumed without a difference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.data.base import open_dataset
from langdepth.data.sampling import (
    Draw,
    Draws,
    Sizes,
    TrainingLoader,
    TrainingSet,
    collate,
    source_weights,
    training_shapes,
)
from langdepth.data.transforms import Augmentation, TrainTransform
from langdepth.errors import ImageError, UsageError
from langdepth.types import Batch, InputSpec, Sample
from tests.helpers import write_folder

SPEC = InputSpec(area=32 * 32, multiple_of=16)
ASPECTS = (4 / 3, 3.0)


def plan(**changes: Any) -> Draws:
    """60 pictures: 40 of shape 0, of which 20 weigh 0.5, and 20 of shape 1 that weigh 2."""
    values: dict[str, Any] = {
        "shapes": [0] * 40 + [1] * 20,
        "sizes": [(32, 48), (16, 64)],
        "weights": [1.0] * 20 + [0.5] * 20 + [2.0] * 20,
        "batch_size": 5,
        "seed": 0,
    }
    return Draws(**(values | changes))


def flat(batches: Iterable[list[Draw]]) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


# Which pictures


def test_a_batch_has_one_size_and_is_full() -> None:
    draws = plan()
    for batch in draws.epoch(0):
        assert len(batch) == 5
        assert len({draw.size for draw in batch}) == 1
        assert all(draw.size == draws.sizes[draws.shapes[draw.index]] for draw in batch)
    assert len(draws) == len(draws.epoch(0)) == (20 + 10 + 40) / 5


def test_weights_are_respected_on_average() -> None:
    draws, epochs = plan(), 60
    counts = Counter(draw.index for epoch in range(epochs) for draw in flat(draws.epoch(epoch)))
    often = np.array([counts[i] for i in range(60)]) / epochs
    for members, weight in ((slice(0, 20), 1.0), (slice(20, 40), 0.5), (slice(40, 60), 2.0)):
        assert often[members].mean() == pytest.approx(weight, rel=0.05)
        assert often[members].min() > 0.6 * weight
        assert often[members].max() < 1.4 * weight


def test_whole_weights_draw_every_picture_exactly_so_often() -> None:
    draws = plan(weights=[1.0] * 40 + [2.0] * 20)
    for epoch in range(3):
        counts = Counter(draw.index for draw in flat(draws.epoch(epoch)))
        assert counts == Counter({i: 1 if i < 40 else 2 for i in range(60)})


def test_weight_0_is_never_drawn() -> None:
    draws = plan(weights=[1.0] * 40 + [0.0] * 20)
    assert {draw.index for epoch in range(10) for draw in flat(draws.epoch(epoch))} == set(range(40))


def test_fewer_pictures_than_a_batch_holds_still_fill_one() -> None:
    draws = plan(shapes=[0, 0, 1], weights=[1.0, 1.0, 1.0])
    assert sorted(len(batch) for batch in draws.epoch(0)) == [5, 5]
    assert len(draws) == 2


def test_a_seed_fixes_every_epoch() -> None:
    assert plan().epoch(3) == plan().epoch(3)
    assert plan().epoch(3) != plan().epoch(4)
    assert plan().epoch(3) != plan(seed=1).epoch(3)
    seeds = [draw.seed for draw in flat(plan().epoch(0))]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_are_disjoint_and_of_equal_length(world_size: int) -> None:
    whole = plan().epoch(1)
    ranks = [plan(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [draws.epoch(1) for draws in ranks]
    assert {len(part) for part in parts} == {len(ranks[0])} == {len(whole) // world_size}
    seeds = [draw.seed for part in parts for draw in flat(part)]
    assert len(seeds) == len(set(seeds))
    assert set(seeds) <= {draw.seed for draw in flat(whole)}


def test_more_ranks_than_batches_get_one_each() -> None:
    parts = [plan(shapes=[0], weights=[1.0], rank=rank, world_size=3) for rank in range(3)]
    assert [len(part) for part in parts] == [len(part.epoch(0)) for part in parts] == [1, 1, 1]


# Weights of sources


def test_sources_without_a_weight_count_once() -> None:
    assert source_weights(["a", "b", "a", "c"], {"a": 0.25, "c": 0}) == [0.25, 1.0, 0.25, 0.0]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"kity": 1.0}, "data.weights: no training picture has source 'kity': did you mean 'kitti'?"),
        ({"kitti": -1.0}, "data.weights.kitti: -1.0 must be a number from 0 up"),
        ({"kitti": float("nan")}, "data.weights.kitti: nan must be a number from 0 up"),
        ({"kitti": float("inf")}, "data.weights.kitti: inf must be a number from 0 up"),
        ({"kitti": 0.0, "nyu": 0.0}, "data.weights: no training picture has a weight above 0"),
    ],
)
def test_wrong_weights_are_one_line(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_weights(["kitti", "nyu"], weights)
    assert str(caught.value) == expected


# Sizes


def test_each_picture_takes_the_size_nearest_in_shape() -> None:
    sizes = Sizes(InputSpec(area=240 * 320, multiple_of=16), (4 / 3, 3.3, 0.75))
    assert sizes.sizes == [(240, 320), (160, 496), (320, 240)]
    pictures = ((480, 640), (500, 520), (375, 1242), (640, 480), (100, 1000))
    assert [sizes.of(height, width) for height, width in pictures] == [0, 0, 1, 2, 1]


def test_shapes_come_from_the_index_or_else_from_the_upright_picture(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"width": 99, "height": 33},
        {"size": (32, 96)},
        {"size": (96, 32)},
        {"width": 0, "height": 0},
    ]
    root = write_folder(tmp_path, rows)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    with Image.open(root / "2.png") as picture:
        picture.load()
        picture.save(root / "2.png", exif=exif)
    folder, sizes = open_dataset("folder", root), Sizes(SPEC, ASPECTS)
    assert training_shapes(folder, sizes) == [1, 1, 1, 0]
    (root / "1.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"1\.png: cannot be opened"):
        training_shapes(folder, sizes)


# Samples and batches


@pytest.fixture
def training_set(tmp_path: Path) -> TrainingSet:
    """12 pictures, 4 of them wide."""
    root = write_folder(tmp_path, [{"size": (32, 96) if i % 3 == 0 else (36, 48)} for i in range(12)])
    augmentation = Augmentation(rotate_probability=1, zoom_probability=1, cut_depth=0.5, erase=0.5)
    return TrainingSet(open_dataset("folder", root), TrainTransform(augmentation, 32 * 32))


def loader(training_set: TrainingSet, workers: int = 0, seed: int = 0) -> TrainingLoader:
    sizes = Sizes(SPEC, ASPECTS)
    shapes = training_shapes(training_set.dataset, sizes)
    draws = Draws(shapes=shapes, sizes=sizes.sizes, weights=[1.0] * len(shapes), batch_size=2, seed=seed)
    return TrainingLoader(training_set, draws, workers)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("image", "depth", "mask", "scene")
    return one.path == other.path and all(torch.equal(getattr(one, n), getattr(other, n)) for n in tensors)


def test_a_draw_always_gives_the_same_sample_whatever_else_is_random(training_set: TrainingSet) -> None:
    draw = Draw(1, (32, 32), 42)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = training_set[draw]
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(one.image, training_set[draw].image)
    assert torch.equal(one.depth, training_set[draw].depth)
    assert not torch.equal(one.image, training_set[Draw(1, (32, 32), 43)].image)


def test_collate_stacks_every_field() -> None:
    ones = torch.ones(1, 2, 4)
    samples = [
        Sample(image=torch.zeros(3, 2, 4), depth=ones, mask=ones > 0, scene=3, text="a", path="p"),
        Sample(image=torch.ones(3, 2, 4), depth=ones * 2, mask=ones > 1),
    ]
    batch = collate(samples)
    assert batch.image.shape == (2, 3, 2, 4)
    assert batch.depth[:, 0, 0, 0].tolist() == [1, 2]
    assert batch.mask[:, 0, 0, 0].tolist() == [True, False]
    assert (batch.scene.tolist(), batch.scene.dtype) == ([3, -1], torch.int64)
    assert (batch.text, batch.path) == (["a", None], ["p", ""])


def test_the_loader_hands_out_what_the_plan_says_epoch_after_epoch(training_set: TrainingSet) -> None:
    batches = loader(training_set)
    assert len(batches) == 6
    for epoch in range(2):
        planned = batches.plan.draws.epoch(epoch)
        found = list(batches)
        assert [b.path for b in found] == [
            [str(training_set.dataset.rows[d.index].path_rgb) for d in p] for p in planned
        ]
        assert all(tuple(b.image.shape) == (2, 3, *p[0].size) for b, p in zip(found, planned, strict=True))
        assert sorted(path for b in found for path in b.path) == sorted(
            str(r.path_rgb) for r in training_set.dataset.rows
        )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [1, 5, 6, 8])
def test_resuming_in_mid_epoch_gives_exactly_the_rest(training_set: TrainingSet, stop: int, workers: int) -> None:
    reference = loader(training_set)
    whole = [*reference, *reference]  # two epochs of six batches
    state = None
    interrupted = loader(training_set, workers)
    handed_out = 0
    while state is None:
        for _ in interrupted:
            handed_out += 1
            if handed_out == stop:
                state = interrupted.state_dict()
                break
    assert state == {"epoch": stop // 6, "batches": stop % 6}
    resumed = loader(training_set, workers)
    resumed.load_state_dict(state)
    rest = list(resumed)
    while resumed.state_dict()["epoch"] < 2:
        rest += list(resumed)
    assert len(rest) == 12 - stop
    assert all(same(one, other) for one, other in zip(rest, whole[stop:], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["4.png", "4_depth.png"])
def test_a_bad_file_is_one_line_through_a_worker_too(training_set: TrainingSet, name: str, workers: int) -> None:
    path = training_set.dataset.rows[4].path_rgb.with_name(name)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError) as caught:
        list(loader(training_set, workers))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
