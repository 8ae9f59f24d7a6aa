"""Normals, meshes and files of other programs, read back by independent readers."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from langdepth.camera import Camera
from langdepth.errors import UsageError
from langdepth.lenses import Lens
from langdepth.prediction.meshes import Space, mesh_of
from langdepth.prediction.results import DepthResult, is_own_result, write_result

CAMERA = Camera.from_fov(60, 64, 48)
NORMAL = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])


def slanted(camera: Camera = CAMERA, distance: float = 2.0) -> npt.NDArray[np.float32]:
    """The depth of a plane with this normal."""
    rays = camera.unproject(np.ones((48, 64)))
    depth: npt.NDArray[np.float32] = (-distance / (rays @ NORMAL)).astype(np.float32)
    return depth


def steps() -> npt.NDArray[np.float32]:
    """A wall at 3 m, and in front of it one at 1 m over the right half; a hole of 4x4 pixels in the corner."""
    depth = np.full((48, 64), 3, np.float32)
    depth[:, 32:] = 1
    depth[:4, :4] = 0
    return depth


def result(depth: npt.NDArray[np.float32], **changes: Any) -> DepthResult:
    image = np.zeros((*depth.shape, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 200, 200
    fields = {"depth": depth, "valid": depth > 0, "system": "fake", "camera": CAMERA, "image": image}
    return DepthResult(**{**fields, **changes})


def space(depth: npt.NDArray[np.float32], camera: Camera = CAMERA) -> Space:
    return Space(depth=depth, camera=camera, image=None, facts="")


@pytest.mark.parametrize("lens", [None, Lens(coefficients=(-0.2, 0.05))])
def test_normals_of_a_plane(lens: Lens | None) -> None:
    camera = Camera(fx=55, fy=55, cx=31.5, cy=23.5, width=64, height=48, lens=lens)
    normals = space(slanted(camera), camera).normals
    np.testing.assert_allclose(normals, np.broadcast_to(NORMAL, normals.shape), atol=2e-3)


def test_normals_beside_an_edge_are_those_of_the_surface() -> None:
    normals = space(steps()).normals
    np.testing.assert_array_equal(normals[:3, :3], 0)
    assert not np.isnan(normals).any()
    front = normals @ np.array([0, 0, -1], np.float32)
    assert (front[6:, :31] > 0.99).all()
    assert (front[6:, 33:] > 0.99).all()


@pytest.mark.parametrize("shape", [(2000, 24), (24, 2000), (300, 2), (300, 1)])
def test_normals_of_a_strip(shape: tuple[int, int]) -> None:
    """Narrower than what normals are taken over elsewhere."""
    depth = np.full(shape, 2.0, np.float32)
    normals = space(depth, Camera.from_fov(60, shape[1], shape[0])).normals
    assert normals.shape == (*shape, 3)
    if min(shape) > 1:
        np.testing.assert_allclose(normals, np.broadcast_to(np.float32((0, 0, -1)), normals.shape), atol=1e-3)


def test_normals_as_colors(tmp_path: Path) -> None:
    path = write_result(result(slanted()), tmp_path / "a_normals.png")
    pixels = np.asarray(Image.open(path)).astype(float)
    expected = (NORMAL * (1, -1, -1) + 1) * 127.5  # x right, y up, z towards the camera
    np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1.5)
    holes = np.asarray(Image.open(write_result(result(steps()), tmp_path / "b_normals.png")))
    assert (holes[:3, :3] == 0).all()


def test_ply_has_normals_for_other_readers(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    cloud = trimesh.load(write_result(result(slanted()), tmp_path / "a.ply"))
    np.testing.assert_allclose(cloud.vertices, CAMERA.unproject(slanted()).reshape(-1, 3), rtol=1e-6)
    body = (tmp_path / "a.ply").read_bytes().split(b"end_header\n")[1]
    normals = np.frombuffer(body, "<f4,<f4,<f4,<f4,<f4,<f4,u1,u1,u1")
    np.testing.assert_allclose(normals[0].tolist()[3:6], NORMAL, atol=3e-3)


def test_glb_is_the_scene_with_its_texture(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    (mesh,) = trimesh.load(write_result(result(slanted()), tmp_path / "a.glb")).geometry.values()
    expected = CAMERA.unproject(slanted()).reshape(-1, 3) * (1, -1, -1)  # y up, the camera looks along -z
    np.testing.assert_allclose(mesh.vertices, expected, atol=1e-6)
    assert len(mesh.faces) == 2 * 47 * 63
    np.testing.assert_allclose(mesh.face_normals, np.broadcast_to(NORMAL * (1, -1, -1), mesh.faces.shape), atol=2e-3)
    texture = np.asarray(mesh.visual.material.baseColorTexture)
    assert texture.shape == (48, 64, 3)
    u, v = mesh.visual.uv[:, 0], 1 - mesh.visual.uv[:, 1]  # trimesh has v upwards
    pixels = texture[(v * 48).astype(int), (u * 64).astype(int)]
    assert (pixels[expected[:, 0] < -0.2][:, 0] > 150).all()  # red on the left
    assert (pixels[expected[:, 0] > 0.2][:, 2] > 150).all()
    content = (tmp_path / "a.glb").read_bytes()
    size = struct.unpack("<4sIII4s", content[:20])
    assert size[:3] == (b"glTF", 2, len(content))
    header = json.loads(content[20 : 20 + size[3]])
    assert header["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    plain = trimesh.load(write_result(result(slanted(), image=None), tmp_path / "plain.glb"))
    assert len(plain.geometry) == 1


def test_a_mesh_is_torn_at_edges_and_holes() -> None:
    points, triangles, places = mesh_of(space(steps()))
    depths = points[triangles][..., 2]
    assert (depths.max(1) == depths.min(1)).all()  # none from the wall to what stands before it
    assert set(np.unique(depths)) == {1, 3}
    assert len(points) == len(places) == 48 * 64 - 16
    floor = space(slanted())
    assert len(mesh_of(floor)[1]) == 2 * 47 * 63  # a steep plane is no edge


def test_a_large_mesh_has_every_second_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langdepth.prediction.meshes._MOST_VERTICES", 48 * 64 - 1)
    points, _, places = mesh_of(space(slanted()))
    assert len(points) == 24 * 32
    np.testing.assert_allclose(points, CAMERA.unproject(slanted())[::2, ::2].reshape(-1, 3))
    np.testing.assert_allclose(places[1], (2.5 / 64, 0.5 / 48))


def test_pfm_and_exr_hold_every_number(tmp_path: Path) -> None:
    depth = steps() + np.linspace(0, 0.1, 48, dtype=np.float32)[:, None]
    depth[0, 0] = np.nan
    expected = np.nan_to_num(depth)
    content = write_result(result(depth), tmp_path / "a.pfm").read_bytes()
    header, body = content[:14], content[14:]
    assert header == b"Pf\n64 48\n-1.0\n"
    np.testing.assert_array_equal(np.frombuffer(body, "<f4").reshape(48, 64)[::-1], expected)
    cv2 = pytest.importorskip("cv2")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.pfm"), cv2.IMREAD_UNCHANGED), expected)
    package = pytest.importorskip("OpenEXR")
    path = write_result(result(depth), tmp_path / "a.exr")
    with package.File(str(path)) as file:
        np.testing.assert_array_equal(file.channels()["Z"].pixels, expected)
        assert file.header()["langdepthDepth"] == "fake depth, metric, unit metre"


def test_rrd_is_a_recording_of_rerun(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    chunk = pytest.importorskip("rerun.chunk")
    reader = chunk.RrdReader(str(write_result(result(slanted()), tmp_path / "a.rrd")))
    found = {part.entity_path: part.to_record_batch().to_pydict() for part in reader.stream()}
    stored = np.array(found["/camera/depth"]["DepthImage:buffer"][0][0], np.uint8).view("<f4").reshape(48, 64)
    np.testing.assert_array_equal(stored, slanted())
    assert found["/camera/depth"]["DepthImage:meter"] == [[1.0]]
    matrix = np.reshape(found["/camera"]["Pinhole:image_from_camera"][0][0], (3, 3)).T
    np.testing.assert_allclose(matrix[:2, 2], (32, 24))  # from the corner of the first pixel
    camera = Camera(fx=55, fy=55, cx=31.5, cy=23.5, width=64, height=48, lens=Lens(coefficients=(-0.2,)))
    with pytest.raises(UsageError, match="rrd holds pinhole cameras"):
        write_result(result(slanted(), camera=camera), tmp_path / "b.rrd")


@pytest.mark.parametrize("name", ["a.ply", "a.glb", "a.rrd", "a_normals.png"])
def test_what_needs_a_camera_and_depth(name: str, tmp_path: Path) -> None:
    for fields, words in (
        ({"camera": None}, "needs a camera"),
        ({"scale_kind": "disparity"}, "gives disparity"),
        ({"image": np.zeros((5, 5, 3), np.uint8)}, "differ in size"),
    ):
        with pytest.raises(UsageError, match=words):
            write_result(result(slanted(), **fields), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_mesh_of_nothing_is_an_empty_scene(tmp_path: Path) -> None:
    trimesh = pytest.importorskip("trimesh")
    path = write_result(result(np.zeros((48, 64), np.float32)), tmp_path / "a.glb")
    assert is_own_result(path)
    assert not trimesh.load_scene(path).geometry


@pytest.mark.parametrize(("name", "module", "extra"), [("a.rrd", "rerun", "rerun"), ("a.exr", "OpenEXR", "exr")])
def test_a_missing_package_is_one_line(
    name: str, module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"need a package: pip install 'langdepth\[{extra}\]'"):
        write_result(result(slanted()), tmp_path / name)
