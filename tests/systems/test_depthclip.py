"""`depthclip`, `depthclip-vit`: the shared tests, words and bins, CLIP weights by name, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import card, registry
from langdepth.systems.base import System
from langdepth.systems.depthclip.model import DepthClip
from langdepth.text.prompts import PROMPT_SETS, PromptSet, find_prompts, read_changes
from langdepth.weights import checkpoint
from tests.helpers import LEARNER
from tests.systems.tester import SystemTester

SMALL = {"architecture": "RN-small", "area": 64 * 96}


def with_words(system: Any) -> Any:
    """A system whose text matrix is filled as CLIP weights would."""
    system.word_bins.text.copy_(F.normalize(torch.randn_like(system.word_bins.text), dim=-1))
    return system


class WordsTester(SystemTester):
    """For systems whose ``text`` is a (K, D) matrix of words."""

    image_size = (64, 96)
    enlarge = "bilinear-aligned"

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        torch.manual_seed(0)
        return with_words(registry.build(self.name, self.options)).eval()

    def test_an_injected_matrix_takes_the_place_of_the_words(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            own = system(image).depth
            matrix = system.word_bins.text[0].clone()
            assert torch.equal(system(image, text=matrix).depth, own)
            assert not torch.equal(system(image, text=matrix.flip(0)).depth, own)

    def test_a_matrix_of_the_wrong_shape_and_sentences_are_refused(self, system: Any) -> None:
        words, width = system.word_bins.text.shape[1:]
        for shape in ((words + 1, width), (words, width + 1), (width,), (2, words, width)):
            with pytest.raises(UsageError, match="one row per word"):
                system(self.images(system), text=torch.zeros(shape))
        with pytest.raises(UsageError, match="takes no sentence"):
            system(self.images(system), text=["a kitchen"] * 2)


class TestDepthClip(WordsTester):
    name = "depthclip"
    options = SMALL
    trainable = False

    def test_depth_is_what_the_words_say(self, system: Any) -> None:
        with torch.no_grad():
            output = system(self.images(system))
        assert output.bin_probs is not None
        assert output.bin_centers is not None
        expected = (output.bin_probs * output.bin_centers[..., None, None]).sum(1, keepdim=True)
        torch.testing.assert_close(output.depth, expected)
        assert 1 <= output.depth.min() <= output.depth.max() <= 3

    def test_cells_follow_from_the_image(self, system: Any) -> None:
        with torch.no_grad():
            for height, width in ((32, 32), (64, 160), (96, 64)):
                assert system.dense(torch.rand(1, 3, height, width)).shape[-2:] == (height // 32, width // 32)
        with pytest.raises(UsageError, match=r"31x64|64x31|smaller|cell"):
            system(torch.rand(1, 3, 31, 64))

    @pytest.mark.parametrize("mode", ["attnpool", "value", "proj"])
    def test_every_dense_mode_gives_depth(self, mode: str) -> None:
        other = with_words(registry.build(self.name, SMALL | {"dense_mode": mode})).eval()
        with torch.no_grad():
            self.check(other, other(self.images(other)), 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"dense_mode": "attnpol"},
                r"system\.options\.dense_mode: unknown value 'attnpol': did you mean 'attnpool'",
            ),
            ({"architecture": "RN5"}, r"unknown CLIP architecture 'RN5': did you mean 'RN50'"),
            ({"architecture": "ViT-small", "dense_mode": "attnpool"}, "attnpool"),
            ({"prompts": "depthclip-word-1"}, "unknown prompts 'depthclip-word-1': did you mean 'depthclip-words-1'"),
            ({"prompts": {"words": ["near", "far"]}}, "2 words but 7 bin_centers"),
        ],
    )
    def test_wrong_options_are_one_line(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message) as caught:
            registry.build(self.name, SMALL | options)
        assert "\n" not in str(caught.value)


class TestDepthClipViT(WordsTester):
    variant = True
    name = "depthclip-vit"
    graph_of_any_size = False
    options = {"architecture": "ViT-small", "area": 64 * 96}  # noqa: RUF012
    trainable = False

    def test_the_official_position_table_is_an_option(self, system: Any) -> None:
        exact = registry.build(self.name, self.options | {"reference_exact": True})
        assert exact.config.position_resize == "linear1d"
        exact.load_state_dict(system.state_dict())
        image = self.images(system)
        with torch.no_grad():
            assert not torch.equal(exact.eval()(image).depth, system(image).depth)


class TestDepthClipScenes(WordsTester):
    """Bins and words per scene: the shared tests then ask for scenes, too."""

    variant = True
    name = "depthclip"
    options = SMALL | {
        "prompts": {
            "scenes": {
                "bathroom": {"bin_centers": [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1]},
                "lecture hall": {"words": ["a", "b", "c", "d", "e", "f", "g"]},
            }
        }
    }
    trainable = False

    def test_scene_bins_bound_the_depth(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            near = system(image, scene=["bathroom", "lecture hall"]).depth
        assert near[0].max() <= 1.1
        assert near[1].min() >= 1


# Prompt sets


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"words": ("near", "far")}, "2 words but 7 bin_centers"),
        ({"words": ("near",), "bin_centers": (1.0,)}, "at least 2"),
        ({"words": ("near", "near"), "bin_centers": (1.0, 2.0)}, "appear twice"),
        ({"words": ("near", " "), "bin_centers": (1.0, 2.0)}, "must not be empty"),
        ({"words": ("near", "far"), "bin_centers": (2.0, 1.0)}, "must rise"),
        ({"words": ("near", "far"), "bin_centers": (0.0, 1.0)}, "above 0"),
        ({"words": ("near", "far"), "bin_centers": (1.0, float("nan"))}, "expected a number, got nan"),
        ({"templates": ("This object",)}, "place {} for the word"),
        ({"templates": ()}, "at least one"),
        ({"scenes": {"hall": {"bin_centers": (1.0, 2.0)}}}, "scene 'hall': 7 words but 2 bin_centers"),
        ({"scenes": {"hall": {"words": ("a", "b"), "bin_centers": (1.0, 2.0)}}}, "but the set has 7"),
        ({"wrds": ("a", "b")}, r"unknown key 'prompts\.wrds': did you mean 'words'"),
    ],
)
def test_prompt_sets_that_make_no_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PromptSet().changed(fields)


def test_published_prompt_sets() -> None:
    assert find_prompts("depthclip") == PromptSet()
    assert PROMPT_SETS["depthclip-bins-2"].bin_centers == (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
    assert PROMPT_SETS["depthclip-words-1"].words[2] == "middle"
    assert all(len(prompts.words) == 7 for prompts in PROMPT_SETS.values())


def test_own_prompts_from_options_and_files(tmp_path: Path) -> None:
    assert read_changes() == {}
    changes = read_changes(words="near, far", bins="1,3")
    assert PromptSet().changed(changes) == PromptSet(words=("near", "far"), bin_centers=(1.0, 3.0))
    file = tmp_path / "own.yaml"
    file.write_text("words: [near, far]\nbin_centers: [1, 3]\nscenes:\n  hall: {bin_centers: [2, 6]}\n")
    own = PromptSet().changed(read_changes(str(file)))
    assert own.variants() == [(("near", "far"), (1.0, 3.0)), (("near", "far"), (2.0, 6.0))]
    assert PromptSet().changed(read_changes("depthclip-bins-1")) == PROMPT_SETS["depthclip-bins-1"]
    for wrong in ({"bins": "1,x"}, {"prompts": "depthclp"}, {"prompts": str(tmp_path / "none.yaml")}):
        with pytest.raises(UsageError):
            read_changes(**wrong)


# CLIP weights


@pytest.fixture
def depthclip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> card.Entry:
    """``depthclip`` by name on a small architecture."""
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    entry = registry.entry("depthclip")
    small = card.Entry(**{**vars(entry), "preset": SMALL})
    monkeypatch.setitem(registry.REGISTRY, "depthclip", small)
    return small


@pytest.mark.usefixtures("depthclip")
class TestByName:
    def test_random_weights_warn_and_predict(self) -> None:
        with pytest.warns(UserWarning, match="RANDOM"):
            system = checkpoint.load("depthclip", clip_weights="random")
        assert isinstance(system, DepthClip)
        norms = system.word_bins.text.norm(dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms))

    @pytest.mark.filterwarnings("ignore:.*RANDOM")
    def test_own_words_and_bins(self, tmp_path: Path) -> None:
        changes = {"words": ["near", "far"], "bin_centers": [1, 4]}
        system: Any = checkpoint.load("depthclip", clip_weights="random", prompts=changes)
        assert system.word_bins.text.shape[:2] == (1, 2)
        path = system.save(tmp_path / "own.safetensors")
        loaded = checkpoint.load(path)
        assert torch.equal(loaded.word_bins.text, system.word_bins.text)  # type: ignore[arg-type, union-attr]
        # Other bins need no CLIP weights, also for a scene; other words do.
        farther = checkpoint.load(path, prompts={"bin_centers": [2, 8], "scenes": {"hall": {"bin_centers": [3, 9]}}})
        assert farther.scenes == ("hall",)
        assert torch.equal(farther.word_bins.text[1], system.word_bins.text[0])  # type: ignore[index, union-attr]
        other = checkpoint.load(path, clip_weights="random", prompts={"words": ["close", "far"]})
        assert not torch.equal(other.word_bins.text[0, 0], system.word_bins.text[0, 0])  # type: ignore[index, union-attr]
        assert torch.equal(other.word_bins.text[0, 1], system.word_bins.text[0, 1])  # type: ignore[index, union-attr]

    @pytest.mark.filterwarnings("ignore:.*RANDOM")
    def test_a_file_holds_its_own_weights(self, tmp_path: Path) -> None:
        path = checkpoint.load("depthclip", clip_weights="random").save(tmp_path / "own.safetensors")
        with pytest.raises(UsageError, match="holds all weights"):
            checkpoint.load(path, clip_weights="random")

    def test_weights_that_are_not_there_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="--clip-weights"):  # nobody publishes the small one
            checkpoint.load("depthclip")
        with pytest.raises(CheckpointError, match="no such file"):
            checkpoint.load("depthclip", clip_weights=tmp_path / "none.pt")


def test_offline_without_weights_the_wanted_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="wanted is") as caught:
        checkpoint.load("depthclip")
    assert "RN50" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_systems_without_clip_refuse_its_weights_and_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry.REGISTRY, LEARNER.name, LEARNER)
    path = registry.build(LEARNER.name).save(tmp_path / "learner.safetensors")
    with pytest.raises(UsageError, match="leave the CLIP weights out"):
        checkpoint.load(path, clip_weights="random")
    with pytest.raises(UsageError, match="no distance words"):
        checkpoint.load(path, prompts={"words": ["near", "far"]})
