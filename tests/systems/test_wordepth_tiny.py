"""wordepth-tiny: the shared tests, noise as images have it, and what the embedded weights imagine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from langdepth.errors import UsageError
from langdepth.parts.upsample import resize_aligned
from langdepth.prediction.imagination import imagine
from langdepth.systems import registry
from langdepth.systems.wordepth.tiny import WorDepthTiny
from langdepth.utils.tensors import read_safetensors
from langdepth.weights.checkpoint import load
from tests.systems.test_wordepth import SMALL, WorDepthTester

TINY: dict[str, Any] = {**SMALL, "encoder": "efficientnet-lite0", "frozen": 7, "directions": 3, "coarse": 2}
TINY |= {"images": 12, "word_axes": 2, "near": 3}


class TestWorDepthTiny(WorDepthTester):
    name = "wordepth-tiny"
    graph_of_any_size = True
    options = {**TINY, "vocabulary": ("a", "kitchen", "sink", "street", "with")}  # noqa: RUF012

    test_torch_export_gives_the_same_depth = None  # takes long, and wordepth-s has nearly the same network


def test_files_with_the_former_name_of_an_option_are_read(tmp_path: Path) -> None:
    path = registry.build("wordepth-tiny", TestWorDepthTiny.options).save(tmp_path / "weights.safetensors")
    metadata, tensors = read_safetensors(path)
    metadata["config"] = metadata["config"].replace('"images": 12', '"pictures": 12')
    save_file(tensors, path, metadata)
    assert load(path).config.images == 12


@pytest.fixture(scope="module")
def embedded() -> WorDepthTiny:
    system = load("wordepth-tiny").eval()
    assert isinstance(system, WorDepthTiny)
    return system


def small() -> WorDepthTiny:
    torch.manual_seed(0)
    system = registry.build("wordepth-tiny", TINY)
    assert isinstance(system, WorDepthTiny)
    return system.eval()


def taught(monkeypatch: pytest.MonkeyPatch) -> tuple[WorDepthTiny, Tensor, Tensor]:
    """A system that knows twelve images; their noise (12, 8, 2, 3) and words (12, 32)."""
    system = small()
    noise, words = torch.randn(12, 8, 2, 3), torch.nn.functional.normalize(torch.randn(12, 32), dim=1)
    monkeypatch.setattr(WorDepthTiny, "encode_image", lambda self, image: _Seen(image))
    monkeypatch.setattr(system.sampler, "forward", lambda x, scenes: x)
    monkeypatch.setattr(WorDepthTiny, "batch_features", lambda self, batch: batch.words)
    share = system.learn_noise([_Batch(noise[:7], words[:7]), _Batch(noise[7:], words[7:])])  # type: ignore[list-item]
    assert 0.3 < share < 1
    return system, noise, words


def coarse(noise: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(noise, (2, 3)).flatten(1)


@torch.no_grad()
def test_imagined_noise_is_that_of_images_with_such_words(monkeypatch: pytest.MonkeyPatch) -> None:
    system, noise, words = taught(monkeypatch)
    system.config = replace(system.config, variety=0.0)
    rest = (noise - noise.mean(0)).flatten(1)
    axes = torch.linalg.svd(rest, full_matrices=False).Vh[:3]
    known = (noise.mean(0).flatten() + rest @ axes.T @ axes).view_as(noise)
    numbers = system.draw_noise(500, 64, 96, torch.Generator().manual_seed(0))
    for image in (0, 11):
        drawn = system.noise_for(system.scene_distribution(words[image : image + 1]), numbers)
        nearest = torch.cdist(drawn.flatten(1), resize_aligned(known, drawn.shape[-2:]).flatten(1)).min(1)
        assert nearest.values.max() < 0.01
        shares = nearest.indices.bincount(minlength=12) / 500
        means = system.scene_distribution(words).mean @ system.word_axes.T
        distances = torch.cdist(means[image : image + 1], means)[0].square()
        expected = (-3 * distances / distances.sort().values[2]).softmax(0)
        torch.testing.assert_close(shares, expected, rtol=0, atol=0.08)
        assert shares.argmax() == image


@torch.no_grad()
def test_imagined_noise_varies_along_the_main_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    system, _, words = taught(monkeypatch)
    numbers = system.draw_noise(4000, 64, 96, torch.Generator().manual_seed(0))
    drawn = coarse(system.noise_for(system.scene_distribution(words[:1]), numbers))
    assert drawn.shape == (4000, 48)
    assert torch.linalg.matrix_rank(drawn[:50] - drawn[:50].mean(0), rtol=1e-4) == 3
    assert len(drawn.unique(dim=0)) == 4000
    assert torch.equal(coarse(system.noise_for(system.scene_distribution(words[:1]), numbers[:5])), drawn[:5])


def test_noise_is_remembered_cell_by_cell() -> None:
    """So outlines stay; once for every two cells it would have to be averaged."""
    fine, coarse = (registry.build("wordepth-tiny", {**TINY, "coarse": cells}) for cells in (1, 2))
    height, width = coarse.noise_mean.shape[1:]
    assert fine.noise_mean.shape[1:] == (2 * height, 2 * width)
    assert fine.noise_directions.shape[1:] == fine.noise_mean.shape


def test_too_few_images_to_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    system, noise, words = taught(monkeypatch)
    with pytest.raises(UsageError, match=r"11 images are too few; 'wordepth-tiny' stores 12"):
        system.learn_noise([_Batch(noise[:11], words[:11])])  # type: ignore[list-item]


class _Seen:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Batch:
    def __init__(self, image: Tensor, words: Tensor) -> None:
        self.image, self.words = image, words


def test_noise_is_independent_until_images_taught_it() -> None:
    system = small()
    noise = system.draw_noise(2, 64, 96)
    assert system.noise_for(system.scene_distribution(system.neutral_text[None]), noise) is noise


def test_training_leaves_out_and_exchanges_words() -> None:
    system = small()
    system.config = replace(system.config, wordless=1.0)
    system.neutral_text.fill_(FEATURE)
    batch = TestWorDepthTiny().batch(system)
    batch = replace(batch, text_features=torch.nn.functional.normalize(torch.randn(4, 32), dim=1))
    assert batch.text_features is not None
    assert torch.equal(system.batch_features(batch), batch.text_features)
    assert torch.equal(system.train().batch_features(batch), system.neutral_text.expand(4, -1))


FEATURE = 32**-0.5


def test_starts_from_tiny_alone() -> None:
    system = registry.build("wordepth-tiny")
    system.prepare_training()
    known: Any = load("tiny")
    started: Any = system
    assert started.config.vocabulary == known.config.vocabulary
    mine, theirs = started.encoder.state_dict(), known.encoder.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    started.provenance.clear()
    with pytest.raises(UsageError, match="'wordepth-tiny' is not weights of tiny"):
        started.prepare_training(start="wordepth-tiny")


def test_embedded_weights_imagine_small_and_large_scenes(embedded: WorDepthTiny) -> None:
    def median(prompt: str) -> float:
        return float(torch.stack([torch.from_numpy(r.depth) for r in imagine(embedded, prompt, samples=4)]).median())

    bathroom, store = median("A bathroom with a sink and a mirror."), median("A large store with a long walkway.")
    street = median("A group of cars parked on the side of a street.")
    assert bathroom < 0.8 * store < 0.8 * 0.8 * street


def test_embedded_samples_differ_and_floors_are_nearer_than_walls(embedded: WorDepthTiny) -> None:
    depth = torch.stack([torch.from_numpy(r.depth) for r in imagine(embedded, "A bedroom with a bed.", samples=8)])
    assert (depth[0] / depth[1]).log().abs().mean() > 0.05
    height = depth.shape[1]
    assert depth[:, -height // 5 :].mean() < 0.9 * depth[:, height // 3 : height // 2].mean()


def test_embedded_layouts_follow_the_words(embedded: WorDepthTiny) -> None:
    def shape(prompt: str) -> tuple[float, float]:
        """How much farther, in logs, the middle is than the sides, and the upper third than the lower."""
        depth = torch.stack([torch.from_numpy(r.depth) for r in imagine(embedded, prompt, samples=16)]).log()
        columns, rows = depth.mean((0, 1)), depth.mean((0, 2))
        sixth, third = len(columns) // 6, len(rows) // 3
        sides = (columns[:sixth].mean() + columns[-sixth:].mean()) / 2
        return float(columns[2 * sixth : -2 * sixth].mean() - sides), float(rows[:third].mean() - rows[-third:].mean())

    hallway, table = shape("A narrow hallway with doors."), shape("A table with cups and books on it.")
    assert hallway[0] > hallway[1] + 0.1
    assert table[1] > table[0] + 0.5
