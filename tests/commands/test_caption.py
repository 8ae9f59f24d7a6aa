"""``langdepth data caption``: a tiny image-to-text model with random weights, from folder to CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from langdepth.cli import main
from langdepth.data.tools import captioner
from langdepth.data.tools.captioner import as_sentence, write_captions
from langdepth.errors import LangdepthError, UsageError
from langdepth.text.captions import read_captions
from tests.helpers import ramp, save_image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images in two folders, and one damaged."""
    root = tmp_path / "photos"
    for number in range(3):
        save_image(root / f"room_{number % 2}" / f"{number}.jpg", ramp(64, 48, seed=number))
    (root / "room_0" / "bad.jpg").write_bytes(b"no image")
    return root


def below(root: Path) -> list[Path]:
    return sorted(file.relative_to(root) for file in root.rglob("*.jpg"))


def save_tiny_model(folder: Path) -> Path:
    """A vision-encoder-decoder of a few thousand weights that knows six words."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(("<pad>", "<end>", "a", "room", "with", "chairs"))}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<end>", bos_token="<end>", unk_token="<pad>"
    )
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    vision = transformers.ViTConfig(image_size=32, patch_size=16, **sizes)
    language = transformers.GPT2Config(
        vocab_size=6, n_positions=40, n_embd=8, n_layer=1, n_head=2, add_cross_attention=True, is_decoder=True
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vision, language)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 0, 1
    torch.manual_seed(0)
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=2, pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_folder_of_images_to_captions(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, out = save_tiny_model(tmp_path / "model"), tmp_path / "captions.csv"
    command = ["data", "caption", str(photos), "--model", str(model), "--out", str(out), "--device", "cpu"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "bad.jpg" in printed.err
    assert "3 captions written, 1 images failed" in printed.out
    captions = read_captions(out)
    assert [caption.image for caption in captions] == ["room_0/0", "room_0/2", "room_1/1"]
    assert all(caption.sentence.startswith("A") and caption.sentence.endswith(".") for caption in captions)
    assert main(command) == 2
    assert "exists; continue it with --resume" in capsys.readouterr().err


def test_what_is_there_is_kept_and_the_rest_described(photos: Path, tmp_path: Path) -> None:
    seen = []

    def describe(images: Sequence[np.ndarray]) -> list[str]:
        seen.append(len(images))
        return ["A room."] * len(images)

    out = tmp_path / "captions.csv"
    out.write_text("image,caption\nroom_0/0.jpg,Kept.\n")
    outcomes = list(write_captions(photos, out, describe, below(photos), batch_size=2, resume=True))
    assert sum(isinstance(outcome, LangdepthError) for outcome in outcomes) == 1
    assert seen == [1, 1]  # one of the first two is damaged
    with out.open(newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["room_0/0.jpg", "Kept."], ["room_0/2.jpg", "A room."], ["room_1/1.jpg", "A room."]
        ]  # fmt: skip


def test_an_interrupted_run_keeps_what_it_has(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner, "SAVE_EVERY", 1)
    (photos / "room_0" / "bad.jpg").unlink()
    count = iter(range(9))

    def describe(images: Sequence[np.ndarray]) -> list[str]:
        if next(count) == 2:
            raise KeyboardInterrupt
        return ["A room."]

    out = tmp_path / "captions.csv"
    with pytest.raises(KeyboardInterrupt):
        list(write_captions(photos, out, describe, below(photos), batch_size=1))
    assert len(read_captions(out)) == 2


def test_wrong_use(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    command = ["data", "caption", str(photos), "--out", str(tmp_path / "c.csv"), "--model"]
    assert main([*command, str(tmp_path / "empty")]) == 1
    err = capsys.readouterr().err
    assert "empty: not an image-to-text model of transformers" in err
    assert err.count("\n") == 1
    with pytest.raises(UsageError, match="batch size must be at least 1"):
        list(write_captions(photos, tmp_path / "c.csv", lambda images: [], below(photos), batch_size=0))
    silent = list(write_captions(photos, tmp_path / "c.csv", lambda images: [""] * len(images), below(photos)))
    assert all(isinstance(outcome, LangdepthError) for outcome in silent)
    assert not (tmp_path / "c.csv").exists()


def test_sentences_are_like_the_published_ones() -> None:
    assert as_sentence(" a room  with chairs . ") == "A room with chairs."
    assert as_sentence(" . ") == ""
