"""`mde-clip`, `mde-clip-unet`, `refine-clip`: the shared tests, quirks, training, official checkpoints, bad input."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from langdepth import cli
from langdepth.backbones.clip_weights import find_clip_weights
from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.mde_clip.model import MdeClip
from langdepth.systems.mde_clip.official import POSITIONS
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.systems.short_training import train_shortly
from tests.systems.test_depthclip import WordsTester, with_words

SMALL = {"architecture": "RN-small", "size": [64, 96]}
SMALL_BINS = SMALL | {"bins": 12, "queries": 16, "patch": 4}
OPTIONS: dict[str, dict[str, Any]] = {"mde-clip": SMALL_BINS, "mde-clip-unet": SMALL, "refine-clip": SMALL}


class PyramidTester(WordsTester):
    """All three."""

    def test_only_clip_is_frozen(self, system: Any) -> None:
        frozen = {name.split(".")[0] for name, p in system.named_parameters() if not p.requires_grad}
        trained = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
        assert frozen == {"tower"}
        assert "tower" not in trained

    def test_the_quirks_are_bundled(self, system: Any) -> None:
        exact: Any = registry.build(self.name, self.options | {"reference_exact": True})
        assert (exact.config.clip_bn, exact.config.clip_half) == ("train", True)
        assert (system.config.clip_bn, system.config.clip_half) == ("eval", False)
        exact.load_state_dict(system.state_dict())
        for one, changes in ((system, False), (exact, True)):
            before = one.tower.state_dict()["bn1.running_mean"].clone()
            one.train().loss(self.batch(one))
            assert torch.equal(one.tower.state_dict()["bn1.running_mean"], before) != changes

    @torch.no_grad()
    def test_images_of_other_sizes_are_brought_to_its_own(self, system: Any) -> None:
        image = torch.rand(2, 3, 50, 70)
        expected = nn.functional.interpolate(image, (64, 96), mode="bilinear", align_corners=True)
        assert torch.equal(system(image).depth, system(expected).depth)

    def test_any_shape_without_a_size(self, system: Any) -> None:
        free = with_words(registry.build(self.name, self.options | {"size": None, "area": 64 * 96})).eval()
        assert free.input_spec.network_size(300, 200) == (96, 64)
        with torch.no_grad():
            height, width = free(torch.rand(1, 3, 96, 64)).depth.shape[-2:]
        assert height * 2 == width * 3

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"size": [50, 96]}, "size must be multiples of 32, got 50 x 96"),
            ({"size": [0, 96]}, "size must be multiples of 32"),
            ({"architecture": "ViT-small"}, "has no maps at strides 4, 8, 16 and 32"),
            ({"prompts": {"words": ["near"], "bin_centers": [1]}}, "at least 2"),
            ({"prompts": {"words": []}}, "0 words but 7 bin_centers"),
            ({"clip_bn": "trains"}, "did you mean 'train'"),
        ],
    )
    def test_wrong_options_are_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises((UsageError, ValueError), match=message) as caught:
            registry.build(self.name, self.options | options)
        assert "\n" not in str(caught.value)


class CrossAttentionTester(PyramidTester):
    """The two with cross-attention: the order of the words has no meaning to attention."""

    def test_an_injected_matrix_takes_the_place_of_the_words(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            own, matrix = system(image).depth, system.word_bins.text[0].clone()
            assert torch.equal(system(image, text=matrix).depth, own)
            torch.testing.assert_close(system(image, text=matrix.flip(0)).depth, own)
            assert not torch.allclose(system(image, text=matrix.flip(1)).depth, own)

    @torch.no_grad()
    def test_a_large_matrix_lets_the_image_decide(self, system: Any) -> None:
        matrix = 100 * system.word_bins.text[0]
        depth = system(self.images(system), text=matrix).depth
        assert (depth[0] - depth[1]).abs().max() > 1e-3

    def test_depth_and_image_flip_apart_only_as_a_quirk(self, system: Any) -> None:
        batch = self.batch(system)
        near = torch.arange(96).lt(48).expand(4, 1, 64, 96)
        batch = replace(batch, mask=torch.ones_like(near), depth=torch.where(near, 1.0, 9.0))
        paired = {round(system.eval().loss(batch)["l1"].item(), 5) for _ in range(8)}
        assert len(paired) == 1
        system.config = replace(system.config, independent_flip=True)
        apart = {round(system.loss(batch)["l1"].item(), 5) for _ in range(8)}
        assert len(apart) > 1
        both = replace(batch, mask=batch.mask & near)  # the mask moves with its depth
        assert all(torch.isfinite(system.loss(both)["total"]) for _ in range(4))

    def test_holes_are_0_m_to_ssim_unless_it_is_masked(self, system: Any) -> None:
        batch = self.batch(system, known=1.0)
        batch.mask[..., :32, :] = False
        full = system.eval().loss(batch)
        system.config = replace(system.config, losses=replace(system.config.losses, masked_ssim=True))
        masked = system.loss(batch)
        assert masked["ssim"] != full["ssim"]
        for name in set(full) - {"ssim", "total"}:
            assert masked[name] == full[name]

    def test_the_total_is_the_weighted_sum(self, system: Any) -> None:
        found = system.eval().loss(self.batch(system))
        expected = found["silog"] + 0.5 * found["l1"] + found["ssim"] + 0.1 * found.get("chamfer", torch.zeros(()))
        torch.testing.assert_close(found["total"], expected)
        assert ("chamfer" in found) == (self.name == "mde-clip")
        assert found.get("chamfer", torch.ones(())) > 0

    def test_own_bins_are_refused(self, system: Any) -> None:
        with pytest.raises(UsageError, match="stand for no fixed distances"):
            system.use_prompts({"bin_centers": [1, 2, 3, 4, 5, 6, 7]})


class TestMdeClip(CrossAttentionTester):
    name = "mde-clip"
    options = SMALL_BINS

    def test_more_queries_than_patches_are_refused(self) -> None:
        crowded = registry.build(self.name, self.options | {"queries": 96})
        with pytest.raises(UsageError, match="97 to 500 patches"):
            crowded(torch.rand(1, 3, 64, 96))

    def test_a_range_upside_down_is_refused(self) -> None:
        with pytest.raises((UsageError, ValueError), match="min_depth < max_depth"):
            registry.build(self.name, self.options | {"min_depth": 10})


class TestMdeClipUnet(CrossAttentionTester):
    name = "mde-clip-unet"
    options = SMALL


class TestRefineClip(PyramidTester):
    name = "refine-clip"
    options = SMALL
    bf16_tolerance = 0.1

    def test_depth_stays_between_the_words_distances(self, system: Any) -> None:
        with torch.no_grad():
            depth = system(self.images(system)).depth
        assert 1 <= depth.min() <= depth.max() <= 3

    @torch.no_grad()
    def test_the_loss_is_that_of_eigen_without_a_root(self, system: Any) -> None:
        """mean d^2 - 0.5 (mean d)^2 over all known pixels of the batch (specification, RefineDepthCLIP)."""
        batch = self.batch(system)
        depth = self.enlarged(system(batch.image).depth, batch.depth.shape[-2:]).double()
        d = (depth.log() - batch.depth.double().clamp(min=1e-3).log())[batch.mask]
        assert float(system.loss(batch)["total"]) == pytest.approx(
            float(d.square().mean() - d.mean() ** 2 / 2), rel=1e-3
        )

    def test_another_number_of_words_is_refused(self, system: Any) -> None:
        with pytest.raises(UsageError, match="made for 7 words"):
            system.use_prompts({"words": ["near", "far"], "bin_centers": [1, 3]})


# Training


@pytest.mark.filterwarnings("ignore:.*RANDOM")
@pytest.mark.parametrize("name", OPTIONS)
def test_a_short_training_lowers_the_loss_and_its_file_predicts_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    section = {"name": name, "options": OPTIONS[name], "prepare": {"clip_weights": "random"}}
    out, loaded = train_shortly(section, "mde-clip-reference", 1e-3, tmp_path, monkeypatch)
    start = checkpoint.load(out / "start.safetensors").state_dict()
    same = {key for key, value in loaded.state_dict().items() if torch.equal(value, start[key])}
    assert {key for key in start if key.startswith(("tower.", "word_bins."))} <= same
    assert not [
        key for key in same if key.startswith(("decoder.", "head.", "blocks.", "adapters.")) and "weight" in key
    ]


# Official checkpoints


def official(system: Any) -> dict[str, Tensor]:
    """The system's tensors as the authors' programs name them, their attention in PyTorch's own layout."""
    tensors = system.state_dict()
    names = {"tower.": "model.", "decoder.up.": "up_layer.", "head.": "last_layer_depth."}
    names |= {f"decoder.fuse.{level}.": f"conv_block.{level}.layer." for level in range(3)}
    if isinstance(system, MdeClip):
        names |= {ours: theirs for theirs, ours in system.OFFICIAL_HEAD.items()}
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        prefix = max((ours for ours in names if key.startswith(ours)), key=len, default=None)
        if prefix is not None:
            found[names[prefix] + key.removeprefix(prefix)] = value
    for level, attention in enumerate(system.decoder.attention):
        width, words = attention.query.in_features, attention.key.in_features
        usual = nn.MultiheadAttention(width, 1, kdim=words, vdim=words)
        query, key, value = attention.query, attention.key, attention.value
        with torch.no_grad():
            projections = query.weight, key.weight, value.weight
            if usual.in_proj_weight is None:
                for name, weight in zip("qkv", projections, strict=True):
                    getattr(usual, f"{name}_proj_weight").copy_(weight)
            else:
                usual.in_proj_weight.copy_(torch.cat(projections))
            usual.in_proj_bias.copy_(torch.cat([query.bias, torch.randn(width), value.bias]))
            usual.out_proj.load_state_dict(attention.output.state_dict())
        found |= {f"cross_att_list.{level}.layer.{name}": value for name, value in usual.state_dict().items()}
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the weights of a small CLIP."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = find_clip_weights("random", "RN-small", True)
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(weights.tensors, path)
    return path


