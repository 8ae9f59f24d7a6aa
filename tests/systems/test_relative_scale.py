"""`rsa`, `vgld` and its variants: the shared tests, the base, maps from files, words, domains, losses, conversion."""

from __future__ import annotations

import csv
import json
import re
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
from langdepth.errors import CheckpointError, ImageError, UsageError
from langdepth.evaluation.matrix import fingerprint
from langdepth.prediction.results import DepthResult
from langdepth.records import Batch
from langdepth.systems import registry
from langdepth.systems.base import System
from langdepth.systems.foreign import Foreign
from langdepth.systems.rsa.official import OFFICIAL_NAMES as RSA
from langdepth.systems.vgld.blocks import domains_of, fitted
from langdepth.systems.vgld.official import OFFICIAL_NAMES as VGLD
from langdepth.utils.depth_files import read_map
from langdepth.weights import checkpoint
from langdepth.weights.convert import convert
from tests.helpers import write_folder
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
    variant = True
    name = "vgld-i"
    options = {"architecture": "ViT-small"}  # noqa: RUF012
    test_torch_export_gives_the_same_depth = None  # slow, and TestVgld's has the same parts

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


def test_of_an_exr_one_channel_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    depth = np.random.default_rng(0).random((60, 80)).astype(np.float32)
    layers = {f"L{number}": depth * 0 for number in range(20)}
    for name, channels in {
        "half": {**layers, "Z": depth.astype(np.float16)},
        "many": {**layers, "Z": depth},
        "integers": {"Z": (depth * 1000).astype(np.uint32)},
    }.items():
        OpenEXR.File({"type": OpenEXR.scanlineimage}, channels).write(str(tmp_path / f"{name}.exr"))
    for name, side in (("tiled", 32), ("absurd", 5100)):
        tiles = OpenEXR.TileDescription()
        tiles.xSize = tiles.ySize = side
        header = {"type": OpenEXR.tiledimage, "tiles": tiles}
        halves = {layer: values.astype(np.float16) for layer, values in layers.items()}
        OpenEXR.File(header, {**halves, "Z": depth}).write(str(tmp_path / f"{name}.exr"))
    assert np.array_equal(read_map(tmp_path / "tiled.exr")[0], depth)
    with pytest.raises(
        ImageError, match=r"absurd\.exr: has 21 channels of 5100x5100 pixels in each tile, which are too"
    ):
        read_map(tmp_path / "absurd.exr")
    with monkeypatch.context() as without:
        without.setattr(OpenEXR, "File", None)  # which reads all channels
        assert np.array_equal(read_map(tmp_path / "many.exr")[0], depth)
        np.testing.assert_allclose(read_map(tmp_path / "half.exr")[0], depth, atol=1e-3)
    with pytest.raises(ImageError, match="holds UINT; a map is in floating point"):
        read_map(tmp_path / "integers.exr")
    content = bytearray((tmp_path / "many.exr").read_bytes())
    (tmp_path / "cut.exr").write_bytes(content[: len(content) // 2])
    content[len(content) // 2 :: 7] = b"7" * len(content[len(content) // 2 :: 7])
    (tmp_path / "wild.exr").write_bytes(content)
    for name in ("cut", "wild"):
        with pytest.raises(ImageError, match=rf"{name}\.exr: damaged or truncated"):
            read_map(tmp_path / f"{name}.exr")
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr("langdepth.utils.exr._MAX_NUMBERS", 60 * 80 * 20)
    with pytest.raises(ImageError, match="has 21 channels of 80x60 pixels, which are too many"):
        read_map(tmp_path / "many.exr")


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
        ("coarse.png", "holds 8 bits, whose 256 steps are too few"),
        ("none.npy", "no such file"),
    ):
        with pytest.raises(ImageError, match=message):
            read_relative(tmp_path / name, PIXELS, "disparity")
    np.save(tmp_path / "coarse.npy", DISPARITY.astype(np.uint8))
    for given in (tmp_path / "coarse.npy", DISPARITY.astype(np.uint8)):
        with pytest.raises(ImageError, match=r"a relative map of 8 bits \(uint8\) holds 256 steps, too few for depth"):
            read_relative(given, PIXELS, "disparity")


def test_maps_of_whole_numbers_have_holes(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", DISPARITY.astype(np.uint16))
    for given in (tmp_path / "a.npy", DISPARITY.astype(np.int32)):
        found = read_relative(given, PIXELS, "disparity")[..., 0]
        assert np.array_equal(found, np.where(DISPARITY > 0, DISPARITY, np.nan), equal_nan=True)


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
    assert cli.main(["predict", str(image), "--base", str(tmp_path / "maps"), "--out", str(tmp_path / "none")]) == 2
    assert "'tiny' makes its own depth maps; leave --base out" in capsys.readouterr().err
    found = []
    for base in (model, str(tmp_path / "maps"), str(tmp_path / "maps" / "photo.npz")):
        assert cli.main([*asked, "--base", base, "--out", str(tmp_path / "out")]) == 0, capsys.readouterr().err
        with np.load(tmp_path / "out" / "photo.npz") as result:
            assert '"scale_kind": "metric"' in str(result["metadata"])
            found.append(result["depth"])
    assert np.ptp(found[0]) > 0
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert "does not say" not in capsys.readouterr().err
    np.save(tmp_path / "map.npy", np.load(tmp_path / "maps" / "photo.npz")["depth"])
    for kind in ([], ["--depth-kind", "disparity"]):
        base = ["--base", str(tmp_path / "map.npy"), *kind]
        assert cli.main([*asked, *base, "--out", str(tmp_path / "out")]) == 0
        note = "map.npy: does not say what it holds: taken for disparity, the larger the nearer"
        assert (note in capsys.readouterr().err) is not bool(kind)


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
    assert len([line for line in error.splitlines() if "warning" not in line and "%|" not in line]) == 1
    assert re.search(message, error), error
    assert not list((tmp_path / "out").glob("photo*"))


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six images of which the captions.csv beside it tells, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANGDEPTH_CACHE", str(tmp_path / "cache"))
    root = write_folder(tmp_path / "rooms", [{"split": "train" if i % 2 else "val"} for i in range(6)])
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((str(i), f"a room of {i + 1} metres") for i in range(6))])
    return root


def evaluated(head: Path, options: str) -> dict[str, Any]:
    """The report of the validation images."""
    words = "--root rooms --split val --protocol full --clip-weights random --device cpu --out report.json"
    assert cli.main(["evaluate", "--system", str(head), *words.split(), *options.split()]) == 0
    report: dict[str, Any] = json.loads(Path("report.json").read_text())
    return report["image_mean"]  # type: ignore[no-any-return]


@pytest.mark.filterwarnings(RANDOM)
@pytest.mark.usefixtures("rooms")
def test_evaluation_gives_every_image_its_sentence_and_its_map(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "rooms", "--save", "npy", "--out", "maps"]) == 0
    by_system = evaluated(head, "--captions captions.csv --base tiny")
    by_files = evaluated(head, "--captions captions.csv --base maps --depth-kind metric")
    assert by_system["abs_rel"] == pytest.approx(by_files["abs_rel"], rel=1e-3)
    table = Path("captions.csv")
    table.write_text(table.read_text().replace("metres", "miles"))
    assert evaluated(head, "--captions captions.csv --base tiny") != by_system
    capsys.readouterr()
    base = ["--base", "tiny", "--clip-weights", "random", "--root", "rooms", "--split", "val", "--out", "r.json"]
    for system, options, message in (
        ("tiny", ["--base", "maps", *base[4:]], "--base maps: 'tiny' makes its own depth maps; leave --base out"),
        (str(head), base, "needs a sentence about each image"),
        ("tiny", [*base[4:], "--captions", "captions.csv"], "holds captions without features"),
    ):
        assert cli.main(["evaluate", "--system", system, *options]) in (1, 2)
        assert message in capsys.readouterr().err


