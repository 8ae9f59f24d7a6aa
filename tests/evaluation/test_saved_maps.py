"""What an evaluation keeps: maps that give the same numbers again, under names that the data set's keys find."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth.data.base import open_dataset
from langdepth.errors import LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.predictions import Predictions
from langdepth.evaluation.protocols import Protocol, ScaleKind
from langdepth.evaluation.saved import FORMATS, RECORD, MapStore, SaveMaps
from langdepth.prediction import viz
from langdepth.prediction.names import place_of_key, unique_names
from langdepth.prediction.options import ColorScale
from langdepth.systems.foreign import Foreign
from langdepth.utils.depth_files import read_depth
from tests import miniatures
from tests.helpers import FakeSystem, grey, save_image, write_folder

NUMBERS = ("image_mean", "pixel_mean", "by_scene", "by_depth", "edges", "boundaries", "images", "skipped")


def numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in NUMBERS}


class Tilted:
    """Depth that depends on the image and is not the same from left to right, some of it below 0."""

    def __init__(self, scale_kind: ScaleKind = "metric") -> None:
        self.scale_kind = scale_kind

    def predict_depth(self, image: Tensor) -> Tensor:
        ramp = torch.linspace(-0.02, 3, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])
        depth = ramp + 2 * image.mean(1, keepdim=True)
        return 1 / depth.clamp(min=0.1) if self.scale_kind == "disparity" else depth


def kept(
    root: Path,
    folder: Path,
    protocol: Protocol,
    formats: tuple[str, ...] = ("npy",),
    data: str = "folder",
    kind: ScaleKind = "metric",
) -> dict[str, Any]:
    """The report of an evaluation that keeps its maps."""
    save = SaveMaps(folder=folder, formats=formats)
    return evaluate(
        Foreign(Tilted(kind), "tilted"), open_dataset(data, root), protocol, save=save, batch_size=2, progress=False
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images, two of them with a camera, sparse ground truth in the last."""
    cameras = {"fx": 300, "fy": 300, "cx": 31.5, "cy": 23.5}
    root = write_folder(tmp_path / "data", [cameras, cameras | {"fx": 500}, cameras])
    depth = np.zeros((48, 64), np.uint16)
    depth[::5, ::7] = 2500
    Image.fromarray(depth).save(root / "2_depth.png")
    return root


@pytest.mark.parametrize(
    ("name", "switches", "kind"),
    [
        ("full", {}, "metric"),
        ("nyu-eigen", {}, "metric"),
        ("full", {"window": (32, 40), "stride": (16, 24), "flip": True}, "metric"),
        ("full", {"alignment": "median"}, "metric"),
        ("full", {"alignment": "median", "flip": True}, "relative"),
        ("full", {"alignment": "least_squares"}, "relative"),
        ("full", {"alignment": "disparity"}, "disparity"),
        ("full", {"training_focal": 400.0}, "metric"),
        ("mde-clip-reference", {}, "metric"),
        ("clip-adapters-reference", {}, "metric"),
        ("scaledepth-k-reference", {"clamp_prediction": True}, "metric"),
        ("kitti-eigen-garg-bts", {}, "metric"),
        ("full", {"frame_size": (36, 50)}, "metric"),
    ],
)
def test_saved_maps_give_the_same_numbers(
    root: Path, tmp_path: Path, name: str, switches: dict[str, Any], kind: ScaleKind
) -> None:
    """To the last bit, under the same protocol with the same hash, whatever was done around the network."""
    protocol = protocols.get(name).override(**switches)
    first = kept(root, tmp_path / "maps", protocol, kind=kind)
    again = evaluate(Predictions(tmp_path / "maps", root), open_dataset("folder", root), protocol, progress=False)
    assert numbers(again) == numbers(first)
    assert again["protocol"] == first["protocol"]


