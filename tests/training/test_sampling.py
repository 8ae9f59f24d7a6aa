"""Batches: weighted, of one shape, fixed by the seed, disjoint between ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from langdepth.data.base import open_dataset
from langdepth.errors import ImageError, UsageError
from langdepth.records import InputSpec
from langdepth.training.sampling import BatchPlan, Draw, Sizes, source_weights, training_shapes
from tests.helpers import write_folder

SPEC = InputSpec(area=32 * 32, multiple_of=16)
ASPECTS = (4 / 3, 3.0)


def plan(**changes: Any) -> BatchPlan:
    """60 images: 40 of shape 0, of which 20 weigh 0.5, and 20 of shape 1 that weigh 2."""
    values: dict[str, Any] = {
        "shapes": [0] * 40 + [1] * 20,
        "sizes": [(32, 48), (16, 64)],
        "weights": [1.0] * 20 + [0.5] * 20 + [2.0] * 20,
        "batch_size": 5,
        "seed": 0,
    }
    return BatchPlan(**(values | changes))


def flat(batches: Iterable[list[Draw]]) -> list[Draw]:
    return [draw for batch in batches for draw in batch]


# Which images


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


def test_whole_weights_draw_every_image_exactly_so_often() -> None:
    draws = plan(weights=[1.0] * 40 + [2.0] * 20)
    for epoch in range(3):
        counts = Counter(draw.index for draw in flat(draws.epoch(epoch)))
        assert counts == Counter({i: 1 if i < 40 else 2 for i in range(60)})


def test_weight_0_is_never_drawn() -> None:
    draws = plan(weights=[1.0] * 40 + [0.0] * 20)
    assert {draw.index for epoch in range(10) for draw in flat(draws.epoch(epoch))} == set(range(40))


def test_fewer_images_than_a_batch_holds_still_fill_one() -> None:
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
        ({"kity": 1.0}, "data.weights: no training image has source 'kity': did you mean 'kitti'?"),
        ({"kitti": -1.0}, "data.weights.kitti: -1.0 must be a number from 0 up"),
        ({"kitti": float("nan")}, "data.weights.kitti: nan must be a number from 0 up"),
        ({"kitti": float("inf")}, "data.weights.kitti: inf must be a number from 0 up"),
        ({"kitti": 0.0, "nyu": 0.0}, "data.weights: no training image has a weight above 0"),
    ],
)
def test_wrong_weights_are_one_line(weights: dict[str, float], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        source_weights(["kitti", "nyu"], weights)
    assert str(caught.value) == expected


# Sizes


def test_each_image_takes_the_size_nearest_in_shape() -> None:
    sizes = Sizes(InputSpec(area=240 * 320, multiple_of=16), (4 / 3, 3.3, 0.75))
    assert sizes.sizes == [(240, 320), (160, 496), (320, 240)]
    images = ((480, 640), (500, 520), (375, 1242), (640, 480), (100, 1000))
    assert [sizes.of(height, width) for height, width in images] == [0, 0, 1, 2, 1]


def test_shapes_come_from_the_index_or_else_from_the_upright_image(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"width": 99, "height": 33},
        {"size": (32, 96)},
        {"size": (96, 32)},
        {"width": 0, "height": 0},
    ]
    root = write_folder(tmp_path, rows)
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    with Image.open(root / "2.png") as image:
        image.load()
        image.save(root / "2.png", exif=exif)
    folder, sizes = open_dataset("folder", root), Sizes(SPEC, ASPECTS)
    assert training_shapes(folder, sizes) == [1, 1, 1, 0]
    (root / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1\.png: not an image"):
        training_shapes(folder, sizes)


def test_what_is_drawn_more_often_than_its_turns_follows_the_weights() -> None:
    """A batch that two images cannot fill takes them again, each as often as its weight says."""
    draws = BatchPlan(shapes=[0, 0], sizes=[(32, 32)], weights=[0.9, 0.1], batch_size=16, seed=0)
    drawn = [draw.index for epoch in range(40) for batch in draws.epoch(epoch) for draw in batch]
    assert len(drawn) == 40 * 16
    assert drawn.count(1) / len(drawn) == pytest.approx(0.1, abs=0.03)
