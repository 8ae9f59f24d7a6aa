"""Calibration files: each kind gives its numbers, each wrong one a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langdepth.camera import Camera, CameraFile
from langdepth.errors import FileWarning, UsageError
from langdepth.utils.camera_files import MAX_BYTES, Calibration, read_calibrations

ROS = """
image_width: 640
image_height: 480
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [500, 0., 320.5, 0, 510., 240, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.3, 0.1, 0.001, -2e-4, 0.0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [450, 0, 321, 0, 0, 451, 241, 0, 0, 0, 1, 0]}
"""
TOPIC = """
header:
  seq: 1
  stamp: {secs: 1, nsecs: 5}
  frame_id: "front"
height: 480
width: 640
distortion_model: "plumb_bob"
D: [-0.3, 0.1, 0.001, -0.0002, 0.0]
K: [500.0, 0.0, 320.5, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0]
R: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
P: [450.0, 0.0, 321.0, 0.0, 0.0, 451.0, 241.0, 0.0, 0.0, 0.0, 1.0, 0.0]
binning_x: 0
roi: {x_offset: 0, y_offset: 0, height: 0, width: 0, do_rectify: False}
---
"""
OPENCV = """%YAML:1.0
---
calibration_time: "Tue Mar  3 14:00:00 2026"
image_width: 640
image_height: 480
flags: 0
camera_matrix: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 5.0e+02, 0., 3.205e+02, 0., 510., 240., 0., 0., 1. ]
distortion_coefficients: !!opencv-matrix
   rows: 5
   cols: 1
   dt: d
   data: [ -3.0000000000000000e-01, .1, 1.e-03, -2.e-04, 0. ]
avg_reprojection_error: 2.5e-01
"""
COLMAP = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 1
1 OPENCV 640 480 500 510 321 240.5 -0.3 0.1 0.001 -0.0002
"""
KITTI = """calib_time: 09-Jan-2012 13:57:47
S_02: 1.392000e+03 5.120000e+02
K_02: 9.597910e+02 0.000000e+00 6.960217e+02 0.000000e+00 9.569251e+02 2.241806e+02 0.000000e+00 0.000000e+00 1.0
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_02: 7.215377e+02 0.0e+00 6.095593e+02 4.485728e+01 0.0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.7e-03
P_rect_03: 1 0 1 1 0 1 1 1 0 0 1 1
"""
MATRIX = [[500.0, 0.0, 320.5], [0.0, 510.0, 240.0], [0.0, 0.0, 1.0]]
BENT = (-0.3, 0.1, 0.001, -2e-4)


def read(folder: Path, name: str, text: str) -> Calibration:
    (folder / name).write_text(text, encoding="utf-8")
    (found,) = read_calibrations(folder / name)
    return found


@pytest.mark.parametrize(("name", "text"), [("a.yaml", ROS), ("b.yml", TOPIC), ("c.yaml", TOPIC.replace("D:", "d:"))])
def test_camera_info_of_ros(name: str, text: str, tmp_path: Path) -> None:
    found = read(tmp_path, name, text)
    assert found[:6] == (500, 510, 320.5, 240, 640, 480)
    assert found.lens is not None
    assert (found.lens.model, found.lens.coefficients) == ("polynomial", (*BENT, 0))
    assert found.lens.straight == (450, 451, 321, 241)


def test_fisheye_of_ros_and_one_that_was_never_calibrated(tmp_path: Path) -> None:
    text = ROS.replace("plumb_bob", "equidistant").replace(
        "cols: 5, data: [-0.3, 0.1, 0.001, -2e-4, 0.0]", "cols: 4, data: [.1, .2, .3, .4]"
    )
    lens = read(tmp_path, "a.yaml", text).lens
    assert lens is not None
    assert (lens.model, lens.coefficients) == ("equidistant", (0.1, 0.2, 0.3, 0.4))
    with pytest.raises(UsageError, match="not calibrated"):
        read(
            tmp_path,
            "b.yaml",
            TOPIC.replace("500.0, 0.0, 320.5, 0.0, 510.0, 240.0, 0.0, 0.0, 1.0", "0, 0, 0, 0, 0, 0, 0, 0, 0"),
        )