@pytest.fixture
def trained(request: pytest.FixtureRequest, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A system with CLIP's words and other weights everywhere else."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(5)
    system = registry.build(request.param, OPTIONS[request.param])
    system.load_foundation(clip)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return system.eval()


@pytest.mark.parametrize("trained", ["mde-clip", "mde-clip-unet"], indirect=True)
def test_an_official_checkpoint_predicts_the_same(trained: Any, clip: Path, tmp_path: Path) -> None:
    theirs = official(trained)
    assert "cross_att_list.1.layer.in_proj_weight" in theirs  # as many channels as the words
    assert "cross_att_list.0.layer.q_proj_weight" in theirs
    torch.save({f"module.{key}": value for key, value in theirs.items()}, tmp_path / "model.pt")
    options = OPTIONS[trained.name]
    done = convert(tmp_path / "model.pt", trained.name, tmp_path / "ours.safetensors", options, clip_weights=clip)
    assert done.ignored == []
    assert set(done.used) == set(theirs)
    loaded = checkpoint.load(done.path)
    assert {"source": "converted from model.pt"}.items() <= loaded.provenance.items()
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(image).depth, trained(image).depth)


@pytest.mark.parametrize("trained", ["mde-clip"], indirect=True)
def test_without_a_position_table_a_fixed_random_one_stands_in(trained: Any, clip: Path, tmp_path: Path) -> None:
    theirs = official(trained)
    del theirs[POSITIONS]
    torch.save(theirs, tmp_path / "gpu.pt")
    tables = []
    for out in ("one.safetensors", "two.safetensors"):
        with pytest.warns(UserWarning, match="no position table .* seed 0"):
            convert(tmp_path / "gpu.pt", "mde-clip", tmp_path / out, SMALL_BINS, clip_weights=clip)
        tables.append(checkpoint.load(tmp_path / out).state_dict()["head.transformer.positions"])
    assert torch.equal(*tables)
    assert 0 <= tables[0].min() < 0.05 < 0.95 < tables[0].max() <= 1


