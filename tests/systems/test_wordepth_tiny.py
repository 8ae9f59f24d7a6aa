"""wordepth-tiny: the shared tests, noise as pictures have it, and what the embedded weights imagine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from langdepth import registry
from langdepth.checkpoint import load
from langdepth.errors import UsageError
from langdepth.imagination import imagine
from langdepth.systems.base import System
from langdepth.systems.wordepth_tiny import WorDepthTiny
from tests.systems.test_wordepth import SMALL, WorDepthTester

TINY: dict[str, Any] = {**SMALL, "encoder": "efficientnet-lite0", "frozen": 7, "directions": 3}


class TestWorDepthTiny(WorDepthTester):
    name = "wordepth-tiny"
    options = {**TINY, "vocabulary": ("a", "kitchen", "sink", "street", "with")}  # noqa: RUF012

    @pytest.mark.slow  # takes long, and wordepth-s has nearly the same network
    def test_torch_export_gives_the_same_depth(self, system: System) -> None:
        super().test_torch_export_gives_the_same_depth(system)


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


def test_imagined_noise_has_mean_and_directions_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    system = small()
    first = torch.randn(6, 8, 2, 3)
    second = first[[1, 2, 3, 4, 5, 0]] * 0.5
    noise = torch.cat([first, second])
    monkeypatch.setattr(WorDepthTiny, "look", lambda self, image: _Seen(image))
    monkeypatch.setattr(system.sampler, "forward", lambda x, scenes: x)
    monkeypatch.setattr(WorDepthTiny, "features_of", lambda self, batch: self.neutral_text.expand(6, -1))
    share = system.learn_noise([_Batch(first), _Batch(second)])  # type: ignore[list-item]
    assert 0.3 < share < 1
    drawn = system.draw_noise(4000, 64, 96, torch.Generator().manual_seed(0))
    coarse = torch.nn.functional.adaptive_avg_pool2d(noise, (2, 3)).flatten(1)
    flat = torch.nn.functional.adaptive_avg_pool2d(drawn, (2, 3)).flatten(1)
    assert flat.shape == (4000, 48)
    variance = (coarse - coarse.mean(0)).square().sum() / 12
    assert (flat - flat.mean(0)).square().sum() / 4000 < variance
    explained = torch.linalg.matrix_rank(drawn[:50].flatten(1) - drawn[:50].flatten(1).mean(0), rtol=1e-4)
    assert explained == 3


class _Seen:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class _Batch:
    def __init__(self, image: Tensor) -> None:
        self.image = image


def test_noise_is_independent_until_pictures_taught_it_and_in_training() -> None:
    system = small()
    plain = super(WorDepthTiny, system).draw_noise(1, 64, 96, torch.Generator().manual_seed(1))
    assert torch.equal(system.draw_noise(1, 64, 96, torch.Generator().manual_seed(1)), plain)
    system.noise_directions.normal_()
    assert not torch.equal(system.draw_noise(1, 64, 96, torch.Generator().manual_seed(1)), plain)
    assert torch.equal(system.train().draw_noise(1, 64, 96, torch.Generator().manual_seed(1)), plain)


def test_training_leaves_out_and_exchanges_words() -> None:
    system = small()
    system.config = replace(system.config, wordless=1.0)
    system.neutral_text.fill_(FEATURE)
    batch = TestWorDepthTiny().batch(system)
    batch = replace(batch, text_features=torch.nn.functional.normalize(torch.randn(4, 32), dim=1))
    assert batch.text_features is not None
    assert torch.equal(system.features_of(batch), batch.text_features)
    assert torch.equal(system.train().features_of(batch), system.neutral_text.expand(4, -1))


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
