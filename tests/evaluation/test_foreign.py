"""Foreign models and finished depth maps under our protocols."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from langdepth.data.base import open_dataset
from langdepth.data.choice import PairChoice
from langdepth.data.tools.cache import write_cache
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.evaluation import protocols
from langdepth.evaluation.evaluate import evaluate
from langdepth.evaluation.matrix import fingerprint
from langdepth.evaluation.predictions import Predictions, Size, part_of
from langdepth.evaluation.protocols import ScaleKind
from langdepth.records import Sample
from langdepth.systems.foreign import Foreign, load_transformers
from tests import miniatures
from tests.helpers import ramp, write_folder
from tests.stand_ins import transformers_model

FULL = protocols.get("full")


class Shades:
    """4 m on the left, 8 m on the right, or their disparity after a scale and a shift."""

    def __init__(self, scale_kind: ScaleKind) -> None:
        self.scale_kind = scale_kind

    def predict_depth(self, image: Tensor) -> Tensor:
        depth = torch.tensor([4.0, 8.0]).repeat_interleave(32).expand(len(image), 1, 48, 64)
        return 5 / depth - 0.3 if self.scale_kind == "disparity" else depth


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images whose ground truth is 4 m on the left and 8 m on the right."""
    root = write_folder(tmp_path / "data", [{}, {}])
    depth = np.repeat(np.array([4000, 8000], np.uint16), 32)[None].repeat(48, 0)
    for number in range(2):
        Image.fromarray(depth).save(root / f"{number}_depth.png")
    return root


def test_a_foreign_model_is_evaluated_like_a_system(root: Path) -> None:
    report = evaluate(Foreign(Shades("metric"), "shades"), open_dataset("folder", root), FULL, progress=False)
    assert report["system"] == "shades"
    assert report["image_mean"]["abs_rel"] == 0
    assert report["edges"] == {"precision": 1, "recall": 1, "f1": 1}


def test_disparity_is_no_depth(root: Path) -> None:
    model = Foreign(Shades("disparity"), "shades")
    for kind in ("none", "median", "least_squares"):
        with pytest.raises(UsageError, match="gives disparity, which is not depth; add the alignment disparity"):
            evaluate(model, open_dataset("folder", root), FULL.override(alignment=kind), progress=False)
    report = evaluate(model, open_dataset("folder", root), FULL.override(alignment="disparity"), progress=False)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-5)


def test_predictions_are_found_by_path(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    depth = Shades("metric").predict_depth(torch.zeros(1, 3, 48, 64))[0, 0].numpy()
    np.save(folder / "0.npy", depth)
    Image.fromarray((depth * 500).astype(np.uint16)).save(folder / "0.png")
    Image.fromarray((depth * 500).astype(np.uint16)).save(folder / "1.png")
    predictions = Predictions(folder, root, png_scale=1 / 500)
    with pytest.raises(UsageError, match=r"0\.npy: NumPy files hold metres, and --prediction-scale .* is for 16-bit"):
        evaluate(predictions, open_dataset("folder", root), FULL, progress=False)
    (folder / "0.npy").unlink()
    report = evaluate(predictions, open_dataset("folder", root), protocols.get("nyu-eigen"), progress=False)
    assert report["image_mean"]["abs_rel"] == 0
    assert report["protocol"]["name"] == "nyu-eigen+flip=false"
    assert report["system"] == f"predictions ({folder})"
    (folder / "0.png").rename(folder / "0_png.png")  # as "predict" calls it where there are 0.png and 0.jpg
    assert evaluate(predictions, open_dataset("folder", root), FULL, progress=False)["image_mean"]["abs_rel"] == 0
    old = predictions.fingerprint()
    assert Predictions(folder, root, png_scale=1 / 500).fingerprint() == old
    assert Predictions(folder, root, png_scale=1 / 256).fingerprint() != old
    assert Predictions(folder, root, "relative", 1 / 500).fingerprint() != old
    np.save(folder / "0.npy", depth[:24])
    assert predictions.fingerprint() != old


def test_missing_predictions_are_counted_and_the_first_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [{}] * 8)
    folder = tmp_path / "predictions"
    folder.mkdir()
    np.save(folder / "3.npy", np.ones((48, 64), np.float32))
    message = r"7 of 8 images have no prediction: .*0.png(, .*\.png){4}, \.\.\.; there is no .*/0\.npy, nor \.npz, nor"
    with pytest.raises(LangdepthError, match=message):
        evaluate(Predictions(folder, root), open_dataset("folder", root), FULL, progress=False)


