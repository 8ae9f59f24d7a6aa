"""`prompt-clip` and its variants: the shared tests, the token mechanism, training, official checkpoints, bad input."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.text.clip_text import ClipTextTower, tokenize
from langdepth.text.learned_prompts import LearnedPrompts, PromptTokenizer, count_added
from langdepth.text.prompts import PromptSet, compose_prompts
from langdepth.training.recipe import load_recipe, read_recipe
from langdepth.training.sampling import Sizes
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.systems.test_depthclip import SMALL, WordsTester
from tests.systems.tester import totals_of_steps

VARIANTS = sorted(name for name in registry.REGISTRY if name.startswith("prompt-clip"))


class TestPromptClip(WordsTester):
    name = "prompt-clip"
    options = SMALL

    def test_only_the_tokens_train(self, system: Any) -> None:
        trained = {name: tuple(p.shape) for name, p in system.named_parameters() if p.requires_grad}
        assert trained == {"learned.vectors": (7, 64)}

    def test_the_norm_of_the_text_matrix_is_in_the_scale(self, system: Any) -> None:
        assert system.word_bins.logit_scale == pytest.approx(1000 / math.sqrt(7))

    def test_training_rewrites_the_text_matrix_and_prediction_never_runs_the_text_tower(
        self, system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch, image = self.batch(system), self.images(system)
        totals = totals_of_steps(system, batch, lr=1e-2, weight_decay=0.1, steps=8)
        assert totals[-1] < totals[0]
        system.save(tmp_path / "trained.safetensors")  # while it trains
        with torch.no_grad():
            words = system.encode()
        monkeypatch.setattr(ClipTextTower, "forward", None)
        loaded: Any = checkpoint.load(tmp_path / "trained.safetensors")
        torch.testing.assert_close(loaded.word_bins.text, words, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(loaded(image).depth, system.eval()(image).depth)

    def test_an_average_of_the_weights_gets_words_of_its_own(self, system: Any) -> None:
        twin = copy.deepcopy(system).train()
        with torch.no_grad():
            twin.learned.vectors.lerp_(torch.randn_like(twin.learned.vectors), 0.5)
            twin.word_bins.text.zero_()
        twin.eval()
        assert torch.equal(twin.word_bins.text, twin.encode())

    def test_bins_change_without_clip_weights_and_tokens_stay(self, system: Any) -> None:
        before = system.learned.vectors
        system.store_words()
        text = system.word_bins.text.clone()
        system.use_prompts({"bin_centers": [1, 2, 3, 4, 5, 6, 7]})
        assert system.learned.vectors is before
        assert torch.equal(system.word_bins.text, text)
        assert system.word_bins.bin_centers[0, -1] == 7
        with pytest.raises(UsageError, match=r"learned tokens \(depth 7\), the new sentences use others \(none\)"):
            system.use_prompts({"words": list("abcdefg")})


class TestFixedWords(WordsTester):
    variant = True
    name = "prompt-clip-size"
    options = SMALL
    trainable = False
    bf16_tolerance = 0.15

    def test_it_needs_no_text_tower(self, system: Any) -> None:
        assert system.zero_shot
        assert not any(name.startswith("text_tower") for name in system.state_dict())


class ImageWordsTester(WordsTester):
    """Words that follow from the image; an injected matrix takes their place."""

    bf16_tolerance = 0.2

    def test_an_injected_matrix_takes_the_place_of_the_words(self, system: Any) -> None:
        image = self.images(system)
        matrix = system.word_bins.text[0].clone()
        with torch.no_grad():
            assert not torch.equal(system(image, text=matrix).depth, system(image, text=matrix.flip(0)).depth)

    def test_the_published_norm_runs_over_the_batch(self, system: Any) -> None:
        exact: Any = registry.build(self.name, self.options | {"text_norm": "batch"})
        exact.load_state_dict(system.state_dict())
        image = self.images(system)
        with torch.no_grad():
            features = system.dense(image)
            ours, published = system.encode(features), exact.eval().encode(features)
        count = math.prod(ours.shape[:-2])
        assert count > 1
        torch.testing.assert_close(published * math.sqrt(count), ours)

    def test_words_differ_between_images(self, system: Any) -> None:
        with torch.no_grad():
            words = system.encode(system.dense(self.images(system)))
        assert (words[0] - words[1]).abs().max() > 1e-5


class TestImageDependent(ImageWordsTester):
    name = "prompt-clip-image-dependent"
    options = SMALL


class TestPatchObject(ImageWordsTester):
    variant = True
    name = "prompt-clip-patch"
    options = SMALL


class TestBothAtOnce(ImageWordsTester):
    variant = True
    name = "prompt-clip-patch"
    options = SMALL | {"image_dependent": True, "template": "4o4d"}


class TestFeatureDecoder(WordsTester):
    name = "prompt-clip-feature-decoder"
    options = SMALL


class TestLogitDecoder(WordsTester):
    variant = True
    name = "prompt-clip-logit-decoder"
    options = SMALL


class TestVit(WordsTester):
    variant = True
    name = "prompt-clip-vit"
    graph_of_any_size = False
    options = SMALL | {"architecture": "ViT-small"}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_predicts(name: str) -> None:
    torch.manual_seed(0)
    system: System = registry.build(name, SMALL).eval()
    assert len(registry.entry(name).summary) > 20
    with torch.no_grad():
        output = system(torch.rand(1, 3, 64, 96))
    config: Any = system.config
    assert output.bin_centers is not None
    assert output.bin_centers.shape[1] == len(config.prompts.words)
    near, far = config.prompts.bin_centers[0], config.prompts.bin_centers[-1]
    assert near * 0.999 <= output.depth.min()
    assert output.depth.max() <= far * 1.001
    rows = {"-half": 32, "-full": 64, "feature-decoder": 32, "-2x": 4, "-4x": 8, "logit-decoder": 64}
    height = next((rows[end] for end in rows if name.endswith(end)), 2)
    assert output.depth.shape[-2:] == (height, height * 3 // 2)


# Tokens


def test_added_tokens_are_numbered_in_the_order_of_their_groups() -> None:
    sentences = compose_prompts("1o2d", "learned", "learned-2", "even-2", (0.001, 10.0))
    final = [sentences.templates[0].replace("{}", word) for word in sentences.words]
    counts = count_added(final)
    assert counts == {"prompt": 3, "depth": 2, "object": 1}
    tokens = PromptTokenizer(counts)(final)
    assert tokens.shape == (2, 77)
    assert tokens[1, :8].tolist() == [49406, 49408, 49413, 49409, 49410, 49412, 49407, 0]
    # Another tokenizer beside it has ids of its own, and words are those of CLIP.
    assert PromptTokenizer({"depth": 1})(["<|depth_0|> far"])[0, :4].tolist() == [49406, 49408, 2384, 49407]
    assert torch.equal(PromptTokenizer({})(["It's far."]), tokenize(["It's far."]))


def test_a_vector_equal_to_a_words_embedding_reads_as_that_word() -> None:
    torch.manual_seed(0)
    tower = ClipTextTower("RN-small", quick_gelu=True).eval()
    words = ["this room is far", "a far wall"]
    plain = torch.nn.functional.normalize(tower(tokenize(words)), dim=-1)
    learned = LearnedPrompts(["this room is <|prompt_0|>", "a <|prompt_0|> wall"], 64)
    assert learned.tokens.shape == (2, 6)
    far = tower.transformer.token_embedding.weight[int(tokenize(["far"])[0, 1])]
    with torch.no_grad():
        learned.vectors.copy_(far)
        torch.testing.assert_close(learned(tower), plain)
        several = learned(tower, torch.stack([far[None], torch.zeros(1, 64)]).expand(3, 2, 1, 64))
    assert several.shape == (3, 2, 2, 256)
    torch.testing.assert_close(several[2, 0], plain)
    assert (several[2, 1] - plain).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "4o4"}, r"template '4o4' must have one \{depth\}.*did you mean '4o4d'"),
        ({"depth_words": "dept"}, "unknown depth_words 'dept': did you mean 'depth'"),
        ({"depth_words": "learned-20"}, "20 words but 7 bin_centers"),
        ({"depth_words": "learned-1", "bins": "even-1"}, "1 words; at least 2 are needed"),
        ({"depth_words": "learned-0", "bins": "even-7"}, "0 words but 7 bin_centers"),
        ({"bins": "evn-7"}, "unknown bins 'evn-7'"),
        ({"depth_range": [10, 1]}, "depth_range 10.0 to 1.0 must rise"),
        ({"prompts": {"words": [], "bin_centers": []}}, "0 words; at least 2"),
        ({"prompts": {"words": ["a", "a"], "bin_centers": [1, 2]}}, "appear twice"),
        ({"prompts": {"words": ["a", "b"], "bin_centers": [2, 1]}}, "bin_centers must rise"),
        ({"template": "{depth} <|prompt_0|> " + "very long " * 40}, "has 84 tokens with its start and end"),
        ({"template": "<|promt_0|> {depth}"}, "unknown learned token '<|promt_0|>': did you mean 'prompt'"),
        ({"template": "<|prompt_1|> {depth}"}, "'<|prompt_0|>' is not used"),
        ({"image_dependent": True, "depth_words": "depth"}, "image_dependent needs learned tokens"),
        ({"feature_stage": "ful"}, "unknown value 'ful': did you mean 'full'"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message.replace("|", r"\|").replace("'<", "'<")) as caught:
        registry.build("prompt-clip", SMALL | options)
    assert "\n" not in str(caught.value)


def test_parts_of_the_published_prompts() -> None:
    published = compose_prompts("paper-v1", "object", "learned-7", "even-7", (0.001, 10.0))
    assert published.templates == ("This object appears to be {}",)
    even = (0.7152, 2.1436, 3.5721, 5.0005, 6.4289, 7.8574, 9.2858)
    assert published.bin_centers == pytest.approx(even, abs=1e-4)
    log = compose_prompts("paper", "sofa", "colour", "log-7", (0.001, 80.0))
    assert log.templates == ("This sofa is {}",)
    assert log == compose_prompts("paper", "sofa", "colour", "log80-7", (0.001, 10.0))
    assert compose_prompts("paper", "object", "paper", "paper", (0.001, 10.0)) == PromptSet()


# Official checkpoints

OFFICIAL = {
    "text_tower.transformer.": "clip.",
    "tower.": "clip.visual.",
    "conditioner.": "img_f_2_txt_tkns.img_f_agg2tkndim.model.",
    "feature_stage.decoder.convs.": "post_img_feat_stage.decoder_block_list.",
    "logit_stage.decoder.convs.": "post_lang_corr_stage.decoder_block_list.",
}


def official(system: Any, suffix: str = "", prefix: str = "model.") -> dict[str, torch.Tensor]:
    """A checkpoint as the authors write it, with the tensors of a system of ours."""
    tensors = {}
    for key, value in system.state_dict().items():
        ours = next((start for start in OFFICIAL if key.startswith(start)), None)
        if ours is not None:
            tensors[f"{prefix}{OFFICIAL[ours]}{key.removeprefix(ours)}"] = value.clone()
    rows = iter(system.learned.vectors.detach().clone())
    for group, count in system.learned.counts.items():
        for i in range(count if group != "imgf" else 0):
            tensors[f"{prefix}extra_tkns_learnables_{group}.{i}{suffix}"] = next(rows)[None]
    tensors[f"{prefix}clip.logit_scale"] = torch.tensor(4.6)
    return tensors


def written(tensors: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save({"state_dict": tensors | {"data_augmentation.random_planckian_jitter.pl": torch.zeros(2)}}, folder / "x")
    return folder / "x"


@pytest.mark.parametrize("name", ["prompt-clip", "prompt-clip-logit-decoder", "prompt-clip-image-dependent"])
@pytest.mark.parametrize("suffix", ["", ".embeddings.weight"])
def test_official_checkpoints_of_both_ages(name: str, suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained: Any = registry.build(name, SMALL)
    trained.store_words()
    trained.eval()
    file = written(official(trained, suffix), tmp_path)
    done = convert(file, name, tmp_path / "ours.safetensors", SMALL)
    assert done.ignored == []
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(done.path)(image).depth, trained(image).depth)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prompt-clip-20", {}, "learned tokens depth 7, 'prompt-clip-20' has depth 20"),
        ("prompt-clip-depth", {}, "learned tokens depth 7, 'prompt-clip-depth' has none"),
        ("prompt-clip", {"architecture": "ViT-small"}, "is not ViT-small"),
        ("prompt-clip", {"feature_stage": "decoder-4"}, "'feature_stage.decoder.convs.0.weight' is missing"),
    ],
)
def test_checkpoints_of_another_variant_are_refused(
    name: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = written(official(registry.build("prompt-clip", SMALL)), tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(file, name, tmp_path / "ours.safetensors", SMALL | options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours.safetensors").exists()


def test_a_decoder_without_a_place_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoded = registry.build("prompt-clip", SMALL | {"logit_stage": "decoder-5"})
    file = written(official(decoded), tmp_path)
    with pytest.raises(CheckpointError, match="has no place for the checkpoint's 'post_lang_corr_stage"):
        convert(file, "prompt-clip", tmp_path / "ours.safetensors", SMALL)


def test_weights_of_another_system_name_the_first_tensors(tmp_path: Path) -> None:
    path = registry.build("prompt-clip", SMALL).save(tmp_path / "seven.safetensors")
    with pytest.raises(CheckpointError, match="no CLIP model in it"):
        convert(path, "prompt-clip-20", tmp_path / "ours.safetensors", SMALL)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_clip_weights_fill_both_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path))
    system: Any = registry.build("prompt-clip-4o4d", SMALL)
    system.prepare_training(clip_weights="random")
    assert torch.equal(system.word_bins.text, system.encode())
    before = system.word_bins.text.clone()
    system.prepare_training(clip_weights="nothing is read the second time")
    # Words between learned tokens may change, with the text tower that it has.
    system.use_prompts({"words": ["a", "b", "c", "d", "e", "f", "very distant"]})
    assert not torch.allclose(system.word_bins.text[0, 0], before[0, 0])
    torch.testing.assert_close(system.word_bins.text[0, -1], before[0, -1])


@pytest.mark.parametrize(("recipe", "size"), [("prompt-clip-nyu", (416, 544)), ("prompt-clip-kitti", (352, 704))])
def test_recipes_cut_images_of_the_published_size(recipe: str, size: tuple[int, int]) -> None:
    """From images at their own resolution; prediction and evaluation take them whole."""
    found = read_recipe(load_recipe(recipe))
    with torch.device("meta"):
        spec = registry.build(found.system.name).input_spec
    assert Sizes(spec, found.data.aspects, found.data.crop).sizes == [size]
