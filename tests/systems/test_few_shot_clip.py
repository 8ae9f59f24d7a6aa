"""`few-shot-clip`: the shared tests, the choice of the scene, what learns, and k images per scene."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from langdepth.errors import UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import ConvertsOfficial, require
from langdepth.text.scenes import SCENES
from langdepth.training.sampling import few_shots
from langdepth.weights import checkpoint
from tests.systems.test_depthclip import SMALL, WordsTester, with_words
from tests.systems.tester import totals_of_steps

THREE = SMALL | {"scenes": ["kitchen", "office", "foyer"]}


def trained(system: Any) -> Any:
    """Words, scenes and codebook as after training."""
    with_words(system)
    with torch.no_grad():
        system.log_factors.copy_(torch.linspace(-0.5, 0.5, system.log_factors.numel()).view_as(system.log_factors))
        system.scene_keys.copy_(torch.randn_like(system.scene_keys))
    return system


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return trained(registry.build("few-shot-clip", THREE | options)).eval()


class FewShotTester(WordsTester):
    name = "few-shot-clip"

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        torch.manual_seed(0)
        system: System = trained(registry.build(self.name, self.options)).eval()
        return system


class TestFewShotClip(FewShotTester):
    options = SMALL

    def test_what_is_trained(self, system: Any) -> None:
        trained = {name: tuple(p.shape) for name, p in system.named_parameters() if p.requires_grad}
        assert trained == {"log_factors": (27, 7), "learned.vectors": (4, 64)}
        book, context = system.parameter_groups(lr=1e-3, weight_decay=0.1)
        assert book["weight_decay"] == 0
        assert context["lr"] == pytest.approx(3.57e-4)


class TestByImage(FewShotTester):
    """Scenes by the mean embedding of their training images, bins mixed."""

    variant = True
    options = THREE | {"selector": "image", "soft": True, "l1": 0.1}

    def test_training_stores_the_mean_embedding_of_scenes(self, system: Any) -> None:
        system.scene_keys.zero_()
        batch = self.batch(system, scenes=(SCENES.index("kitchen"), SCENES.index("office"), -1, -1))
        system.loss(batch)
        assert not system.scene_keys.any()  # in eval mode it learns nothing
        system.train().loss(batch)
        assert system.scene_keys.any(1).tolist() == [True, True, False]
        with torch.no_grad():
            chosen = system.eval()(batch.image[:2]).scene_probs.argmax(1)
        assert chosen.tolist() == [0, 1]


class TestWithoutContext(FewShotTester):
    variant = True
    options = THREE | {"context": 0}


@pytest.mark.parametrize("selector", ["text", "image"])
@pytest.mark.parametrize("soft", [False, True])
def test_without_context_and_with_equal_rows_it_is_depthclip(selector: str, soft: bool) -> None:
    torch.manual_seed(0)
    plain: Any = with_words(registry.build("depthclip", SMALL)).eval()
    options = SMALL | {"scenes": ["kitchen", "office"], "context": 0, "selector": selector, "soft": soft}
    few: Any = registry.build("few-shot-clip", options).eval()
    few.load_state_dict(plain.state_dict(), strict=False)
    few.scene_keys.copy_(torch.randn(2, 256))
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        if soft:  # a mixture of equal rows is rounded
            torch.testing.assert_close(few(image).depth, plain(image).depth)
        else:
            assert torch.equal(few(image).depth, plain(image).depth)


def test_the_row_of_the_nearest_scene_is_chosen() -> None:
    system = build()
    image = torch.rand(3, 3, 64, 96)
    with torch.no_grad():
        system.scene_keys.copy_(system.tower.dense_and_embedding(system.normalise(image))[1][[2, 0, 1]])
        output = system(image)
        assert output.scene_probs.argmax(1).tolist() == [1, 2, 0]
        assert torch.equal(output.bin_centers, system.codebook()[[1, 2, 0]])
        given = system(image, scene=["office", "foyer", "kitchen"])
    assert torch.equal(given.depth, output.depth)


def test_gradients_reach_only_the_row_of_the_scene() -> None:
    system = build()
    tester = TestFewShotClip()
    batch = tester.batch(system, scenes=[SCENES.index("office")] * 4)
    system.train().loss(batch)["total"].backward()
    reached = (system.log_factors.grad != 0).any(1)
    assert reached.tolist() == [False, True, False]
    assert (system.learned.vectors.grad != 0).any()


def test_bins_stay_ordered_and_positive_unless_asked_otherwise() -> None:
    for sort in (True, False):
        system = build(sort_bins=sort)
        with torch.no_grad():
            system.log_factors.copy_(torch.tensor([2.0, 0, 0, 0, 0, 0, -3]).expand(3, 7))
        assert (system.codebook() > 0).all()
        assert bool((system.codebook().diff(dim=1) >= 0).all()) == sort
        assert system.codebook().max().item() == pytest.approx(math.exp(2), rel=1e-5)


def test_the_oracle_needs_the_scene() -> None:
    system = build(selector="oracle")
    image = torch.rand(1, 3, 64, 96)
    with pytest.raises(UsageError, match="needs the scene of every image"):
        system(image)
    with torch.no_grad():
        assert system(image, scene=["foyer"]).scene_probs.tolist() == [[0, 0, 1]]
    batch = TestFewShotClip().batch(system, scenes=(SCENES.index("office"), -1, -1, -1))
    with pytest.raises(UsageError, match="b: its scene_type is none of the codebook's"):
        system.loss(batch)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_training_lowers_the_loss_and_the_file_predicts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path))
    torch.manual_seed(0)
    system: Any = registry.build("few-shot-clip", THREE)
    system.prepare_training(clip_weights="random")
    torch.testing.assert_close(system.scene_keys.norm(dim=1), torch.ones(3))
    batch = TestFewShotClip().batch(
        system, scenes=[SCENES.index(name) for name in ("office", "foyer", "office")] + [-1]
    )
    totals = totals_of_steps(system, batch, lr=0.05, weight_decay=0.0, steps=8)
    assert totals[-1] < totals[0]
    loaded = checkpoint.load(system.save(tmp_path / "few.safetensors"))
    with torch.no_grad():
        assert torch.equal(loaded(batch.image).depth, system.eval()(batch.image).depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": -1}, "context must be at least 0"),
        ({"context": 80}, "has 86 tokens with its start and end"),
        ({"scenes": []}, "scenes must be one or more"),
        ({"scenes": ["a", "a"]}, "each once"),
        ({"selector": "txt"}, "unknown value 'txt'"),
        ({"prompts": {"scenes": {"a": {}}}}, r"prompts\.scenes"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        registry.build("few-shot-clip", SMALL | options)
    with pytest.raises(UsageError, match="no official checkpoint"):
        require(build(), ConvertsOfficial)


def test_shots_per_scene() -> None:
    scenes = [3, -1, 5, 3, 3, 5, 0]
    assert few_shots(scenes, 1) == [0, 2, 6]
    assert few_shots(scenes, 2) == [0, 2, 3, 5, 6]
    drawn = {tuple(few_shots(scenes, 1, seed)) for seed in range(20)}
    assert len(drawn) > 2
    assert all(sorted(scenes[i] for i in places) == [0, 3, 5] for places in drawn)
    assert few_shots(scenes, 1, 7) == few_shots(scenes, 1, 7)
    assert len(few_shots(list(range(27)) * 30, 1)) == 27
    with pytest.raises(UsageError, match="no training image has a scene label"):
        few_shots([-1, -1], 1)
