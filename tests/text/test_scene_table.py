"""Tables of CLIP's scene features: encoded, written, read again, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from langdepth import cli
from langdepth.backbones.clip_weights import ClipWeights, find_clip_weights
from langdepth.errors import CheckpointError
from langdepth.text.clip_text import encode_sentences
from langdepth.text.scene_table import (
    check_same_clip,
    encode_scenes,
    imagenet_templates,
    read_scene_table,
    write_scene_table,
)
from langdepth.text.scenes import SCENES


@pytest.fixture(scope="module")
def weights() -> ClipWeights:
    with pytest.warns(UserWarning, match="RANDOM"):
        return find_clip_weights("random", "ViT-small", quick_gelu=False)


def test_rows_are_the_sentences_with_spaces(weights: ClipWeights) -> None:
    table = encode_scenes(weights)
    assert table.shape == (28, 64)
    torch.testing.assert_close(table[2:3], encode_sentences(["a photo of a living room"], weights))
    torch.testing.assert_close(table.norm(dim=1), torch.ones(28))


def test_imagenet_templates_are_averaged(weights: ClipWeights) -> None:
    templates = imagenet_templates()
    assert len(templates) == 80
    some = templates[:3]
    each = [encode_sentences([template.replace("{}", "cafe")], weights) for template in some]
    expected = F.normalize(torch.stack(each).mean(0), dim=-1)
    torch.testing.assert_close(encode_scenes(weights, ["cafe"], some), expected)


def test_what_is_written_is_read_by_name(weights: ClipWeights, tmp_path: Path) -> None:
    table = torch.rand(28, 64)
    write_scene_table(tmp_path / "t.safetensors", table, weights, SCENES, ["a {}"])
    found = read_scene_table(tmp_path / "t.safetensors", SCENES[:27], 64)
    assert torch.equal(found.rows, table[:27])
    assert (found.taken_for, found.architecture) == (None, "ViT-small")
    assert torch.equal(read_scene_table(tmp_path / "t.safetensors", ("cafe", "study"), 64).rows, table[[17, 3]])
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
    save_file({"other": torch.rand(2), "more": torch.rand(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    for name, problem in (("other", "is no scene table"), ("text", "is damaged, truncated or not")):
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: {problem}"):
            read_scene_table(tmp_path / f"{name}.safetensors", SCENES, 64)


# Published tables: a tensor without names


def write_tensor(table: torch.Tensor, path: Path) -> Path:
    """As ``path`` is named: .npy, .safetensors, or what torch.save writes."""
    if path.suffix == ".npy":
        np.save(path, table.numpy())
    elif path.suffix == ".safetensors":
        save_file({"class_embeddings": table}, path)
    else:
        torch.save({"embeddings": table} if path.suffix == ".pt" else table, path)
    return path


@pytest.mark.parametrize("name", ["class_embeddings.pth", "t.pt", "t.npy", "t.safetensors"])
@pytest.mark.parametrize("rows", [28, 27])
def test_a_tensor_without_names_is_taken_in_the_order_of_the_scenes(name: str, rows: int, tmp_path: Path) -> None:
    table = torch.rand(rows, 768)
    found = read_scene_table(write_tensor(table, tmp_path / name), SCENES[:27], 768)
    assert torch.equal(found.rows, table[:27])
    assert (found.taken_for, found.architecture) == (SCENES[:rows], None)
    half = read_scene_table(write_tensor(table.half(), tmp_path / name), ("cafe",), 768).rows
    assert half.dtype == torch.float32
    if rows == 27:
        with pytest.raises(CheckpointError, match="has 27 scenes, and 'outdoor_scene' is none of them"):
            read_scene_table(tmp_path / name, SCENES, 768)


@pytest.mark.parametrize("name", ["t.pth", "t.npy", "t.safetensors"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.rand(26, 64), "has 26 rows and names no scenes; a table without names has 28 rows, .* or 27"),
        (torch.rand(28, 63), "its features have 63 numbers, the system's scale queries 64"),
        (torch.rand(28), r"is a matrix of features, one row per scene, not torch.float32 \(28,\)"),
        (torch.ones(28, 64, dtype=torch.int64), "not torch.int64"),
        (
            torch.rand(28, 64).index_fill(0, torch.tensor(5), torch.nan),
            "of the scene 'study_room' is not finite or zero",
        ),
        (torch.rand(28, 64).index_fill(0, torch.tensor(0), 0), "of the scene 'printer_room' is not finite or zero"),
    ],
)
def test_tensors_that_are_no_tables(name: str, table: torch.Tensor, message: str, tmp_path: Path) -> None:
    path = write_tensor(table, tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_scene_table(path, SCENES, 64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["object", "cut", "text", "two", "large"])
@pytest.mark.parametrize("suffix", [".pth", ".npy"])
def test_damaged_tensors_cost_one_line(damage: str, suffix: str, tmp_path: Path) -> None:
    path = write_tensor(torch.rand(28, 64), tmp_path / f"t{suffix}")
    if damage == "object":  # runs no code
        pickled: Any = np.array([tmp_path], object)
        np.save(path, pickled) if suffix == ".npy" else torch.save(tmp_path, path)
    elif damage == "two":
        torch.save({"a": torch.rand(28, 64), "b": torch.rand(28, 64)}, path)
    elif damage == "large":
        with path.open("ab") as file:
            file.truncate(1 << 25)
    else:
        path.write_bytes(path.read_bytes()[:500] if damage == "cut" else b"hello")
    message = (
        "too large for a scene"
        if damage == "large"
        else "is no scene table|is not a scene table|is damaged, truncated or not a"
    )
    with pytest.raises(CheckpointError, match=message) as caught:
        read_scene_table(path, SCENES, 64)
    assert "\n" not in str(caught.value)


def test_another_clip_and_another_order_differ_from_another_sentence() -> None:
    torch.manual_seed(0)
    own = torch.randn(28, 64) + 2 * torch.randn(64)  # all names have much in common
    other_sentence = own + 0.3 * torch.randn(28, 64) + torch.randn(64)
    check_same_clip(other_sentence, own, SCENES, "t.pth", "CLIP X")
    with pytest.raises(CheckpointError, match=r"t\.pth: is of another CLIP than CLIP X, although as wide: .*ViT-L/14"):
        check_same_clip(torch.randn(28, 64) + 2 * torch.randn(64), own, SCENES, "t.pth", "CLIP X")
    with pytest.raises(CheckpointError, match=r"another order .*row 0, 'printer_room', is nearest .* 'outdoor_scene'"):
        check_same_clip(own.flip(0), own, SCENES, "t.pth", "CLIP X")


# The command


def test_list_and_encode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenes"]) == 0
    assert capsys.readouterr().out.splitlines()[17] == "17  cafe"
    path = tmp_path / "t.safetensors"
    arguments = ["--clip-weights", "random", "--architecture", "ViT-small", "--templates", "imagenet"]
    assert cli.main(["scenes", "encode", *arguments, "--out", str(path)]) == 0
    assert "28 scenes of 64 numbers, CLIP ViT-small (random)" in capsys.readouterr().out
    assert read_scene_table(path, SCENES, 64).rows.shape == (28, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encode"], 2, "encode needs the weights of a CLIP model"),
        (["list", "--out", "x"], 2, "list takes no options"),
        (["list", "--templates", "photo"], 2, "list takes no options"),
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