@pytest.mark.filterwarnings(RANDOM)
@pytest.mark.usefixtures("rooms")
@pytest.mark.parametrize("base", ["system", "files"])
def test_training_learns_the_scale_from_maps_of_a_system_or_of_files(base: str) -> None:
    if base == "files":
        assert cli.main(["predict", "rooms", "--save", "npy", "--out", "maps"]) == 0
        options = "--system.prepare.base null --system.prepare.depth_kind metric --data.overlay maps --data.cache none"
    else:
        options = "--system.prepare.base tiny"
    small = "--data.crop [48,64] --data.batch_size 3 --data.workers 0 --train.epochs 80 --train.validate_every 80"
    data = "--data.name folder --data.root rooms --data.train_split train --data.val_split val --data.hold_out null"
    words = "--data.captions captions.csv --system.prepare.clip_weights random --system.options.architecture RN-small"
    train = "--train.accelerator cpu --train.previews 0 --train.log_every 1 --train.protocol full --train.out run"
    all_of_it = f"{data} {words} {small} {train} {options} --optim.lr 1e-3"
    assert cli.main(["train", "--config", "rsa-nyu", *all_of_it.split()]) == 0
    with Path("run/metrics.csv").open() as file:
        losses = [float(row["train/total"]) for row in csv.DictReader(file) if row.get("train/total")]
    assert min(losses) < losses[0] / 2
    trained: Any = checkpoint.load("run/last.safetensors")
    assert trained.neutral_text.any()
    if base == "system":
        assert trained.provenance["base"] == "tiny"
        with pytest.raises(UsageError, match="these weights have learned from the maps of tiny"):
            trained.predict(np.zeros((48, 64, 3), np.uint8))


