"""Tables of CLIP's scene features: encoded, written, read again, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from langdepth import cli
from langdepth.backbones.clip_weights import ClipWeights, find_clip_weights
from langdepth.errors import CheckpointError
from langdepth.text.clip_text import text_features
from langdepth.text.scene_table import encode_scenes, imagenet_templates, read_scene_table, write_scene_table
from langdepth.text.scenes import SCENES


@pytest.fixture(scope="module")
def weights() -> ClipWeights:
    with pytest.warns(UserWarning, match="RANDOM"):
        return find_clip_weights("random", "ViT-small", quick_gelu=False)


def test_rows_are_the_sentences_with_spaces(weights: ClipWeights) -> None:
    table = encode_scenes(weights)
    assert table.shape == (28, 64)
    torch.testing.assert_close(table[2:3], text_features(["a photo of a living room"], weights))
    torch.testing.assert_close(table.norm(dim=1), torch.ones(28))


def test_imagenet_templates_are_averaged(weights: ClipWeights) -> None:
    templates = imagenet_templates()
    assert len(templates) == 80
    some = templates[:3]
    each = [text_features([template.replace("{}", "cafe")], weights) for template in some]
    expected = F.normalize(torch.stack(each).mean(0), dim=-1)
    torch.testing.assert_close(encode_scenes(weights, ["cafe"], some), expected)


def test_what_is_written_is_read_by_name(weights: ClipWeights, tmp_path: Path) -> None:
    table = torch.rand(28, 64)
    write_scene_table(tmp_path / "t.safetensors", table, weights, SCENES, ["a {}"])
    assert torch.equal(read_scene_table(tmp_path / "t.safetensors", SCENES[:27], 64), table[:27])
    assert torch.equal(read_scene_table(tmp_path / "t.safetensors", ("cafe", "study"), 64), table[[17, 3]])
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert file.metadata()["architecture"] == "ViT-small"


@pytest.mark.parametrize(
    ("scenes", "width", "message"),
    [
        (SCENES, 768, "the features of CLIP ViT-small have 64 numbers, the system's scale queries 768"),
        (SCENES, 64, "has 2 scenes, and 'bathroom' is none of them"),
        (None, 64, "names 2 scenes, but its table has shape (3, 64)"),
    ],
)
def test_tables_that_do_not_fit(
    weights: ClipWeights, tmp_path: Path, scenes: tuple[str, ...] | None, width: int, message: str
) -> None:
    path = tmp_path / "t.safetensors"
    write_scene_table(path, torch.rand(2 if scenes else 3, 64), weights, ["printer_room", "cafe"], ["a {}"])
    with pytest.raises(CheckpointError) as error:
        read_scene_table(path, scenes or SCENES, width)
    assert message in str(error.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_scene_table(tmp_path / "gone.safetensors", SCENES, 64)
    save_file({"other": torch.rand(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("other", "text"):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: is no scene table"):
            read_scene_table(tmp_path / f"{name}.safetensors", SCENES, 64)


# The command


def test_list_and_encode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenes"]) == 0
    assert capsys.readouterr().out.splitlines()[17] == "17  cafe"
    path = tmp_path / "t.safetensors"
    arguments = ["--clip-weights", "random", "--architecture", "ViT-small", "--templates", "imagenet"]
    assert cli.main(["scenes", "encode", *arguments, "--out", str(path)]) == 0
    assert "28 scenes of 64 numbers, CLIP ViT-small (random)" in capsys.readouterr().out
    assert read_scene_table(path, SCENES, 64).shape == (28, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encode"], 2, "encode needs the weights of a CLIP model"),
        (["list", "--out", "x"], 2, "list takes no weights"),
        (["encode", "--clip-weights", "random", "--out", "x", "--architecture", "RN5"], 2, "unknown CLIP architecture"),
        (["encode", "--clip-weights", "gone.pt", "--out", "x", "--architecture", "ViT-small"], 1, "gone.pt"),
    ],
)
def test_mistakes_cost_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["scenes", *arguments]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()) == 1