def named(tmp_path: Path, *names: str) -> Path:
    """Images of these names with truths of 2 m, 3 m, ..."""
    root = write_folder(tmp_path / "data", [{"path_rgb": name} for name in names])
    for number, name in enumerate(names):
        (root / f"{number}.png").rename(root / name)
        Image.fromarray(np.full((48, 64), 1000 * (2 + number), np.uint16)).save(root / f"{number}_depth.png")
    return root


@pytest.mark.parametrize("ends", [(".png",), ("_depth.png",), (".npy",)])
def test_a_map_belongs_to_one_image_even_if_its_name_fits_two(tmp_path: Path, ends: tuple[str, ...]) -> None:
    names = ("x", "x_depth", "x_depth_depth")
    root, folder = named(tmp_path, *(f"{name}.bmp" for name in names)), tmp_path / "maps"
    folder.mkdir()
    for number, name in enumerate(names):
        for end in ends:
            depth = np.full((48, 64), 2 + number, np.float32)
            if end == ".npy":
                np.save(folder / f"{name}{end}", depth)
            else:
                Image.fromarray((depth * 256).astype(np.uint16)).save(folder / f"{name}{end}")
    predictions = Predictions(folder, root, png_scale=None if ends == (".npy",) else 1 / 256)
    report = evaluate(predictions, open_dataset("folder", root), FULL, progress=False)
    assert report["image_mean"]["rmse"] == pytest.approx(0, abs=1e-6)


def test_one_map_is_not_the_depth_of_two_images(tmp_path: Path) -> None:
    root, folder = named(tmp_path, "a.bmp", "a.jpeg"), tmp_path / "maps"
    folder.mkdir()
    np.save(folder / "a.npy", np.full((48, 64), 2, np.float32))
    with pytest.raises(LangdepthError, match=r"1 of 2 images .*a\.npy belongs to another image; name the maps"):
        evaluate(Predictions(folder, root), open_dataset("folder", root), FULL, progress=False)
    for number, name in enumerate(("a_bmp", "a_jpeg")):
        np.save(folder / f"{name}.npy", np.full((48, 64), 2 + number, np.float32))
    (folder / "a.npy").unlink()
    report = evaluate(Predictions(folder, root), open_dataset("folder", root), FULL, progress=False)
    assert report["image_mean"]["rmse"] == pytest.approx(0, abs=1e-6)


def holed(folder: Path, hole: float) -> Predictions:
    """Perfect maps of ``root``, with no depth in 3 x 2 pixels of the second."""
    folder.mkdir(exist_ok=True)
    depth = Shades("metric").predict_depth(torch.zeros(1, 3, 48, 64))[0, 0].clone().numpy()
    np.save(folder / "0.npy", depth)
    depth[:3, :2] = hole
    np.save(folder / "1.npy", depth)
    return Predictions(folder, folder.parent / "data")


@pytest.mark.parametrize("hole", [0, -1, np.nan, np.inf])
def test_no_depth_is_not_evaluated_as_depth(root: Path, tmp_path: Path, hole: float) -> None:
    predictions, dataset = holed(tmp_path / "predictions", hole), open_dataset("folder", root)
    with pytest.raises(LangdepthError, match=r"predictions/1\.npy: no depth at 6 of the 3072 pixels that need it"):
        evaluate(predictions, dataset, FULL, progress=False)
    masked = evaluate(predictions, dataset, FULL.override(mask_prediction=True), progress=False)
    assert masked["image_mean"]["rmse"] == 0
    assert [part["pixels"] for part in masked["by_depth"]] == [3072 - 6, 3072]
    Image.fromarray(np.pad(np.full((45, 64), 4000, np.uint16), ((3, 0), (0, 0)))).save(root / "1_depth.png")
    assert evaluate(predictions, dataset, FULL, progress=False)["images"] == 2  # nothing is evaluated there


