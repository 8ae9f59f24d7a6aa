"""WorDepth: the shared tests in two skip modes, the two kinds of step, words, noise, conversion."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from langdepth import cli
from langdepth.backbones.swin import SIZES, Swin
from langdepth.config import to_mapping
from langdepth.errors import CheckpointError, LangdepthError, UsageError
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.wordepth.blocks import Gaussian, kl_of_noise
from langdepth.systems.wordepth.model import ImageFeatures, WorDepth
from langdepth.systems.wordepth.official import OFFICIAL_NAMES
from langdepth.text.encoders import words_of
from langdepth.text.scenes import SCENES
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.systems.tester import SystemTester, totals_of_steps

FEATURES = 32
SMALL: dict[str, Any] = {
    "encoder": "swin-mini",
    "resolution": (64, 96),
    "widths": (16, 12, 8),
    "latent": 8,
    "text_features": FEATURES,
}
CAPTIONS = ["a kitchen with a sink", "a street", "a bathroom", "a bed in a bedroom"]


class WorDepthTester(SystemTester):
    name = "wordepth-s"
    graph_of_any_size = False
    options = {**SMALL, "vocabulary": ("a", "kitchen", "sink", "street", "with")}  # noqa: RUF012
    sentences = ("a kitchen with a sink", "a street")
    text_columns = FEATURES

    @pytest.fixture
    def wordepth(self, system: System) -> WorDepth:
        assert isinstance(system, WorDepth)
        return system

    def test_gradients_reach_every_trainable_parameter(self, system: System) -> None:
        """Over both kinds of step, and in each only what it trains."""
        batch = replace(self.batch(system), text_features=self.text_matrix(4))
        reached = [names_with_gradient(system.train(), batch, kind) for kind in ("image", "text")]
        assert reached[0] | reached[1] == {name for name, p in system.named_parameters() if p.requires_grad}
        assert not any(name.startswith("text_vae.") for name in reached[0])
        parts = {name.split(".")[0] for name in reached[1]}
        only_image = {"sampler", "metric"} if system.config.skip_mode == "always" else NOT_IN_TEXT_STEPS
        assert parts == {name.split(".")[0] for name in reached[0] | reached[1]} - only_image

    def test_text_steps_lower_their_loss(self, wordepth: WorDepth) -> None:
        batch = self.batch(wordepth)
        wordepth.loss = functools.partial(wordepth.loss, kind="text")  # type: ignore[method-assign]
        totals = totals_of_steps(wordepth, batch, lr=1e-3, weight_decay=0.0, steps=6)
        assert totals[-1] < totals[0]


NOT_IN_TEXT_STEPS = {"encoder", "up_4", "sampler", "metric"}


def names_with_gradient(system: System, batch: Batch, kind: str) -> set[str]:
    """The parameters that a step of this kind gives a gradient; all others have None, not 0."""
    system.zero_grad(set_to_none=True)
    system.loss(batch, kind=kind)["total"].backward()  # type: ignore[call-arg]
    gradients = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    return set(gradients)


class TestNever(WorDepthTester):
    def test_maps_that_nobody_sees_have_norms_that_do_not_train(self, wordepth: WorDepth) -> None:
        fixed = {name for name, p in wordepth.named_parameters() if not p.requires_grad}
        assert {name for name in fixed if not name.startswith("sentences.")} == {
            f"encoder.norm{stage}.{kind}" for stage in (0, 1) for kind in ("weight", "bias")
        }


class TestImageOnly(WorDepthTester):
    variant = True
    options = {**WorDepthTester.options, "skip_mode": "image_only"}  # noqa: RUF012


@pytest.fixture
def small() -> WorDepth:
    """In skip mode image_only, without sentence encoder, in eval mode."""
    torch.manual_seed(0)
    system = registry.build("wordepth-s", {**SMALL, "skip_mode": "image_only"}).eval()
    assert isinstance(system, WorDepth)
    return system


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> Tensor:
    return nn.functional.normalize(torch.randn(2, FEATURES, generator=torch.Generator().manual_seed(2)), dim=1)


def in_mode(system: WorDepth, mode: str) -> WorDepth:
    other = copy.deepcopy(system)
    other.config = replace(system.config, skip_mode=mode)  # type: ignore[arg-type]
    return other


# Steps


def test_with_a_image_image_only_and_always_are_one(small: WorDepth, image: Tensor, text: Tensor) -> None:
    with torch.no_grad():
        never, image_only, always = (
            in_mode(small, mode)(image, text).depth for mode in ("never", "image_only", "always")
        )
    assert torch.equal(image_only, always)
    assert not torch.allclose(never, image_only, rtol=1e-3)


def test_maps_that_the_decoder_does_not_get_count_as_zeros(small: WorDepth) -> None:
    latent, x, x3, x2 = (
        torch.randn(2, 8, 4, 6),
        *(torch.zeros(2, c, 4 * k, 6 * k) for c, k in ((16, 1), (48, 2), (24, 4))),
    )
    with torch.no_grad():
        zeros = small.decode(latent, ImageFeatures(x, x3, x2, torch.zeros(2, 2)))
        torch.testing.assert_close(small.decode(latent, None), zeros, rtol=1e-4, atol=1e-5)


def test_text_steps_get_the_image_in_mode_always_only(small: WorDepth, image: Tensor) -> None:
    def silog(mode: str, photo: Tensor) -> float:
        torch.manual_seed(5)
        depth = torch.full((2, 1, 64, 96), 3.0)
        batch = Batch(
            image=photo, depth=depth, mask=depth > 0, scene=torch.tensor([-1, -1]), text=[None] * 2, path=["", ""]
        )
        return float(in_mode(small, mode).loss(batch, "text")["silog"].detach())

    for mode in ("never", "image_only"):
        assert silog(mode, image) == silog(mode, 1 - image)
    assert silog("always", image) != silog("always", 1 - image)


def test_the_share_of_text_steps_is_what_is_asked_for() -> None:
    system = registry.build("wordepth-s", {**SMALL, "alter_prob": 0.25})
    generator = torch.Generator().manual_seed(0)
    kinds = [system.draw_step(generator)["kind"] for _ in range(2000)]
    assert kinds.count("text") / len(kinds) == pytest.approx(0.25, abs=0.03)
    assert set(kinds) == {"image", "text"}


def test_depth_nearer_or_farther_than_the_limits_is_not_learned_from(small: WorDepth, image: Tensor) -> None:
    depth = 1 + 3 * torch.rand(2, 1, 64, 96)
    labels: dict[str, Any] = {"scene": torch.tensor([-1, -1]), "text": [None] * 2, "path": ["", ""]}
    for value in (0.05, 11.0):
        spoilt = depth.clone()
        spoilt[..., :20] = value
        mask = torch.ones_like(depth, dtype=torch.bool)
        without = mask.clone()
        without[..., :20] = False
        losses = [
            small.loss(Batch(image=image, depth=d, mask=m, **labels))["silog"]
            for d, m in ((spoilt, mask), (depth, without))
        ]
        assert torch.equal(*losses)


def test_silog_may_be_a_mean(small: WorDepth, image: Tensor) -> None:
    depth = 1 + 3 * torch.rand(2, 1, 64, 96)
    labels: dict[str, Any] = {"scene": torch.tensor([-1, -1]), "text": [None] * 2, "path": ["", ""]}
    batch = Batch(image=image, depth=depth, mask=depth > 0, **labels)
    summed = small.loss(batch)["silog"]
    small.config = replace(small.config, silog="mean")
    torch.testing.assert_close(small.loss(batch)["silog"], summed / 2)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_divergence_counts_a_thousandth(small: WorDepth, image: Tensor, kind: Any) -> None:
    depth = 1 + 3 * torch.rand(2, 1, 64, 96)
    labels: dict[str, Any] = {"scene": torch.tensor([-1, -1]), "text": [None] * 2, "path": ["", ""]}
    with torch.no_grad():
        found = small.loss(Batch(image=image, depth=depth, mask=depth > 0, **labels), kind)
    parts = {name: float(value) for name, value in found.items()}
    assert parts["kl"] > 0
    assert parts["total"] - parts["silog"] == pytest.approx(1e-3 * parts["kl"], rel=1e-2)


def test_one_cell_has_no_spread() -> None:
    noise = torch.randn(1, 4, 1, 1, requires_grad=True)
    value = kl_of_noise(noise)
    value.backward()
    assert value.item() == 0
    assert noise.grad is not None


# Noise


def test_zero_noise_is_the_mean_scene_of_the_words(small: WorDepth, text: Tensor) -> None:
    with torch.no_grad():
        depth = small.imagine(text, torch.zeros(2, 8, 4, 6)).depth
        scenes = small.text_vae(text)
        assert depth.shape == (2, 1, 64, 96)
        certain = small.decode(
            Gaussian(scenes.mean, torch.full_like(scenes.logvar, -40)).at(torch.ones(2, 8, 4, 6)), None
        )
        torch.testing.assert_close(depth, certain, rtol=1e-4, atol=1e-4)


def test_noise_is_drawn_per_cell_or_once(small: WorDepth) -> None:
    cells = small.draw_noise(3, 64, 96, torch.Generator().manual_seed(0))
    assert cells.shape == (3, 8, 4, 6)
    assert float(cells.std()) == pytest.approx(1, abs=0.1)
    assert torch.equal(cells, small.draw_noise(3, 64, 96, torch.Generator().manual_seed(0)))
    small.config = replace(small.config, noise="image")
    one = small.draw_noise(3, 64, 96)
    assert one.shape == cells.shape
    assert torch.equal(one, one[..., :1, :1].expand_as(one))
    with pytest.raises(UsageError, match="96 x 65 is not possible; take multiples of 32"):
        small.draw_noise(1, 65, 96)


def test_spread_goes_from_the_image_to_the_noise(small: WorDepth, image: Tensor, text: Tensor) -> None:
    noise = small.draw_noise(2, 64, 96, torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = small(image, text).depth
        assert torch.equal(small.draw(image, text, noise, 0.0).depth, plain)
        seen, scenes = small.encode_image(image), small.text_vae(text)
        assert torch.equal(small.draw(image, text, noise, 1.0).depth, small.image_step(seen, scenes, noise))
        little, more = ((small.draw(image, text, noise, s).depth - plain).abs().mean() for s in (0.1, 0.5))
        assert 0 < little < more
        many = small.draw(image[:1], text[:1], noise, 0.5).depth
        torch.testing.assert_close(many[:1], small.draw(image, text, noise, 0.5).depth[:1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"spread must lie between 0 and 1, got 1\.5"):
        small.draw(image, text, noise, 1.5)


def test_a_decoder_that_never_did_without_images_imagines_nothing(small: WorDepth, text: Tensor) -> None:
    with pytest.raises(UsageError, match="have skip_mode always"):
        in_mode(small, "always").imagine(text, torch.zeros(2, 8, 4, 6))


# Words


def test_no_words_and_rows_of_zeros_are_the_neutral_feature(small: WorDepth, image: Tensor, text: Tensor) -> None:
    small.neutral_text.copy_(text[1])
    with torch.no_grad():
        described = small(image, text).depth
        assert torch.equal(small(image).depth[1], described[1])
        assert torch.equal(small(image, text * torch.tensor([[1.0], [0.0]])).depth, described)


@pytest.mark.parametrize("factor", [0.97, 1.03, 20.0, torch.nan])
def test_features_that_were_not_divided_by_their_norm_are_refused(
    small: WorDepth, image: Tensor, text: Tensor, factor: float
) -> None:
    with torch.no_grad():
        small(image, 1.01 * text)
    with pytest.raises(UsageError, match=r"^text features have norms from .* to .*, not 1; divide each by its norm$"):
        small(image, factor * text)


def test_unknown_words_are_named(image: Tensor) -> None:
    system = registry.build("wordepth-s", {**SMALL, "vocabulary": ("a", "kitchen")}).eval()
    with pytest.warns(UserWarning, match="unknown words are ignored: with, zebra"):
        system(image[:1], text=["a kitchen with a zebra"])
    with pytest.raises(UsageError, match="text 'zebra': none of its words is known"):
        system(image[:1], text=["zebra"])
    with pytest.raises(LangdepthError, match="the text '' has no words"):
        system(image[:1], text=[""])


# Sizes


def test_sides_that_are_no_multiples_of_32_are_one_line(small: WorDepth) -> None:
    with pytest.raises(UsageError, match=r"^images are 96 x 80; 'wordepth-s' takes multiples of 32: resize them$"):
        small(torch.rand(1, 3, 80, 96))


def test_the_head_before_enlarging_is_the_head_after_it(small: WorDepth) -> None:
    d2, d3, d4 = (torch.randn(2, 8, 64 // k, 96 // k) for k in (4, 8, 16))
    enlarged = [nn.functional.interpolate(d, (64, 96), mode="bilinear", align_corners=True) for d in (d2, d3, d4)]
    with torch.no_grad():
        torch.testing.assert_close(small._project(d2, d3, d4), small.head(sum(enlarged)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resolution": (62, 96)}, "resolution must be multiples of 4, at least 32, got 62 x 96"),
        ({"max_depth": 0.1}, r"max_depth must be above 0\.1"),
        ({"alter_prob": 1.5}, "alter_prob must lie between 0 and 1"),
        ({"skip_mode": "legacy"}, "skip_mode: unknown value 'legacy'"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.build("wordepth-s", {**SMALL, **wrong})


# What training starts from


@pytest.fixture
def caption_file(tmp_path: Path) -> Path:
    features = np.random.default_rng(0).normal(size=(len(CAPTIONS), FEATURES)).astype(np.float16)
    path = tmp_path / "captions.npz"
    np.savez(path, caption=CAPTIONS, feature=features, train_count=np.ones(len(CAPTIONS), int))
    return path


def test_a_fresh_system_is_prepared_saved_and_loaded(caption_file: Path, tmp_path: Path, image: Tensor) -> None:
    fresh = registry.build("wordepth-s", SMALL)
    assert isinstance(fresh, WorDepth)
    with pytest.raises(UsageError, match=r"system\.prepare\.text_features"):
        fresh.prepare_training()
    with pytest.warns(UserWarning, match="starts from RANDOM numbers"):
        fresh.prepare_training(text_features=str(caption_file))
    assert fresh.config.vocabulary == tuple(sorted({word for caption in CAPTIONS for word in words_of(caption)}))
    assert float(fresh.neutral_text.norm()) == pytest.approx(1)
    assert not any(p.requires_grad for name, p in fresh.named_parameters() if name.startswith("sentences."))
    loaded = checkpoint.load(fresh.save(tmp_path / "fresh.safetensors"))
    with torch.no_grad():
        described = [s(image[:1], text=["a kitchen"]).depth for s in (fresh.eval(), loaded)]
    assert torch.equal(*described)
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    loaded.prepare_training(text_features=str(caption_file))  # type: ignore[call-arg]
    assert all(torch.equal(before[name], value) for name, value in loaded.state_dict().items())


def test_training_takes_captions_of_the_image_then_of_its_scene(caption_file: Path, image: Tensor) -> None:
    system = registry.build("wordepth-s", SMALL)
    assert isinstance(system, WorDepth)
    with pytest.warns(UserWarning, match="RANDOM"):
        system.prepare_training(text_features=str(caption_file))
    depth = torch.ones(2, 1, 64, 96)
    scene = torch.tensor([SCENES.index("bathroom"), SCENES.index("classroom")])  # no caption is about a classroom
    batch = Batch(image=image, depth=depth, mask=depth > 0, scene=scene, text=[None] * 2, path=["", ""])
    assert system.captions is not None
    bathroom = next(features for features in system.captions.by_scene if len(features))
    assert torch.equal(system.batch_features(batch), torch.stack([bathroom[0], system.neutral_text]))
    own = nn.functional.normalize(torch.randn(2, FEATURES), dim=1)
    torch.testing.assert_close(system.batch_features(replace(batch, text_features=own)), own)


def test_captions_of_another_width_are_refused(caption_file: Path) -> None:
    system: Any = registry.build("wordepth-s", {**SMALL, "text_features": 16})
    with (
        pytest.warns(UserWarning, match="RANDOM"),
        pytest.raises(UsageError, match="features have 32 numbers, the system takes 16"),
    ):
        system.prepare_training(text_features=str(caption_file))


# The authors' checkpoints


@pytest.fixture
def official(small: WorDepth, tmp_path: Path) -> Path:
    """A checkpoint as the authors' program writes it, of a small network."""
    ours = small.state_dict()
    tensors = {
        f"module.{theirs}{key.removeprefix(prefix)}": value
        for theirs, prefix in OFFICIAL_NAMES.items()
        for key, value in ours.items()
        if key.startswith(prefix)
    }
    tensors["module.backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    tensors["module.ref_2.fw.0.bias"] = torch.zeros(16)
    path = tmp_path / "model-2500-best_d1_0.93000"
    torch.save({"global_step": 2500, "model": tensors, "best_eval_steps": np.zeros(9, dtype=np.int32)}, path)
    return path


def test_an_official_checkpoint_is_converted(
    small: WorDepth, official: Path, image: Tensor, text: Tensor, tmp_path: Path
) -> None:
    done = convert(official, "wordepth-s", tmp_path / "out.safetensors", {**SMALL, "skip_mode": "image_only"})
    assert done.ignored == ["backbone.layers.0.blocks.0.attn.relative_position_index", "ref_2.fw.0.bias"]
    converted = checkpoint.load(done.path)
    with torch.no_grad():
        assert torch.equal(converted(image, text).depth, small(image, text).depth)


def test_the_position_table_of_another_resolution_is_resized(official: Path, small: WorDepth, tmp_path: Path) -> None:
    options = {**SMALL, "skip_mode": "never", "resolution": (96, 128)}
    converted: Any = checkpoint.load(convert(official, "wordepth-s", tmp_path / "out.safetensors", options).path)
    table = small.encoder.absolute_pos_embed
    assert isinstance(table, Tensor)
    wanted = nn.functional.interpolate(table, (24, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(converted.encoder.absolute_pos_embed, wanted)


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("wordepth-nyu", None, "never"),
        ("wordepth-nyu-legacy", None, "image_only"),
        ("wordepth-kitti", None, "never"),
        ("wordepth-kitti-legacy", None, "image_only"),
        ("wordepth-nyu-legacy", "always", "always"),
    ],
)
def test_the_name_says_the_skip_mode_and_convert_repeats_it(
    official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, given: str | None, taken: str
) -> None:
    out = tmp_path / "out.safetensors"
    options = [*(f"--options.{key}={json.dumps(value)}" for key, value in SMALL.items())]
    options += [] if given is None else [f"--options.skip_mode={given}"]
    assert cli.main(["convert", str(official), "--system", name, "--out", str(out), *options]) == 0
    assert checkpoint.load(out).config.skip_mode == taken
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skip_mode: ")]
    assert [line.split(",")[0] for line in said] == ([] if given else [f"skip_mode: {taken}"])


def test_only_networks_of_the_authors_kind_are_converted(official: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'wordepth-tiny' is another network"):
        convert(official, "wordepth-tiny", tmp_path / "out.safetensors", {"skip_mode": "never"})


# Presets


def test_legacy_presets_differ_in_training_alone() -> None:
    for data in ("nyu", "kitti"):
        plain, legacy = (
            to_mapping(cls.Config(**entry.preset))
            for entry in (registry.entry(f"wordepth-{data}"), registry.entry(f"wordepth-{data}-legacy"))
            for cls in [entry.system_class()]
        )
        changed = {key: (plain[key], legacy[key]) for key in plain if plain[key] != legacy[key]}
        assert changed == {"skip_mode": ("never", "image_only"), "alter_prob": (0.5, 0.01)}


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        system = registry.build("wordepth-nyu")
    unused = (192 * 192 + 192 * 64) * 9 + 192 + 64  # of the last refinement's feature
    assert sum(p.numel() for p in system.parameters()) == 257_966_647 - unused
    assert sum(p.numel() for p in Swin(SIZES["swin-mini"]).parameters()) < 1e6
