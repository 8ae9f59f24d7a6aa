"""`space-clip` and its variants: the shared tests, the decoder's options, training, official checkpoints, bad input."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langdepth.config import to_mapping
from langdepth.data.tools.sample import write_sample
from langdepth.errors import CheckpointError, UsageError
from langdepth.prediction.arrays import resized_image
from langdepth.records import Sample
from langdepth.systems import registry
from langdepth.systems.space_clip import losses
from langdepth.systems.space_clip.official import TOWER
from langdepth.systems.space_clip.pipeline import training_images
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.training.run import train
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.helpers import logged
from tests.parity.keyed_weights import state_dict
from tests.parity.runner import DATA
from tests.systems.short_training import train_shortly
from tests.systems.tester import SystemTester

TOWER_SIZES = {"image_size": 32, "patch": 8, "width": 24, "layers": 3, "heads": 2, "mlp": 48}
SMALL: dict[str, Any] = {
    "tower": TOWER_SIZES,
    "size": [32, 32],
    "semantic_layers": [3, 2, 1],
    "structural_layers": [1, 0],
    "channels": [12, 8, 8],
    "film_width": 8,
    "losses": {"auxiliary": [0.1, 0.05]},
}
# The network of the golden case space_clip_small
GOLDEN: dict[str, Any] = {
    "tower": {"image_size": 64, "patch": 16, "width": 64, "layers": 12, "heads": 4, "mlp": 256},
    "size": [64, 64],
    "channels": [32, 24, 16, 8],
    "film_width": 16,
}


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return registry.build("space-clip", SMALL | options)


class SpaceClipTester(SystemTester):
    name = "space-clip"

    def test_only_the_decoder_learns(self, system: Any) -> None:
        frozen = {name.split(".")[0] for name, p in system.named_parameters() if not p.requires_grad}
        learned = {name.split(".")[0] for name, p in system.named_parameters() if p.requires_grad}
        assert frozen == {"tower"}
        assert "tower" not in learned


class TestSpaceClip(SpaceClipTester):
    options = SMALL


class TestSigLIP(SpaceClipTester):
    variant = True
    name = "space-clip-siglip"
    options = SMALL | {"tower": {"kind": "siglip", **TOWER_SIZES}}


class TestAnyShape(SpaceClipTester):
    """Without modulation, structural path, gates and auxiliary depths; the position table is interpolated."""

    variant = True
    options = SMALL | {
        "size": None,
        "area": 32 * 40,
        "interpolate_positions": True,
        "film": False,
        "structural_layers": [],
        "gates": False,
        "auxiliary": False,
    }
    graph_of_any_size = False

    def test_what_is_switched_off_has_no_tensors(self, system: Any) -> None:
        names = {name.split(".")[0] for name in system.state_dict()}
        assert names == {"tower", "semantic_projections", "semantic_blocks", "head"}
        assert not any("gate" in name for name in system.state_dict())


@torch.no_grad()
def test_images_of_other_sizes_are_resized_as_pillow_does() -> None:
    system = build().eval()
    levels = (255 * torch.rand(2, 3, 48, 70)).byte()
    square = resized_image(levels, (32, 32), "bicubic")
    assert torch.equal(system(levels / 255).depth, system(square / 255).depth)
    darker = (levels.float() - 0.6).clamp_min(0) / 255  # grey levels are rounded down, as in the official loader
    below = resized_image((levels.int() - 1).clamp_min(0).byte(), (32, 32), "bicubic")
    assert torch.equal(system(darker).depth, system(below / 255).depth)


def test_dropout_and_start() -> None:
    system = build(initial_depth=3.0)
    assert [head[-1].bias.item() for head in (system.head, *system.auxiliary_heads)] == [3.0] * 3
    assert build(initial_depth=None).head[-1].bias.item() != 3.0
    exact = build(reference_exact=True)
    assert (exact.config.masked_ssim, exact.config.initial_depth, exact.config.decay_vectors) == (False, None, True)
    (group,) = exact.parameter_groups(1e-3, 0.01)
    assert {id(p) for p in group["params"]} == {id(p) for p in exact.parameters() if p.requires_grad}
    x = torch.rand(1, 12, 4, 4)
    block = system.semantic_blocks[0].fuse[3].train()
    assert not torch.equal(block(x), block(x))


def test_the_loss_is_made_of_its_terms() -> None:
    weights = {"ssim": 0.3, "auxiliary": [0.2], "gradient": 0.4}
    system = build(losses=weights, max_depth=4.0, dropout=0.0).train()
    batch = TestSpaceClip().batch(system)
    terms = system.loss(batch)
    expected = 0.7 * terms["silog"] + 0.3 * terms["ssim"] + 0.4 * terms["gradient"] + terms["auxiliary"]
    torch.testing.assert_close(terms["total"], expected)
    stages = system.decode(system.frozen_features(batch.image))
    mask = batch.mask & (batch.depth < 4)
    parts = [head(x).clamp_min(1e-7) for head, x in zip(system.auxiliary_heads, stages, strict=False)]
    enlarged = [torch.nn.functional.interpolate(part, mask.shape[-2:], mode="bilinear") for part in parts]
    auxiliary = sum(0.2 * losses.silog(one, batch.depth, mask) for one in enlarged)  # the last weight holds for all
    torch.testing.assert_close(terms["auxiliary"], auxiliary)


def test_ssim_takes_holes_in_both_maps() -> None:
    target = 1 + 4 * torch.rand(1, 1, 24, 24)
    mask = torch.rand(target.shape) < 0.3
    sparse = torch.where(mask, target, 0)
    assert losses.ssim(target, sparse, mask, masked=True) < 1e-5
    assert losses.ssim(target, sparse, mask, masked=False) > 0.1


def test_training_images() -> None:
    make = training_images([(20, 30)])
    image = torch.arange(24 * 40 * 3, dtype=torch.uint8).view(3, 24, 40)
    depth = torch.rand(1, 24, 40)
    for size in ((20, 30), (48, 64)):  # cut, and enlarged
        torch.manual_seed(0)
        made = [make(Sample(image=image, depth=depth, mask=depth > 0), size) for _ in range(12)]
        assert {tuple(sample.image.shape[1:]) for sample in made} == {size}
        assert all(sample.image.min() >= 0 and sample.image.max() <= 1 for sample in made)
        assert all(set(sample.depth.unique().tolist()) <= {0.0, *depth.unique().tolist()} for sample in made)
        assert {sample.mirrored for sample in made} == {True, False}


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_training_lowers_the_loss_and_the_file_predicts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"name": "space-clip", "options": SMALL, "prepare": {"clip_weights": "random"}}
    _, loaded = train_shortly(section, "full", 3e-3, tmp_path, monkeypatch)
    assert loaded.provenance["tower"] == "random"
    loaded.prepare_training()  # continues without files


@pytest.mark.filterwarnings("ignore:.*(RANDOM|validation image)")
def test_its_own_images_and_cached_features_train_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    rooms = write_sample(tmp_path / "rooms", count=6, size=(48, 64))
    section = {"name": "space-clip", "options": SMALL, "prepare": {"clip_weights": "random"}}
    still = {"random_crop": False} | dict.fromkeys(
        ("zoom_probability", "rotate_probability", "colour_probability", "grey", "blur"), 0.0
    )
    for name, data in (
        ("own", {"pipeline": "space-clip", "crop": [40, 60]}),
        ("cached", {"cache": "features", "augmentation": still}),
    ):
        recipe = {
            "system": section,
            "data": {"root": rooms, "batch_size": 2, "workers": 0, **data},
            "optim": {"schedule": "cosine", "warm_up": 0.5, "end_lr": 1e-5},
            "train": {"out": tmp_path / name, "epochs": 1, "accelerator": "cpu", "log_every": 1, "previews": 0,
                      "ema": 0.9, "ema_warm_up": False, "protocol": "space-clip-nyu-reference"},
        }  # fmt: skip
        totals = logged(train(read_recipe(recipe)), "train/total")
        assert all(0 < total < 100 for total in totals)


# Official checkpoints


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    return state_dict(DATA / "space_clip_small.keys.json")


@pytest.mark.parametrize("layout", ["as pinned", "newer transformers", "older transformers", "bare, parallel"])
def test_checkpoints_convert(official: dict[str, Tensor], layout: str, tmp_path: Path) -> None:
    tensors = dict(official)
    if layout == "newer transformers":
        tensors = {name.replace(f"{TOWER}vision_model.", TOWER): value for name, value in tensors.items()}
    if layout == "older transformers":
        tensors[f"{TOWER}vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    content: Any = {"model": tensors, "optimizer": {"state": {}, "param_groups": []}, "epoch": 19}
    if layout == "bare, parallel":
        content = {f"module.{name}": value for name, value in tensors.items()}
    torch.save(content, tmp_path / "best_checkpoint.pt")
    done = convert(tmp_path / "best_checkpoint.pt", "space-clip", tmp_path / "ours.safetensors", GOLDEN)
    assert done.ignored == []
    assert len(done.used) == len(tensors)
    system: Any = checkpoint.load(done.path)
    assert to_mapping(system.config)["channels"] == [32, 24, 16, 8]
    wanted = official[f"{TOWER}vision_model.encoder.layers.4.self_attn.v_proj.weight"]
    assert torch.equal(system.tower.blocks[4].attn.in_proj_weight[128:], wanted)
    system.prepare_training()  # its tower is there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tower": GOLDEN["tower"] | {"width": 48}},
            r"holds another tower than a clip tower of 12 layers, 48 wide.*set ",
        ),
        ({"tower": GOLDEN["tower"] | {"layers": 13}}, r"blocks\.12\..*is missing\); set the option 'tower'"),
        ({"tower": GOLDEN["tower"] | {"kind": "siglip"}}, r"another tower than a siglip tower"),
        ({"channels": [32, 24, 16, 12]}, r"does not fit the system 'space-clip': .*\(8, 64, 1, 1\).*expected \(12, 64"),
    ],
)
def test_a_checkpoint_of_another_network_is_one_line(
    official: dict[str, Tensor], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save(official, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(tmp_path / "theirs.pt", "space-clip", tmp_path / "ours.safetensors", GOLDEN | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_another_checkpoint_is_one_line(tmp_path: Path) -> None:
    torch.save({"depth.weight": torch.ones(1)}, tmp_path / "theirs.pt")
    with pytest.raises(CheckpointError, match=r"not one of 'space-clip' \(no 'depth_prediction_head\.\*'\)"):
        convert(tmp_path / "theirs.pt", "space-clip", tmp_path / "ours.safetensors", GOLDEN)


# What the tower starts from


def tower_of(keys: str) -> dict[str, Tensor]:
    """The tower of a golden checkpoint under the names of transformers' models."""
    tensors = state_dict(DATA / keys)
    return {name.removeprefix(TOWER): value for name, value in tensors.items() if name.startswith(TOWER)}