def test_opencv_yaml_and_json(tmp_path: Path) -> None:
    found = read(tmp_path, "a.yaml", OPENCV)
    assert found[:6] == (500, 510, 320.5, 240, 640, 480)
    assert found.lens is not None
    assert found.lens.coefficients == (*BENT, 0)
    matrix = {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d", "data": [x for row in MATRIX for x in row]}
    content = {"camera_matrix": matrix, "dist_coeffs": [list(BENT)], "image_width": 640, "image_height": 480}
    assert read(tmp_path, "a.json", json.dumps(content))[:6] == found[:6]
    stereo = {"K": MATRIX, "D": list(BENT), "R": MATRIX, "P": MATRIX}  # whose R says where another camera stands
    lens = read(tmp_path, "b.json", json.dumps(stereo)).lens
    assert lens is not None
    assert lens.rotation == lens.straight == ()
    lens = read(tmp_path, "c.json", json.dumps({**stereo, "fisheye_model": 1})).lens
    assert lens is not None
    assert lens.model == "equidistant"


def test_files_that_opencv_itself_writes(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    for name in ("a.yaml", "a.json"):
        file = cv2.FileStorage(str(tmp_path / name), cv2.FILE_STORAGE_WRITE)
        file.write("image_width", 640)
        file.write("image_height", 480)
        file.write("camera_matrix", np.array(MATRIX))
        file.write("distortion_coefficients", np.array([BENT]))
        file.release()
        (found,) = read_calibrations(tmp_path / name)
        assert found[:6] == (500, 510, 320.5, 240, 640, 480)
        assert found.lens is not None
        assert found.lens.coefficients == pytest.approx(BENT)


@pytest.mark.parametrize(
    ("line", "focal", "model", "coefficients"),
    [
        ("SIMPLE_PINHOLE 640 480 500 321 240.5", (500, 500), None, ()),
        ("PINHOLE 640 480 500 510 321 240.5", (500, 510), None, ()),
        ("SIMPLE_RADIAL 640 480 500 321 240.5 -0.1", (500, 500), "polynomial", (-0.1,)),
        ("RADIAL 640 480 500 321 240.5 -0.1 0.02", (500, 500), "polynomial", (-0.1, 0.02)),
        ("OPENCV 640 480 500 510 321 240.5 -0.1 0.2 0.3 0.4", (500, 510), "polynomial", (-0.1, 0.2, 0.3, 0.4)),
        ("FULL_OPENCV 640 480 5 5 3 3 1 2 3 4 5 6 7 8", (5, 5), "polynomial", (1, 2, 3, 4, 5, 6, 7, 8)),
        ("OPENCV_FISHEYE 640 480 500 510 321 240.5 .1 .2 .3 .4", (500, 510), "equidistant", (0.1, 0.2, 0.3, 0.4)),
        ("SIMPLE_RADIAL_FISHEYE 640 480 500 321 240.5 .1", (500, 500), "equidistant", (0.1,)),
        ("RADIAL_FISHEYE 640 480 500 321 240.5 .1 .2", (500, 500), "equidistant", (0.1, 0.2)),
    ],
)
def test_models_of_colmap(
    line: str, focal: tuple[float, float], model: str | None, coefficients: tuple[float, ...], tmp_path: Path
) -> None:
    found = read(tmp_path, "cameras.txt", f"# cameras\n1 {line}\n")
    assert (found.fx, found.fy) == focal
    assert (found.width, found.height) == (640, 480)
    if "321" in line:  # COLMAP counts from the corner of the first pixel, we from its centre
        assert (found.cx, found.cy) == (320.5, 240)
    assert (found.lens.model if found.lens else None) == model
    assert (found.lens.coefficients if found.lens else ()) == coefficients


def test_of_several_cameras_the_size_decides(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    path.write_text("1 PINHOLE 640 480 500 500 320 240\n2 PINHOLE 64 36 50 50 32 18\n3 PINHOLE 32 24 9 9 16 12\n")
    assert Camera.from_file(path, 64, 36).fx == 50
    assert Camera.from_file(path, 32, 24).fx == 9
    with pytest.raises(UsageError, match="has 2 cameras for 320x240 pixels"):
        Camera.from_file(path, 320, 240)
    with pytest.raises(UsageError, match=r"the camera is for .* the image is 100x400"):
        Camera.from_file(path, 100, 400)
    with pytest.raises(UsageError, match="several cameras; give width and height"):
        Camera.from_file(path)


def test_kitti(tmp_path: Path) -> None:
    found = read(tmp_path, "calib_cam_to_cam.txt", KITTI)
    assert found[:6] == (721.5377, 721.5377, 609.5593, 172.854, 1242, 375)
    projection = KITTI.splitlines()[4].removeprefix("P_rect_02:")
    found = read(tmp_path, "000001.txt", f"P0: {projection}\nP2:{projection}\nR0_rect: 1 0 0 0 1 0 0 0 1\n")
    assert found[:6] == (721.5377, 721.5377, 609.5593, 172.854, None, None)
    found = read(tmp_path, "both.txt", f"S_rect_02: 1242 375\nP2:{projection}\n")
    assert found[:6] == (721.5377, 721.5377, 609.5593, 172.854, 1242, 375)  # the same camera's size


def test_bare_matrices(tmp_path: Path) -> None:
    expected = (500, 510, 320.5, 240, None, None, None)
    np.savetxt(tmp_path / "k.txt", MATRIX)
    np.savetxt(tmp_path / "k.csv", MATRIX, delimiter=",")
    np.save(tmp_path / "k.npy", np.array(MATRIX, np.float32))
    np.savetxt(tmp_path / "four.txt", np.vstack([np.hstack([MATRIX, np.zeros((3, 1))]), [0, 0, 0, 1]]))
    (tmp_path / "k.json").write_text(json.dumps(MATRIX))
    for name in ("k.txt", "k.csv", "k.npy", "four.txt", "k.json"):
        assert read_calibrations(tmp_path / name) == (expected,)


def test_the_stated_size_scales_and_refuses(tmp_path: Path) -> None:
    path = tmp_path / "ros.yaml"
    path.write_text(ROS)
    own, small = Camera.from_file(path), Camera.from_file(path, 320, 240)
    assert own.source == small.source == "file"
    assert small == own.scaled(320, 240)
    assert small.fx == 250
    with pytest.raises(UsageError, match=r"ros.yaml: the camera is for 640x480 pixels, the image is 640x360"):
        Camera.from_file(path, 640, 360)


def test_a_matrix_of_another_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "k.txt"
    np.savetxt(path, MATRIX)
    with pytest.raises(UsageError, match="states no size"):
        Camera.from_file(path)
    with pytest.warns(FileWarning, match=r"principal point \(320.5, 240\) is far from the middle of a 1280x960 image"):
        assert Camera.from_file(path, 1280, 960).fx == 500
    with pytest.raises(UsageError, match="lies outside the 320x240 image"):
        Camera.from_file(path, 320, 240)
    with pytest.warns(FileWarning, match="--intrinsics: states no image size"):
        Camera.from_intrinsics_text("500,500,320,240", 1280, 960)


def flawed(**changes: Any) -> str:
    return json.dumps({"camera_matrix": MATRIX, "image_width": 640, "image_height": 480, **changes})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "", "is empty"),
        ("a.yaml", ROS + "camera_name: twice\n", "stands twice"),
        ("a.yaml", "camera_matrix: !!python/object:os.system {}\n", "not valid YAML in line 1"),
        ("a.yaml", "camera_matrix: [1, 2\n", "not valid YAML"),
        ("a.yaml", ROS.replace("plumb_bob", "plumb_bop"), "did you mean 'plumb_bob'"),
        ("a.yaml", ROS.replace("cols: 5", "cols: 4"), "of 1x4 has 5 numbers"),
        ("a.yaml", ROS.replace("[-0.3,", "[.nan,"), "no finite number"),
        ("a.yaml", TOPIC.replace("x_offset: 0", "x_offset: 8"), "region of interest"),
        ("a.yaml", "hello\n", "holds no calibration that is known; give camera_info of ROS"),
        ("a.yaml", "width: 640\nheight: 480\n", "states no camera matrix"),
        ("a.yaml", ROS.replace("[1, 0, 0, 0, 1, 0, 0, 0, 1]", "[2, 0, 0, 0, 1, 0, 0, 0, 1]"), "is no rotation"),
        ("a.json", "{", "is no valid JSON in line 1"),
        ("a.json", '{"K": 1, "K": 2}', "names a key twice"),
        ("a.json", "[" * 100_000, "is no valid JSON"),
        ("a.json", "3", "holds no calibration"),
        ("a.json", flawed(camera_matrix=np.transpose(MATRIX).tolist()), "seems to be transposed"),
        ("a.json", flawed(camera_matrix=[[1, 2], [3, 4]]), "is a 3x3 matrix"),
        ("a.json", flawed(camera_matrix="500"), "no list of numbers"),
        ("a.json", flawed(camera_matrix=[["a", 0, 1], [0, 1, 1], [0, 0, 1]]), "'a', which is no finite number"),
        ("a.json", flawed(camera_matrix=[[-500, 0, 1], [0, 1, 1], [0, 0, 1]]), "focal lengths must be positive"),
        ("a.yaml", ROS.replace("rows: 1, cols: 5", "rows: 9000000000, cols: 0"), "of 9000000000x0 has 5 numbers"),
        ("a.yaml", TOPIC + "\n---" * 200_000 + "x", "800,"),
        ("a.yaml", TOPIC + "\n---" * 20_000 + "x", "a second document"),
        ("a.yaml", "a: [" + "1, " * 40_000 + "1]\n", "characters of YAML, far more than a camera"),
        ("a.json", flawed(image_width=0), "is no size"),
        ("a.json", flawed(image_width=None), "one side of the image alone"),
        ("a.json", flawed(D=[0.1] * 14), "tilted sensor"),
        ("a.xml", "<?xml version='1.0'?><opencv_storage/>", "is XML, which is not read"),
        ("a.txt", "1 2 3\n4 5 6\n", "holds rows of 3, 3 numbers"),
        ("a.txt", "500 7 320\n0 500 240\n0 0 1\n", "which is not fx 0 cx"),
        ("a.txt", "one two three\n", "holds no calibration that is known"),
        ("a.txt", "500_0 0 320\n0 500 240\n0 0 1\n", "holds no calibration that is known"),
        ("cameras.txt", "1 FOV 640 480 500 500 320 240 0.9\n", "model 'FOV', which is not read"),
        ("cameras.txt", "1 PINHOLE 640 480 500 500 320\n", "3 parameters for PINHOLE, which has 4"),
        ("cameras.txt", "1 PINHOLE 0 480 500 500 320 240\n", "image of 0x480, which is no size"),
        ("calib.txt", "P_rect_02: 5 0 3 0 0 5 2 0 0 0 1 0\nS_rect_02: -5 1e300\n", "which is no size"),
        ("cameras.txt", "1 PINHOLE 640 480 500 500 320 x\n", "which is no camera of COLMAP"),
        ("calib.txt", "P1: 1 2 3\n", "neither P_rect_02 nor P2"),
        ("calib.txt", "P2: 1 2 3\n", "P2 has 3 numbers; a projection has 12"),
        ("calib.txt", "P2: a b c\n", "what is no number"),
        ("k.npy", "not an array", "header is damaged"),
        ("a.txt", " " * (MAX_BYTES + 1), "has more than 1 MB"),
        ("a.txt", "\udcff", "not UTF-8"),
    ],
)
def test_a_wrong_file_is_one_line(name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError) as caught:
        CameraFile(tmp_path / name)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_arrays_that_are_no_camera(tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.zeros((1000, 1000)))
    np.save(tmp_path / "words.npy", np.array([["a"] * 3] * 3))
    np.save(tmp_path / "nan.npy", np.full((3, 3), np.nan))
    np.save(tmp_path / "short.npy", np.array(MATRIX))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-40])
    for name, words in (
        ("short", "ends before its last number"),
        ("large", "shape (1000, 1000)"),
        ("words", "type <U1"),
        ("nan", "no finite number"),
    ):
        with pytest.raises(UsageError, match=r"\.npy: ") as caught:
            read_calibrations(tmp_path / f"{name}.npy")
        assert words in str(caught.value)
    with pytest.raises(UsageError, match="no such file; give camera_info of ROS"):
        read_calibrations(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match="is a folder"):
        read_calibrations(tmp_path)


