"""``langdepth imagine``: depth from words alone, on a small WorDepth whose encoder must not run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from langdepth.commands.imagine import file_names
from langdepth.errors import UsageError
from langdepth.prediction import viz
from langdepth.prediction.imagination import imagine
from langdepth.prediction.options import ColorScale
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.capabilities import Imagines
from langdepth.systems.wordepth.model import WorDepth, WorDepthConfig
from langdepth.utils.depth_files import read_depth16
from tests.helpers import Run

WORDS = ("a", "bedroom", "bed", "street", "with")


def small(**options: object) -> WorDepth:
    torch.manual_seed(0)
    config = WorDepthConfig(
        encoder="efficientnet-lite0",
        resolution=(64, 96),
        widths=(16, 12, 8),
        latent=8,
        vocabulary=WORDS,
        **options,  # type: ignore[arg-type]
    )
    system = WorDepth(config)
    system.name = "wordepth-tiny"

    def never(image: torch.Tensor) -> list[torch.Tensor]:
        raise AssertionError("the image's encoder ran")

    system.encoder.forward = never  # type: ignore[method-assign]
    return system.eval()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: small())
    return partial(command, "imagine", "--device", "cpu")


@pytest.mark.parametrize("other", ["sheet.png", "a-street_1.npy", "a-street_1_depth.png"])
def test_files_of_others_are_not_replaced(run: Run, other: str) -> None:
    command = ["a street", "--samples", 1, "--size", "64x96", "--save", "depth16,npy"]
    for _ in range(2):
        assert run(*command)[0] == 0
    Path("imagined", other).write_text("of somebody else")
    code, _, err = run(*command)
    assert code == 1
    assert err.startswith(f"langdepth imagine: imagined/{other} exists and was not written by langdepth")
    assert Path("imagined", other).read_text() == "of somebody else"


def test_words_to_files(run: Run) -> None:
    command = ["a bedroom with a bed", "a street", "--samples", 2, "--size", "64x96", "--save", "depth16,npy,color,ply"]
    code, out, err = run(*command, "--out", "a")
    assert code == 0
    assert "a street -> a/a-street_*; mean depth of the samples" in out
    assert "camera: unknown, taken as 60 degrees across the longer side, for 4 images; give --camera" in err
    names = sorted(path.name for path in Path("a").iterdir())
    bases = [f"{base}_{n}" for base in ("a-bedroom-with-a-bed", "a-street") for n in (1, 2)]
    ends = ("_depth.png", ".npy", "_color.png", ".ply")
    assert names == sorted([*(base + end for base in bases for end in ends), "sheet.png"])
    metres = np.load("a/a-street_1.npy")
    assert metres.shape == (64, 96)
    np.testing.assert_allclose(read_depth16("a/a-street_1_depth.png")[0], metres, atol=6e-4)
    assert not np.array_equal(metres, np.load("a/a-street_2.npy"))
    assert not np.array_equal(metres, np.load("a/a-bedroom-with-a-bed_1.npy"))
    assert b"property uchar red" in Path("a/a-street_1.ply").read_bytes()[:400]

    assert run(*command, "--out", "b")[0] == 0
    assert [Path("b", name).read_bytes() for name in names] == [Path("a", name).read_bytes() for name in names]
    assert run("a street", "--samples", 1, "--size", "64x96", "--save", "npy", "--seed", 1, "--out", "c")[0] == 0
    assert not np.array_equal(metres, np.load("c/a-street_1.npy"))


def test_the_size_follows_the_system_and_the_sheet_has_a_row_per_prompt(run: Run) -> None:
    assert run("a bed", "--samples", 3, "--save", "npy")[0] == 0
    assert np.load("imagined/a-bed_1.npy").shape == small().input_spec.network_size(480, 640)
    with Image.open("imagined/sheet.png") as one:
        size = one.size
    assert run("a bed", "a street", "--samples", 3, "--save", "npy", "--out", "two")[0] == 0
    with Image.open("two/sheet.png") as two:
        assert two.size == (size[0], 2 * size[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["  "], "a prompt is empty; describe a scene"),
        (["colourless green ideas"], "none of its words is known"),
        (["a bed", "--size", "60x96"], "a depth map of 96 x 60 is not possible; take multiples of 32"),
        (["a bed", "--size", "big"], "--size: expected HEIGHTxWIDTH"),
        (["a bed", "--samples", "0"], "samples must be at least 1, got 0"),
        (["a bed", "--samples", "30000000"], "samples must be at most 1000, got 30000000"),
        (["a bed", "--size", "100000x100000"], "a depth map of 100000 x 100000 is above 16 megapixels"),
        (
            ["a bed", "--samples", "1000", "--size", "3200x3200"],
            "1000 samples of 3200 x 3200 do not fit in memory; at most 9",
        ),
        (["a bed", "--save", "jpg"], "--save: unknown format 'jpg'"),
        (["a bed", "--fov", "400"], "field of view"),
    ],
)
def test_wrong_use_costs_one_line(run: Run, arguments: list[str], message: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("imagined").exists()


def test_a_sentence_that_cannot_be_drawn_does_not_end_the_others(run: Run) -> None:
    code, out, err = run("a bed", "colourless green ideas", "a street", "--samples", 1, "--save", "npy")
    assert (code, err.count("\n")) == (1, 1)
    assert "'colourless green ideas': none of its words is known" in err
    assert "all of them: imagined/sheet.png" in out
    assert sorted(path.name for path in Path("imagined").iterdir()) == ["a-bed_1.npy", "a-street_1.npy", "sheet.png"]


def test_maps_are_drawn_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    system = small()
    whole = imagine(system, "a bed", samples=5)
    network, sizes = type(system).imagine, []

    def counted(self: WorDepth, text: list[str], noise: torch.Tensor) -> object:
        sizes.append(len(noise))
        return network(self, text, noise)

    monkeypatch.setattr(type(system), "imagine", counted)
    monkeypatch.setattr("langdepth.prediction.sampling._AT_ONCE", 2 * whole[0].depth.size)
    parts = imagine(system, "a bed", samples=5)
    assert sizes == [2, 2, 1]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one.depth, other.depth, rtol=1e-5)


def test_unknown_words_are_named(run: Run) -> None:
    code, _, err = run("a bed with gryphons", "--save", "npy", "--samples", 1)
    assert code == 0
    assert "unknown words are ignored: gryphons" in err


def test_systems_that_cannot_name_those_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    able = {name for name in registry.list_systems() if issubclass(registry.entry(name).system_class(), Imagines)}
    assert able
    assert "tiny" not in able
    with pytest.raises(UsageError, match=r"'tiny' draws no depth from words; choose another system: wordepth"):
        imagine(registry.build("tiny"), "a bed")
    with pytest.raises(UsageError, match="they give no depth without one"):
        imagine(small(skip_mode="always"), "a bed")
    system: System = small()
    torch.nn.init.constant_(system.get_parameter("head.bias"), torch.nan)
    with pytest.raises(Exception, match=r"gave depth that is not finite .* lower optim\.lr"):
        imagine(system, "a bed")


def test_names_are_short_and_differ() -> None:
    assert file_names(["A bed!", "a bed", "日本", "x" * 100]) == ["a-bed", "a-bed-2", "prompt", "x" * 60]


def test_a_stated_range_and_color_map(run: Run) -> None:
    """From 0 on, too, though the sheet's colors are logarithmic."""
    command = ["a street", "--samples", 1, "--size", "64x96", "--save", "npy,color", "--out", "a"]
    assert run(*command, "--range", "0,10", "--colormap", "viridis")[0] == 0
    colors, depth = ColorScale(minimum=0, maximum=10, colormap="viridis"), np.load("a/a-street_1.npy")
    with Image.open("a/a-street_1_color.png") as image:
        np.testing.assert_array_equal(np.asarray(image), viz.color_with_legend(depth, depth > 0, colors))
    with Image.open("a/sheet.png") as image:
        np.testing.assert_array_equal(
            np.asarray(image), viz.maps_sheet([("a street  (seed 0)", [depth])], colors=colors)
        )


def test_maps_of_a_sentence_share_one_range() -> None:
    near, far = np.full((40, 60), 1.0, np.float32), np.full((40, 60), 9.0, np.float32)
    sheet = viz.maps_sheet([("both", [near, far])], cell_width=60)
    row = sheet[40]
    assert row[10].sum() > 500  # near is bright
    assert row[100].sum() < 100  # far is dark
    alone = viz.maps_sheet([("far", [far, 2 * far])], cell_width=60)
    both = [("both", [near, far]), ("far", [far, 2 * far])]
    np.testing.assert_array_equal(viz.maps_sheet(both, cell_width=60)[len(sheet) :], alone)  # a room beside a street
    stated = viz.maps_sheet(both, cell_width=60, colors=ColorScale(minimum=1, maximum=20))
    assert (stated[len(sheet) + 40, 10] == stated[40, 100]).all()
    with pytest.raises(UsageError, match="same number of maps"):
        viz.maps_sheet([("a", [near]), ("b", [near, far])])