def test_relative_depth_with_a_shift_may_be_zero(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"{number}.npy", np.repeat(np.array([0, 1], np.float32), 32)[None].repeat(48, 0))
    dataset, relative = open_dataset("folder", root), Predictions(folder, root, "relative")
    report = evaluate(relative, dataset, FULL.override(alignment="least_squares"), progress=False)
    assert report["image_mean"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(LangdepthError, match="no depth at 1536 of the 3072"):
        evaluate(relative, dataset, FULL.override(alignment="median"), progress=False)


def test_holes_do_not_mix_with_depth_when_a_map_is_resized(root: Path, tmp_path: Path) -> None:
    predictions = holed(tmp_path / "predictions", 0)
    np.save(tmp_path / "predictions" / "1.npy", np.load(tmp_path / "predictions" / "1.npy")[::2, ::2])
    masked = evaluate(predictions, open_dataset("folder", root), FULL.override(mask_prediction=True), progress=False)
    assert masked["by_depth"][0]["pixels"] < 3072
    assert masked["by_depth"][0]["abs_rel"] < 0.02  # the step between 4 and 8 m is blurred, no more


KITTI, NYU = (375, 1242), (480, 640)
KB, INNER = (352, 1216), (416, 544)


@pytest.mark.parametrize(
    ("image", "protocol", "of_the_image", "of_the_frame", "refused"),
    [
        (NYU, "nyu-eigen", [NYU, (240, 320), (384, 512)], [], [(640, 480), (512, 512), (518, 686), INNER]),
        (NYU, "depthclip-reference", [NYU, (240, 320)], [INNER, (208, 272)], [(544, 416), (518, 686)]),
        (KITTI, "kitti-eigen-garg", [KITTI, (192, 640)], [KB, (176, 608)], [(378, 1246), (480, 640)]),
        (KITTI, "kitti-eigen-garg-bts", [KITTI, (192, 640)], [KB, (176, 608)], [(378, 1246), (480, 640)]),
        (KITTI, "full", [KITTI], [], [KB, (1242, 375), (352, 1120)]),
        (KB, "kitti-eigen-garg", [KB], [], [KITTI]),
    ],
)
def test_what_a_map_of_another_size_shows(
    image: Size, protocol: str, of_the_image: list[Size], of_the_frame: list[Size], refused: list[Size]
) -> None:
    rules = protocols.get(protocol)
    assert {part_of(size, image, rules) for size in of_the_image} == {image}
    assert {part_of(size, image, rules) for size in of_the_frame} <= {KB, INNER}
    for height, width in refused:
        with pytest.raises(ImageError, match=rf"^is {width}x{height}, .*{image[1]}x{image[0]}.*the size of"):
            part_of((height, width), image, rules)


def test_maps_of_the_frame_are_evaluated_as_the_frame(tmp_path: Path) -> None:
    """The ground truth grows downwards, so that a map stretched over the image would be wrong."""
    root, folder = write_folder(tmp_path / "data", [{"size": KITTI}]), tmp_path / "predictions"
    truth = np.linspace(2, 60, 375, dtype=np.float32)[:, None].repeat(1242, 1)
    Image.fromarray((truth * 1000).astype(np.uint16)).save(root / "0_depth.png")
    folder.mkdir()
    predictions, rules = Predictions(folder, root), protocols.get("kitti-eigen-garg")
    for depth in (truth, truth[-352:, 13:1229]):
        np.save(folder / "0.npy", depth)
        report = evaluate(predictions, open_dataset("folder", root), rules, progress=False)
        assert report["image_mean"]["abs_rel"] < 1e-3
    np.save(folder / "0.npy", truth.T)
    with pytest.raises(LangdepthError, match=r"predictions/0\.npy: is 375x1242, expected 1242x375 or 1216x352"):
        evaluate(predictions, open_dataset("folder", root), rules, progress=False)


def imaged(path: Path, key: str = "") -> Sample:
    """An image of that path."""
    pixels = torch.zeros(1, 48, 64)
    return Sample(image=pixels, depth=pixels, mask=pixels > 0, path=str(path), key=key)


def test_one_folder_of_maps_fits_a_tree_a_file_and_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called as in the data set's own lists."""
    exported = miniatures.nyu_exported(tmp_path / "exported", monkeypatch)
    labelled = miniatures.nyu_labelled(tmp_path / "labelled", monkeypatch)
    write_cache("nyu", exported, tmp_path / "frames", PairChoice(split="test"))
    folder = tmp_path / "predictions"
    for sample in open_dataset("nyu", exported, "test"):
        path = folder / Path(sample.key).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.where(sample.mask, sample.depth, 1)[0])
    for name, root in (("nyu", exported), ("nyu", labelled), ("cache", tmp_path / "frames")):
        dataset = open_dataset(name, root, "test")
        assert len(dataset) == 2
        report = evaluate(Predictions(folder, root), dataset, FULL, progress=False)
        assert (report["images"], report["image_mean"]["abs_rel"]) == (2, pytest.approx(0, abs=1e-3)), root


