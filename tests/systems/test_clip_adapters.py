"""The trained systems on CLIP: the shared tests, their quirks as options, training, official checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from langdepth.errors import CheckpointError, UsageError
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.weights import checkpoint
from tests.systems.test_depthclip import SMALL, WordsTester, with_words
from tests.systems.tester import SystemTester

SMALL_MAPS = {"architecture": "RN-small", "size": [64, 96], "hidden": 32}
SMALL_EIGEN = {"size": [64, 96], "hidden": 32}


class TestClipAdapter(WordsTester):
    name = "clip-adapter"
    options = SMALL | {"image_reduction": 32, "text_reduction": 16}

    def test_only_the_adapters_train(self, system: Any) -> None:
        trained = {name for name, p in system.named_parameters() if p.requires_grad}
        assert {name.split(".")[0] for name in trained} == {"image_adapter", "text_adapter"}

    def test_frozen_clip_keeps_its_statistics_unless_the_quirk_is_asked_for(self, system: Any) -> None:
        exact: Any = registry.build(self.name, self.options | {"reference_exact": True})
        exact.load_state_dict(system.state_dict())
        for one, changes in ((system, False), (exact, True)):
            before = one.tower.state_dict()["bn1.running_mean"].clone()
            one.train().loss(self.batch(one))
            assert torch.equal(one.tower.state_dict()["bn1.running_mean"], before) != changes

    def test_holes_are_left_out_unless_the_quirk_is_asked_for(self, system: Any) -> None:
        batch = self.batch(system, known=0.5)
        deep = replace(batch, depth=torch.where(batch.mask, 2.0, 0.0))
        exact = registry.build(self.name, self.options | {"reference_exact": True})
        exact.load_state_dict(system.state_dict())
        assert system.loss(deep)["depth"] < exact.eval().loss(deep)["depth"] - 0.3

    def test_every_loss_can_be_asked_for(self, system: Any) -> None:
        batch = self.batch(system)
        weights = {"depth_norm": "l2", "depth": 1, "smoothness": 0.1, "symmetry": 0.1, "bins": 0.1, "photometric": 0.5}
        full = registry.build(self.name, self.options | {"losses": weights})
        full.load_state_dict(system.state_dict())
        with pytest.raises(UsageError, match="no second view"):
            full.loss(batch)
        still = torch.eye(3, 4).expand(4, -1, -1)
        intrinsics = torch.tensor([[80.0, 0, 48], [0, 80, 32], [0, 0, 1]]).expand(4, -1, -1)
        same = full.loss(replace(batch, source_image=batch.image, pose=still, intrinsics=intrinsics))
        other = full.loss(replace(batch, source_image=batch.image.flip(0), pose=still, intrinsics=intrinsics))
        assert same["photometric"] < 1e-3 < other["photometric"]
        assert set(other) == {"total", *weights} - {"depth_norm"}


class TwoStageTester(SystemTester):
    """Coarse and refined stage of one system."""

    image_size = (64, 96)
    enlarge = "bilinear-aligned"

    def test_another_size_is_refused(self, system: Any) -> None:
        with pytest.raises(UsageError, match="was made for images of 96x64 pixels"):
            system(torch.rand(1, 3, 96, 64))

    def test_a_size_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises((UsageError, ValueError), match="multiples of 32"):
            registry.build(self.name, self.options | {"size": [50, 96]})

    def test_the_refined_stage_asks_for_the_coarse_one(self, tmp_path: Path) -> None:
        refined: Any = registry.build(self.name, self.options | {"stage": "refined"})
        with pytest.raises(UsageError, match=r"system\.prepare\.coarse"):
            refined.prepare_training()
        first = registry.build(self.name, self.options | {"stage": "coarse"})
        if hasattr(first, "word_bins"):
            with_words(first)
        refined.prepare_training(coarse=str(first.save(tmp_path / "coarse.safetensors")))
        for name, value in first.state_dict().items():
            assert torch.equal(refined.state_dict()[name], value)
        trained = {name.split(".")[0] for name, p in refined.named_parameters() if p.requires_grad}
        assert trained == {"refiner"}
        assert not refined.train().coarse.training
        refined.prepare_training()  # once it is there, nothing more is asked for

    def test_other_weights_are_no_coarse_stage(self, tmp_path: Path) -> None:
        refined: Any = registry.build(self.name, self.options | {"stage": "refined"})
        other = registry.build(self.name, self.options | {"stage": "coarse", "hidden": 8})
        with pytest.raises(CheckpointError, match="another size"):
            refined.prepare_training(coarse=str(other.save(tmp_path / "other.safetensors")))
        another = registry.build("depthclip", SMALL).save(tmp_path / "another.safetensors")
        with pytest.raises(CheckpointError, match="is not the coarse stage"):
            refined.prepare_training(coarse=str(another))


class TestCoarse(TwoStageTester, WordsTester):
    variant = True
    name = "clip-coarse-refined"
    options = SMALL_MAPS | {"stage": "coarse"}


class TestRefined(TwoStageTester, WordsTester):
    name = "clip-coarse-refined"
    options = SMALL_MAPS


class TestEigenCoarse(TwoStageTester):
    variant = True
    name = "eigen"
    options = SMALL_EIGEN | {"stage": "coarse"}

    def test_the_official_layers_are_an_option(self) -> None:
        exact = registry.build(self.name, self.options | {"reference_exact": True})
        shapes = {name: tuple(p.shape) for name, p in exact.named_parameters()}
        assert shapes["coarse.fc.hidden.weight"] == (32, 6)
        with torch.no_grad():
            assert exact.eval()(torch.rand(2, 3, 64, 96)).depth.shape == (2, 1, 64, 96)

    def test_words_have_no_meaning_here(self, system: Any) -> None:
        with pytest.raises(UsageError, match="takes no text"):
            system(self.images(system), text=["a", "b"])


class TestEigenRefined(TwoStageTester):
    name = "eigen"
    options = SMALL_EIGEN


class MultiScaleTester(WordsTester):
    """The decoder in its two kinds."""

    bf16_tolerance = 0.1

    def test_only_the_decoder_trains(self, system: Any) -> None:
        trained = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
        assert trained <= {"decoder", "overlay_encoder"}

    def test_a_trunk_without_five_strides_is_refused(self) -> None:
        with pytest.raises(UsageError, match="strides 2, 4, 8, 16 and 32"):
            registry.build(self.name, self.options | {"architecture": "ViT-small"})


class TestMsa(MultiScaleTester):
    """Published: no words in the depth, so a matrix changes nothing."""

    name = "msa"
    options = SMALL

    def test_an_injected_matrix_takes_the_place_of_the_words(self, system: Any) -> None:
        image, matrix = self.images(system), system.word_bins.text[0].flip(0)
        with torch.no_grad():
            assert torch.equal(system(image, text=matrix).depth, system(image).depth)

    def test_bins_cannot_be_learned(self, system: Any) -> None:
        asked = registry.build(self.name, self.options | {"losses": {"bins": 0.1}})
        with pytest.raises(UsageError, match="does not train its words"):
            asked.loss(self.batch(asked))


class TestMsaWithWords(MultiScaleTester):
    variant = True
    name = "msa"
    options = SMALL | {"clip_weight": 1.0}

    def test_the_decoder_moves_the_words_depth_by_at_most_a_metre(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            initial = system.compare(system.dense(image)).depth
            depth = system(image).depth
        assert (depth >= initial.min() - 1).all()
        assert (depth <= initial.max() + 1).all()
        with pytest.raises((UsageError, ValueError), match="clip_weight"):
            registry.build(self.name, self.options | {"clip_weight": -1})


def test_msa_sam_uses_its_overlay() -> None:
    torch.manual_seed(0)
    system: System = with_words(registry.build("msa-sam", SMALL)).eval()
    image, overlay = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        depth = system(image, overlay=overlay).depth
        assert not torch.equal(depth, system(image, overlay=overlay.flip(0)).depth)
    with pytest.raises(UsageError, match=r"needs an overlay.*langdepth data sam"):
        system(image)
    with pytest.raises(UsageError, match="overlays have shape"):
        system(image, overlay=overlay[..., :32])
    batch = Batch(
        image=image,
        depth=torch.full((2, 1, 64, 96), 2.0),
        mask=torch.ones(2, 1, 64, 96, dtype=torch.bool),
        scene=torch.tensor([-1, -1]),
        text=[None, None],
        path=["a", "b"],
        overlay=overlay,
    )
    system.train().loss(batch)["total"].backward()
    without = [name for name, p in system.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_by_name_they_ask_for_trained_weights() -> None:
    for name in ("clip-adapter", "clip-coarse-refined", "eigen", "msa", "msa-sam"):
        with pytest.raises(CheckpointError, match="no trained weights"):
            checkpoint.load(name, clip_weights="random")