# VGLD


def vgld_output(options: dict[str, Any]) -> tuple[Any, Tensor, Tensor]:
    """A system, and scale and shift of three inputs of which two are outdoors."""
    torch.manual_seed(0)
    system: Any = registry.build("vgld-t", {"architecture": "ViT-small", **options})
    system.classifier = torch.nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        system.classifier.weight.copy_(torch.eye(64)[:2])
        scale, shift = system.scale_and_shift(torch.eye(64)[[0, 1, 1]] * 3)
    return system, scale.flatten(), shift.flatten()


def test_every_image_takes_its_own_domain_unless_the_batch_takes_one() -> None:
    system, scale, _ = vgld_output({})
    with torch.no_grad():
        inputs = torch.eye(64)[[0, 1, 1]] * 3
        each = [system.both(inputs, torch.full((3,), domain)).exp()[:, 0] for domain in (0, 1)]
    torch.testing.assert_close(scale, torch.stack([each[0][0], each[1][1], each[1][2]]))
    exact, together, _ = vgld_output({"reference_exact": True})
    assert exact.config.routing == "batch"
    torch.testing.assert_close(together, each[1])


def test_the_domain_is_that_of_the_label_and_else_of_the_farthest_depth() -> None:
    depth = torch.tensor([3.0, 30.0, 3.0, 30.0]).view(4, 1, 1, 1)
    assert domains_of(torch.tensor([27, 0, -1, -1]), depth).tolist() == [1, 0, 0, 1]


def test_the_best_fit_is_found_and_needs_two_pixels() -> None:
    relative = torch.rand(2, 1, 12, 16)
    depth = 1 / (0.4 * relative + 0.1)
    counted = torch.ones_like(depth, dtype=torch.bool)
    counted[1].fill_(False)
    logs = fitted(relative, depth, counted)
    torch.testing.assert_close(logs[0].exp(), torch.tensor([0.4, 0.1]), rtol=1e-4, atol=0)
    assert logs[1].isnan().all()