@pytest.mark.parametrize(("form", "unit"), [("depth16", 0.001), ("kitti16", 1 / 256)])
def test_sixteen_bits_cost_half_a_unit(root: Path, tmp_path: Path, form: str, unit: float) -> None:
    protocol = protocols.get("nyu-eigen")
    first = kept(root, tmp_path / "maps", protocol, (form,))
    again = evaluate(Predictions(tmp_path / "maps", root), open_dataset("folder", root), protocol, progress=False)
    assert again["image_mean"]["rmse"] == pytest.approx(first["image_mean"]["rmse"], abs=unit / 2 + 1e-6)


def test_saved_maps_under_other_rules(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("folder", root)
    kept(root, tmp_path / "plain", protocols.get("nyu-eigen"))
    other = evaluate(Predictions(tmp_path / "plain", root), dataset, protocols.get("full"), progress=False)
    assert other["protocol"]["name"] == "full"
    kept(root, tmp_path / "fitted", protocols.get("full").override(alignment="median"))
    with pytest.raises(UsageError, match=r"saved under full\+alignment=median, after alignment median; evaluate them"):
        evaluate(Predictions(tmp_path / "fitted", root), dataset, protocols.get("full"), progress=False)


@pytest.mark.parametrize("build", [miniatures.nyu_exported, miniatures.kitti_raw, miniatures.kitti_selection])
def test_published_layouts_under_their_own_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[[Path, pytest.MonkeyPatch], Path]
) -> None:
    root = build(tmp_path / "set", monkeypatch)
    data = "nyu" if "nyu" in build.__name__ else "kitti"
    split = "val" if build is miniatures.kitti_selection else "test"
    dataset = open_dataset(data, root, split)
    protocol = protocols.get("nyu-eigen" if data == "nyu" else "kitti-eigen-garg").override(flip=False)
    save = SaveMaps(folder=tmp_path / "maps", formats=("npy", "kitti16", "error"))
    first = evaluate(Foreign(Tilted(), "tilted"), dataset, protocol, save=save, progress=False)
    again = evaluate(Predictions(tmp_path / "maps", root), dataset, protocol, progress=False)
    assert numbers(again) == numbers(first)
    for row in dataset.rows:
        assert (tmp_path / "maps" / row.key).with_suffix(".png").is_file()


def test_maps_of_kitti_have_the_size_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "data", [{"size": (375, 1242)}])
    kept(root, tmp_path / "maps", protocols.get("kitti-eigen-garg"), ("kitti16",))
    assert read_depth(tmp_path / "maps" / "0.png", 1 / 256).shape == (352, 1216)


def test_every_format_and_its_name(root: Path, tmp_path: Path) -> None:
    kept(root, tmp_path / "maps", protocols.get("full"), tuple(FORMATS))
    names = {path.name for path in (tmp_path / "maps").iterdir()}
    assert names == {RECORD} | {f"{i}{writer.suffix}" for i in range(3) for writer in FORMATS.values()}
    with np.load(tmp_path / "maps" / "0.npz") as content:
        assert json.loads(str(content["metadata"]))["provenance"]["evaluation"]["protocol"]["name"] == "full"
        assert content["intrinsics"][0].tolist() == [300, 0, 31.5]


def test_the_camera_follows_the_frame(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{"size": (375, 1242), "fx": 700, "fy": 700, "cx": 600, "cy": 170}])
    kept(root, tmp_path / "maps", protocols.get("kitti-eigen-garg"), ("npz",))
    with np.load(tmp_path / "maps" / "0.npz") as content:
        assert content["intrinsics"][:2, 2].tolist() == [600 - 13, 170 - 23]
    kept(root, tmp_path / "squeezed", protocols.get("full").override(frame_size=(125, 621)), ("npz",))
    with np.load(tmp_path / "squeezed" / "0.npz") as content:
        assert content["intrinsics"].ravel()[[0, 4, 2, 5]] == pytest.approx([350, 700 / 3, 299.75, 170.5 / 3 - 0.5])


