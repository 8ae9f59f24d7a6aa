"""`mirror-prompt`: the shared tests, the matrix and the frozen text tower, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from langdepth.errors import CheckpointError, UsageError
from langdepth.systems import registry
from langdepth.text.clip_text import ClipTextTower
from langdepth.weights import checkpoint
from tests.systems.short_training import train_shortly
from tests.systems.tester import SystemTester, totals_of_steps

SMALL: dict[str, Any] = {"architecture": "RN-small", "area": 64 * 96, "widths": (16, 8, 8)}


class MirrorTester(SystemTester):
    name = "mirror-prompt"
    image_size = (64, 96)
    enlarge = "bilinear-aligned"

    def test_the_matrix_learns_through_the_frozen_text_tower(self, system: Any) -> None:
        before = {name: value.clone() for name, value in system.state_dict().items()}
        read = system.condition().detach()
        batch = self.batch(system)
        system.train().loss(batch)["total"].backward()
        assert (system.mirror.grad.abs().sum(1) > 0).all()  # every row: the last position attends to all before it
        assert all(p.grad is None for p in (*system.tower.parameters(), *system.text_tower.parameters()))
        totals_of_steps(system, batch, lr=1e-2, weight_decay=0.0, steps=3)
        changed = {name for name, value in system.state_dict().items() if not torch.equal(value, before[name])}
        trained = {name for name, p in system.named_parameters() if not name.startswith(("tower.", "text_tower."))}
        assert changed == trained
        assert "mirror" in trained
        assert not torch.allclose(system.condition(), read)

    def test_depth_depends_on_what_the_text_tower_reads(self, system: Any) -> None:
        image = self.images(system)
        with torch.no_grad():
            system.mirror.mul_(50)
            depth, read = system(image).depth, system.condition()
            for change in (lambda: system.text_tower.transformer.positional_embedding.mul_(-5), system.mirror.neg_):
                change()
                assert not torch.allclose(system.condition(), read)
                assert (system(image).depth - depth).abs().max() > 1e-4
                depth, read = system(image).depth, system.condition()

    def test_a_matrix_of_word_embeddings_reads_as_the_words(self, system: Any) -> None:
        """CLIP's own feature is read at the end token; here it is the last row."""
        config, tokens = system.config, torch.tensor([[49406, 320, 1125, 539, 49407]])
        tower = ClipTextTower(config.architecture, quick_gelu=config.quick_gelu).eval()
        same = system.text_tower.transformer.state_dict()
        assert "token_embedding.weight" not in same  # a hundred megabytes that nothing reads
        positions = tower.transformer.positional_embedding.detach().clone()
        positions[: system.config.tokens] = same["positional_embedding"]
        tower.transformer.load_state_dict(same | {"positional_embedding": positions}, strict=False)
        with torch.no_grad():
            system.mirror = torch.nn.Parameter(tower.transformer.token_embedding(tokens)[0])
            expected = tower(tokens, torch.zeros(1, tower.transformer.width))
        torch.testing.assert_close(system.condition(), expected)


class TestMirrorPrompt(MirrorTester):
    options = SMALL


class TestMirrorPromptOfViT(MirrorTester):
    variant = True
    options = SMALL | {"architecture": "ViT-small"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 78}, "prompts of 78 tokens do not fit in CLIP's text tower, which takes 77"),
        ({"tokens": 0}, "prompts of 0 tokens do not fit"),
        ({"widths": ()}, "widths must be one or more multiples of 4"),
        ({"widths": (16, 6)}, r"multiples of 4, got \[16, 6\]"),
        ({"max_depth": 0.0}, "max_depth must be above 0"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message) as caught:
        registry.build("mirror-prompt", SMALL | options)
    assert "\n" not in str(caught.value)


def test_words_are_refused() -> None:
    system = registry.build("mirror-prompt", SMALL)
    for words in ({"text": ["a kitchen"]}, {"text": torch.zeros(1, 64)}, {"scene": ["kitchen"]}):
        with pytest.raises(UsageError, match="is learned; it takes no words and no scene"):
            system(torch.rand(1, 3, 64, 96), **words)


@pytest.mark.filterwarnings("ignore:.*RANDOM")
def test_a_short_training_lowers_the_loss_and_its_file_predicts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"name": "mirror-prompt", "options": SMALL, "prepare": {"clip_weights": "random"}}
    out, loaded = train_shortly(section, "nyu-eigen", 1e-2, tmp_path, monkeypatch)
    start = checkpoint.load(out / "start.safetensors").state_dict()
    same = {key for key, value in loaded.state_dict().items() if torch.equal(value, start[key])}
    assert same == {key for key in start if key.startswith(("tower.", "text_tower."))}


def test_clip_weights_of_another_tower_are_one_line(tmp_path: Path) -> None:
    system: Any = registry.build("mirror-prompt", SMALL)
    other: Any = registry.build("mirror-prompt", SMALL | {"architecture": "ViT-small"})
    tensors = {f"visual.{key}": value for key, value in other.tower.state_dict().items()}
    torch.save(tensors | other.text_tower.transformer.state_dict(), tmp_path / "clip.pt")
    with pytest.raises(CheckpointError) as caught:
        system.prepare_training(clip_weights=str(tmp_path / "clip.pt"))
    assert "RN-small" in str(caught.value)
    assert "\n" not in str(caught.value)
