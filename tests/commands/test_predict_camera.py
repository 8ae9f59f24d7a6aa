"""``langdepth predict`` with a camera: which one was used, files of them, and lenses."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from langdepth.camera import Camera
from tests.helpers import FakeSystem, Run, ramp, save_image

BARREL = {"fx": 50, "fy": 50, "cx": 31.5, "cy": 23.5, "width": 64, "height": 48, "D": [-0.3, 0.05, 0, 0]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Run) -> Run:
    """Run the command in an empty folder with the fake system; returns exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: FakeSystem())
    return partial(command, "predict")


def camera_file(**changes: object) -> str:
    Path("camera.json").write_text(json.dumps({**BARREL, **changes}))
    return "camera.json"


def facts(name: str) -> tuple[np.ndarray, dict[str, object]]:
    with np.load(name) as content:
        return content["depth"], json.loads(str(content["metadata"]))


def test_guessed_cameras_are_said_once_with_their_number(run: Run) -> None:
    for i in range(5):
        save_image(Path(f"p/{i}.png"), ramp(seed=i))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    save_image(Path("p/6.jpg"), ramp(), exif=exif)
    code, _, err = run("p", "--save", "ply,npz")
    assert code == 0
    (line,) = err.splitlines()
    assert "camera: by EXIF for 1 image; unknown, taken as 60 degrees across the longer side, for 5 images;" in line
    with np.load("depth/0.npz") as content:
        assert "intrinsics" not in content  # a guess is no measurement
        assert json.loads(str(content["metadata"]))["camera"]["source"] == "guess"
    assert run("p", "--save", "npy")[2] == ""  # which holds no camera