def test_the_error_map_shows_the_errors_that_are_counted(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{"size": (240, 320)}])
    Image.fromarray(np.full((240, 320), 4000, np.uint16)).save(root / "0_depth.png")
    save_image(root / "0.png", grey(102 / 255, 320, 240))
    protocol = protocols.get("full").override(crop="eigen-nyu")
    save = SaveMaps(folder=tmp_path / "maps", formats=("error",))
    report = evaluate(FakeSystem(), open_dataset("folder", root), protocol, save=save, progress=False)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0.15, abs=1e-4)  # 4.6 m for 4 m
    pixels = np.asarray(Image.open(tmp_path / "maps" / "0_error.png"))[:, :320]
    rows, columns = protocol.crop_slices(240, 320)
    inside = np.zeros((240, 320), bool)
    inside[rows, columns] = True
    expected = np.array(matplotlib.colormaps["inferno"](0.3, bytes=True)[:3], np.int64)
    assert np.abs(pixels[inside] - expected).max() <= 4
    assert (pixels[~inside] == viz.INVALID_GREY).all()  # not evaluated


def test_a_sparse_target_is_drawn_three_pixels_wide_and_a_dense_one_as_it_is() -> None:
    truth, prediction = np.zeros((240, 240), np.float32), np.full((240, 240), 2.0, np.float32)
    truth[100, 100], truth[110, 110] = 2.0, 4.0
    pixels = viz.error_map(prediction, truth, truth > 0)[:, :240]
    drawn = (pixels != viz.INVALID_GREY).any(-1)
    assert drawn[99:102, 99:102].all()
    assert drawn[109:112, 109:112].all()
    assert drawn.sum() == 18
    assert pixels[100, 100].max() < 10  # no error is black, not grey
    np.testing.assert_array_equal(pixels[110, 110], matplotlib.colormaps["inferno"](1.0, bytes=True)[:3])
    truth[:, :200] = 2.0
    dense = viz.error_map(prediction, truth, truth > 0)[:, :240]
    assert ((dense != viz.INVALID_GREY).any(-1) == (truth > 0)).all()


def test_one_range_of_colors(root: Path, tmp_path: Path) -> None:
    colors = ColorScale(minimum=0, maximum=5, colormap="viridis")
    save = SaveMaps(folder=tmp_path / "maps", formats=("color", "npy"), colors=colors)
    evaluate(Foreign(Tilted(), "t"), open_dataset("folder", root), protocols.get("full"), save=save, progress=False)
    for i in range(3):
        depth = np.load(tmp_path / "maps" / f"{i}.npy")
        pixels = np.asarray(Image.open(tmp_path / "maps" / f"{i}_color.png"))
        np.testing.assert_array_equal(pixels, viz.color_with_legend(depth, depth > 0, colors))


def test_a_folder_of_something_else_is_left_alone(root: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in root.iterdir()}
    with pytest.raises(LangdepthError, match="holds other files"):
        kept(root, root, protocols.get("full"), ("kitti16",))
    assert {path: path.read_bytes() for path in root.iterdir()} == before
    kept(root, tmp_path / "maps", protocols.get("full"))
    kept(root, tmp_path / "maps", protocols.get("full"))  # the same again
    with pytest.raises(LangdepthError, match="holds the maps of another evaluation; give another folder or remove it"):
        kept(root, tmp_path / "maps", protocols.get("nyu-eigen"))


def test_maps_of_an_evaluation_that_did_not_end_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: MapStore, *arguments: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MapStore, "add", broken)
        with pytest.raises(OSError, match="no space"):
            kept(root, tmp_path / "maps", protocols.get("full"))
    with pytest.raises(LangdepthError, match=r"maps\.json: the evaluation that saved these maps did not end"):
        Predictions(tmp_path / "maps", root)
    (tmp_path / "maps" / RECORD).write_text("[]")
    with pytest.raises(LangdepthError, match=r"maps\.json: is no record of saved maps"):
        Predictions(tmp_path / "maps", root)


def test_names_that_differ_by_their_ending_and_odd_keys(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{}, {}, {}])
    (root / "1.png").rename(root / "0.jpg.png")
    Image.open(root / "0.png").save(root / "0.bmp")
    index = root / "index.csv"
    index.write_text(index.read_text().replace("1.png,", "0.bmp,").replace("2.png,", f"{root.name}/../2.png,", 1))
    (root / root.name).mkdir()
    protocol = protocols.get("full")
    first = kept(root, tmp_path / "maps", protocol)
    assert {path.name for path in (tmp_path / "maps").rglob("*.npy")} == {"0_png.npy", "0_bmp.npy", "2.npy"}
    again = evaluate(Predictions(tmp_path / "maps", root), open_dataset("folder", root), protocol, progress=False)
    assert numbers(again) == numbers(first)


