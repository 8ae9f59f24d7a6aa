"""`cabins`: the shared tests, bins as prompts, what learns, official checkpoints, bad input."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from langdepth.backbones.clip import SMALL_ARCHITECTURES
from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.cabins.official import OFFICIAL_NAMES
from langdepth.systems.cabins.prompts import END, LENGTH, number_tokens, representatives
from langdepth.text.clip_text import tokenize
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.training.sampling import Sizes
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.systems.short_training import train_shortly
from tests.systems.tester import SystemTester

SMALL: dict[str, Any] = {"architecture": "RN-small", "area": 64 * 96, "bins": 32}


class TestCaBins(SystemTester):
    name = "cabins"
    options = SMALL
    image_size = (64, 96)
    enlarge = "bilinear-aligned"

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        torch.manual_seed(0)
        system = registry.build(self.name, self.options).eval()
        with torch.no_grad():
            for name, parameter in system.named_parameters():
                if name.endswith("bn3.weight"):  # where open_clip starts residual blocks from 0
                    parameter.fill_(1)
        return system

    def test_other_prompts_change_the_depth(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            system.gamma.fill_(1)
            system.decoder.start.weight[:, -8:].mul_(1000)
            system.head.weight.mul_(100)
            output = system(image)
            own = system.prompts(output.bin_centers)
            other = number_tokens(torch.full((2, 8), 4.27))
            assert torch.equal(system(image, own).depth, output.depth)
            assert torch.equal(system(image, own[..., :12].int()).depth, output.depth)  # without the padding
            assert (system(image, other).depth - output.depth).abs().max() > 1e-4
            assert torch.equal(system(image, torch.cat([own[:1], other[1:]])).depth[:1], output.depth[:1])

    def test_contexts_stand_between_the_start_and_the_number(self, system: Any) -> None:
        """A learned vector equal to a word's embedding reads as that word."""
        words = ["one", "two", "six", "four", "near", "far", "deep", "wide"]
        text = system.text_tower.transformer
        rows = tokenize([" ".join([*words, "4.27"])])
        with torch.no_grad():
            system.contexts.copy_(text.token_embedding(rows[0, 1:9]))
            features = system.encode(number_tokens(torch.tensor([[4.27]])))[0, 0]
            expected = system.text_tower(rows[:, :30] + 0, torch.zeros(1, text.width))[0]
        torch.testing.assert_close(features, expected)

    def test_depth_lies_between_the_first_and_the_last_centre(self, system: Any) -> None:
        with torch.no_grad():
            system.head.weight.mul_(1000)
            output = system(self.images(system))
        centers = output.bin_centers[:, :, None, None]
        assert (output.depth >= centers[:, :1] * 0.9999).all()
        assert (output.depth <= centers[:, -1:] * 1.0001).all()
        assert output.depth.max() > 2 * output.depth.min()

    def test_the_loss_is_that_of_the_paper(self, system: Any) -> None:
        batch = self.batch(system)
        batch.depth[0, :, :4] = 0.0005  # known, but below the limit
        batch.depth[1, :, :4] = 99.0  # beyond the last bin, and counts
        with torch.no_grad():
            output, found = system.eval()(batch.image), system.loss(batch)
        depth = self.enlarged(output.depth, batch.depth.shape[-2:]).double()
        known = batch.mask & (batch.depth > 0.001)
        d = (depth.log() - batch.depth.double().clamp(min=1e-9).log())[known]
        assert found["silog"].item() == pytest.approx(10 * math.sqrt(d.var() + 0.15 * d.mean() ** 2), rel=1e-5)
        each = []
        for centers, target, mask in zip(output.bin_centers, batch.depth, known, strict=True):
            squares = (centers[:, None] - target[mask][None]).square()
            each.append(squares.min(0).values.mean() + squares.min(1).values.mean())
        assert found["chamfer"].item() == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
        torch.testing.assert_close(found["total"], found["silog"] + 0.1 * found["chamfer"])
        system.config = replace(system.config, limit_target=True)
        far = replace(batch, depth=torch.where(batch.depth > 10, 50.0, batch.depth))
        assert system.loss(batch)["total"] == system.loss(far)["total"]

    def test_batch_norm_of_clip_learns_and_its_text_tower_does_not(self, system: Any) -> None:
        before = {name: value.clone() for name, value in system.state_dict().items()}
        optimiser = torch.optim.AdamW(system.parameter_groups(lr=1e-3, weight_decay=0.1))
        system.train().loss(self.batch(system))["total"].backward()
        optimiser.step()
        same = {name for name, value in system.state_dict().items() if torch.equal(value, before[name])}
        same = {name for name in same if not name.startswith("context_decoder.")}  # gamma makes its gradients tiny
        assert same == {name for name in before if name.startswith("text_tower.")}

    def test_clip_learns_at_a_tenth_of_the_rate(self, system: Any) -> None:
        groups = list(system.parameter_groups(lr=1.0, weight_decay=0.1))
        tower = {id(p) for p in system.tower.parameters()}
        for group in groups:
            assert all((id(p) in tower) == (group["lr"] == 0.1) for p in group["params"])