def test_siglip_starts_from_a_file(tmp_path: Path) -> None:
    tensors = tower_of("space_clip_small_siglip.keys.json")
    torch.save(tensors | {"logit_bias": torch.zeros(1), "text_model.x": torch.zeros(1)}, tmp_path / "siglip.bin")
    system: Any = registry.build("space-clip-siglip", GOLDEN | {"tower": {"kind": "siglip", **GOLDEN["tower"]}})
    with pytest.raises(UsageError, match="needs a file of SigLIP's weights"):
        system.prepare_training()
    system.prepare_training(tmp_path / "siglip.bin")
    assert torch.equal(system.tower.pool.probe, tensors["vision_model.head.probe"])
    assert system.provenance["tower"] == "siglip.bin"
    torch.save(tower_of("space_clip_small.keys.json"), tmp_path / "clip.bin")
    other: Any = registry.build("space-clip-siglip", GOLDEN | {"tower": {"kind": "siglip", **GOLDEN["tower"]}})
    with pytest.raises(CheckpointError, match=r"clip\.bin: holds another tower than a siglip tower"):
        other.prepare_training(tmp_path / "clip.bin")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "nothing.bin")
    with pytest.raises(CheckpointError, match=r"nothing\.bin holds no image tower"):
        other.prepare_training(tmp_path / "nothing.bin")


