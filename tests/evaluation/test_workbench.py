"""The prompt workbench: maps per word, swaps, images, the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.cli import main
from langdepth.errors import UsageError
from langdepth.evaluation import workbench
from langdepth.systems import registry
from langdepth.systems.clip_system import ClipSystem

WORDS = "near,middling,far"
PROMPTS = {"words": WORDS.split(","), "bin_centers": [1.0, 2.0, 4.0]}


@pytest.fixture(scope="module")
def system() -> ClipSystem:
    torch.manual_seed(0)
    options = {"architecture": "RN-small", "area": 64 * 96, "prompts": PROMPTS}
    built = registry.build("depthclip", options)
    with pytest.warns(UserWarning, match="RANDOM"):
        built.load_foundation("random")
    return workbench.with_words(built.eval())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "wall.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


def test_the_maps_are_what_the_system_predicts(system: ClipSystem, photo: Path) -> None:
    maps = workbench.word_maps(system, workbench.encode_image(system, photo))
    assert maps.similarity.shape == maps.probability.shape == (3, 2, 3)
    assert maps.depth.shape == (2, 3)
    np.testing.assert_allclose(maps.probability.sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(maps.depth, np.einsum("khw,k->hw", maps.probability, [1, 2, 4]), rtol=1e-5)
    assert np.abs(maps.similarity).max() <= 1
    result = system.predict(photo)
    assert not isinstance(result, list)
    assert maps.depth.min() - 1e-4 <= result.depth.min()
    assert result.depth.max() <= maps.depth.max() + 1e-4


def test_the_table_has_a_line_per_word(system: ClipSystem, photo: Path) -> None:
    lines = workbench.word_maps(system, workbench.encode_image(system, photo)).table()
    assert [line.split()[0] for line in lines] == ["word", *WORDS.split(",")]


def test_swapping_a_word_changes_its_map_alone(system: ClipSystem, photo: Path) -> None:
    before = workbench.word_maps(system, workbench.encode_image(system, photo))
    try:
        with pytest.warns(UserWarning, match="RANDOM"):
            system.use_prompts(workbench.swapped(before.words, "far=distant"), "random")
        after = workbench.word_maps(system, workbench.encode_image(system, photo))
    finally:
        with pytest.warns(UserWarning, match="RANDOM"):
            system.use_prompts(PROMPTS, "random")
    np.testing.assert_allclose(after.similarity[:2], before.similarity[:2], atol=1e-5)
    assert np.abs(after.similarity[2] - before.similarity[2]).max() > 1e-4
    assert after.words == ("near", "middling", "distant")
    assert "on average" in workbench.difference(before, after)


@pytest.mark.parametrize(
    ("swap", "message"), [("far", "expected a word"), ("far=", "expected a word"), ("fat=x", "'far'")]
)
def test_swaps_that_make_no_sense_are_reported(swap: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--swap: .*{message}"):
        workbench.swapped(WORDS.split(","), swap)


def test_a_system_without_words_is_refused() -> None:
    with pytest.raises(UsageError, match="'eigen' does not compare with distance words"):
        workbench.with_words(registry.build("eigen", {"size": [32, 32], "hidden": 4}))


def test_the_command_writes_sheet_and_arrays(
    system: ClipSystem, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = system.save(tmp_path / "depthclip.safetensors")
    out = tmp_path / "words"
    arguments = ["prompts", str(photo), "--system", str(weights), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, "--swap", "far=distant", "--clip-weights", "random"]) == 0
    printed = capsys.readouterr().out
    assert "middling" in printed
    assert "far=distant: mean" in printed
    image = np.asarray(Image.open(out / "wall_words.png"))
    # image, depth, three words, the swap: two rows of four cells
    assert image.shape == (2 * (workbench.LINE + 213), 4 * workbench.CELL_WIDTH, 3)
    with np.load(out / "wall_words.npz") as arrays:
        assert list(arrays["words"]) == WORDS.split(",")
        assert arrays["similarity"].shape == (3, 2, 3)
    assert main([*arguments, "--clip-weights", "random"]) == 2
    assert "--clip-weights is of no use" in capsys.readouterr().err
    assert main([*arguments, "--scene", "kitchen"]) == 2
    assert "takes no scene" in capsys.readouterr().err