@pytest.mark.parametrize("trained", ["mde-clip"], indirect=True)
def test_checkpoints_that_do_not_fit_cost_one_line(
    trained: Any, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = official(trained)
    cases: dict[str, tuple[dict[str, Tensor], list[str]]] = {
        "no tensor 'cross_att_list.0.layer.in_proj_bias'": ({"model.conv1.weight": torch.zeros(1)}, []),
        "give the CLIP weights (RN-small) that encode them with --clip-weights": (good, []),
        "'tower.conv1.weight' is (1, 3, 3, 3) float32, expected (8, 3, 3, 3)": (
            good | {"model.conv1.weight": torch.zeros(1, 3, 3, 3)},
            ["--clip-weights", str(clip)],
        ),
        "'decoder.attention.0.query.weight' is (2, 2) float32, expected (512, 512)": (
            good | {"cross_att_list.0.layer.q_proj_weight": torch.zeros(2, 2)},
            ["--clip-weights", str(clip)],
        ),
        "'decoder.attention.0.query.bias' is (1,) float32, expected (512,)": (
            good | {"cross_att_list.0.layer.in_proj_bias": torch.zeros(1)},
            ["--clip-weights", str(clip)],
        ),
        "no tensor 'cross_att_list.0.layer.k_proj_weight'": (
            {key: value for key, value in good.items() if key != "cross_att_list.0.layer.k_proj_weight"},
            ["--clip-weights", str(clip)],
        ),
        "none.pt: no such file": (good, ["--clip-weights", "none.pt"]),
    }
    options = [part for key, value in SMALL_BINS.items() for part in (f"--options.{key}", str(value))]
    for message, (tensors, more) in cases.items():
        torch.save(tensors, tmp_path / "model.pt")
        target = tmp_path / "ours.safetensors"
        code = cli.main(
            ["convert", str(tmp_path / "model.pt"), "--system", "mde-clip", "--out", str(target), *options, *more]
        )
        printed = capsys.readouterr().err
        assert (code, printed.count("\n")) == (1, 1), printed
        assert message in printed
        assert not target.exists()


def test_a_refine_checkpoint_holds_its_words_but_the_published_ones_no_decoder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    system: Any = registry.build("refine-clip", SMALL)
    system.load_foundation(clip)
    names = {f"blocks.{level}.": f"conv_block.{level}.conv." for level in range(3)}
    names |= {f"adapters.{level}.": f"adapter_list.{level}.fc." for level in range(4)}
    theirs = {f"clip.{key}": value for key, value in torch.load(clip, weights_only=True).items()}
    torch.save(theirs, tmp_path / "published.pt")
    with pytest.raises(CheckpointError, match=r"has no decoder .* neither trains nor saves it"):
        convert(tmp_path / "published.pt", "refine-clip", tmp_path / "ours.safetensors", SMALL)
    for key, value in system.state_dict().items():
        prefix = next((ours for ours in names if key.startswith(ours)), None)
        if prefix is not None:
            theirs[names[prefix] + key.removeprefix(prefix)] = value
    torch.save(theirs, tmp_path / "full.pt")
    done = convert(tmp_path / "full.pt", "refine-clip", tmp_path / "ours.safetensors", SMALL)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(done.path)(image).depth, system.eval()(image).depth)