def test_reference_exact_trains_as_the_authors_do() -> None:
    """One rate for all, weight decay on everything, word embeddings learn; contexts and gamma never move."""
    torch.manual_seed(0)
    system: Any = registry.build("cabins", SMALL | {"reference_exact": True})
    groups = list(system.parameter_groups(lr=0.1, weight_decay=0.01))
    still, learning = ({id(p) for g in groups if (g["lr"] == 0) == zero for p in g["params"]} for zero in (True, False))
    assert still == {id(system.contexts), id(system.gamma)}
    assert {g["lr"] for g in groups} == {0.0, 0.1}
    assert {g["weight_decay"] for g in groups} == {0.01}
    assert id(system.text_tower.transformer.token_embedding.weight) in learning
    assert not system.text_tower.transformer.text_projection.requires_grad


def test_numbers_are_those_that_python_writes() -> None:
    draw = random.Random(0)
    depths = [0.001, 0.5, 0.6777, 4.27, 7.0, 65.966, 79.99999, 0.00105, 123456.75]
    depths += [draw.uniform(0.001, 80) for _ in range(500)]
    depths += [draw.randrange(1, 2**17) / 2**11 for _ in range(500)]  # among them halves of the last digit
    values = torch.tensor(depths, dtype=torch.float32)
    expected = tokenize([str(round(value, 4)) for value in values.tolist()])
    assert torch.equal(number_tokens(values[None])[0], expected[:, :LENGTH])
    assert number_tokens(torch.tensor([[4.27]]))[0, 0, :8].tolist() == [49406, 275, 269, 273, 278, END, 0, 0]


def test_a_group_is_represented_by_a_mean_that_favours_its_middle() -> None:
    centers = torch.tensor([[1.0, 2.0, 3.5, 4.0, 10.0, 20.0, 30.0, 44.0]])
    expected = []
    for group in centers[0].double().split(4):
        weights = (1 / ((group - group.mean()).abs() + 1e-4)).softmax(0)
        expected.append(float((weights * group).sum()))
    assert representatives(centers, 2)[0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["4.27"] * 2, "writes its own prompts and takes no sentences"),
        (torch.zeros(2, 8, 22), "takes no sentences or features"),
        (torch.zeros(2, 7, 22, dtype=torch.int64), r"\(2, 7, 22\); 'cabins' takes 8 prompts for each of 2 images"),
        (torch.zeros(8, 22, dtype=torch.int64), r"shape \(8, 22\)"),
        (torch.full((2, 8, 23), END), "prompts of 23 tokens are too long: 'cabins' takes 22"),
        (torch.zeros(2, 8, 22, dtype=torch.int64), f"and has its end token {END}"),
        (torch.full((2, 8, 22), END), "each prompt begins with 49406"),
        (torch.full((2, 8, 22), END + 1), f"token ids must be from 0 to {END}"),
    ],
)
def test_prompts_that_do_not_fit_are_one_line(text: Any, message: str) -> None:
    system = registry.build("cabins", SMALL)
    with pytest.raises(UsageError, match=message) as caught:
        system(torch.rand(2, 3, 64, 96), text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 5}, "got 32 bins and 5 groups"),
        ({"groups": 0}, "got 32 bins and 0 groups"),
        ({"contexts": 56}, "prompts of 78 tokens do not fit in CLIP's text tower, which takes 77"),
        ({"architecture": "ViT-small"}, "'ViT-small' has no attention pool; take a ResNet"),
        ({"min_depth": 10.0}, "0 < min_depth < max_depth"),
        ({"rim": 2}, "rim must be 0 or 1"),
        ({"contexts": -1}, "contexts must be 1 or more"),
        ({"clip_lr": -1.0}, "chamfer and clip_lr 0 or more"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message) as caught:
        registry.build("cabins", SMALL | options)
    assert "\n" not in str(caught.value)