def test_rows_of_nothing_take_no_time(tmp_path: Path) -> None:
    """A matrix of a milliard rows without numbers."""
    text = ROS.replace("rows: 1, cols: 5, data: [-0.3, 0.1, 0.001, -2e-4, 0.0]", "rows: 2000000000, cols: 0, data: []")
    lens = read(tmp_path, "a.yaml", text).lens
    assert lens is not None
    assert lens.coefficients == ()


@pytest.mark.parametrize(
    "change",
    [
        ("-0.3, 0.1", "-1000, 0.1"),
        ("0.001, -2e-4", "1e30, 1e30"),
        ("[1, 0, 0, 0, 1, 0, 0, 0, 1]", "[-1, 0, 0, 0, 1, 0, 0, 0, -1]"),
        ("[450,", "[1e-9,"),
    ],
)
def test_a_lens_that_leaves_nothing_of_the_image_is_refused(change: tuple[str, str], tmp_path: Path) -> None:
    assert ROS.count(change[0]) == 1
    (tmp_path / "a.yaml").write_text(ROS.replace(*change))
    with pytest.raises(UsageError, match=r"a\.yaml: lens: the straightened image would show something at 0"):
        CameraFile(tmp_path / "a.yaml")(640, 480)


def test_of_many_cameras_only_the_one_of_the_image_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Camera] = []
    monkeypatch.setattr(Camera, "require_view", lambda camera: looks.append(camera))
    others = "".join(f"{i} OPENCV {i + 700} 480 500 500 300 200 0.1 0.1 0 0\n" for i in range(50))
    (tmp_path / "cameras.txt").write_text(COLMAP + others)
    assert CameraFile(tmp_path / "cameras.txt")(640, 480).fx == 500
    assert [camera.width for camera in looks] == [640]