@pytest.mark.parametrize("formats", [("kitti16",), ("depth16",), ("kitti16", "npz", "error")])
def test_a_map_is_not_taken_for_that_of_another_image(tmp_path: Path, formats: tuple[str, ...]) -> None:
    """x_depth.png is the map of x in one format and that of x_depth in another."""
    root = write_folder(tmp_path / "data", [{"path_rgb": "x.bmp"}, {"path_rgb": "x_depth.bmp"}])
    for number, name in enumerate(("x", "x_depth")):
        (root / f"{number}.png").rename(root / f"{name}.bmp")
    protocol = protocols.get("full")
    first = kept(root, tmp_path / "maps", protocol, formats)
    again = evaluate(Predictions(tmp_path / "maps", root), open_dataset("folder", root), protocol, progress=False)
    assert again["image_mean"]["rmse"] == pytest.approx(first["image_mean"]["rmse"], abs=0.002)
    assert again["by_depth"][0]["abs_rel"] == pytest.approx(first["by_depth"][0]["abs_rel"], abs=0.001)
    with pytest.raises(
        LangdepthError, match=r"x_depth\.png would be a map of x and one of x_depth; save fewer formats"
    ):
        kept(root, tmp_path / "both", protocol, ("depth16", "kitti16"))
    assert not (tmp_path / "both").exists()


def test_places_stay_inside_the_folder() -> None:
    assert place_of_key("/data/nyu/a.jpg") == Path("data/nyu/a.jpg")
    assert place_of_key("../../a/b.jpg") == Path("a/b.jpg")
    assert unique_names([Path("a.b.jpg"), Path("a.b.png"), Path("c.png")]) == [
        Path("a.b_jpg"),
        Path("a.b_png"),
        Path("c"),
    ]


def test_two_images_of_one_key_are_refused(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("folder", root)
    dataset.rows = [dataset.rows[0], dataset.rows[0]]
    save = SaveMaps(folder=tmp_path / "maps", formats=("npy",))
    with pytest.raises(LangdepthError, match=r"names 0\.png more than once"):
        evaluate(Foreign(Tilted(), "t"), dataset, protocols.get("full"), save=save, progress=False)


def test_a_name_that_no_map_can_have_is_known_before_the_work(tmp_path: Path) -> None:
    long = "n" * 247 + ".png"
    root = write_folder(tmp_path / "data", [{}, {"path_rgb": long}])
    (root / "1.png").rename(root / long)
    with pytest.raises(LangdepthError, match=r"n_depth.png, is too long; shorten it"):
        kept(root, tmp_path / "maps", protocols.get("full"), formats=("depth16",))
    assert not (tmp_path / "maps").exists()
    kept(root, tmp_path / "maps", protocols.get("full"), formats=("npy",))
    assert (tmp_path / "maps" / f"{'n' * 247}.npy").is_file()


def test_a_pipe_is_no_record(tmp_path: Path) -> None:
    """Opened like a file, it would block for ever; so does a sparse file of many gigabytes fill the memory."""
    os.mkfifo(tmp_path / RECORD)
    root = write_folder(tmp_path / "data", [{}])
    with pytest.raises(LangdepthError, match="is no record of saved maps"):
        Predictions(tmp_path, root)
    with pytest.raises(LangdepthError, match="holds the maps of another evaluation"):
        kept(root, tmp_path, protocols.get("full"))
    (tmp_path / RECORD).unlink()
    with (tmp_path / RECORD).open("wb") as file:
        file.truncate(20 * 10**9)
    with pytest.raises(LangdepthError, match="is no record of saved maps"):
        Predictions(tmp_path, root)
    with pytest.raises(LangdepthError, match="holds the maps of another evaluation"):
        kept(root, tmp_path, protocols.get("full"))