def test_without_the_rim_the_decoder_keeps_its_size() -> None:
    for rim, height in ((1, 4), (0, 2)):
        system: Any = registry.build("cabins", SMALL | {"rim": rim})
        scores = torch.zeros(1, 8, 2, 3)
        last = torch.zeros(1, system.tower.channels[-1], 2, 3)
        assert system.decoder.start(torch.cat([last, scores], 1)).shape[2] == height


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_a_short_training_lowers_the_loss_and_its_file_predicts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"name": "cabins", "options": SMALL, "prepare": {"clip_weights": "random"}}
    train_shortly(section, "nyu-eigen", 1e-3, tmp_path, monkeypatch)


# Official checkpoints


def official(system: Any) -> dict[str, Tensor]:
    """A checkpoint as the authors write it, with the tensors of a system of ours."""
    tensors: dict[str, Tensor] = {}
    for key, value in system.state_dict().items():
        theirs, ours = next((old, new) for old, new in OFFICIAL_NAMES.items() if key.startswith(new))
        tensors[f"module.{theirs}{key.removeprefix(ours)}"] = value.clone()
    tensors["module.contexts"] = tensors["module.contexts"][None]
    tensors["module.clip_model.logit_scale"] = torch.tensor(4.6)
    return tensors


def written(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": tensors, "optimizer": {"state": {}}, "epoch": 3}, folder / "official.pt")
    return folder / "official.pt"


def test_an_official_checkpoint_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained: Any = registry.build("cabins-kitti", SMALL).eval()
    done = convert(written(official(trained), tmp_path), "cabins-kitti", tmp_path / "ours.safetensors", SMALL)
    assert done.ignored == ["clip_model.logit_scale"]
    assert done.assumed == {"max_depth": (80.0, "10 (NYU) or 80 (KITTI)")}
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(checkpoint.load(done.path)(image).depth, trained(image).depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "RN-other"}, r"not RN-other \('tower.layer1.1.conv1.weight' is missing"),
        ({"contexts": 4}, r"'contexts' are \(1, 8, 64\), expected \(4, 64\); the option 'contexts' is their number"),
        ({"groups": 4}, r"'decoder.start.weight' is \(512, 520, 1, 1\) float32, expected \(512, 516, 1, 1\)"),
        ({"bins": 64}, "'regressor.4.weight' is"),
    ],
)
def test_checkpoints_of_another_shape_are_one_line(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SMALL_ARCHITECTURES["RN-small"]
    other = {**small, "vision_cfg": {**small["vision_cfg"], "layers": [2, 1, 1, 1]}}
    monkeypatch.setitem(SMALL_ARCHITECTURES, "RN-other", other)
    file = written(official(registry.build("cabins", SMALL)), tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(file, "cabins", tmp_path / "ours.safetensors", SMALL | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_checkpoints_of_another_paper_are_one_line(tmp_path: Path) -> None:
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="is not one of 'cabins' \\(no tensor 'computeAdaptiveBin"):
        convert(tmp_path / "other.pt", "cabins", tmp_path / "ours.safetensors", SMALL)


@pytest.mark.parametrize(("recipe", "size"), [("cabins-nyu", (416, 544)), ("cabins-kitti", (352, 704))])
def test_the_recipes_are_the_published_ones(recipe: str, size: tuple[int, int]) -> None:
    found = read_recipe(load_recipe(recipe))
    with torch.device("meta"):
        system: Any = registry.build(found.system.name)
    assert Sizes(system.input_spec, found.data.aspects, found.data.crop).sizes == [size]
    assert (found.train.epochs, found.data.batch_size, found.optim.lr, found.optim.clip) == (25, 8, 3.57e-5, 0.1)
    assert found.optim.end_lr == pytest.approx(3.57e-5 / 2500)
    assert system.config.max_depth == (80 if recipe == "cabins-kitti" else 10)