def test_the_camera_is_said_where_it_decides_about_metres(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written; a guess is the camera that the system means."""
    system = FakeSystem()
    system.input_spec = replace(system.input_spec, focal=0.9)
    monkeypatch.setattr("langdepth.runtimes.opening.load", lambda name, **options: system)
    save_image(Path("p/a.png"), ramp(64, 48))
    save_image(Path("p/b.png"), ramp(64, 36))
    code, _, err = run("p", "--save", "depth16,npz")
    assert code == 0
    assert err == (
        "langdepth predict: camera: unknown, taken as 65 to 73 degrees across the longer side, for 2 images; give "
        "--camera, --intrinsics or --fov for metres and the shape of things as they are\n"
    )
    camera = facts("depth/a.npz")[1]["camera"]
    assert isinstance(camera, dict)
    assert camera["fx"] == pytest.approx(0.9 * 64 * 0.75**0.5)
    code, out, err = run("p", "--save", "depth16", "--fov", "60")
    assert (code, err) == (0, "")
    assert "camera: as given for 2 images\n" in out


def test_a_stated_camera_is_not_guessed(run: Run) -> None:
    save_image(Path("a.png"), ramp())
    for camera in (("--fov", 60), ("--intrinsics", "60,60,31.5,23.5")):
        code, out, err = run("a.png", "--save", "ply", *camera)
        assert (code, err) == (0, "")
        assert "camera: as given for 1 image\n" in out
    header = Path("depth/a.ply").read_bytes()[:400]
    assert b"camera from user" in header
    assert b"element vertex 3072" in header


def test_a_file_scales_with_the_image_and_costs_only_those_that_do_not_fit(run: Run) -> None:
    for name, size in {"a": (64, 48), "b": (128, 96), "odd": (96, 96)}.items():
        save_image(Path(f"p/{name}.png"), ramp(*size))
    code, out, err = run("p", "--camera", camera_file(D=[]), "--save", "npz")
    assert code == 1
    assert "p/odd.png: camera.json: the camera is for 64x48 pixels, the image is 96x96" in err
    assert "camera: that of camera.json for 2 images\n" in out
    assert "2 done, 1 failed" in out
    for name, focal in (("a", 50), ("b", 100)):
        with np.load(f"depth/{name}.npz") as content:
            assert content["intrinsics"][0, 0] == focal
            assert json.loads(str(content["metadata"]))["camera"]["source"] == "file"


def test_the_map_is_of_the_straightened_image_or_of_the_one_as_it_is(run: Run) -> None:
    save_image(Path("a.png"), ramp())
    assert run("a.png", "--save", "npz", "--sky", "keep", "--out", "plain")[0] == 0
    code, out, err = run("a.png", "--camera", camera_file(), "--save", "npz,ply", "--sky", "keep", "--out", "straight")
    assert (code, err) == (0, "")
    assert "maps are of the straightened images, with --keep-distortion of the images as they are" in out
    code, out, _ = run(
        "a.png", "--camera", camera_file(), "--save", "npz,ply", "--sky", "keep", "--keep-distortion", "--out", "kept"
    )
    assert code == 0
    assert "straightened" not in out
    plain, _ = facts("plain/a.npz")
    straight, stated = facts("straight/a.npz")
    kept, stated_kept = facts("kept/a.npz")
    middle = np.s_[8:40, 4:60]
    # The fake system's depth follows the brightness of its pixel, which stays where it was in the kept map alone.
    assert np.abs(kept - plain)[middle].max() < 0.1 < 0.15 < np.abs(straight - plain)[middle].max()
    assert (kept > 0).all()
    assert stated["camera"]["lens"] is None
    assert stated_kept["camera"]["lens"]["coefficients"] == BARREL["D"]
    assert stated_kept["provenance"]["keep_distortion"] is True


def test_pixels_that_the_lens_does_not_show_have_no_value(run: Run) -> None:
    save_image(Path("a.png"), ramp())
    assert run("a.png", "--camera", camera_file(D=[0.4, 0, 0, 0]), "--save", "npz")[0] == 0
    depth, _ = facts("depth/a.npz")
    assert depth[0, 0] == 0  # pincushion: the corner of the straightened image lies outside of the other
    assert (depth[10:38, 14:50] > 0).all()


def test_results_depend_on_the_content_of_the_file(run: Run) -> None:
    save_image(Path("a.png"), ramp())
    line = ("a.png", "--camera", camera_file(), "--save", "npz", "--resume")
    assert run(*line)[0] == 0
    assert "1 of 1 images were already done" in run(*line)[1]
    camera_file(fx=60)
    assert "already done" not in run(*line)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--camera", "missing.yaml"], "missing.yaml: no such file; give camera_info of ROS"),
        (["--camera", "a.png"], "a.png: cannot be read (it is not UTF-8 text)"),
        (["--camera", "camera.json", "--fov", "60"], "--camera and --fov both describe the camera"),
        (["--camera", "flat.json"], "--camera is for npz, normals, "),
        (["--keep-distortion"], "--keep-distortion is for a camera whose lens bends the image"),
    ],
)
def test_wrong_use(run: Run, arguments: list[str], message: str) -> None:
    save_image(Path("a.png"), ramp())
    camera_file()
    Path("flat.json").write_text(json.dumps({**BARREL, "D": []}))
    code, _, err = run("a.png", *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not Path("depth").exists()


def test_python_takes_the_file(run: Run) -> None:
    from langdepth.prediction.predictor import predict_images

    camera = Camera.from_file(camera_file())
    result = predict_images(FakeSystem(), ramp(), camera=camera, keep_distortion=True)
    assert result.camera == camera
    flat = predict_images(FakeSystem(), ramp(), camera=camera)
    assert flat.camera is not None
    assert (flat.camera.lens, flat.camera.source) == (None, "file")
    assert flat.image is not None
    assert (flat.image != ramp()).any()
    np.testing.assert_array_equal(result.image, ramp())


def test_files_in_space_are_written_and_are_no_photos(run: Run) -> None:
    save_image(Path("p/a.png"), ramp())
    line = ("p", "--save", "depth16,normals,ply,glb,pfm", "--fov", "60", "--out", "p")
    for _ in range(2):  # a second run replaces its own files, and takes none of them for a photo
        code, out, _ = run(*line)
        assert (code, "p/a.png -> p/a_depth.png, p/a_normals.png, p/a.ply, p/a.glb, p/a.pfm" in out) == (0, True)
    Path("p/a.glb").write_bytes(b"glTF of somebody else")
    Path("p/.langdepth-results.jsonl").unlink()
    code, _, err = run(*line)
    assert code == 1
    assert "a.glb exists and was not written by langdepth" in err or "a.pfm exists" in err


def test_the_unit_of_depth16_is_one_for_all_and_clipping_is_counted(run: Run) -> None:
    for name, brightness in (("near", 0), ("far", 255)):  # 1 and 10 m
        save_image(Path(f"p/{name}.png"), np.full((48, 64, 3), brightness, np.uint8))
    code, _, err = run("p", "--save", "depth16", "--depth-unit", "0.0001")
    assert code == 0
    assert "far_depth.png: depth beyond 6.5535 metres does not fit 16 bits at 0.0001 per unit and is stored" in err
    assert "depth16: 3072 pixels of 1 image lie beyond its reach" in err
    for name, stored in (("near", 10000), ("far", 65535)):
        with Image.open(f"depth/{name}_depth.png") as image:
            assert (np.asarray(image) == stored).all()
            assert json.loads(image.info["langdepth"])["scale"] == 0.0001
    for arguments, message in ((("--depth-unit", "0"), "between 0.000001 and 1"), (("--save", "npy"), "is of depth16")):
        code, _, err = (
            run("p", "--depth-unit", "0.004", *arguments) if arguments[0] == "--save" else run("p", *arguments)
        )
        assert (code, message in err) == (2, True)
