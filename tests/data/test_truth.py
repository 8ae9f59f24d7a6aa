"""Ground truth, cameras and predictions that cannot be are named, and refused unless somebody vouches for them."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from langdepth.camera import Camera
from langdepth.cli import main
from langdepth.data.base import layout, open_dataset
from langdepth.data.lists import read_list
from langdepth.data.pairs import listed_rows
from langdepth.data.tools.cache import write_cache
from langdepth.data.tools.check import check_dataset
from langdepth.errors import ImageError, LangdepthError, UsageError
from langdepth.evaluation.plausibility import Plausibility
from langdepth.prediction.results import DepthResult, write_result
from langdepth.utils.depth_files import read_depth
from tests.helpers import write_folder

SLOPE = np.linspace(1, 4, 48 * 64, dtype=np.float32).reshape(48, 64)


def folder(root: Path, *maps: np.ndarray[Any, Any], scale: float = 0.001) -> Path:
    """Stored numbers as 16-bit PNG, floats as .npy."""
    rows = [{"path_depth": f"d{i}.{'npy' if m.dtype.kind == 'f' else 'png'}"} for i, m in enumerate(maps)]
    write_folder(root, [{**row, "depth_scale": 1 if row["path_depth"].endswith("npy") else scale} for row in rows])
    for row, content in zip(rows, maps, strict=True):
        path = root / row["path_depth"]
        np.save(path, content) if path.suffix == ".npy" else Image.fromarray(content).save(path)
    return root


def saturated(number: int = 65535) -> np.ndarray[Any, Any]:
    stored = (SLOPE * 1000).astype(np.uint16)
    stored[:, :13] = number  # a fifth
    return stored


def renamed(root: Path, old: str, new: str) -> Path:
    """The folder, with a file under another name, also in its index."""
    (root / old).rename(root / new)
    (root / "index.csv").write_text((root / "index.csv").read_text().replace(old, new))
    return root


MILLIMETRES = (SLOPE * 1000).astype(np.uint16)
CANNOT_BE = {
    "no value as 65535": (lambda root: folder(root, saturated()), "20.3% of the known pixels are 65535"),
    "no value as 65534": (lambda root: folder(root, saturated(65534)), "20.3% of the known pixels are 65534"),
    "no value as 32767": (lambda root: folder(root, saturated(32767)), "20.3% of the known pixels are 32767"),
    "the same in metres": (lambda root: folder(root, saturated() * np.float32(0.001)), "known pixels are 65535"),
    "the same of 1/256 m": (lambda root: folder(root, saturated() / np.float32(256)), "known pixels are 65535"),
    "a PNG by another name": (lambda root: renamed(folder(root, saturated()), "d0.png", "d0.dat"), "pixels are 65535"),
    "1000 times too small": (lambda root: folder(root, MILLIMETRES, scale=1e-6), "maps is 0.002499 m"),
    "centimetres as millimetres": (lambda root: folder(root, MILLIMETRES // 10), "maps is 0.2495 m"),
    "millimetres as metres": (lambda root: folder(root, SLOPE * 1000), "is 2500 m"),
    "1e30 m": (lambda root: folder(root, np.where(SLOPE > 3.9, 1e30, SLOPE).astype(np.float32)), "depth of 1e+30 m"),
}


@pytest.mark.parametrize("kind", CANNOT_BE)
def test_depth_that_cannot_be_is_refused_and_named_everywhere(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = CANNOT_BE[kind]
    root = make(tmp_path / "d")
    with pytest.raises(LangdepthError, match=r"if it is right, say so: --trust-unit, data\.trust_unit") as caught:
        open_dataset("folder", root)  # of evaluation and training
    assert words in str(caught.value)
    assert any(words in problem for problem in check_dataset("folder", root).problems)
    assert main(["evaluate", "--root", str(root), "--out", str(tmp_path / "r.json"), "--protocol", "full"]) != 0
    assert words in capsys.readouterr().err
    sample = open_dataset("folder", root, trust_unit=True)[0]
    assert sample.mask.all()


@pytest.mark.parametrize("bad", [saturated(), np.full((48, 64), 1e30, np.float32)])
def test_a_map_that_was_not_measured_before_is_refused_when_it_is_read(tmp_path: Path, bad: Any) -> None:
    good = (SLOPE * 1000).astype(np.uint16)
    maps = [good, bad, *[good] * 18]  # every fourth one is measured
    dataset = open_dataset("folder", folder(tmp_path / "d", *maps))
    for read in (dataset.__getitem__, dataset.stored):  # evaluation, training
        with pytest.raises(ImageError, match=r"d1\.\w+: .*--trust-unit"):
            read(1)
    assert dataset[0].mask.all()
    written = write_cache("folder", tmp_path / "d", tmp_path / "frames")
    assert [error.split(": ")[0].rsplit("/")[-1].split(".")[0] for error in written.errors] == ["d1"]
    problems = check_dataset("folder", tmp_path / "d").problems
    assert len([problem for problem in problems if "index.csv line 3: " in problem]) >= 1


def test_a_few_saturated_pixels_are_a_sensors_own(tmp_path: Path) -> None:
    stored = (SLOPE * 1000).astype(np.uint16)
    stored[0, :20] = 65535  # 0.65 %
    assert open_dataset("folder", folder(tmp_path / "d", stored))[0].mask.all()


def test_a_set_whose_depth_ends_where_16_bits_do_may_be_saturated(tmp_path: Path) -> None:
    """DIML: 65.535 m is the end of its range."""
    from langdepth.data.rows import Row
    from langdepth.data.truth import impossible_depth

    row = Row(key="a", path_rgb=Path("a.png"), path_depth=Path("d.png"), depth_scale=0.001)
    far = np.full((48, 64), 65.535, np.float32)
    assert impossible_depth(layout("diml-outdoor").CARD, row, far) is None
    assert "65535" in str(impossible_depth(layout("nyu").CARD, row, far))
    assert impossible_depth(layout("nyu").CARD, replace(row, depth_scale=1e308), np.zeros_like(far)) is None


def test_a_scale_beside_a_file_in_metres_is_reported(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", SLOPE)
    index = root / "index.csv"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset("folder", root)
    index.write_text(index.read_text().replace("d0.npy,1", "d0.npy,0.001"))
    with pytest.warns(UserWarning, match=r"d0\.npy: holds metres, depth_scale 0\.001 is not applied"):
        assert float(open_dataset("folder", root)[0].depth.max()) == 4
    assert any("is not applied" in problem for problem in check_dataset("folder", root).problems)


def test_an_image_is_not_its_own_ground_truth(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", MILLIMETRES, MILLIMETRES)
    index = root / "index.csv"
    index.write_text(index.read_text().replace("0.png,d0.png", "d0.png,./d0.png"))
    with pytest.raises(LangdepthError, match=r"index\.csv line 2: '.*d0\.png' is named as the image and as its depth"):
        open_dataset("folder", root)
    assert len(check_dataset("folder", root).problems) == 1
    (tmp_path / "list.txt").write_text("a.png a_depth.png\nb.png ./b.png\n")
    for read in (lambda file: read_list(file, 2), lambda file: listed_rows(file, layout("nyu").LISTS, root)):
        with pytest.raises(LangdepthError, match=r"list\.txt line 2: 'b\.png' is named as the image and as its depth"):
            read(tmp_path / "list.txt")


# Evidence in files


def test_a_pgm_with_numbers_beyond_its_largest_is_refused(tmp_path: Path) -> None:
    stored = np.full((48, 64), 5367, ">u2")
    (tmp_path / "d.pgm").write_bytes(b"P5 64 48 3000\n" + stored.tobytes())
    with pytest.raises(ImageError, match=r"d\.pgm: holds the number 5367, but its header states 3000"):
        read_depth(tmp_path / "d.pgm", 0.001)
    (tmp_path / "d.pgm").write_bytes(b"P5 64 48 5367\n" + stored.tobytes()[:-1])
    with pytest.raises(ImageError, match="damaged or truncated"):
        read_depth(tmp_path / "d.pgm", 0.001)


def test_a_tiff_of_several_pages_or_with_white_as_zero_is_refused(tmp_path: Path) -> None:
    page = Image.fromarray(MILLIMETRES)
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    with pytest.raises(ImageError, match=r"pages\.tif: holds several pages"):
        read_depth(tmp_path / "pages.tif", 0.001)
    page.save(tmp_path / "white.tif", tiffinfo={262: 0})
    with pytest.raises(ImageError, match=r"white\.tif: .*white is zero"):
        read_depth(tmp_path / "white.tif", 0.001)


@pytest.mark.parametrize("largest", [65535, 40000, 10000, 4095, 3000])
@pytest.mark.parametrize("plain", [False, True])
def test_the_largest_number_of_a_pgm_is_no_scale(tmp_path: Path, largest: int, plain: bool) -> None:
    stored = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 3000
    body = " ".join(map(str, stored.ravel())).encode() if plain else stored.astype(">u2").tobytes()
    (tmp_path / "d.pgm").write_bytes(b"P%d\n64 48\n%d\n" % (2 if plain else 5, largest) + body)
    assert np.array_equal(read_depth(tmp_path / "d.pgm", 1.0), stored)


def result(depth: np.ndarray[Any, Any], **facts: Any) -> DepthResult:
    empty: dict[str, Any] = dict.fromkeys(("camera", "scene_probs", "image", "std"))
    named = {"system": "x", "unit": "metre", "scale_kind": "metric", "provenance": {}}
    return DepthResult(depth=depth, valid=depth > 0, **{**named, **empty, **facts})


def test_our_own_png_keeps_its_scale_against_an_index(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "d", [{}])
    write_result(result(SLOPE * 30), root / "0_depth.png", format="depth16", scale=0.002)
    with pytest.raises(ImageError, match=r"0_depth\.png: states a depth scale of 0\.002 inside, but .* with 0\.001"):
        open_dataset("folder", root)[0]
    assert read_depth(root / "0_depth.png", 0.002).max() == pytest.approx(120, abs=0.002)


def test_the_nearest_depth_is_not_lost_and_the_farthest_point_is_a_point(tmp_path: Path) -> None:
    depth = SLOPE.copy()
    depth[0, 0], depth[0, 1] = 1e-4, 3e38
    camera = Camera.from_fov(140, 64, 48)
    write_result(result(depth[:, 2:]), tmp_path / "d_depth.png", format="depth16")
    near = result(np.where(depth > 1e3, 1, depth).astype(np.float32))
    write_result(near, tmp_path / "n_depth.png", format="depth16")
    assert read_depth(tmp_path / "n_depth.png", 0.001)[0, 0] == pytest.approx(0.001)
    write_result(result(depth, camera=camera), tmp_path / "p.ply")
    content = (tmp_path / "p.ply").read_bytes()
    header, body = content.split(b"end_header\n", 1)
    points = np.frombuffer(body, "<f4").reshape(-1, 6)  # with normals
    assert np.isfinite(points).all()
    assert b"element vertex %d\n" % len(points) in header
    assert len(points) == 48 * 64 - 1


# Cameras

WRONG = {
    "fx of no camera": ((1e300, 50.0, 31.5, 23.5), "focal lengths"),
    "fx in millimetres": ((4.2, 50.0, 31.5, 23.5), "fx is a field of view of 165 degrees"),
    "fy of a telescope": ((50.0, 9000.0, 31.5, 23.5), "fy is a field of view of 0.306 degrees"),
    "cx outside": ((50.0, 50.0, 900.0, 23.5), "the principal point lies outside the 64x48 image"),
    "swapped": ((31.5, 23.5, 525.0, 525.0), "the principal point lies outside"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_intrinsics_that_cannot_be_are_refused_in_every_way_in(tmp_path: Path, kind: str) -> None:
    numbers, words = WRONG[kind]
    text = ",".join(map(str, numbers))
    with pytest.raises(UsageError):
        Camera.from_intrinsics_text(text, 64, 48)
    root = write_folder(tmp_path / "d", [dict(zip(("fx", "fy", "cx", "cy"), numbers, strict=True))])
    assert any(words in problem for problem in check_dataset("folder", root).problems)
    with pytest.raises(LangdepthError, match=words):
        open_dataset("folder", root)[0]


def test_a_wrong_camera_costs_its_own_image_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cameras = [{"fx": 50, "fy": 50, "cx": cx, "cy": 20} for cx in (31.5, 900)]
    root = write_folder(tmp_path / "d", cameras)
    out = tmp_path / "r.json"
    assert (
        main(["evaluate", "--root", str(root), "--out", str(out), "--protocol", "full", "--training-focal", "50"]) == 0
    )
    captured = capsys.readouterr()
    assert "skipped: " in captured.err
    assert "1.png: intrinsics 50,50,900,20: the principal point lies outside" in captured.err
    assert "1 skipped" in captured.out


# Predictions


def warned(prediction: np.ndarray[Any, Any], kind: str = "metric", alignment: Any = "none") -> str:
    seen = Plausibility(kind, alignment)
    for factor in (1.0, 1.1, 1.3):
        seen.add((prediction * np.float32(factor)).ravel(), (SLOPE * np.float32(factor)).ravel())
    return " | ".join(seen.warnings())


def test_disparity_and_other_units_show_in_predictions() -> None:
    assert warned(SLOPE) == warned(2 * SLOPE) == warned(SLOPE / 10) == ""
    assert warned(np.ones_like(SLOPE)) == ""  # a constant goes neither way
    assert "rank correlation -1.00), as disparity does: --depth-kind disparity" in warned(1 / SLOPE)
    assert "as disparity does" in warned(1 / SLOPE, "relative", "least_squares")  # the fit would turn it round
    assert warned(1 / SLOPE, "disparity", "disparity") == ""
    assert "as no disparity does" in warned(SLOPE, "disparity", "disparity")
    assert "the median prediction is 1e+03 times the median true depth" in warned(1000 * SLOPE)
    assert "the median prediction is 0.01 times" in warned(SLOPE / 100)
    assert warned(1000 * SLOPE, "relative", "median") == ""


@pytest.mark.parametrize(
    ("change", "words"), [(lambda d: 1 / d, "disparity"), (lambda d: d * 1000, "times the median")]
)
def test_evaluation_warns_of_predictions_of_another_kind(tmp_path: Path, change: Any, words: str) -> None:
    from langdepth.evaluation import protocols
    from langdepth.evaluation.evaluate import evaluate
    from langdepth.evaluation.predictions import Predictions

    root = folder(tmp_path / "d", *[(SLOPE * 1000).astype(np.uint16)] * 2)
    for i in range(2):
        (tmp_path / "p").mkdir(exist_ok=True)
        np.save(tmp_path / "p" / f"{i}.npy", change(SLOPE))
    predictions = Predictions(tmp_path / "p", root)
    protocol = protocols.get("nyu-eigen")  # whose clamp to 10 m hides the factor
    with pytest.warns(UserWarning, match=words):
        evaluate(predictions, open_dataset("folder", root), protocol)
    np.save(tmp_path / "p" / "0.npy", SLOPE)
    np.save(tmp_path / "p" / "1.npy", SLOPE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "(?s).*by name alone")  # which holds for all maps of others
        evaluate(predictions, open_dataset("folder", root), protocol)


def test_predictions_as_bare_pngs_name_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "d", (SLOPE * 1000).astype(np.uint16))
    (tmp_path / "p").mkdir()
    Image.fromarray((SLOPE * 256).astype(np.uint16)).save(tmp_path / "p" / "0.png")
    command = ["evaluate", "--root", str(root), "--predictions", str(tmp_path / "p"), "--out", str(tmp_path / "r.json")]
    assert main(command) != 0
    assert "0.png: does not state its depth scale" in (captured := capsys.readouterr().err)
    assert "--prediction-scale 0.001" in captured
    assert main([*command, "--prediction-scale", "0.00390625"]) == 0