@pytest.mark.parametrize("size", [(480, 640), (200, 300)])
def test_a_prediction_is_what_the_authors_write(size: tuple[int, int]) -> None:
    """Images of other sizes are brought to 480x640 first, and maps of 240x320 to 480x640, with aligned corners."""
    torch.manual_seed(0)
    system = with_words(registry.build("mde-clip", {"architecture": "RN-small"})).eval()
    photo = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    with torch.no_grad():
        image = nn.functional.interpolate(
            photo.permute(2, 0, 1)[None] / 255, (480, 640), mode="bilinear", align_corners=True
        )
        depth = system(image).depth
    assert depth.shape[-2:] == (240, 320)
    expected = nn.functional.interpolate(depth, size, mode="bilinear", align_corners=True)[0, 0]
    for window in (None, size):
        result = system.predict(photo.numpy(), window=window)
        torch.testing.assert_close(torch.from_numpy(result.depth), expected, rtol=1e-4, atol=1e-5)


def test_by_name_they_ask_for_trained_weights() -> None:
    for name in OPTIONS:
        with pytest.raises(CheckpointError, match=r"no trained weights|weights get mde-clip"):
            checkpoint.load(name, clip_weights="random")


@pytest.mark.parametrize("recipe", ["mde-clip-nyu", "refine-clip-nyu"])
def test_the_recipes_are_complete(recipe: str) -> None:
    found = read_recipe(load_recipe(recipe))
    assert (found.train.epochs, found.data.batch_size, found.optim.weight_decay) == (25, 16, 0)
    assert found.optim.lr == (3e-5 if recipe == "mde-clip-nyu" else 3e-3)
    assert found.data.augmentation.flip == (0.5 if recipe == "mde-clip-nyu" else 0)
    with torch.device("meta"):
        system = registry.build(found.system.name, found.system.options)
    assert system.input_spec.size == (480, 640)