def test_tower_of_another_architecture_is_one_line(tmp_path: Path) -> None:
    from tests.stand_ins import clip_archive

    path = clip_archive(tmp_path / "ViT-small.pt", "ViT-small")
    system: Any = registry.build("space-clip", GOLDEN | {"architecture": "ViT-small"})
    with pytest.raises(CheckpointError, match=r"ViT-small\.pt: holds another tower than a clip tower of 12 layers, 64"):
        system.prepare_training(path)


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"semantic_layers": [3, 2, 4]}, "semantic_layers: the tower has hidden states 0 to 3, not 4"),
        ({"structural_layers": [9]}, "structural_layers: the tower has hidden states 0 to 3, not 9"),
        ({"structural_layers": [-1]}, "hidden states 0 to 3, not -1"),
        ({"semantic_layers": [3, 2]}, "semantic_layers must be as many as channels, got 2 and 3"),
        ({"structural_layers": [0, 1, 2, 3]}, "structural_layers must be at most 3"),
        ({"size": [40, 32]}, "the tower takes 32 x 32 pixels, not 40 x 32; set interpolate_positions"),
        ({"size": None}, "the tower takes 32 x 32 pixels, not any size; set interpolate_positions"),
        ({"size": [36, 36]}, "size must be multiples of the patch, 8, got 36 x 36"),
        ({"tower": TOWER_SIZES | {"heads": 5}}, "tower.width 24 cannot be divided among 5 heads"),
        ({"tower": TOWER_SIZES | {"patch": 0}}, "tower.patch must be at least 1, got 0"),
        ({"tower": TOWER_SIZES | {"patch": 12}}, "tower.image_size 32 is no multiple of the patch, 12"),
        ({"max_depth": 0.0}, "0 < min_depth < max_depth is needed"),
        ({"losses": {"auxiliary": []}}, "losses.auxiliary must be one or more weights"),
        ({"losses": {"ssim": 3.0}}, "losses.ssim must be from 0 to 1, got 3.0"),
        ({"losses": {"gradient": -1.0}}, "losses.gradient must be 0 or more"),
        ({"losses": {"ssim": math.nan}}, "system.options.losses.ssim: expected a number, got nan"),
        ({"initial_depth": -5.0}, "initial_depth must be above 0"),
        ({"channels": [12, 8, 1]}, "channels must be 2 or more"),
        ({"freeze_clip_vision": False}, "unknown key 'system.options.freeze_clip_vision'"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=re.escape(message)) as caught:
        registry.build("space-clip", SMALL | options)
    assert "\n" not in str(caught.value)


