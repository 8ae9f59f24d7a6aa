"""`rsa`, `vgld` and its variants: the shared tests, the base, maps from files, words, domains, losses, conversion."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth import cli
from langdepth.data.relative import maps_of, read_relative
from langdepth.errors import ImageError, UsageError
from langdepth.prediction.results import DepthResult
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.foreign import Foreign
from langdepth.weights import checkpoint
from tests.stand_ins import transformers_model
from tests.systems.tester import SystemTester

RANDOM = "ignore:.*RANDOM"


class Brightness:
    """A base: bright is near."""

    scale_kind = "disparity"

    def predict_depth(self, image: Tensor) -> Tensor:
        return 0.2 + image.mean(1, keepdim=True)


def based(name: str, options: dict[str, Any]) -> Any:
    """A system with a base, random CLIP weights, and a mean caption."""
    torch.manual_seed(0)
    system: Any = registry.build(name, options)
    system.use_base(Foreign(Brightness(), "brightness"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        system.read_with_clip("random")
    system.neutral_text.copy_(10 * torch.nn.functional.normalize(torch.randn(system.features), dim=0))
    return system.eval()


class RelativeScaleTester(SystemTester):
    """Files hold the head alone: who loads one names the base again."""

    @pytest.fixture(scope="class")
    def pristine(self) -> System:
        system: System = based(self.name, self.options)
        return system

    @pytest.fixture(autouse=True)
    def _with_base(self, pristine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        load = checkpoint.load

        def with_base(path: Path) -> Any:
            system: Any = load(path, base=Foreign(Brightness(), "brightness"))
            system.outside = pristine.outside
            return system

        monkeypatch.setattr(checkpoint, "load", with_base)

    def text_matrix(self, count: int = 2) -> Tensor:
        return 10 * super().text_matrix(count)

    def test_features_that_were_divided_by_their_norm_are_refused(self, system: Any) -> None:
        if self.text_columns is None:
            pytest.skip("takes no text")
        with pytest.raises(UsageError, match=r"have norm 1; .* give sentences instead"):
            system(self.images(system), text=self.text_matrix() / 10)

    def test_without_mean_caption_words_are_needed(self, system: Any) -> None:
        if self.text_columns is None:
            pytest.skip("takes no text")
        system.neutral_text.zero_()
        for text in (None, ["a kitchen", " "]):
            with pytest.raises(UsageError, match="needs a sentence about each image"):
                system(self.images(system), text=text)

    def test_only_the_head_is_saved_and_trained(self, system: Any, tmp_path: Path) -> None:
        assert system.save(tmp_path / "head.safetensors").stat().st_size < 6_000_000
        assert all(p.requires_grad for p in system.parameters())


class TestRsa(RelativeScaleTester):
    name = "rsa"
    options = {"architecture": "RN-small"}  # noqa: RUF012
    sentences = ("a kitchen with a sink", "a street with cars")
    text_columns = 256

    def test_the_published_heads_have_their_size(self) -> None:
        assert sum(p.numel() for p in registry.build("rsa-short").parameters()) == 804_354
        assert sum(p.numel() for p in registry.build("vgld-t").parameters()) == 789_126


class TestVgld(RelativeScaleTester):
    name = "vgld"
    options = {"architecture": "ViT-small"}  # noqa: RUF012
    sentences = ("a kitchen with a sink", "a street with cars")
    text_columns = 64


class TestVgldImage(RelativeScaleTester):
    name = "vgld-i"
    options = {"architecture": "ViT-small"}  # noqa: RUF012

    def test_words_are_refused(self, system: Any) -> None:
        with pytest.raises(UsageError, match="takes neither words nor scene"):
            system(self.images(system), text=["a kitchen"] * 2)


# Maps from files


def photo(path: Path, height: int = 48, width: int = 64) -> Path:
    """A photo whose left is dark and whose right is bright."""
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None].repeat(height, 0).repeat(3, 2)
    Image.fromarray(ramp).save(path)
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head with random weights on a small CLIP."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("head") / "rsa.safetensors"
    return registry.build("rsa", {"architecture": "RN-small"}).save(path)


PIXELS = np.zeros((2, 3, 3), np.uint8)
DISPARITY = np.array([[1, 2, 0], [4, 5, 6]], np.float32)


def test_maps_in_every_form_hold_the_same_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", DISPARITY)
    np.savez(tmp_path / "a.npz", depth=DISPARITY)
    Image.fromarray(DISPARITY.astype(np.uint16)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.npz", "a.png"):
        assert np.array_equal(read_relative(tmp_path / name, PIXELS, "disparity")[..., 0], DISPARITY)
    assert np.array_equal(read_relative(DISPARITY, PIXELS, "disparity")[..., 0], DISPARITY)
    inverse = read_relative(tmp_path / "a.npy", PIXELS, "relative")[..., 0]
    assert np.isnan(inverse[0, 2])
    assert inverse[1, 1] == np.float32(0.2)


def test_an_exr_holds_one_channel_or_one_called_z(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR")
    for name, channels in (("one", {"V": DISPARITY}), ("z", {"A": DISPARITY * 0, "Z": DISPARITY})):
        with exr.File({"type": exr.scanlineimage}, channels) as file:
            file.write(str(tmp_path / f"{name}.exr"))
        assert np.array_equal(read_relative(tmp_path / f"{name}.exr", PIXELS, "disparity")[..., 0], DISPARITY)
    with exr.File({"type": exr.scanlineimage}, {"A": DISPARITY, "B": DISPARITY}) as file:
        file.write(str(tmp_path / "two.exr"))
    (tmp_path / "cut.exr").write_bytes((tmp_path / "z.exr").read_bytes()[:200])
    for name, message in (("two", "has the channels A, B"), ("cut", "damaged or truncated")):
        with pytest.raises(ImageError, match=rf"{name}\.exr: {message}"):
            read_relative(tmp_path / f"{name}.exr", PIXELS, "disparity")


@pytest.mark.parametrize("kind", ["relative", "disparity"])
def test_results_of_predict_say_what_they_hold(tmp_path: Path, kind: str) -> None:
    result = DepthResult(depth=DISPARITY, valid=DISPARITY > 0, system="x", unit="relative", scale_kind=kind)
    for name in ("a.npz", "a_depth.png"):
        result.save(tmp_path / name)
        other: Any = "disparity" if kind == "relative" else "relative"
        found = read_relative(tmp_path / name, PIXELS, other)[..., 0]
        wanted = np.where(DISPARITY > 0, 1 / np.maximum(DISPARITY, 0.1), np.nan) if kind == "relative" else DISPARITY
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_maps_of_another_size_and_of_8_bits_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", DISPARITY[:, :2])
    Image.fromarray(DISPARITY.astype(np.uint8)).save(tmp_path / "coarse.png")
    for name, message in (
        ("small.npy", "is 2x2, its image 3x2; resize the map"),
        ("coarse.png", "8 bits hold 256 steps"),
        ("none.npy", "no such file"),
    ):
        with pytest.raises(ImageError, match=message):
            read_relative(tmp_path / name, PIXELS, "disparity")


def test_a_folder_of_weights_is_a_system_and_no_folder_of_maps(tmp_path: Path, head: Path) -> None:
    (tmp_path / "maps").mkdir()
    assert maps_of(str(tmp_path / "maps")) == tmp_path / "maps"
    assert maps_of("photo.npy") == Path("photo.npy")
    assert [maps_of(name) for name in (None, str(head.parent), str(head), "tiny", "transformers:a/b")] == [None] * 5


# From the command line


@pytest.mark.filterwarnings(RANDOM)
def test_a_model_and_its_own_maps_are_the_same_base(
    head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = photo(tmp_path / "photo.png")
    transformers_model("depth_anything", tmp_path / "model")
    model = f"transformers:{tmp_path / 'model'}"
    words = ["--text", "a kitchen", "--clip-weights", "random", "--save", "npz"]
    asked = ["predict", str(image), "--system", str(head), *words]
    assert cli.main(["predict", str(image), "--system", model, "--save", "npz", "--out", str(tmp_path / "maps")]) == 0
    found = []
    for base in (model, str(tmp_path / "maps"), str(tmp_path / "maps" / "photo.npz")):
        assert cli.main([*asked, "--base", base, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
        with np.load(tmp_path / "out" / "photo.npz") as result:
            assert '"scale_kind": "metric"' in str(result["metadata"])
            found.append(result["depth"])
    assert np.ptp(found[0]) > 0
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.filterwarnings(RANDOM)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs a relative map beside every image; name what makes it with --base"),
        ("--base tiny", "needs a sentence about each image: --text, or --captions"),
        ("--base tiny --overlay x --text a", "--overlay and --base are for different systems"),
        ("--base maps --text a --clip-weights random", "photo.png: its relative map .*maps/photo.npy"),
        ("--system tiny --base tiny", "makes its own depth maps; leave the base out, or choose another system: rsa"),
        ("--base tiny --depth-kind metric --text a", "knows what its numbers are"),
    ],
)
def test_what_is_missing_costs_one_line(
    head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: str, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps").mkdir()
    photo(tmp_path / "photo.png")
    system = [] if "--system" in options else ["--system", str(head)]
    assert cli.main(["predict", "photo.png", *system, *options.split(), "--out", "out"]) in (1, 2)
    error = capsys.readouterr().err
    assert pytest.approx(1) == len([line for line in error.splitlines() if "warning" not in line])
    import re

    assert re.search(message, error), error
    assert not list((tmp_path / "out").glob("photo*"))