def test_the_loss_is_its_weighted_terms() -> None:
    torch.manual_seed(0)
    system: Any = registry.build("vgld-t", {"architecture": "ViT-small", "domain_weight": 3.0, "oracle_weight": 0.5})
    image = torch.rand(2, 3, 12, 16)
    depth = 2 + image[:, :1]
    batch = Batch(
        image=image, depth=depth, mask=depth > 0, scene=torch.tensor([6, 27]), text=["a", "b"], path=["a", "b"],
        features={"relative": 1 - image[:, :1]},
    )  # fmt: skip
    losses = system.loss_of(batch, batch.features["relative"], torch.randn(2, 64))  # type: ignore[index]
    expected = losses["silog"] + 3 * losses["domain"] + 0.5 * losses["oracle"]
    torch.testing.assert_close(losses["total"], expected)


# The authors' heads


@pytest.mark.parametrize(("name", "names"), [("rsa", RSA), ("rsa-short", RSA), ("vgld", VGLD), ("vgld-i", VGLD)])
def test_an_official_head_gives_the_same_depth(name: str, names: dict[str, str], tmp_path: Path) -> None:
    own: Any = registry.build(name)
    back = {ours: theirs for theirs, ours in names.items()}
    head = {back[f"{key.partition('.')[0]}."] + key.partition(".")[2]: value for key, value in own.named_parameters()}
    torch.save({f"module.{key}": value for key, value in head.items()}, tmp_path / "head.pth")
    done = convert(tmp_path / "head.pth", name, tmp_path / "own.safetensors")
    assert not done.ignored
    converted: Any = checkpoint.load(done.path)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), converted.parameters(), strict=True))


def test_a_head_of_other_layers_names_the_system_that_has_them(tmp_path: Path) -> None:
    own: Any = registry.build("rsa-short")
    back = {ours: theirs for theirs, ours in RSA.items()}
    head = {back[f"{key.partition('.')[0]}."] + key.partition(".")[2]: value for key, value in own.named_parameters()}
    torch.save(head, tmp_path / "head.pth")
    with pytest.raises(CheckpointError, match="has 9 linear layers, 'rsa' has 15; rsa has 15, rsa-short has 9"):
        convert(tmp_path / "head.pth", "rsa", tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()


# The base


def test_the_base_is_not_trained_and_counts_for_the_matrix() -> None:
    system = based("rsa", {"architecture": "RN-small"})
    alone = fingerprint(system)
    other = registry.build("tiny")
    system.use_base(other)
    assert not any(p.requires_grad for p in other.parameters())
    with_tiny = fingerprint(system)
    assert with_tiny != alone
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert fingerprint(system) != with_tiny


def test_maps_are_brought_to_the_range_from_0_to_1_where_asked() -> None:
    system = based("rsa", {"architecture": "RN-small", "normalise": "range"})
    system.use_base(None)
    overlay = torch.tensor([[3.0, torch.nan, 5.0, 4.0], [1.0, 1.0, 1.0, 1.0]]).view(2, 1, 1, 4)
    relative = system.relative(torch.zeros(2, 3, 1, 4), overlay)
    torch.testing.assert_close(relative[0].flatten(), torch.tensor([0, torch.nan, 1, 0.5]), equal_nan=True)
    depth = system(torch.zeros(2, 3, 1, 4), overlay=overlay).depth
    assert depth[0, 0, 0, 1] == 0
    assert torch.isfinite(depth).all()


def test_depth_as_a_base_is_inverted() -> None:
    system = based("rsa", {"architecture": "RN-small"})
    shades = Brightness()
    shades.scale_kind = "relative"
    image = torch.rand(1, 3, 8, 8)
    disparity = system.relative(image)
    system.use_base(Foreign(shades, "depth"))
    torch.testing.assert_close(system.relative(image), 1 / disparity)