def test_an_option_of_the_tower_keeps_the_others_of_its_preset() -> None:
    tower = registry.config("space-clip-siglip", {"tower": {"width": 384}}).tower
    assert (tower.kind, tower.width) == ("siglip", 384)


def test_levels_beyond_white_are_white() -> None:
    """A byte beyond 255 would start again at black."""
    system, white = build().eval(), torch.ones(1, 3, 40, 48)
    with torch.no_grad():
        assert torch.equal(system(1.01 * white).depth, system(white).depth)


def test_an_image_that_the_positions_do_not_fit_is_one_line() -> None:
    tower = build().tower
    with pytest.raises(UsageError, match="takes images of 32x32 pixels, not 40x24; set interpolate_positions"):
        tower(torch.rand(1, 3, 24, 40), [0])
    with pytest.raises(UsageError, match="takes no text or scene"):
        build()(torch.rand(1, 3, 32, 32), ["a room"])


@pytest.mark.parametrize(("name", "steps"), [("space-clip-nyu", 757), ("space-clip-kitti", 361)])
def test_the_published_recipes(name: str, steps: int) -> None:
    recipe = read_recipe(load_recipe(name))
    total = 20 * steps
    assert round(recipe.optim.warm_up * total) == steps
    assert (recipe.optim.lr, recipe.optim.end_lr, recipe.train.ema, recipe.train.epochs) == (1e-4, 1e-6, 0.996, 20)
    system: Any = registry.build(recipe.system.name, GOLDEN)
    assert system.config.max_depth == (10.0 if "nyu" in name else 80.0)