@pytest.mark.parametrize("key", ["/{}", "../data/{}", ""])
def test_a_key_does_not_lead_out_of_the_folder(root: Path, tmp_path: Path, key: str) -> None:
    """Nobody is evaluated by the ground truth that lies beside the image."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    key = key.format(root / "0.png" if key.startswith("/") else "0.png").replace("//", "/")
    assert Predictions(folder, root).find(imaged(root / "0.png", key)) is None


def test_where_the_folder_was_named_from_does_not_matter(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two drives with images of one name: each has its own depth, none the other's."""
    folder = tmp_path / "predictions"
    for drive in ("one", "two"):
        (folder / drive).mkdir(parents=True)
        np.save(folder / drive / "69.npy", np.ones((4, 4)))
    np.save(folder / "69.npy", np.ones((4, 4)))
    monkeypatch.chdir(tmp_path)
    for start, image in ((Path("data"), root.resolve()), (root.resolve(), Path("data"))):
        predictions = Predictions(folder, start)
        for drive in ("one", "two"):
            assert predictions.find(imaged(image / drive / "69.png")) == folder / drive / "69.npy"
        assert predictions.find(imaged(tmp_path / "elsewhere" / "69.png")) is None


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        ("nyu-eigen", "nyu-eigen+flip=false"),
        ("clip-adapters-reference", "clip-adapters-reference+flip=false+clamp_views=false"),
        ("scaledepth-n-reference", "scaledepth-n-reference"),
        ("scaledepth-k-reference", "scaledepth-k-reference+resize=system"),
        ("scaledepth-nk-nyu-reference", "scaledepth-nk-nyu-reference+flip=false+window=none+stride=none"),
    ],
)
def test_what_is_done_around_a_network_is_dropped_and_the_name_says_so(
    root: Path, tmp_path: Path, protocol: str, name: str
) -> None:
    rules = protocols.get(protocol)
    folder = tmp_path / "predictions"
    folder.mkdir()
    for number in range(2):
        np.save(folder / f"{number}.npy", Shades("metric").predict_depth(torch.zeros(1, 3, 48, 64))[0, 0].numpy())
    report = evaluate(Predictions(folder, root), open_dataset("folder", root), rules, progress=False)
    assert report["protocol"]["name"] == name
    assert (report["protocol"]["hash"] == rules.hash) == (name == protocol)
    kept = ("frame", "crop", "min_depth", "max_depth", "clamp_prediction", "mask_prediction", "alignment")
    assert all(report["protocol"][switch] == rules.switches()[switch] for switch in kept)
    assert report["image_mean"].keys() >= set(rules.extra_metrics)
    assert report["image_mean"]["abs_rel"] == 0


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to])
def test_ground_truth_is_no_prediction(tmp_path: Path, link: Callable[[Path, Path], None] | None) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.jpg")
    np.save(tmp_path / "a.npy", np.full(ramp().shape[:2], 2, np.float32))
    (tmp_path / "index.csv").write_text("path_rgb,path_depth,depth_scale\na.jpg,a.npy,1\n")
    folder = tmp_path
    if link is not None:
        folder = tmp_path / "maps"
        folder.mkdir()
        link(folder / "a.npy", tmp_path / "a.npy")
    with pytest.raises(UsageError, match=r"a\.npy: is ground truth of this data set"):
        evaluate(Predictions(folder, tmp_path), open_dataset("folder", tmp_path), FULL, progress=False)


def test_wrong_predictions_cost_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(LangdepthError, match="no such folder"):
        Predictions(tmp_path / "gone", root)
    with pytest.raises(UsageError, match="must be above 0"):
        Predictions(root, root, png_scale=0)


def test_a_model_of_transformers_from_a_folder(root: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers_model("depth_anything", tmp_path / "model")
    system = load_transformers(str(tmp_path / "model"), "disparity")
    rules = FULL.override(alignment="disparity")
    report = evaluate(system, open_dataset("folder", root), rules, batch_size=2, progress=False)
    assert report["images"] == 2
    assert re.fullmatch(r"transformers:.*model", report["system"])
    known = fingerprint(system)
    assert fingerprint(load_transformers(str(tmp_path / "model"), "disparity")) == known
    for file, old, new in (("config.json", '"max_depth": 1', '"max_depth": 20'), ("preprocessor", "56", "84")):
        (path,) = (tmp_path / "model").glob(f"{file}*")
        path.write_text(path.read_text().replace(old, new))
        before, known = known, fingerprint(load_transformers(str(tmp_path / "model"), "disparity"))
        assert known != before, file
    with pytest.raises(LangdepthError, match="no depth model of 'transformers' can be loaded here"):
        load_transformers(str(tmp_path / "empty"), "metric")
